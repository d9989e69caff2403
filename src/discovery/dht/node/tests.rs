//! Networks of DHT nodes in virtual time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::*;

/// Latency of every datagram.
const LATENCY: Duration = Duration::from_millis(20);

struct Net {
    now: Instant,
    nodes: BTreeMap<SocketAddr, (Node, Instant)>,
    in_flight: VecDeque<(Instant, SocketAddr, SocketAddr, Vec<u8>)>,
    sent: usize,
}

fn v4(n: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0808_0000 + n), 6881).into()
}

fn v6(n: u32) -> SocketAddr {
    format!("[2001:db8:{n:x}::1]:6881").parse().unwrap()
}

impl Net {
    fn new() -> Self {
        Self { now: Instant::now(), nodes: BTreeMap::new(), in_flight: VecDeque::new(), sent: 0 }
    }

    fn join(&mut self, addr: SocketAddr, bootstrap: Option<SocketAddr>) {
        let mut node = Node::new(self.now, &[Family::of(addr)], self.nodes.len() as u64);
        bootstrap.into_iter().for_each(|bootstrap| node.add_contact(self.now, bootstrap));
        self.nodes.insert(addr, (node, self.now));
    }

    fn node(&mut self, addr: SocketAddr) -> &mut Node {
        let (node, wakeup) = self.nodes.get_mut(&addr).unwrap();
        *wakeup = self.now;
        node
    }

    fn search(&mut self, addr: SocketAddr, info_hash: InfoHash, announce: Option<u16>) -> SearchId {
        let now = self.now;
        self.node(addr).search(now, info_hash, announce)
    }

    /// Advances the time until `done` returns true, for at most `limit`.
    fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + limit;
        let mut turns = 0;
        while self.now < end {
            turns += 1;
            assert!(turns < 1_000_000, "the nodes never sleep");
            for (addr, (node, wakeup)) in self.nodes.iter_mut().filter(|(_, (_, wakeup))| *wakeup <= self.now) {
                *wakeup = node.poll(self.now);
                assert!(*wakeup > self.now, "the node would never sleep");
                while let Some((to, bytes)) = node.outgoing() {
                    self.in_flight.push_back((self.now + LATENCY, *addr, to, bytes));
                    self.sent += 1;
                }
            }
            if done(self) {
                return true;
            }
            let arrival = self.in_flight.front().map_or(end, |(at, ..)| *at);
            self.now = self.nodes.values().map(|(_, wakeup)| *wakeup).fold(arrival, Instant::min).max(self.now);
            while self.in_flight.front().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, from, to, bytes) = self.in_flight.pop_front().unwrap();
                if let Some((node, wakeup)) = self.nodes.get_mut(&to) {
                    node.handle(self.now, from, &bytes);
                    *wakeup = self.now;
                }
            }
        }
        false
    }

    fn found(&mut self, addr: SocketAddr) -> Vec<SocketAddr> {
        let (node, _) = self.nodes.get_mut(&addr).unwrap();
        node.found().into_iter().map(|(_, peer)| peer).collect()
    }
}

const HASH: InfoHash = InfoHash([0x5a; 20]);

#[test]
fn sixty_nodes_find_each_other_and_a_peer() {
    for addr in [v4, v6] {
        let mut net = Net::new();
        net.join(addr(0), None);
        (1..60).for_each(|n| net.join(addr(n), Some(addr(0))));
        net.run(Duration::from_secs(60), |_| false);
        let now = net.now;
        for n in 0..60 {
            let known = net.node(addr(n)).good(now, Family::of(addr(n)));
            assert!(known >= K, "node {n} knows {known}");
        }
        net.search(addr(7), HASH, Some(7777));
        net.run(Duration::from_secs(5), |_| false);
        net.search(addr(42), HASH, None);
        let (started, sent) = (net.now, net.sent);
        let peer = SocketAddr::new(addr(7).ip(), 7777);
        assert!(net.run(Duration::from_secs(5), |net| net.found(addr(42)).contains(&peer)));
        assert!(net.now - started <= 8 * LATENCY, "{:?}", net.now - started);
        assert!(net.sent - sent < 200, "{}", net.sent - sent);
    }
}

#[test]
fn a_late_bootstrap_node_is_enough() {
    let mut net = Net::new();
    net.join(v4(1), Some(v4(0)));
    net.search(v4(1), HASH, Some(1111));
    net.run(Duration::from_secs(40), |_| false);
    net.join(v4(0), None);
    net.join(v4(2), Some(v4(0)));
    net.search(v4(2), HASH, None);
    let peer = SocketAddr::new(v4(1).ip(), 1111);
    assert!(net.run(Duration::from_secs(130), |net| net.found(v4(2)).contains(&peer)));
}

#[test]
fn two_nodes_find_each_other() {
    let mut net = Net::new();
    net.join(v4(0), None);
    net.join(v4(1), Some(v4(0)));
    let search = net.search(v4(0), HASH, Some(1));
    net.search(v4(1), HASH, Some(2));
    let (one, other) = (SocketAddr::new(v4(0).ip(), 1), SocketAddr::new(v4(1).ip(), 2));
    // The other node announced to this one, so it learns of the peer without a query.
    assert!(net.run(Duration::from_secs(1), |net| net.found(v4(0)).contains(&other)));
    assert!(net.run(Duration::from_secs(10), |net| net.found(v4(1)).contains(&one)));
    // A removed search sends no queries.
    net.node(v4(0)).remove_search(search);
    net.run(Duration::from_secs(3600), |_| false);
    assert!(net.found(v4(0)).is_empty());
    // An hour with one torrent takes a few hundred datagrams.
    assert!(net.sent < 1000, "{}", net.sent);
}

#[test]
fn a_peer_is_reported_once_a_round_and_rounds_start_once_a_minute() {
    let mut net = Net::new();
    net.join(v4(0), None);
    (1..4).for_each(|n| net.join(v4(n), Some(v4(0))));
    net.search(v4(1), HASH, Some(1));
    net.run(Duration::from_secs(5), |_| false);
    let search = net.search(v4(2), HASH, None);
    net.run(Duration::from_secs(30), |_| false);
    assert_eq!(net.found(v4(2)), [SocketAddr::new(v4(1).ip(), 1)]);
    let mut found = 0;
    for _ in 0..60 {
        net.node(v4(2)).want_peers(search, false);
        net.run(Duration::from_secs(2), |_| false);
        found += net.found(v4(2)).len();
    }
    assert!((1..=3).contains(&found), "{found}");
    // A blocked read gets them sooner.
    net.node(v4(2)).want_peers(search, true);
    net.run(Duration::from_secs(11), |_| false);
    assert_eq!(net.found(v4(2)), [SocketAddr::new(v4(1).ip(), 1)]);
}

/// Passes a datagram to a node and returns what it sends.
fn exchange(node: &mut Node, now: Instant, from: SocketAddr, bytes: &[u8]) -> Vec<Vec<u8>> {
    node.handle(now, from, bytes);
    std::iter::from_fn(|| node.outgoing()).map(|(_, bytes)| bytes).collect()
}

const STRANGER: NodeId = NodeId([0xee; 20]);

#[test]
fn replies_to_a_flood_are_bounded() {
    let now = Instant::now();
    let mut node = Node::new(now, &Family::BOTH, 1);
    let query = krpc::encode_query(b"aa", &STRANGER, &Query::GetPeers { info_hash: HASH, want: Want::default() });
    let one: usize = (0..1000).map(|_| exchange(&mut node, now, v4(1), &query).len()).sum();
    assert!(one <= 61, "{one}");
    let all: usize = (2..20_000).flat_map(|n| exchange(&mut node, now, v4(n), &query)).map(|bytes| bytes.len()).sum();
    // Our queries to the askers are bounded by the query limit.
    assert!(all < 60_000 + 100 * 100, "{all}");
    // The node still works.
    let later = now + Duration::from_secs(20);
    assert!(!exchange(&mut node, later, v4(1), &query).is_empty());
    assert!(node.pending.len() <= 200);
}

#[test]
fn an_announce_needs_the_token_of_its_address() {
    let now = Instant::now();
    let mut node = Node::new(now, &Family::BOTH, 1);
    let get_peers = krpc::encode_query(b"aa", &STRANGER, &Query::GetPeers { info_hash: HASH, want: Want::default() });
    let reply = exchange(&mut node, now, v4(1), &get_peers).remove(0);
    let Some(Message::Reply { reply, .. }) = krpc::decode(&reply) else { panic!() };
    let token = reply.token.unwrap();
    let announce = |node: &mut Node, from, token: &[u8]| {
        let query = Query::Announce { info_hash: HASH, port: Some(9), token: token.to_vec() };
        let said = exchange(node, now, from, &krpc::encode_query(b"bb", &STRANGER, &query));
        matches!(krpc::decode(&said[0]), Some(Message::Reply { .. }))
    };
    assert!(!announce(&mut node, v4(2), &token) && !announce(&mut node, v4(1), b"guess"));
    assert!(announce(&mut node, v4(1), &token));
    let reply = exchange(&mut node, now, v4(3), &get_peers).remove(0);
    let Some(Message::Reply { reply, .. }) = krpc::decode(&reply) else { panic!() };
    assert_eq!(reply.peers, [SocketAddr::new(v4(1).ip(), 9)]);
}

#[test]
fn implausible_addresses_are_not_contacted() {
    let now = Instant::now();
    let mut node = Node::new(now, &[Family::V4], 1);
    node.search(now, HASH, Some(1));
    node.add_contact(now, v4(1));
    node.poll(now);
    let own = node.id;
    let lies = ["127.0.0.1:1", "10.0.0.1:1", "0.0.0.0:1", "239.1.1.1:1", "8.8.8.8:0"].map(|addr| addr.parse().unwrap());
    let mut answered = 0;
    while let Some((to, bytes)) = node.outgoing() {
        assert_eq!(to, v4(1));
        let Some(Message::Query { tid, .. }) = krpc::decode(&bytes) else { panic!() };
        let mut nodes: Vec<Contact> = lies.map(|addr| Contact { id: STRANGER, addr }).to_vec();
        // Our own id, at another address.
        nodes.push(Contact { id: own, addr: v4(99) });
        let reply = Reply { id: STRANGER, nodes, peers: lies.to_vec(), token: None };
        let bytes = krpc::encode_reply(&tid, v4(0), &reply, Want { v4: true, v6: false });
        // From another address, the reply is ignored.
        node.handle(now, v4(2), &bytes);
        node.handle(now, v4(1), &bytes);
        answered += 1;
    }
    assert!(answered >= 2);
    node.poll(now);
    assert_eq!(node.outgoing(), None);
    assert!(node.found().is_empty());
    assert_eq!(node.good(now, Family::V4), 1);
    // A reflected datagram of our own is not answered.
    let echo = krpc::encode_query(b"aa", &own, &Query::Ping);
    assert!(exchange(&mut node, now, v4(3), &echo).is_empty());
}

#[test]
fn nodes_of_the_other_family_are_used_to_join_it() {
    let now = Instant::now();
    let mut node = Node::new(now, &Family::BOTH, 1);
    node.add_contact(now, v4(1));
    node.poll(now);
    let asked: Vec<_> = std::iter::from_fn(|| node.outgoing()).collect();
    for (_, bytes) in asked {
        let Some(Message::Query { tid, .. }) = krpc::decode(&bytes) else { panic!() };
        let nodes = vec![Contact { id: NodeId([3; 20]), addr: v6(1) }];
        let reply = Reply { id: STRANGER, nodes, peers: Vec::new(), token: None };
        node.handle(now, v4(1), &krpc::encode_reply(&tid, v4(0), &reply, Want { v4: true, v6: true }));
    }
    node.poll(now);
    assert!(std::iter::from_fn(|| node.outgoing()).any(|(to, _)| to == v6(1)));
}
