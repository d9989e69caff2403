//! The UDP side: what has come is taken and answered many at a time.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use super::datagram::MAX_DATAGRAM;
use super::service::{Scratch, Service};
use super::workers::End;
use crate::sys::datagrams::Batch;

/// Answers until the end. The socket tells the address to which each datagram came.
pub(super) fn serve(socket: &UdpSocket, end: &End, service: &Service) {
    let (mut batch, mut scratch) = (Batch::new(MAX_DATAGRAM), Scratch::default());
    while !end.is_near() {
        match batch.receive(socket) {
            Ok(_) => {
                for (bytes, from, reply) in batch.iter() {
                    service.udp(bytes, from, &mut scratch, reply);
                }
                batch.reply(socket);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                // Such as ENOMEM. Not at full speed.
                tracing::warn!("cannot receive datagrams: {error}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}
