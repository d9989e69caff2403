//! The announcer over real sockets: against servers that misbehave and against our own tracker.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::udp::tests::{ANNOUNCE, CONNECT, Fake, ONE_PEER as ONE_UDP_PEER};
use super::udp::{self, UdpLimits};
use super::*;
use crate::http::testing::{Behaviour, Server, raw};
use crate::http::{Elsewhere, HttpClient, HttpLimits, Purpose, RequestError};
use crate::metainfo::InfoHash;
use crate::route::{Bind, Route};
use crate::tracker::{Limits, Tracker};
use crate::wire::PeerId;

const ONE_PEER: &[u8] = b"d8:intervali1800e5:peers6:\x7f\0\0\x01\x1a\xe1e";
/// Far beyond what any request takes.
const FOREVER: Duration = Duration::from_secs(3600);

fn announce(tiers: Vec<Vec<String>>) -> Announce {
    Announce {
        info_hash: InfoHash([0xfe; 20]),
        peer_id: PeerId(*b"-TF0100-abcdefghijkl"),
        port: 6999.into(),
        tiers,
        key: 7,
    }
}

fn client(total: Duration) -> HttpClient {
    HttpClient::with_limits(HttpLimits { connect: total, total, body: 64 << 10, redirects: 3 }).unwrap()
}

fn spawn(tiers: Vec<Vec<String>>, total: Duration) -> (Announcer, mpsc::Receiver<Vec<SocketAddr>>, Arc<Transferred>) {
    let (sender, peers) = mpsc::channel(1);
    let transferred = Arc::new(Transferred::default());
    transferred.left.store(1000, Ordering::Relaxed);
    (Announcer::spawn(announce(tiers), transferred.clone(), client(total), sender), peers, transferred)
}

/// Waits for the outcome of the first tracker's announce.
async fn outcome(announcer: &Announcer) -> Result<Answer, AnnounceError> {
    loop {
        if let Some(last) = announcer.status().remove(0).last {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn error_of(behaviour: Behaviour) -> AnnounceError {
    let server = Server::start(behaviour).await;
    let (announcer, _peers, _) = spawn(vec![vec![server.url()]], Duration::from_millis(500));
    let error = outcome(&announcer).await.unwrap_err();
    let line = error.to_string();
    assert!(!line.contains('\n') && !line.contains("secret"), "{line}");
    let status = &announcer.status()[0];
    assert!(status.next_announce.is_some() && !format!("{status:?}").contains("secret"));
    error
}

#[tokio::test]
async fn a_tracker_that_does_not_answer_is_given_up() {
    let expected = AnnounceError::Request(RequestError::Timeout(Duration::from_millis(500)));
    assert_eq!(error_of(Behaviour::Hang).await, expected);
    assert_eq!(error_of(Behaviour::Drip).await, expected);
}

#[tokio::test]
async fn an_endless_reply_is_cut_off() {
    assert_eq!(error_of(Behaviour::Flood).await, AnnounceError::Request(RequestError::TooLong(64 << 10)));
}

#[tokio::test]
async fn other_answers_are_errors() {
    for body in ["<html>sold</html>", "", "garbage", "d8:interval"] {
        let error = error_of(Behaviour::Body(body.into())).await;
        assert!(matches!(error, AnnounceError::Garbage(_)), "{body}: {error:?}");
    }
    assert!(matches!(
        error_of(raw("no HTTP at all\r\n\r\n")).await,
        AnnounceError::Request(RequestError::Transport(_))
    ));
    assert!(matches!(error_of(raw("")).await, AnnounceError::Request(RequestError::Transport(_))));
    assert!(matches!(
        error_of(raw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nd")).await,
        AnnounceError::Request(RequestError::Transport(_))
    ));
}

/// Returns an answer with this head and a body with one peer.
fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [head.replace('\n', "\r\n").as_bytes(), body].concat()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn answers_that_break_the_protocol_are_used() {
    let chunk = [format!("{:x}\r\n", ONE_PEER.len()).as_bytes(), ONE_PEER, b"\r\n"].concat();
    let chunks = [chunk.as_slice(), b"0\r\n\r\n"].concat();
    let zipped = gzip(ONE_PEER);
    for (head, body, open) in [
        ("HTTP/1.2 200 OK\ncontent-length: 33\n\n", ONE_PEER, true),
        ("HTTP/1.2 200 OK\ntransfer-encoding: chunked\n\n", &chunks, true),
        ("HTTP/2.0 200 OK\n\n", ONE_PEER, false),
        ("HTTP/1.0 200 OK\ntransfer-encoding: chunked\n\n", &chunks, true),
        ("HTTP/1.0 200 OK\ntransfer-encoding: chunked\ncontent-length: 3\n\n", &chunks, false),
        ("HTTP/1.0 200 OK\ntransfer-encoding: chunked\n\n", &chunk, false),
        ("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n", &chunk, false),
        ("HTTP/1.1 200 OK\ncontent-length: 1000\n\n", ONE_PEER, false),
        ("HTTP/1.1 200 OK\ncontent-length: 1000\n\n", ONE_PEER, true),
        ("HTTP/1.1 200 OK\ncontent-length: 34\n\n", ONE_PEER, true),
        ("HTTP/1.1 200 OK\ncontent-length: many\n\n", ONE_PEER, false),
        ("HTTP/1.1 200 OK\ncontent-length: 33\ncontent-length: 34\n\n", ONE_PEER, false),
        ("HTTP/1.1 200\n\n", ONE_PEER, false),
        ("HTTP/1.1  200 OK\n\n", ONE_PEER, false),
        ("HTTP/1.1 100 Continue\n\nHTTP/1.2 200 OK\n\n", ONE_PEER, false),
        ("HTTP/1.1 200 OK\nserver : x\n\x07: y\n folded\ncontent-length: 33\n\n", ONE_PEER, true),
        ("HTTP/1.1 500 Oh\n\n", ONE_PEER, false),
        ("HTTP/1.1 200 OK\ncontent-encoding: gzip\n\n", &zipped, false),
        ("HTTP/1.1 200 OK\ncontent-encoding: x-gzip\ncontent-length: 1000\n\n", &zipped, true),
        ("HTTP/1.1 200 OK\n\n", &zipped, false),
        ("HTTP/1.1 200 OK\ncontent-encoding: gzip\n\n", ONE_PEER, false),
        ("HTTP/1.1 200 OK\ncontent-encoding: gzip\n\n", &zipped[..zipped.len() - 8], false),
    ] {
        let bytes = answer(head, body);
        let server = Server::start(if open { Behaviour::Open(bytes) } else { Behaviour::Raw(bytes) }).await;
        let (announcer, mut peers, _) = spawn(vec![vec![server.url()]], FOREVER);
        let outcome = timeout(Duration::from_secs(30), outcome(&announcer)).await;
        assert_eq!(outcome.map(|outcome| outcome.map(|answer| answer.peers)), Ok(Ok(1)), "{head}");
        assert_eq!(peers.recv().await.unwrap(), ["127.0.0.1:6881".parse().unwrap()], "{head}");
    }
    assert_eq!(ONE_PEER.len(), 33);
}

#[tokio::test]
async fn a_server_is_remembered_for_breaking_the_protocol() {
    let head = "HTTP/1.2 200 OK\ncontent-length: 33\n\n";
    let server = Server::start(Behaviour::Raw(answer(head, ONE_PEER))).await;
    let client = client(FOREVER);
    for requests in [2, 3, 4] {
        let fetched = client.get(server.url().parse().unwrap(), Purpose::Announce).await.unwrap();
        assert_eq!((fetched.1.as_slice(), server.requests.borrow().len()), (ONE_PEER, requests));
    }
}

#[tokio::test]
async fn endless_answers_are_cut_off() {
    let bomb = gzip(&vec![b'd'; 64 << 20]);
    for (start, more) in [
        (b"HTTP/1.1 200 OK\r\nx: ".to_vec(), b"a".as_slice()),
        (b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n"),
        (b"HTTP/1.2 200 OK\r\nx: ".to_vec(), b"a"),
        (b"HTTP/1.2 200 OK\r\n".to_vec(), b"x: y\r\n"),
        (b"HTTP/1.2 100 Continue\r\n\r\n".to_vec(), b"HTTP/1.2 100 Continue\r\n\r\n"),
        (b"HTTP/1.2 200 OK\r\n\r\n".to_vec(), b"d"),
        (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(), b"1\r\nd\r\n"),
        (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(), b"0"),
        (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;".to_vec(), b"a"),
        (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n".to_vec(), b"x: y\r\n"),
        ([b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &bomb].concat(), b"d"),
        ([b"HTTP/1.1 200 OK\r\n\r\n\x1f\x8b\x08\x1f\0\0\0\0\0\0\xff\xff".as_slice()].concat(), b"d"),
    ] {
        let shown = start[..start.len().min(60)].escape_ascii().to_string();
        let server = Server::start(Behaviour::Endless(start, more)).await;
        let (announcer, _peers, _) = spawn(vec![vec![server.url()]], Duration::from_secs(5));
        let outcome = timeout(Duration::from_secs(30), outcome(&announcer)).await.unwrap();
        assert!(matches!(outcome, Err(AnnounceError::Request(_) | AnnounceError::Garbage(_))), "{shown}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_failure_reason_wins_over_the_http_status() {
    let error = error_of(raw("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\ngone")).await;
    assert_eq!(error, AnnounceError::Status("404 Not Found".into()));
    let error =
        error_of(raw("HTTP/1.1 403 Forbidden\r\ncontent-length: 27\r\n\r\nd14:failure reason4:nopee\r\n")).await;
    assert_eq!(error, AnnounceError::Refused { reason: "nope".into(), retry: Retry::BackOff });
}

#[tokio::test]
async fn a_refused_connection_is_reported() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    for scheme in ["http", "https"] {
        let (announcer, _peers, _) = spawn(vec![vec![format!("{scheme}://{addr}/announce")]], FOREVER);
        let error = outcome(&announcer).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot connect: ") && error.contains("refused"), "{error}");
    }
}

#[tokio::test]
async fn tls_to_a_plain_server_is_an_error() {
    let server = Server::start(raw("HTTP/1.1 200 OK\r\n\r\n")).await;
    let client = client(Duration::from_secs(1));
    let url = format!("https://{}/announce", server.addr).parse().unwrap();
    let error = client.get(url, Purpose::Announce).await.unwrap_err();
    assert!(matches!(error, RequestError::Connect(_) | RequestError::Timeout(_)), "{error:?}");
}

#[tokio::test]
async fn redirects_are_followed_up_to_a_limit() {
    let target = Server::start(Behaviour::Body(ONE_PEER.to_vec())).await;
    let to = |location: &str| raw(&format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"));
    let start = Server::start(to(&format!("http://{}/announce.php", target.addr))).await;
    let (announcer, mut peers, _) = spawn(vec![vec![start.url()]], FOREVER);
    assert_eq!(peers.recv().await.unwrap().len(), 1);
    assert_eq!(outcome(&announcer).await.unwrap().peers, 1);

    assert_eq!(error_of(to("/announce")).await, AnnounceError::Request(RequestError::Redirect("too many times")));
    assert_eq!(
        error_of(to("ftp://127.0.0.1/")).await.to_string(),
        AnnounceError::Request(RequestError::NotHttp(Elsewhere(String::new()))).to_string()
    );
    assert_eq!(error_of(to("http://[")).await, AnnounceError::Request(RequestError::Redirect("to an invalid URL")));
    assert_eq!(
        error_of(raw("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n")).await,
        AnnounceError::Status("302 Found".into())
    );
}

#[tokio::test]
async fn the_next_tracker_replaces_a_failing_one() {
    let bad = Server::start(Behaviour::Body(b"<html>".to_vec())).await;
    let good = Server::start(Behaviour::Body(ONE_PEER.to_vec())).await;
    let tiers = vec![vec!["wss://127.0.0.1:1/".into()], vec![bad.url()], vec![good.url()]];
    let (announcer, mut peers, _) = spawn(tiers, FOREVER);
    assert_eq!(peers.recv().await.unwrap(), ["127.0.0.1:6881".parse().unwrap()]);
    let outcomes: Vec<bool> = announcer.status().iter().map(|status| matches!(status.last, Some(Ok(_)))).collect();
    assert_eq!(outcomes, [false, false, true]);
    assert_eq!(announcer.status()[0].last, Some(Err(AnnounceError::Scheme("wss".into()))));
}

#[tokio::test]
async fn a_tracker_receives_started_completed_and_stopped() {
    let mut server = Server::start(Behaviour::Body(ONE_PEER.to_vec())).await;
    let (announcer, _peers, transferred) = spawn(vec![vec![server.url()]], FOREVER);
    let first = server.request(0).await;
    for part in
        ["/announce?passkey=secret&info_hash=%FE%FE", "peer_id=-TF0100-abcdefghijkl", "left=1000", "event=started"]
    {
        assert!(first.contains(part), "{first}");
    }
    transferred.left.store(0, Ordering::Relaxed);
    transferred.downloaded.store(1000, Ordering::Relaxed);
    announcer.completed();
    let second = server.request(1).await;
    assert!(second.contains("downloaded=1000&left=0&") && second.contains("event=completed"), "{second}");
    announcer.stop(FOREVER).await;
    let third = server.request(2).await;
    assert!(third.contains("event=stopped"), "{third}");
    assert_eq!(server.requests.borrow().len(), 3);
}

#[tokio::test]
async fn stopping_takes_no_longer_than_its_limit() {
    let mut server = Server::start(Behaviour::Hang).await;
    let (announcer, _peers, _) = spawn(vec![vec![server.url()]], FOREVER);
    server.request(0).await;
    announcer.stop(Duration::from_millis(50)).await;
    // Only a tracker that may count us gets a `stopped` announce.
    let (announcer, _peers, _) = spawn(vec![vec!["http://127.0.0.1:1/announce".into()]], FOREVER);
    outcome(&announcer).await.unwrap_err();
    announcer.stop(FOREVER).await;
}

#[tokio::test]
async fn dropping_it_ends_its_task() {
    let mut server = Server::start(Behaviour::Hang).await;
    let (announcer, mut peers, _) = spawn(vec![vec![server.url()]], FOREVER);
    server.request(0).await;
    drop(announcer);
    assert_eq!(peers.recv().await, None);
}

#[tokio::test]
async fn a_full_channel_delays_nothing() {
    let server = Server::start(Behaviour::Body(ONE_PEER.to_vec())).await;
    let (sender, mut peers) = mpsc::channel(1);
    sender.try_send(Vec::new()).unwrap();
    let tiers = vec![vec![server.url()]];
    let announcer = Announcer::spawn(announce(tiers), Arc::default(), client(FOREVER), sender);
    outcome(&announcer).await.unwrap();
    assert_eq!(peers.recv().await.unwrap(), []);
    assert_eq!(peers.recv().await.unwrap().len(), 1);
    announcer.stop(FOREVER).await;
}

#[tokio::test]
async fn peers_meet_through_our_own_tracker() {
    let (tracker, addr) = Tracker::bind(([127, 0, 0, 1], 0).into(), Limits::default()).await.unwrap();
    let url = format!("http://{addr}/announce");
    let start = |port: u16, left: u64| {
        let (sender, peers) = mpsc::channel(4);
        let transferred = Transferred { left: left.into(), ..Transferred::default() };
        let mut announce = announce(vec![vec![url.clone()]]);
        announce.port = port.into();
        (Announcer::spawn(announce, Arc::new(transferred), client(FOREVER), sender), peers)
    };
    let (seed, _seed_peers) = start(7001, 0);
    let answer = outcome(&seed).await.unwrap();
    assert_eq!((answer.seeders, answer.leechers, answer.peers), (Some(1), Some(0), 0));
    assert_eq!(seed.external_ip(), Some([127, 0, 0, 1].into()));

    let (leecher, mut peers) = start(7002, 5);
    assert_eq!(peers.recv().await.unwrap(), ["127.0.0.1:7001".parse().unwrap()]);
    seed.stop(FOREVER).await;
    let (other, mut peers) = start(7003, 5);
    assert_eq!(peers.recv().await.unwrap(), ["127.0.0.1:7002".parse().unwrap()]);
    assert_eq!(outcome(&other).await.unwrap().seeders, Some(0));
    drop((leecher, other));
    tracker.stop(FOREVER).await.unwrap();
}

/// Spawns an announcer whose UDP trackers are given up soon.
fn spawn_udp(tiers: Vec<Vec<String>>) -> (Announcer, mpsc::Receiver<Vec<SocketAddr>>, Arc<Transferred>) {
    let (sender, peers) = mpsc::channel(1);
    let transferred = Arc::new(Transferred { left: 1000.into(), ..Transferred::default() });
    let client = TrackerClient::with_udp(client(FOREVER), udp::tests::LIMITS);
    (Announcer::spawn(announce(tiers), transferred.clone(), client, sender), peers, transferred)
}

#[tokio::test]
async fn a_udp_tracker_receives_started_completed_and_stopped() {
    let (log, mut received) = watch::channel(Vec::new());
    let mut last = None;
    let fake = Fake::start("127.0.0.1", move |asked| {
        // Each datagram is lost once.
        if last != Some((asked.action, asked.transaction)) {
            last = Some((asked.action, asked.transaction));
            return vec![];
        }
        if asked.action == ANNOUNCE {
            let number = |at: usize| u64::from_be_bytes(asked.datagram[at..at + 8].try_into().unwrap());
            // Event, bytes left, bytes downloaded.
            log.send_modify(|received: &mut Vec<_>| received.push((asked.datagram[83], number(64), number(56))));
        }
        vec![asked.good(ONE_UDP_PEER)]
    })
    .await;
    let (announcer, mut peers, transferred) = spawn_udp(vec![vec![fake.url().into()]]);
    assert_eq!(peers.recv().await.unwrap(), ["127.0.0.1:6881".parse().unwrap()]);
    let answer = outcome(&announcer).await.unwrap();
    assert_eq!((answer.seeders, answer.leechers, answer.peers), (Some(9), Some(5), 1));
    transferred.left.store(0, Ordering::Relaxed);
    transferred.downloaded.store(1000, Ordering::Relaxed);
    announcer.completed();
    received.wait_for(|received| received.len() == 2).await.unwrap();
    announcer.stop(FOREVER).await;
    assert_eq!(*received.borrow(), [(2, 1000, 0), (1, 0, 1000), (3, 0, 1000)]);
}

#[tokio::test]
async fn http_and_udp_trackers_replace_each_other() {
    let silent = Fake::start("127.0.0.1", |_| vec![]).await;
    let refusing = Server::start(Behaviour::Body(b"d14:failure reason2:noe".to_vec())).await;
    let good = Fake::good().await;
    let tiers = vec![vec![silent.url().into()], vec![refusing.url()], vec![good.url().into()]];
    let client = TrackerClient::with_udp(client(FOREVER), UdpLimits::default());
    let (sender, mut peers) = mpsc::channel(1);
    let announcer = Announcer::spawn(announce(tiers), Arc::default(), client, sender);
    assert_eq!(peers.recv().await.unwrap(), ["127.0.0.1:6881".parse().unwrap()]);
    let actions = silent.actions();
    assert!(!actions.is_empty() && actions.iter().all(|action| *action == CONNECT), "{actions:?}");
    let status = announcer.status();
    assert!(status[0].announcing && matches!(status[1].last, Some(Err(AnnounceError::Refused { .. }))));
    // The silent tracker may count us too, but it delays the stop only briefly.
    timeout(Duration::from_secs(20), announcer.stop(FOREVER)).await.unwrap();
    assert_eq!(good.actions(), [CONNECT, ANNOUNCE, ANNOUNCE]);
}

#[tokio::test]
async fn no_datagram_is_sent_behind_a_proxy() {
    let fake = Fake::good().await;
    let proxy = Server::start(Behaviour::Body(ONE_PEER.to_vec())).await;
    let route = Route { proxy: Some(format!("http://{}", proxy.addr).parse().unwrap()), bind: Bind::Anywhere };
    let tiers = vec![vec![fake.url().into()], vec!["http://tracker.example/announce".into()]];
    let (sender, mut peers) = mpsc::channel(1);
    let announcer = Announcer::spawn(announce(tiers), Arc::default(), TrackerClient::new(route).unwrap(), sender);
    assert_eq!(announcer.status()[0].last, Some(Err(AnnounceError::NotThroughProxy)));
    assert_eq!(peers.recv().await.unwrap().len(), 1);
    announcer.stop(FOREVER).await;
    assert!(fake.actions().is_empty());
    assert!(proxy.requests.borrow().iter().all(|url| url.starts_with("http://tracker.example/announce?")));
}

#[tokio::test]
async fn scrapes_are_cached() {
    let body = [b"d5:filesd20:".as_slice(), &[0xfe; 20], b"d8:completei4eee8:intervali1800e5:peers0:e"].concat();
    let server = Server::start(Behaviour::Body(body)).await;
    let fake = Fake::good().await;
    for url in [server.url(), fake.url().into()] {
        let (announcer, _peers, _) = spawn_udp(vec![vec![url], vec!["http://127.0.0.1:1/announce".into()]]);
        assert!(announcer.scrape(FOREVER).await.is_empty(), "nobody has answered yet");
        outcome(&announcer).await.unwrap();
        for _ in 0..2 {
            let scraped = announcer.scrape(FOREVER).await;
            assert_eq!(scraped.len(), 1);
            assert!(matches!(scraped[0].counts, Ok(Scrape { seeders: Some(1 | 4), .. })), "{:?}", scraped[0]);
        }
    }
    let paths = server.requests.borrow().clone();
    assert_eq!(paths.len(), 2, "{paths:?}");
    assert!(paths[1].starts_with("/scrape?passkey=secret&info_hash=%FE%FE"), "{paths:?}");
    assert_eq!(fake.actions().len(), 3);
}

/// Collects log lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Collects the log lines of this thread, from a level on, until the guard is dropped.
fn log(level: tracing::Level) -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(move || writer.clone()).finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

/// Returns the log lines of this thread, from a level on, while `act` runs. tracing decides for the whole process which places
/// in the code are of interest, so an event may be lost while another test begins or ends to collect its own: then `act` runs
/// again.
async fn logged(level: tracing::Level, act: impl AsyncFn()) -> String {
    let (lines, _guard) = log(level);
    for _ in 0..20 {
        act().await;
        if !lines.text().is_empty() {
            break;
        }
        tracing::callsite::rebuild_interest_cache();
    }
    lines.text()
}

#[tokio::test]
async fn ignored_parts_of_a_reply_are_one_log_line() {
    let log = logged(tracing::Level::INFO, async || {
        let server = Server::start(Behaviour::Body([ONE_PEER, b"6:peers60:"].concat())).await;
        let (announcer, _peers, _) = spawn(vec![vec![server.url()]], FOREVER);
        outcome(&announcer).await.unwrap();
    });
    let log = log.await;
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("INFO") && log.contains("1 peers; ignored in the tracker's reply: bytes after"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test]
async fn a_failure_is_one_log_line_without_secrets() {
    let log = logged(tracing::Level::WARN, async || {
        let error = error_of(Behaviour::Body(b"d14:failure reason8:no\n\x1b[31me".to_vec())).await;
        assert!(matches!(error, AnnounceError::Refused { .. }), "{error:?}");
    });
    let log = log.await;
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("announce failed: refused: no [31m") && !log.contains("secret"), "{log}");
}
