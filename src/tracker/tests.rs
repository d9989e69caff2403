//! The tracker over real sockets, asked by hand; `discovery` tests it with its announcer.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn start(limits: Limits) -> (Tracker, SocketAddr) {
    Tracker::bind(([127, 0, 0, 1], 0).into(), limits).await.unwrap()
}

async fn ask(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    reply.escape_ascii().to_string()
}

fn announce(port: u16) -> String {
    format!("/announce?info_hash={0}&peer_id={0}&port={port}&left=1", "a".repeat(20))
}

#[tokio::test]
async fn peers_meet() {
    let (tracker, addr) = start(Limits::default()).await;
    assert!(ask(addr, &announce(0x1ae1)).await.ends_with("5:peers0:e"));
    assert!(ask(addr, &announce(0x1ae2)).await.ends_with(r"5:peers6:\x7f\x00\x00\x01\x1a\xe1e"));
    tracker.stop(Duration::from_secs(5)).await;
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn malformed_requests_get_a_reason() {
    let (_tracker, addr) = start(Limits::default()).await;
    let reply = ask(addr, "/announce").await;
    assert!(
        reply.starts_with("HTTP/1.1 200") && reply.ends_with("d14:failure reason20:info_hash is missinge"),
        "{reply}"
    );
    assert!(ask(addr, "/announce?info_hash=x").await.contains("failure reason"));
    assert!(ask(addr, "/").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_silent_connection_ends_and_makes_room() {
    let (_tracker, addr) =
        start(Limits { connections: 1, connection_time: Duration::from_millis(100), ..Limits::default() }).await;
    let mut silent = TcpStream::connect(addr).await.unwrap();
    silent.write_all(b"GET /announce?info_h").await.unwrap();
    // Waits for the one place until the silent connection's time is over.
    assert!(ask(addr, &announce(1)).await.ends_with("5:peers0:e"));
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn dropping_it_ends_it() {
    let (tracker, addr) = start(Limits::default()).await;
    drop(tracker);
    while TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
