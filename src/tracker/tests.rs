//! Tests of the tracker over real sockets, with handwritten requests. `discovery` tests it with our own announcer, and
//! `tests/interop/tracker.rs` with clients of other projects.

use super::*;
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(60);

proptest! {
    /// Without a valid connection id, the response is not longer than the request; with one, it fits the minimum MTU.
    #[test]
    fn any_datagram_is_handled(kind in 0u8..4, body in prop::collection::vec(any::<u8>(), 0..200), start in any::<bool>()) {
        let service = Service::new(Limits::default(), Vec::new(), false);
        let from = SocketAddr::from(([10, 0, 0, 1], 7));
        let (mut scratch, mut out) = (service::Scratch::default(), Vec::new());
        let mut ask = |head: &[u8]| {
            let datagram = [head, &[0, 0, 0, kind], &body].concat();
            let datagram = if start { &datagram[..] } else { &body[..] };
            out.clear();
            service.udp(datagram, from, &mut scratch, &mut out);
            (datagram.len(), out.clone())
        };
        let (len, reply) = ask(&[7; 8]);
        prop_assert!(reply.is_empty());
        let (asked, reply_to_protocol) = ask(b"\0\0\x04\x17\x27\x10\x19\x80");
        prop_assert!(reply_to_protocol.len() <= asked && asked == len);
        let mut connected = Vec::new();
        service.udp(b"\0\0\x04\x17\x27\x10\x19\x80\0\0\0\0conn", from, &mut service::Scratch::default(), &mut connected);
        prop_assert!(ask(&connected[8..]).1.len() <= datagram::MAX_RESPONSE);
    }

    #[test]
    fn any_query_is_answered(text in "[a-z_=&%0-9+]{0,200}", path in prop::sample::select(vec!["/announce", "/scrape", "/"])) {
        let service = Service::new(Limits::default(), Vec::new(), true);
        let mut out = Vec::new();
        let request = request::Request { path, query: &text, head_only: false, client: [10, 0, 0, 1].into() };
        service.http(Ok(request), &mut service::Scratch::default(), &mut out);
        prop_assert!(out.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
}

async fn start(limits: Limits) -> (Tracker, SocketAddr) {
    Tracker::bind(([127, 0, 0, 1], 0).into(), limits).await.unwrap()
}

async fn with(config: Config) -> (Tracker, SocketAddr) {
    let tracker = Tracker::start(Config { listen: vec![([127, 0, 0, 1], 0).into()], ..config }).await.unwrap();
    let addr = tracker.addresses()[0];
    (tracker, addr)
}

async fn raw(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    timeout(LONG, stream.read_to_end(&mut reply)).await.unwrap().unwrap();
    reply.escape_ascii().to_string()
}

async fn get(addr: SocketAddr, path: &str) -> String {
    raw(addr, &format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n")).await
}

fn announce(port: u16) -> String {
    format!("/announce?info_hash={0}&peer_id={0}&port={port}&left=1", "a".repeat(20))
}

#[tokio::test]
async fn peers_meet() {
    let (tracker, addr) = start(Limits::default()).await;
    assert!(get(addr, &announce(0x1ae1)).await.ends_with("5:peers0:e"));
    assert!(get(addr, &announce(0x1ae2)).await.ends_with(r"5:peers6:\x7f\x00\x00\x01\x1a\xe1e"));
    assert_eq!(tracker.counts(), Counts { torrents: 1, leechers: 2, ..Counts::default() });
    tracker.stop(LONG).await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn malformed_requests_get_a_failure_reason() {
    let (_tracker, addr) = start(Limits::default()).await;
    let reply = get(addr, "/announce").await;
    assert!(
        reply.starts_with("HTTP/1.1 200") && reply.ends_with("d14:failure reason20:info_hash is missinge"),
        "{reply}"
    );
    assert!(get(addr, "/announce?info_hash=x").await.contains("failure reason"));
    assert!(get(addr, "/scrape").await.contains("failure reason"));
    assert!(get(addr, "/nowhere").await.starts_with("HTTP/1.1 404"));
    assert!(raw(addr, "\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert!(raw(addr, "POST /announce HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc").await.starts_with("HTTP/1.1 405"));
    let long = format!("GET /announce?{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let _ = stream.write_all(long.as_bytes()).await;
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(&reply, b"HTTP/1.1 400");
    // HEAD gets no body, and the tracker still works.
    let reply = raw(addr, "HEAD / HTTP/1.1\r\n\r\n").await;
    assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with(r"\r\n\r\n"), "{reply}");
}

#[tokio::test]
async fn a_request_may_arrive_in_parts() {
    let (_tracker, addr) = start(Limits::default()).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    for byte in format!("GET {} HTTP/1.1\r\n\r\n", announce(1)).as_bytes() {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    assert!(reply.ends_with(b"5:peers0:e"));
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let limits = Limits { connection_time: Duration::from_millis(100), ..Limits::default() };
    let (_tracker, addr) = start(limits).await;
    let mut silent = TcpStream::connect(addr).await.unwrap();
    silent.write_all(b"GET /announce?info_h").await.unwrap();
    assert_eq!(timeout(LONG, silent.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn silent_connections_cannot_keep_others_out() {
    let (_tracker, addr) = start(Limits { connections: 2, connection_time: LONG * 10, ..Limits::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET /ann").await.unwrap();
        silent.push(stream);
    }
    assert!(get(addr, &announce(1)).await.ends_with("5:peers0:e"));
    // The oldest are closed, long before their time limit.
    for stream in &mut silent[..10] {
        assert_eq!(timeout(LONG, stream.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn dropping_the_tracker_stops_it() {
    let (tracker, addr) = start(Limits::default()).await;
    drop(tracker);
    while TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // The UDP port is free as well, once the threads have seen the stop flag.
    let end = tokio::time::Instant::now() + LONG;
    while UdpSocket::bind(addr).await.is_err() {
        assert!(tokio::time::Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client of the UDP protocol.
struct Udp(UdpSocket);

impl Udp {
    async fn to(addr: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(addr).await.unwrap();
        Self(socket)
    }

    async fn send(&self, parts: &[&[u8]]) {
        self.0.send(&parts.concat()).await.unwrap();
    }

    async fn receive(&self) -> Vec<u8> {
        let mut reply = vec![0; 2048];
        let len = timeout(LONG, self.0.recv(&mut reply)).await.unwrap().unwrap();
        reply.truncate(len);
        reply
    }

    async fn connect(&self) -> [u8; 8] {
        self.send(&[b"\0\0\x04\x17\x27\x10\x19\x80\0\0\0\0conn"]).await;
        let reply = self.receive().await;
        assert_eq!((reply.len(), &reply[..8]), (16, b"\0\0\0\0conn".as_slice()));
        reply[8..].try_into().unwrap()
    }

    async fn announce(&self, id: &[u8; 8], port: u16, more: &[u8]) {
        let body: &[&[u8]] = &[&[b'a'; 20], &[b'i'; 20], &[1; 24], &[0; 12], b"\xff\xff\xff\xff"];
        self.send(&[id, b"\0\0\0\x01anno", &body.concat(), &port.to_be_bytes(), more]).await;
    }
}

#[tokio::test]
async fn udp_and_http_share_the_swarms() {
    let (_tracker, addr) = start(Limits::default()).await;
    let client = Udp::to(addr).await;
    let id = client.connect().await;
    client.announce(&id, 0x1ae1, b"").await;
    assert_eq!(client.receive().await, b"\0\0\0\x01anno\0\0\x07\x08\0\0\0\x01\0\0\0\0");
    assert!(get(addr, &announce(0x1ae2)).await.ends_with(r"5:peers6:\x7f\x00\x00\x01\x1a\xe1e"));
    // Extensions may follow, such as a URL (BEP 41).
    client.announce(&id, 0x1ae1, b"\x02\x09/announce\0").await;
    assert_eq!(client.receive().await, b"\0\0\0\x01anno\0\0\x07\x08\0\0\0\x02\0\0\0\0\x7f\0\0\x01\x1a\xe2");
    client.send(&[&id, b"\0\0\0\x02scra", &[b'a'; 20], &[b'b'; 20]]).await;
    assert_eq!(client.receive().await, b"\0\0\0\x02scra\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0");
    let scrape = get(addr, &format!("/scrape?info_hash={}", "a".repeat(20))).await;
    let expected = "d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei0e10:downloadedi0e10:incompletei2eeee";
    assert!(scrape.ends_with(expected), "{scrape}");
}

#[tokio::test]
async fn unproven_addresses_get_no_response() {
    let (tracker, addr) = start(Limits::default()).await;
    let client = Udp::to(addr).await;
    let id = client.connect().await;
    let forged = [0x11; 8];
    client.announce(&forged, 1, b"").await;
    client.send(&[&forged, b"\0\0\0\x02scra", &[b'a'; 20]]).await;
    // Malformed, truncated, of an unknown kind.
    for datagram in [b"".as_slice(), b"x", &[0; 15], &[0; 16], &[0xff; 2000]] {
        client.send(&[datagram]).await;
    }
    client.send(&[&id, b"\0\0\0\x07what"]).await;
    // With a valid connection id, errors are reported, in no more bytes than the request has.
    client.send(&[&id, b"\0\0\0\x01cut.short"]).await;
    assert_eq!(client.receive().await, b"\0\0\0\x03cut.truncated");
    // A client that cannot be reached is answered and not counted.
    client.announce(&id, 0, b"").await;
    assert_eq!(client.receive().await, b"\0\0\0\x01anno\0\0\x07\x08\0\0\0\0\0\0\0\0");
    assert_eq!(tracker.counts(), Counts::default());
    // Everything before was answered or dropped: the next datagram is the response to this connect request.
    assert_eq!(client.connect().await, id);
    let other = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    other.connect(addr).await.unwrap();
    let other = Udp(other);
    other.announce(&id, 1, b"").await;
    assert_ne!(other.connect().await, id);
}

#[tokio::test]
async fn the_status_page_and_metrics_are_served() {
    let (_tracker, addr) = start(Limits::default()).await;
    get(addr, &announce(1)).await;
    for path in ["/", "/status"] {
        let page = get(addr, path).await;
        assert!(page.contains("text/html") && page.contains("<tr><th>leechers<td>1"), "{page}");
        assert!(!page.contains(&"61".repeat(20)));
    }
    let metrics = get(addr, "/metrics").await;
    assert!(metrics.contains(r#"torrentfs_tracker_announces_total{protocol=\"http\"} 1\n"#), "{metrics}");
    let (_open, addr) = with(Config { show_torrents: true, ..Config::default() }).await;
    get(addr, &announce(1)).await;
    assert!(get(addr, "/").await.contains(&"61".repeat(20)));
}

#[tokio::test]
async fn only_a_trusted_proxy_can_name_the_client() {
    for (trusted_proxies, seen) in [(vec![[127, 0, 0, 1].into()], r"\x01\x02\x03\x04"), (vec![], r"\x7f\x00\x00\x01")] {
        let (_tracker, addr) = with(Config { trusted_proxies, ..Config::default() }).await;
        let request = format!("GET {} HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6, 1.2.3.4\r\n\r\n", announce(0x1ae1));
        raw(addr, &request).await;
        let reply = get(addr, &announce(0x1ae2)).await;
        assert!(reply.ends_with(&format!(r"5:peers6:{seen}\x1a\xe1e")), "{reply}");
    }
}

#[tokio::test]
async fn lists_are_reloaded() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("allowed");
    fs::write(&list, format!("{}\n", "61".repeat(20))).unwrap();
    let (tracker, addr) = with(Config { allow: Some(list.clone()), ..Config::default() }).await;
    let client = Udp::to(addr).await;
    let id = client.connect().await;
    assert!(get(addr, &announce(1)).await.ends_with("5:peers0:e"));
    assert_eq!(tracker.counts().torrents, 1);

    fs::write(&list, "62".repeat(20)).unwrap();
    assert_eq!(tracker.reload().await.unwrap(), Some(1));
    assert_eq!((tracker.counts(), tracker.served_torrents()), (Counts::default(), Some(1)));
    let reply = get(addr, &announce(1)).await;
    assert!(reply.contains("14:failure reason40:this tracker does not serve this torrent"), "{reply}");
    client.announce(&id, 1, b"").await;
    assert_eq!(client.receive().await, b"\0\0\0\x03annothis tracker does not serve this torrent");
    assert!(get(addr, &format!("/scrape?info_hash={}", "a".repeat(20))).await.ends_with("d5:filesdee"));

    // After an error the previous list stays in force.
    fs::write(&list, "nonsense").unwrap();
    assert!(tracker.reload().await.is_err());
    assert_eq!(tracker.served_torrents(), Some(1));
    let refused = Tracker::start(Config { allow: Some(list), ..Config::default() }).await.unwrap_err();
    assert!(matches!(refused, StartError::Allow(AllowError::Line { line: 1, .. }) | StartError::Listen { .. }));
}

async fn with_state(state: &Path) -> (Tracker, SocketAddr) {
    with(Config { state: Some(state.into()), ..Config::default() }).await
}

#[tokio::test]
async fn swarms_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (tracker, addr) = with_state(&state).await;
    get(addr, &announce(0x1ae1)).await;
    get(addr, &announce(0x1ae2).replace("left=1", "left=0&event=completed")).await;
    let before = tracker.counts();
    tracker.stop(LONG).await.unwrap();
    let (tracker, addr) = with_state(&state).await;
    assert_eq!(tracker.counts(), before);
    assert!(get(addr, &announce(0x1ae2).replace("left=1", "left=0")).await.ends_with(r"6:\x7f\x00\x00\x01\x1a\xe1e"));
    tracker.stop(LONG).await.unwrap();

    // A damaged file is renamed.
    let mut bytes = fs::read(&state).unwrap();
    bytes[30] ^= 1;
    fs::write(&state, &bytes).unwrap();
    let (tracker, _) = with_state(&state).await;
    assert_eq!(tracker.counts(), Counts::default());
    assert_eq!(fs::read(dir.path().join("state.damaged")).unwrap(), bytes);
    tracker.stop(LONG).await.unwrap();
    // A file of another format is not changed.
    fs::write(&state, "a diary").unwrap();
    let refused = Tracker::start(Config {
        listen: vec![([127, 0, 0, 1], 0).into()],
        state: Some(state.clone()),
        ..Config::default()
    });
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("it is not a state file of this tracker"), "{refused}");
    assert_eq!(fs::read_to_string(&state).unwrap(), "a diary");
}

#[tokio::test]
async fn an_address_in_use_is_reported() {
    let (_tracker, addr) = start(Limits::default()).await;
    let refused = Tracker::bind(addr, Limits::default()).await.unwrap_err().to_string();
    assert!(refused.starts_with(&format!("cannot listen on {addr}: Address already in use")), "{refused}");
}
