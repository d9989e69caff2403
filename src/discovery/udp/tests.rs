//! UDP client against trackers on loopback that lose, repeat, reorder and forge datagrams.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::discovery::Retry;
use crate::discovery::url::Event;
use crate::wire::PeerId;

pub(in crate::discovery) const CONNECT: u8 = 0;
pub(in crate::discovery) const ANNOUNCE: u8 = 1;
pub(in crate::discovery) const SCRAPE: u8 = 2;

/// Limits that are seldom reached, because every datagram that is not lost is answered at once.
pub(in crate::discovery) const LIMITS: UdpLimits = UdpLimits {
    resolve: Duration::from_secs(10),
    retry: Duration::from_millis(300),
    tries: 3,
    grace: Duration::from_secs(5),
    id_lifetime: Duration::from_secs(60),
};

/// A request as the tracker receives it.
pub(in crate::discovery) struct FakeRequest<'a> {
    /// Number of earlier requests of any kind.
    pub(in crate::discovery) n: usize,
    pub(in crate::discovery) action: u8,
    pub(in crate::discovery) transaction: [u8; 4],
    pub(in crate::discovery) datagram: &'a [u8],
}

impl FakeRequest<'_> {
    fn reply(&self, body: &[u8]) -> Vec<u8> {
        [&[0, 0, 0, self.action], self.transaction.as_slice(), body].concat()
    }

    /// Returns a correct reply; `peers` is used for an announce.
    pub(in crate::discovery) fn good(&self, peers: &[u8]) -> Vec<u8> {
        self.reply(&match self.action {
            CONNECT => b"connection id"[..8].to_vec(),
            ANNOUNCE => [b"\0\0\x07\x08\0\0\0\x05\0\0\0\x09", peers].concat(),
            _ => b"\0\0\0\x01\0\0\0\x02\0\0\0\x03".to_vec(),
        })
    }
}

pub(in crate::discovery) const ONE_PEER: &[u8] = b"\x7f\0\0\x01\x1a\xe1";

/// A tracker that answers each datagram with those that a closure returns. Ends when dropped.
pub(in crate::discovery) struct Fake {
    pub(in crate::discovery) addr: SocketAddr,
    /// Actions and sources of all requests so far.
    pub(in crate::discovery) requests: watch::Receiver<Vec<(u8, SocketAddr)>>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(in crate::discovery) async fn start(
        host: &str,
        mut behaviour: impl FnMut(FakeRequest) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Self {
        let socket = UdpSocket::bind((host, 0)).await.unwrap();
        let addr = socket.local_addr().unwrap();
        let (log, requests) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            let mut buffer = [0; 9000];
            for n in 0.. {
                let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
                let datagram = &buffer[..len];
                let action = datagram[11];
                log.send_modify(|log: &mut Vec<_>| log.push((action, from)));
                for reply in
                    behaviour(FakeRequest { n, action, transaction: datagram[12..16].try_into().unwrap(), datagram })
                {
                    socket.send_to(&reply, from).await.unwrap();
                }
            }
        });
        Self { addr, requests, task }
    }

    pub(in crate::discovery) async fn good() -> Self {
        Self::start("127.0.0.1", |request| vec![request.good(ONE_PEER)]).await
    }

    pub(in crate::discovery) fn url(&self) -> Url {
        format!("udp://{}/announce?passkey=x", self.addr).parse().unwrap()
    }

    pub(in crate::discovery) fn actions(&self) -> Vec<u8> {
        self.requests.borrow().iter().map(|(action, _)| *action).collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn client() -> UdpClient {
    UdpClient::new(Bind::Anywhere, LIMITS)
}

async fn announce(client: &UdpClient, url: &Url) -> Result<Reply, AnnounceError> {
    let announce = Announce {
        info_hash: InfoHash([0xaa; 20]),
        peer_id: PeerId([0xbb; 20]),
        port: 6881.into(),
        tiers: Vec::new(),
        key: 7,
    };
    let query = Query { event: Some(Event::Started), uploaded: 1, downloaded: 2, left: 3, tracker_id: None };
    client.announce(url, &announce, &query).await
}

/// Returns the outcome of an announce to a tracker with this behaviour.
async fn outcome(behaviour: impl FnMut(FakeRequest) -> Vec<Vec<u8>> + Send + 'static) -> Result<Reply, AnnounceError> {
    let fake = Fake::start("127.0.0.1", behaviour).await;
    announce(&client(), &fake.url()).await
}

fn peer(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_connection_is_reused_until_its_id_expires() {
    let fake = Fake::start("127.0.0.1", |request| {
        assert!(request.action == CONNECT || request.datagram[..8] == b"connection id"[..8]);
        assert!(request.action != ANNOUNCE || request.datagram.ends_with(b"\x02\x13/announce?passkey=x"));
        vec![request.good(ONE_PEER)]
    })
    .await;
    let client = client();
    let reply = announce(&client, &fake.url()).await.unwrap();
    assert_eq!((reply.peers, reply.interval), (vec![peer("127.0.0.1:6881")], Some(Duration::from_secs(1800))));
    announce(&client.clone(), &fake.url()).await.unwrap();
    let counts = client.scrape(&fake.url(), InfoHash([0xaa; 20])).await.unwrap();
    assert_eq!(counts, Scrape { seeders: Some(1), downloads: Some(2), leechers: Some(3) });
    assert_eq!(fake.actions(), [CONNECT, ANNOUNCE, ANNOUNCE, SCRAPE]);
    let sources: Vec<SocketAddr> = fake.requests.borrow().iter().map(|(_, from)| *from).collect();
    assert!(sources.iter().all(|source| *source == sources[0]), "{sources:?}");

    // An expired id is not used.
    let fake = Fake::good().await;
    let client = UdpClient::new(Bind::Anywhere, UdpLimits { id_lifetime: Duration::from_millis(500), ..LIMITS });
    announce(&client, &fake.url()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    announce(&client, &fake.url()).await.unwrap();
    assert!(fake.actions().iter().filter(|action| **action == CONNECT).count() >= 2);
}

#[tokio::test]
async fn lost_datagrams_are_sent_again() {
    // The first datagram of each kind is lost; the connection id stays valid.
    let reply = outcome(|request| if matches!(request.n, 0 | 2) { vec![] } else { vec![request.good(ONE_PEER)] }).await;
    assert_eq!(reply.unwrap().peers, [peer("127.0.0.1:6881")]);
}

#[tokio::test]
async fn a_silent_tracker_is_given_up() {
    for silent_at in [CONNECT, ANNOUNCE] {
        let sent = Arc::new(AtomicUsize::new(0));
        let count = sent.clone();
        let outcome = outcome(move |request| {
            if request.action != silent_at {
                return vec![request.good(b"")];
            }
            count.fetch_add(1, Ordering::Relaxed);
            vec![]
        });
        // 1 + 2 + 4 times the first timeout.
        assert_eq!(outcome.await, Err(AnnounceError::Request(RequestError::Timeout(Duration::from_millis(2100)))));
        assert_eq!(sent.load(Ordering::Relaxed), 3);
    }
    assert_eq!(UdpLimits::default().total(), Duration::from_secs(45));
}

#[tokio::test]
async fn a_closed_port_is_reported_at_once() {
    let fake = Fake::good().await;
    let url = fake.url();
    fake.task.abort();
    let _ = timeout(Duration::from_secs(10), fake.requests.clone().wait_for(|_| false)).await;
    let error = announce(&UdpClient::new(Bind::Anywhere, UdpLimits::default()), &url).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot connect: ") && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn replies_to_other_requests_are_ignored() {
    let reply = outcome(|request| {
        let good = request.good(ONE_PEER);
        let mut other = request.good(b"\x09\x09\x09\x09\x09\x09");
        other[7] ^= 1;
        // Another transaction, too short, an error for another request, and the right reply twice.
        vec![other.clone(), good[..7].to_vec(), vec![], [b"\0\0\0\x03", &other[4..]].concat(), good.clone(), good]
    });
    assert_eq!(reply.await.unwrap().peers, [peer("127.0.0.1:6881")]);
}

#[tokio::test]
async fn replies_from_other_addresses_are_ignored() {
    let (liar, tracker) =
        (UdpSocket::bind("127.0.0.2:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let url = format!("udp://{}/announce", tracker.local_addr().unwrap()).parse().unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = [0; 500];
        loop {
            let (len, from) = tracker.recv_from(&mut buffer).await.unwrap();
            let datagram = &buffer[..len];
            let request =
                FakeRequest { n: 0, action: datagram[11], transaction: datagram[12..16].try_into().unwrap(), datagram };
            liar.send_to(&request.good(b"\x09\x09\x09\x09\x09\x09"), from).await.unwrap();
            tracker.send_to(&request.good(ONE_PEER), from).await.unwrap();
        }
    });
    assert_eq!(announce(&client(), &url).await.unwrap().peers, [peer("127.0.0.1:6881")]);
    task.abort();
}

#[tokio::test]
async fn malformed_replies_are_errors() {
    let garbage = |outcome: Result<Reply, AnnounceError>| {
        assert!(matches!(outcome, Err(AnnounceError::Garbage(_))), "{outcome:?}");
    };
    garbage(outcome(|request| vec![request.reply(b"short")]).await);
    garbage(
        outcome(|request| vec![if request.action == CONNECT { request.good(b"") } else { request.reply(b"short") }])
            .await,
    );
    garbage(outcome(|request| vec![[&[0, 0, 0, 9], request.transaction.as_slice(), b"what?"].concat()]).await);
    garbage(outcome(|_| vec![b"flood".to_vec(); 2 * MAX_STRAY]).await);
}

#[tokio::test]
async fn the_peers_of_a_long_reply_are_bounded() {
    let reply = outcome(|request| vec![request.good(&ONE_PEER.repeat(10_000))]).await.unwrap();
    assert!((100..=MAX_PEERS).contains(&reply.peers.len()), "{}", reply.peers.len());
}

#[tokio::test]
async fn a_rejection_carries_the_trackers_reason() {
    let refuse = |request: FakeRequest| {
        let refusal = [&[0, 0, 0, 3], request.transaction.as_slice(), b"not\x1b[31m registered\r\n"].concat();
        vec![if request.action == CONNECT { request.good(b"") } else { refusal }]
    };
    let expected = AnnounceError::Refused { reason: "not [31m registered".into(), retry: Retry::BackOff };
    assert_eq!(outcome(refuse).await, Err(expected));
}

#[tokio::test]
async fn a_tracker_that_forgot_its_ids_gets_a_new_connect_request() {
    // It issues ids 0, 1, 2, … and knows only the last, as if it restarted in between.
    let mut id = 0u8;
    let fake = Fake::start("127.0.0.1", move |request| {
        let known = [b"id     ".as_slice(), &[id]].concat();
        vec![match request.action {
            CONNECT => request.reply(&known),
            _ if request.datagram[..8] != known => [&[0, 0, 0, 3], request.transaction.as_slice(), b"who?"].concat(),
            _ => {
                id += 1;
                request.good(ONE_PEER)
            }
        }]
    })
    .await;
    let client = client();
    announce(&client, &fake.url()).await.unwrap();
    announce(&client, &fake.url()).await.unwrap();
    assert_eq!(fake.actions(), [CONNECT, ANNOUNCE, ANNOUNCE, CONNECT, ANNOUNCE]);
}

#[tokio::test]
async fn peers_from_an_ipv6_address_are_ipv6() {
    let six = [&[0u8; 15], b"\x01\x1a\xe1".as_slice()].concat();
    let fake = Fake::start("::1", move |request| vec![request.good(&six)]).await;
    assert_eq!(announce(&client(), &fake.url()).await.unwrap().peers, [peer("[::1]:6881")]);
}

#[tokio::test]
async fn both_families_are_asked_and_a_silent_one_delays_only_briefly() {
    let six = [&[0u8; 15], b"\x01\x1a\xe1".as_slice()].concat();
    let four = Fake::good().await;
    let other = Fake::start("::1", move |request| vec![request.good(&six)]).await;
    let request = Request::scrape(InfoHash([0; 20]));
    let family: fn(&[u8], bool) -> Result<bool, AnnounceError> = |_, v6| Ok(v6);
    let mut families = client().ask_all(vec![four.addr, other.addr], request.clone(), family).await.unwrap();
    families.sort();
    assert_eq!(families, [false, true]);

    let dead = Fake::start("::1", |_| vec![]).await;
    let limits = UdpLimits { retry: Duration::from_secs(60), grace: Duration::from_millis(50), ..LIMITS };
    let client = UdpClient::new(Bind::Anywhere, limits);
    let answers = timeout(Duration::from_secs(20), client.ask_all(vec![dead.addr, four.addr], request, family)).await;
    assert_eq!(answers.unwrap(), Ok(vec![false]));

    let answer = |text: &str, seeders| {
        let answer = super::super::Answer { seeders, peers: 1, ..Default::default() };
        Reply { peers: vec![peer(text)], interval: Some(Duration::from_secs(60)), answer, ..Reply::default() }
    };
    let both = [answer("1.2.3.4:5", Some(3)), answer("[::1]:5", Some(2))].into_iter().fold(Reply::default(), merge);
    assert_eq!((both.peers.len(), both.answer.peers, both.answer.seeders), (2, 2, Some(3)));
}

#[tokio::test]
async fn datagrams_leave_from_the_bound_address() {
    let fake = Fake::good().await;
    let bound = |text: &str| UdpClient::new(text.parse().unwrap(), LIMITS);
    announce(&bound("127.0.0.9"), &fake.url()).await.unwrap();
    assert_eq!(fake.requests.borrow()[0].1.ip(), IpAddr::from([127, 0, 0, 9]));
    announce(&bound("lo"), &fake.url()).await.unwrap();
    for (nowhere, words) in [("::1", "family"), ("no-such-if", "No such device"), ("192.0.2.1", "assign")] {
        let error = announce(&bound(nowhere), &fake.url()).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot connect: ") && error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_name_with_local_addresses_is_used_only_for_announces() {
    let fake = Fake::good().await;
    let client = client();
    let to = |path: &str| format!("udp://localhost:{}{path}", fake.addr.port()).parse::<Url>().unwrap();
    assert_eq!(announce(&client, &to("/admin")).await, Err(AnnounceError::Request(RequestError::Local)));
    let found = client.addresses(&to("/announce")).await.unwrap();
    assert!(!found.is_empty() && found.iter().all(|addr| addr.ip().is_loopback()));
    let nowhere = client.addresses(&"udp://no-such-name.invalid:80/announce".parse().unwrap()).await;
    assert!(matches!(nowhere, Err(AnnounceError::Request(RequestError::Connect(_)))), "{nowhere:?}");
}

#[tokio::test]
async fn cached_connections_are_bounded() {
    let client = client();
    for n in 0..MAX_CACHED as u16 + 5 {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1000 + n));
        let mut connection = Connection::open(addr, &Bind::Anywhere).await.unwrap();
        connection.id = Some((ConnectionId(1), Instant::now()));
        client.put_back(addr, connection);
    }
    assert_eq!(client.cache().len(), MAX_CACHED);
    let addr = SocketAddr::from(([127, 0, 0, 1], 1000));
    assert!(client.take(addr).is_some() && client.take(addr).is_none());
}

#[tokio::test]
async fn a_url_without_a_port_means_port_80() {
    let client = UdpClient::new(Bind::Anywhere, LIMITS);
    for (url, addr) in [("udp://127.0.0.1/announce", "127.0.0.1:80"), ("udp://[::1]", "[::1]:80")] {
        let found = client.addresses(&url.parse().unwrap()).await.unwrap();
        assert_eq!(found, [addr.parse::<SocketAddr>().unwrap()]);
    }
}
