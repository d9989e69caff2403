//! The UDP side: receives and answers datagrams in batches.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use super::datagram::MAX_DATAGRAM;
use super::service::{Scratch, Service};
use super::workers::StopFlag;
use crate::sys::datagrams::Batch;

/// Pause after a failed receive, such as for lack of memory, so that it does not cause a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// Answers datagrams until `stop` is set. The socket must report the destination address of each datagram.
pub(super) fn serve(socket: &UdpSocket, stop: &StopFlag, service: &Service) {
    let (mut batch, mut scratch) = (Batch::new(MAX_DATAGRAM), Scratch::default());
    while !stop.is_set() {
        match batch.receive(socket) {
            Ok(_) => {
                for (bytes, from, reply) in batch.iter() {
                    service.udp(bytes, from, &mut scratch, reply);
                }
                batch.reply(socket);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!("cannot receive datagrams: {error}");
                std::thread::sleep(ERROR_PAUSE);
            }
        }
    }
}
