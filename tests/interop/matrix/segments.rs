//! Clients that depend on how a stream is cut into segments.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::cell::Cell;
use super::clients::{Client, Job, Rtorrent};
use super::{Role, Way};
use crate::support::*;

/// Time without data after which what has come is passed on: all that one side says without an answer.
const QUIET: Duration = Duration::from_millis(300);

/// Passes bytes on; with `whole`, those that follow each other closely in one piece.
fn forward(mut from: TcpStream, mut to: TcpStream, whole: bool) {
    let (mut held, mut chunk) = (Vec::new(), [0; 65_536]);
    from.set_read_timeout(whole.then_some(QUIET)).unwrap();
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(len) => held.extend_from_slice(&chunk[..len]),
            Err(error) if whole && error.kind() == std::io::ErrorKind::WouldBlock => {
                if to.write_all(&held).is_err() {
                    return;
                }
                held.clear();
            }
            Err(_) => return,
        }
        if !whole && to.write_all(&std::mem::take(&mut held)).is_err() {
            return;
        }
    }
}

/// Starts a relay to a local port, which ends with the process. The answers arrive in as few segments as possible.
fn relay(to: u16) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
            let (near_out, far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || forward(near, far_out, false));
            thread::spawn(move || forward(far, near_out, true));
        }
    });
    addr
}

/// Starts a tracker, which ends with the process, that names one peer.
fn tracker(listener: TcpListener, peer: SocketAddr) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let [a, b] = peer.port().to_be_bytes();
            let body = [&b"d8:intervali1800e5:peers6:"[..], &[127, 0, 0, 1, a, b], b"e"].concat();
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
}

/// rtorrent looks at our first messages only when another one follows, if it read them with the end of an encrypted
/// handshake.
#[test]
fn rtorrent_gets_metadata_though_our_first_messages_come_with_the_handshake() {
    if !can_run(&[]) || !super::are_installed(&[Box::new(Rtorrent)]) {
        return;
    }
    let _turn = turn();
    let base = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cell = Cell::new(base.path(), Way::Magnet, &format!("http://{}/announce", listener.local_addr().unwrap()));
    let job = Job {
        way: Way::Magnet,
        role: Role::Leech,
        dir: cell.theirs.clone(),
        work: base.path().join("work"),
        source: cell.magnet.clone(),
        port: free_port(),
        dht: None,
    };
    std::fs::create_dir_all(&job.work).unwrap();
    let port = free_port();
    let mut seed = cell.seed_at(port, &job, &[]);
    wait_until("our seeder listens", Duration::from_secs(60), || TcpStream::connect(("127.0.0.1", port)).is_ok());
    tracker(listener, relay(port));
    let _running = Rtorrent.start(&job);
    let outcome = cell.serve(&mut seed);
    assert!(outcome.is_ok(), "{}\n--- the client\n{}", outcome.unwrap_err(), job.log());
}
