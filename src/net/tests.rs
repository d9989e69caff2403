//! Two ends on loopback: which connections succeed, over which transport and encryption.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::metainfo::InfoHash;
use crate::route::{Bind, Proxy, Route};
use crate::wire::{Handshake, Message, PeerId};

/// Time limit of whatever happens at once. Only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);
const HERE: InfoHash = InfoHash([7; 20]);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn handshake(id: u8) -> Handshake {
    Handshake::new(HERE, PeerId([id; 20]))
}

fn config(encryption: Encryption) -> Config {
    Config {
        port: PortChoice::Exactly(0),
        route: route(Bind::Address(LOOPBACK), None),
        encryption,
        ..Config::default()
    }
}

/// A host with one torrent that passes its connections on.
struct Torrents(mpsc::UnboundedSender<Handshaken>);

impl Host for Torrents {
    fn find(&self, matches: &dyn Fn(&InfoHash) -> bool) -> Option<Handshake> {
        matches(&HERE).then(|| handshake(2))
    }

    fn accept(&self, peer: Handshaken) {
        let _ = self.0.send(peer);
    }

    fn refuse(&self, _: InfoHash, _: SocketAddr) {}
}

/// The accepting end.
struct Acceptor {
    addr: SocketAddr,
    accepted: mpsc::UnboundedReceiver<Handshaken>,
    _dialer: Dialer,
    _listener: Listener,
}

fn acceptor(encryption: Encryption, transports: &[Transport]) -> Acceptor {
    let (dialer, mut sockets) = config(encryption).open().unwrap();
    let addr = SocketAddr::new(LOOPBACK, sockets.port());
    if !transports.contains(&Transport::Tcp) {
        sockets.tcp.clear();
    }
    if !transports.contains(&Transport::Utp) {
        sockets.utp = None;
    }
    let (sender, accepted) = mpsc::unbounded_channel();
    let listener = Listener::start(sockets, &config(encryption), Arc::new(Torrents(sender)));
    Acceptor { addr, accepted, _dialer: dialer, _listener: listener }
}

fn dialer(encryption: Encryption) -> Dialer {
    config(encryption).open().unwrap().0
}

#[tokio::test]
async fn all_encryption_policies_work_together_over_both_transports() {
    use Encryption::{Off, Prefer, Require};
    for transport in [Transport::Tcp, Transport::Utp] {
        for (ours, theirs, encrypted) in [
            (Prefer, Prefer, Some(false)),
            (Prefer, Require, Some(true)),
            (Prefer, Off, Some(false)),
            (Require, Prefer, Some(true)),
            (Require, Require, Some(true)),
            (Require, Off, None),
            (Off, Prefer, Some(false)),
            (Off, Require, None),
            (Off, Off, Some(false)),
        ] {
            let what = format!("{ours:?} dials {theirs:?} over {transport}");
            let mut acceptor = acceptor(theirs, &[transport]);
            let dialed = dialer(ours).connect(acceptor.addr, &handshake(1)).await;
            let Some(encrypted) = encrypted else {
                assert!(dialed.is_err(), "{what}");
                continue;
            };
            let dialed = dialed.unwrap_or_else(|error| panic!("{what}: {error}"));
            let incoming = acceptor.accepted.recv().await.unwrap();
            for (peer, id) in [(&dialed, 2), (&incoming, 1)] {
                assert_eq!(peer.theirs, handshake(id), "{what}");
                assert_eq!((peer.stream.transport(), peer.stream.encrypted()), (transport, encrypted), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn every_kind_of_stream_carries_messages_both_ways() {
    for (transport, encryption) in [
        (Transport::Tcp, Encryption::Off),
        (Transport::Tcp, Encryption::Require),
        (Transport::Utp, Encryption::Off),
        (Transport::Utp, Encryption::Require),
    ] {
        let mut acceptor = acceptor(encryption, &[transport]);
        let dialer = dialer(encryption);
        let dialed = dialer.connect(acceptor.addr, &handshake(1)).await.unwrap();
        let incoming = acceptor.accepted.recv().await.unwrap();
        let limits = Arc::new(Limits::new(0, 0));
        let (events, mut inbox) = mpsc::channel(64);
        let ends = [(dialed, 0_u8), (incoming, 1)]
            .map(|(peer, key)| Connection::start(peer, 1_000, limits.clone(), key, events.clone()));
        let block = |piece: u32| {
            let data: Vec<u8> = (0..16_384).map(|n| (n * 31 + piece) as u8).collect();
            Message::Piece { piece, begin: 0, data: Bytes::from(data) }
        };
        let sent: Vec<Message> = (0..100).flat_map(|piece| [Message::Have(piece), block(piece)]).collect();
        for end in &ends {
            end.outbox().send(sent.clone()).unwrap();
        }
        let mut received = [Vec::new(), Vec::new()];
        while received.iter().any(|end| end.len() < sent.len()) {
            match inbox.recv().await.unwrap() {
                // A uTP reader that is slow may have the other half send keep-alives.
                (end, Incoming::Messages(messages)) => {
                    received[usize::from(end)].extend(messages.into_iter().filter(|m| *m != Message::KeepAlive));
                }
                (_, Incoming::Sent(_) | Incoming::ExtensionsSent(_)) => {}
                (end, Incoming::Closed(why)) => panic!("{end} over {transport}: {why}"),
            }
        }
        // Small messages may overtake blocks; each kind keeps its order.
        for end in received {
            for blocks in [true, false] {
                let only = |all: &[Message]| -> Vec<Message> {
                    all.iter().filter(|m| matches!(m, Message::Piece { .. }) == blocks).cloned().collect()
                };
                assert!(only(&end) == only(&sent), "{transport}, {encryption:?}");
            }
        }
        let [ours, _theirs] = ends;
        drop(ours);
        while !matches!(inbox.recv().await.unwrap(), (1, Incoming::Closed(_))) {}
    }
}

/// Forwards TCP connections to `to` and counts them.
async fn relay(to: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (addr, connections)
}

#[tokio::test]
async fn the_last_success_is_tried_first_the_next_time() {
    let acceptor = acceptor(Encryption::Require, &[Transport::Tcp]);
    let (addr, connections) = relay(acceptor.addr).await;
    let dialer = dialer(Encryption::Prefer);
    assert!(dialer.connect(addr, &handshake(1)).await.unwrap().stream.encrypted());
    assert_eq!(connections.load(Ordering::Relaxed), 2, "plaintext, then encrypted");
    assert!(dialer.connect(addr, &handshake(1)).await.unwrap().stream.encrypted());
    assert_eq!(connections.load(Ordering::Relaxed), 3, "encrypted at once");
}

#[tokio::test]
async fn utp_wins_if_tcp_connects_but_stays_silent() {
    let (_dialer, mut sockets) = config(Encryption::Prefer).open().unwrap();
    let addr = SocketAddr::new(LOOPBACK, sockets.port());
    // The kernel completes the connections, but nobody accepts them.
    let silent = std::mem::take(&mut sockets.tcp);
    let (sender, _accepted) = mpsc::unbounded_channel();
    let _listener = Listener::start(sockets, &config(Encryption::Prefer), Arc::new(Torrents(sender)));
    let dialer = dialer(Encryption::Prefer);
    assert_eq!(dialer.connect(addr, &handshake(1)).await.unwrap().stream.transport(), Transport::Utp);
    // The next time, uTP is tried first, without waiting for TCP to fail.
    let begin = Instant::now();
    assert_eq!(dialer.connect(addr, &handshake(1)).await.unwrap().stream.transport(), Transport::Utp);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(silent);
}

#[tokio::test]
async fn an_unreachable_peer_is_reported_for_both_transports() {
    let port = TcpListener::bind((LOOPBACK, 0)).await.unwrap().local_addr().unwrap().port();
    let begin = Instant::now();
    let error = dialer(Encryption::Prefer).connect(SocketAddr::new(LOOPBACK, port), &handshake(1)).await.unwrap_err();
    assert!(matches!(&error, DialError::Both { tcp, .. } if matches!(**tcp, DialError::Unreachable(_))), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn another_torrent_is_rejected_under_any_policy() {
    for encryption in [Encryption::Off, Encryption::Require] {
        let acceptor = acceptor(encryption, &[Transport::Tcp]);
        let ours = Handshake::new(InfoHash([8; 20]), PeerId([1; 20]));
        assert!(dialer(encryption).connect(acceptor.addr, &ours).await.is_err());
    }
}

#[tokio::test]
async fn a_key_that_begins_like_the_protocol_is_still_a_key() {
    let acceptor = acceptor(Encryption::Prefer, &[Transport::Tcp]);
    let mut caller = TcpStream::connect(acceptor.addr).await.unwrap();
    let mut key = [0x5A; 96];
    key[..9].copy_from_slice(b"\x13BitTorre");
    // In two parts: the first part may start a key or a handshake.
    caller.write_all(&key[..9]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    caller.write_all(&key[9..]).await.unwrap();
    caller.read_exact(&mut [0; 96]).await.unwrap();
}

#[tokio::test]
async fn messages_sent_with_the_handshake_are_received() {
    let mut acceptor = acceptor(Encryption::Off, &[Transport::Tcp]);
    let mut caller = TcpStream::connect(acceptor.addr).await.unwrap();
    let mut bytes = handshake(1).encode().to_vec();
    bytes.extend([0, 0, 0, 1, 2]);
    caller.write_all(&bytes).await.unwrap();
    let peer = acceptor.accepted.recv().await.unwrap();
    let (events, mut inbox) = mpsc::channel(4);
    let _connection = Connection::start(peer, 1, Arc::new(Limits::new(0, 0)), (), events);
    let Some(((), Incoming::Messages(messages))) = inbox.recv().await else { panic!("closed") };
    assert_eq!(messages, [Message::Interested]);
}

/// Dials from this address and completes the handshake.
async fn calls_from(ip: IpAddr, to: SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    let answered = tokio::time::timeout(LONG, async {
        let mut stream = socket.connect(to).await.unwrap();
        stream.write_all(&handshake(1).encode()).await.unwrap();
        let mut answer = [0; 68];
        stream.read_exact(&mut answer).await.unwrap();
        Handshake::decode(&answer).unwrap()
    });
    assert_eq!(answered.await.expect("the caller is kept out"), handshake(2));
}

#[tokio::test]
async fn silent_callers_keep_nobody_out() {
    let acceptor = acceptor(Encryption::Prefer, &[Transport::Tcp]);
    let mut silent = Vec::new();
    for network in 0..20_u8 {
        for host in 1..=20_u8 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 9, network, host], 0))).unwrap();
            silent.push(socket.connect(acceptor.addr).await.unwrap());
        }
    }
    // From one of their networks, and from another.
    calls_from([127, 9, 3, 200].into(), acceptor.addr).await;
    calls_from([127, 1, 1, 1].into(), acceptor.addr).await;
    // The oldest gave way, the newest may still speak.
    let closed = tokio::time::timeout(LONG, silent[0].read(&mut [0; 1])).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
    let newest = silent.last_mut().unwrap();
    newest.write_all(&handshake(1).encode()).await.unwrap();
    tokio::time::timeout(LONG, newest.read_exact(&mut [0; 68])).await.unwrap().unwrap();
}

#[tokio::test]
async fn ipv6_works_over_both_transports() {
    let ip = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16]);
    if std::net::UdpSocket::bind((ip, 0)).is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let v6 = Config { route: route(Bind::Address(ip), None), ..config(Encryption::Prefer) };
    for transport in [Transport::Tcp, Transport::Utp] {
        let (dialer, mut sockets) = v6.open().unwrap();
        let addr = SocketAddr::new(ip, sockets.port());
        if transport == Transport::Utp {
            sockets.tcp.clear();
        }
        let (sender, _accepted) = mpsc::unbounded_channel();
        let _listener = Listener::start(sockets, &config(Encryption::Prefer), Arc::new(Torrents(sender)));
        assert_eq!(dialer.connect(addr, &handshake(1)).await.unwrap().stream.transport(), transport);
    }
}

#[tokio::test]
async fn random_traffic_does_not_disturb_the_listener() {
    let acceptor = acceptor(Encryption::Prefer, &[Transport::Tcp, Transport::Utp]);
    let mut rng = StdRng::seed_from_u64(1);
    // Over UDP: random bytes, and SYN, reset and data packets of unknown connections.
    let udp = tokio::net::UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
    for n in 0..2_000 {
        let mut packet = vec![0; rng.random_range(0..200)];
        rng.fill(&mut packet[..]);
        if n % 2 == 0
            && let Some(kind) = packet.first_mut()
        {
            *kind = (n / 2 % 5) as u8 * 16 + 1;
        }
        udp.send_to(&packet, acceptor.addr).await.unwrap();
    }
    // Over TCP: random bytes, which close the connection.
    let mut tcp = TcpStream::connect(acceptor.addr).await.unwrap();
    let mut bytes = [0; 2_000];
    rng.fill(&mut bytes[..]);
    tcp.write_all(&bytes).await.unwrap();
    let closed = tokio::time::timeout(LONG, tcp.read_to_end(&mut Vec::new())).await;
    assert!(closed.is_ok(), "still listening");
    let dialer = dialer(Encryption::Prefer);
    assert!(dialer.connect(acceptor.addr, &handshake(1)).await.is_ok());
    let endpoint = dialer.utp.as_ref().unwrap().endpoint_for(acceptor.addr).unwrap();
    // The SYN packets among them occupied slots, which are freed when their senders do not answer.
    let end = Instant::now() + LONG;
    while utp::connect(endpoint, acceptor.addr).await.is_err() {
        assert!(Instant::now() < end, "no slot for an honest peer");
    }
}

fn route(bind: Bind, proxy: Option<Proxy>) -> Route {
    Route { proxy, bind }
}

/// Starts a SOCKS5 proxy without a login that answers every request with `reply` (0: it connects) and counts them.
async fn proxy(reply: u8) -> (Proxy, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let proxy = format!("socks5://{}", listener.local_addr().unwrap()).parse().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut methods = [0; 3];
                near.read_exact(&mut methods).await.unwrap();
                assert_eq!(methods, [5, 1, 0]);
                near.write_all(&[5, 0]).await.unwrap();
                let mut request = [0; 10];
                near.read_exact(&mut request).await.unwrap();
                let [5, 1, 0, 1, a, b, c, d, high, low] = request else { panic!("{request:?}") };
                count.fetch_add(1, Ordering::Relaxed);
                near.write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
                if reply == 0 {
                    let to = SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])));
                    let mut far = TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    (proxy, asked)
}

#[tokio::test]
async fn all_connections_go_through_the_proxy() {
    let acceptor = acceptor(Encryption::Require, &[Transport::Tcp, Transport::Utp]);
    let (proxy, asked) = proxy(0).await;
    let (dialer, sockets) =
        Config { route: route(Bind::Address(LOOPBACK), Some(proxy)), ..config(Encryption::Prefer) }.open().unwrap();
    assert_eq!((sockets.port(), sockets.tcp.len(), sockets.utp.is_none()), (0, 0, true), "nobody can connect to us");
    let dialed = dialer.connect(acceptor.addr, &handshake(1)).await.unwrap();
    assert_eq!((dialed.stream.transport(), dialed.stream.encrypted()), (Transport::Tcp, true));
    assert_eq!(asked.load(Ordering::Relaxed), 2, "plaintext, then encrypted");
}

#[tokio::test]
async fn a_failing_proxy_is_not_bypassed() {
    let acceptor = acceptor(Encryption::Prefer, &[Transport::Tcp, Transport::Utp]);
    let through = |proxy| {
        Config { route: route(Bind::Address(LOOPBACK), Some(proxy)), ..config(Encryption::Prefer) }.open().unwrap().0
    };
    // Host unreachable: an error of the peer.
    let (unreachable, asked) = proxy(4).await;
    let error = through(unreachable).connect(acceptor.addr, &handshake(1)).await.unwrap_err();
    assert!(matches!(error, DialError::Unreachable(_)), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // Command not supported: an error of the proxy.
    let (useless, _) = proxy(7).await;
    let error = through(useless).connect(acceptor.addr, &handshake(1)).await.unwrap_err();
    assert!(matches!(error, DialError::Proxy(_)), "{error}");
    // Nobody listens at the proxy's address.
    let gone =
        format!("socks5://127.0.0.1:{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port());
    let error = through(gone.parse().unwrap()).connect(acceptor.addr, &handshake(1)).await.unwrap_err();
    assert!(matches!(error, DialError::Proxy(_)), "{error}");
}

#[tokio::test]
async fn the_blocklist_applies_at_once_in_both_directions() {
    let list = Arc::new(Blocklist::default());
    let config = Config { blocklist: list.clone(), ..config(Encryption::Prefer) };
    let (dialer, sockets) = config.open().unwrap();
    let addr = SocketAddr::new(LOOPBACK, sockets.port());
    let (sender, _accepted) = mpsc::unbounded_channel();
    let _listener = Listener::start(sockets, &config, Arc::new(Torrents(sender)));
    let elsewhere = super::tests::dialer(Encryption::Prefer);
    assert!(dialer.connect(addr, &handshake(1)).await.is_ok());
    assert!(elsewhere.connect(addr, &handshake(1)).await.is_ok());
    list.replace(Ranges::read(&b"loopback:127.0.0.0-127.0.0.255"[..]).unwrap());
    assert!(matches!(dialer.connect(addr, &handshake(1)).await, Err(DialError::Blocked)));
    assert!(elsewhere.connect(addr, &handshake(1)).await.is_err(), "neither over TCP nor over uTP");
    list.replace(Ranges::default());
    assert!(dialer.connect(addr, &handshake(1)).await.is_ok());
}

#[tokio::test]
async fn connections_use_only_the_bound_interface() {
    let bound = |name: &str| Config { route: route(name.parse().unwrap(), None), ..config(Encryption::Prefer) };
    let refused = bound("no-such-device").open().err().unwrap();
    assert_eq!(refused.raw_os_error(), Some(libc::ENODEV), "{refused}");
    let config = bound("lo");
    let (dialer, sockets) = config.open().unwrap();
    let addr = SocketAddr::new(LOOPBACK, sockets.port());
    let (sender, _accepted) = mpsc::unbounded_channel();
    let _listener = Listener::start(sockets, &config, Arc::new(Torrents(sender)));
    assert!(dialer.connect(addr, &handshake(1)).await.is_ok());
    // An address that cannot be dialed from this interface.
    let error = dialer.connect("192.0.2.1:1".parse().unwrap(), &handshake(1)).await.unwrap_err();
    assert!(matches!(error, DialError::Both { .. }), "{error}");
}
