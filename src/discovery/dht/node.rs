//! The DHT node: reacts to datagrams and to the passing of time. Sans-io: datagrams are passed in and out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::address::{Family, is_plausible};
use super::krpc::{self, Contact, Message, NodeId, Query, QueryError, Reply, Want};
use super::limits::{QueryLimiter, TokenBucket};
use super::lookup::Lookup;
use super::store::{Store, Tokens};
use super::table::{K, Table};
use crate::metainfo::InfoHash;

/// Time after which an unanswered query has failed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Our queries per second: fast enough for many lookups, harmless for a home router.
const QUERY_RATE: f64 = 100.0;
/// Our queries at once after a pause: one second's worth.
const QUERY_BURST: f64 = 100.0;
/// Bytes of our replies per second. Together with the size of a reply, this bounds our use in an amplification attack.
const REPLY_RATE: f64 = 20_000.0;
/// Bytes of our replies at once after a pause: three seconds' worth.
const REPLY_BURST: f64 = 60_000.0;
/// Datagrams waiting for the socket. More are dropped, as the network may drop any.
const MAX_OUTBOX: usize = 256;
/// Node addresses without an id that are kept: bootstrap nodes, a torrent's `nodes`, nodes of peers.
const MAX_CONTACTS: usize = 64;
/// Peers passed on in one round of a search.
const MAX_FOUND: usize = 500;
/// Concurrent rounds; further ones wait.
const MAX_ROUNDS: usize = 16;
/// Interval of rounds for a torrent with peers. Other nodes expire our announce after half an hour.
const ROUND_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// Wait after a first round without peers; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// Longest wait between rounds without peers of a single torrent.
const MAX_RETRY: Duration = Duration::from_secs(5 * 60);
/// Minimum average time between rounds without peers, over all torrents.
const EMPTY_ROUND_SPACING: Duration = Duration::from_secs(1);
/// Longest wait between rounds while no node answers.
const ISOLATED_RETRY: Duration = Duration::from_secs(60);
/// Minimum time between two rounds of a torrent that wants more peers.
const WANT_PEERS_INTERVAL: Duration = Duration::from_secs(60);
/// Minimum time between two rounds of a torrent with a blocked read and no peer for it: some 100 datagrams each.
const URGENT_INTERVAL: Duration = Duration::from_secs(10);
/// Minimum time between two pings of quiet nodes.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(3);

/// Identifies a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SearchId(u64);

/// A target that is looked up periodically.
#[derive(Debug)]
struct Search {
    /// `None` for the search for nodes, which fills our own routing table.
    torrent: Option<Torrent>,
    rounds: [Round; 2],
}

#[derive(Debug)]
struct Torrent {
    info_hash: InfoHash,
    announce: Option<u16>,
    /// Peers passed on in this round.
    found: HashSet<SocketAddr>,
    found_at: Option<Instant>,
}

/// The rounds of a search in one address family.
#[derive(Debug)]
struct Round {
    lookup: Option<Lookup>,
    started: Instant,
    next: Instant,
    /// Wait after this round if it brings no peers.
    retry: Duration,
    /// The last round reached no node: the next node that appears starts another.
    isolated: bool,
}

#[derive(Debug)]
struct Pending {
    sent: Instant,
    /// Id of the node that should answer, if known.
    id: Option<NodeId>,
    /// Search that sent the query; `None` for a ping or an announce.
    search: Option<SearchId>,
}

/// The state of the DHT node.
#[derive(Debug)]
pub(super) struct Node {
    id: NodeId,
    rng: StdRng,
    /// Routing tables of the families for which we have a socket.
    tables: [Option<Table>; 2],
    store: Store,
    tokens: Tokens,
    pending: HashMap<([u8; 2], SocketAddr), Pending>,
    searches: HashMap<SearchId, Search>,
    next_search: u64,
    contacts: VecDeque<SocketAddr>,
    queries: TokenBucket,
    answers: TokenBucket,
    limiter: QueryLimiter,
    maintenance: Instant,
    outbox: VecDeque<(SocketAddr, Vec<u8>)>,
    found: Vec<(SearchId, SocketAddr)>,
}

impl Node {
    pub fn new(now: Instant, families: &[Family], seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut id = NodeId([0; 20]);
        rng.fill_bytes(&mut id.0);
        let table = |family| families.contains(&family).then(|| Table::new(id));
        let mut node = Self {
            id,
            tables: Family::BOTH.map(table),
            store: Store::new(id),
            tokens: Tokens::new(now, &mut rng),
            rng,
            pending: HashMap::new(),
            searches: HashMap::new(),
            next_search: 0,
            contacts: VecDeque::new(),
            queries: TokenBucket::new(now, QUERY_RATE, QUERY_BURST),
            answers: TokenBucket::new(now, REPLY_RATE, REPLY_BURST),
            limiter: QueryLimiter::default(),
            maintenance: now,
            outbox: VecDeque::new(),
            found: Vec::new(),
        };
        node.add_search(now, None);
        node
    }

    fn add_search(&mut self, now: Instant, torrent: Option<Torrent>) -> SearchId {
        let round = || Round { lookup: None, started: now, next: now, retry: FIRST_RETRY, isolated: false };
        let id = SearchId(self.next_search);
        self.next_search += 1;
        self.searches.insert(id, Search { torrent, rounds: [round(), round()] });
        id
    }

    /// Searches for a torrent's peers until [`remove_search`](Self::remove_search), and announces us at the given port.
    pub fn search(&mut self, now: Instant, info_hash: InfoHash, announce: Option<u16>) -> SearchId {
        self.add_search(now, Some(Torrent { info_hash, announce, found: HashSet::new(), found_at: None }))
    }

    pub fn remove_search(&mut self, search: SearchId) {
        self.searches.remove(&search);
    }

    /// Records that a search wants more peers than it has found; `urgent` if somebody waits for them.
    pub fn want_peers(&mut self, search: SearchId, urgent: bool) {
        let interval = if urgent { URGENT_INTERVAL } else { WANT_PEERS_INTERVAL };
        for round in self.searches.get_mut(&search).into_iter().flat_map(|search| &mut search.rounds) {
            round.next = round.next.min(round.started + interval);
        }
    }

    /// Adds a node from an earlier run.
    pub fn restore(&mut self, contact: Contact) {
        if let Some(table) = self.table(contact.addr) {
            table.restore(contact);
        }
    }

    /// Adds an address at which there should be a node.
    pub fn add_contact(&mut self, now: Instant, addr: SocketAddr) {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        // The source of the address is unknown, so accept every unicast address.
        if !is_plausible(addr, addr) || self.table(addr).is_none() || self.contacts.contains(&addr) {
            return;
        }
        if self.contacts.len() >= MAX_CONTACTS {
            self.contacts.pop_front();
        }
        self.contacts.push_back(addr);
        self.offer(now, None, addr);
        if self.queries.take(now, 1.0) {
            self.query(now, None, addr, &Query::Ping, None);
        }
    }

    fn table(&mut self, addr: SocketAddr) -> Option<&mut Table> {
        self.tables[Family::of(addr) as usize].as_mut()
    }

    /// Returns the number of good nodes of a family.
    pub fn good(&self, now: Instant, family: Family) -> usize {
        self.tables[family as usize].as_ref().map_or(0, |table| table.good(now))
    }

    /// Returns the nodes to save for the next run.
    pub fn worth_saving(&self, now: Instant) -> Vec<Contact> {
        self.tables.iter().flatten().flat_map(|table| table.worth_saving(now)).collect()
    }

    /// Returns the next datagram to send.
    pub fn outgoing(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outbox.pop_front()
    }

    /// Returns the peers found since the last call.
    pub fn found(&mut self) -> Vec<(SearchId, SocketAddr)> {
        std::mem::take(&mut self.found)
    }

    fn send(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if self.outbox.len() < MAX_OUTBOX {
            self.outbox.push_back((to, bytes));
        }
    }

    fn query(&mut self, now: Instant, id: Option<NodeId>, addr: SocketAddr, query: &Query, search: Option<SearchId>) {
        let tid: [u8; 2] = self.rng.random();
        self.pending.insert((tid, addr), Pending { sent: now, id, search });
        self.send(addr, krpc::encode_query(&tid, &self.id, query));
    }

    /// Offers a node to the lookups that have too few answers, and starts the searches that had no node.
    fn offer(&mut self, now: Instant, id: Option<NodeId>, addr: SocketAddr) {
        let family = Family::of(addr) as usize;
        for search in self.searches.values_mut() {
            let round = &mut search.rounds[family];
            match &mut round.lookup {
                Some(lookup) if lookup.answers() < K => lookup.add(id, addr),
                Some(_) => {}
                None if round.isolated => (round.next, round.isolated) = (now, false),
                None => {}
            }
        }
    }

    /// Handles a received datagram.
    pub fn handle(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        if from.port() == 0 || self.table(from).is_none() {
            return;
        }
        match krpc::decode(bytes) {
            Some(Message::Reply { tid, reply }) => self.on_reply(now, from, &tid, reply),
            Some(Message::Error { tid }) => {
                if let Some(pending) = self.take_pending(&tid, from) {
                    self.on_failure(from, &pending, true);
                }
            }
            Some(Message::Query { id, .. }) if id == self.id => {}
            Some(message) if self.limiter.allow(now, from.ip()) => self.on_query(now, from, message),
            Some(_) | None => {}
        }
    }

    fn take_pending(&mut self, tid: &[u8], from: SocketAddr) -> Option<Pending> {
        self.pending.remove(&(tid.try_into().ok()?, from))
    }

    fn on_reply(&mut self, now: Instant, from: SocketAddr, tid: &[u8], reply: Reply) {
        let Some(pending) = self.take_pending(tid, from) else { return };
        // Another node than expected at that address, or our own datagram reflected.
        if pending.id.is_some_and(|id| id != reply.id) || reply.id == self.id {
            return self.on_failure(from, &pending, false);
        }
        let contact = Contact { id: reply.id, addr: from };
        if let Some(table) = self.table(from) {
            table.record_answer(now, contact);
        }
        let plausible = |addr: &SocketAddr| is_plausible(*addr, from);
        if let Some(search) = pending.search {
            for peer in reply.peers.iter().copied().filter(plausible) {
                self.on_peer(now, search, peer);
            }
            let family = Family::of(from);
            let nodes = reply.nodes.iter().filter(|node| node.id != self.id && plausible(&node.addr));
            let search = self.searches.get_mut(&search);
            if let Some(lookup) = search.and_then(|search| search.rounds[family as usize].lookup.as_mut()) {
                lookup.answered(contact, reply.token);
                nodes.clone().filter(|node| Family::of(node.addr) == family).for_each(|node| {
                    lookup.add(Some(node.id), node.addr);
                });
            }
            // A reply may contain nodes of the other family, which lead into its network if we know none there (BEP
            // 32).
            let other: Vec<Contact> = nodes.filter(|node| Family::of(node.addr) != family).copied().collect();
            for node in other {
                if self.table(node.addr).is_some_and(|table| table.closest(&node.id, K).len() < K) {
                    self.add_contact(now, node.addr);
                }
            }
        }
        self.offer(now, Some(contact.id), from);
    }

    /// Records that a query failed. `answered` means that the node is alive but replied with an error.
    fn on_failure(&mut self, addr: SocketAddr, pending: &Pending, answered: bool) {
        if let Some(id) = pending.id.filter(|_| !answered)
            && let Some(table) = self.table(addr)
        {
            table.record_failure(Contact { id, addr });
        }
        let search = pending.search.and_then(|search| self.searches.get_mut(&search));
        if let Some(lookup) = search.and_then(|search| search.rounds[Family::of(addr) as usize].lookup.as_mut()) {
            lookup.failed(addr);
        }
    }

    fn on_peer(&mut self, now: Instant, id: SearchId, peer: SocketAddr) {
        let Some(torrent) = self.searches.get_mut(&id).and_then(|search| search.torrent.as_mut()) else { return };
        torrent.found_at = Some(now);
        if torrent.found.len() < MAX_FOUND && torrent.found.insert(peer) {
            self.found.push((id, peer));
        }
    }

    fn on_query(&mut self, now: Instant, from: SocketAddr, message: Message) {
        let (tid, id, read_only, query) = match message {
            Message::Query { tid, id, read_only, query } => (tid, id, read_only, query),
            Message::InvalidQuery { tid, error } => return self.send_reply(now, from, krpc::encode_error(&tid, error)),
            Message::Reply { .. } | Message::Error { .. } => return,
        };
        let mut reply = Reply::empty(self.id);
        let mut families = Want::default();
        match query {
            Query::Ping => {}
            Query::FindNode { target, want } => (reply.nodes, families) = self.nodes_near(&target, want, from),
            Query::GetPeers { info_hash, want } => {
                (reply.nodes, families) = self.nodes_near(&info_hash.into(), want, from);
                reply.peers = self.store.get(now, info_hash, from, &mut self.rng);
                reply.token = Some(self.tokens.issue(now, from.ip(), info_hash, &mut self.rng).to_vec());
            }
            Query::Announce { info_hash, port, token } => {
                if !self.tokens.check(now, from.ip(), info_hash, &token, &mut self.rng) {
                    return self.send_reply(now, from, krpc::encode_error(&tid, QueryError::Protocol));
                }
                let peer = SocketAddr::new(from.ip(), port.unwrap_or(from.port()));
                self.store.put(now, info_hash, peer);
                // An announced peer of a torrent that we search for is a result, too.
                let ours = self.searches.iter().filter(|(_, search)| {
                    search.torrent.as_ref().is_some_and(|torrent| torrent.info_hash == info_hash)
                });
                let ours: Vec<SearchId> = ours.map(|(id, _)| *id).collect();
                ours.into_iter().for_each(|search| self.on_peer(now, search, peer));
            }
        }
        self.send_reply(now, from, krpc::encode_reply(&tid, from, &reply, families));
        // A node that would fill a gap in the table must first prove that it answers.
        let contact = Contact { id, addr: from };
        let accepted = self.table(from).is_some_and(|table| table.would_accept(&contact));
        if accepted && !read_only && !self.has_pending_query(from) && self.queries.take(now, 1.0) {
            self.query(now, Some(id), from, &Query::Ping, None);
        }
    }

    fn has_pending_query(&self, addr: SocketAddr) -> bool {
        self.pending.keys().any(|(_, asked)| *asked == addr)
    }

    fn send_reply(&mut self, now: Instant, to: SocketAddr, bytes: Vec<u8>) {
        if self.answers.take(now, bytes.len() as f64) {
            self.send(to, bytes);
        }
    }

    /// Returns the nodes closest to a target, and the families of the lists to return.
    fn nodes_near(&self, target: &NodeId, want: Want, asker: SocketAddr) -> (Vec<Contact>, Want) {
        let families = match (want, Family::of(asker)) {
            (Want { v4: false, v6: false }, Family::V4) => Want { v4: true, v6: false },
            (Want { v4: false, v6: false }, Family::V6) => Want { v4: false, v6: true },
            (want, _) => want,
        };
        let mut nodes = Vec::new();
        for (wanted, table) in [families.v4, families.v6].into_iter().zip(&self.tables) {
            if let Some(table) = table.as_ref().filter(|_| wanted) {
                nodes.extend(table.closest(target, K));
            }
        }
        nodes.retain(|node| node.addr != asker && is_plausible(node.addr, asker));
        (nodes, families)
    }

    /// Does everything that is due and returns when to call it again.
    pub fn poll(&mut self, now: Instant) -> Instant {
        self.expire(now);
        self.start_rounds(now);
        let active =
            self.searches.iter().filter(|(_, search)| search.rounds.iter().any(|round| round.lookup.is_some()));
        let searches: Vec<SearchId> = active.map(|(id, _)| *id).collect();
        for search in searches {
            for family in Family::BOTH {
                self.advance(now, search, family);
            }
        }
        self.maintain(now);
        self.wakeup(now)
    }

    fn expire(&mut self, now: Instant) {
        let late = |pending: &Pending| now.saturating_duration_since(pending.sent) >= TIMEOUT;
        let failed: Vec<_> = self.pending.extract_if(|_, pending| late(pending)).collect();
        for ((_, addr), pending) in failed {
            self.on_failure(addr, &pending, false);
        }
    }

    fn start_rounds(&mut self, now: Instant) {
        let room = MAX_ROUNDS.saturating_sub(self.active_rounds());
        let mut due: Vec<(Instant, SearchId, Family)> = Vec::new();
        for (id, search) in &self.searches {
            for family in Family::BOTH {
                let round = &search.rounds[family as usize];
                if self.tables[family as usize].is_some() && round.lookup.is_none() && round.next <= now {
                    due.push((round.next, *id, family));
                }
            }
        }
        due.sort_by_key(|(next, id, _)| (*next, id.0));
        for (_, id, family) in due.into_iter().take(room) {
            self.start_round(now, id, family);
        }
    }

    fn active_rounds(&self) -> usize {
        self.searches.values().flat_map(|search| &search.rounds).filter(|round| round.lookup.is_some()).count()
    }

    fn start_round(&mut self, now: Instant, id: SearchId, family: Family) {
        let (Some(search), Some(table)) = (self.searches.get_mut(&id), &self.tables[family as usize]) else { return };
        let target = match &mut search.torrent {
            Some(torrent) => {
                torrent.found.retain(|peer| Family::of(*peer) != family);
                torrent.info_hash.into()
            }
            // Close to our own id while there are few nodes, then at random, to keep every part of the table fresh.
            None if table.good(now) < 2 * K => self.id,
            None => NodeId(self.rng.random()),
        };
        let mut lookup = Lookup::new(target);
        let known = table.closest_or_any(&target, 2 * K);
        // Bootstrap nodes only help others to join, so they are not asked without need.
        if table.good(now) < K {
            let contacts = self.contacts.iter().filter(|addr| Family::of(**addr) == family);
            contacts
                .for_each(|addr| lookup.add(known.iter().find(|node| node.addr == *addr).map(|node| node.id), *addr));
        }
        known.iter().for_each(|node| lookup.add(Some(node.id), node.addr));
        let round = &mut search.rounds[family as usize];
        (round.lookup, round.started) = (Some(lookup), now);
        if let Some(info_hash) = search.torrent.as_ref().map(|torrent| torrent.info_hash) {
            let asker = match family {
                Family::V4 => SocketAddr::from(([127, 0, 0, 1], 1)),
                Family::V6 => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 1)),
            };
            for peer in self.store.get(now, info_hash, asker, &mut self.rng) {
                self.on_peer(now, id, peer);
            }
        }
    }

    /// Sends the queries of a lookup that are due, and ends it when there is nothing left to do.
    fn advance(&mut self, now: Instant, id: SearchId, family: Family) {
        loop {
            let Some(search) = self.searches.get_mut(&id) else { return };
            let Some(lookup) = &mut search.rounds[family as usize].lookup else { return };
            if lookup.is_done() {
                return self.end_round(now, id, family);
            }
            if !self.queries.has(now, 1.0) {
                return;
            }
            let Some((node, addr)) = lookup.next(now) else { return };
            self.queries.take(now, 1.0);
            let want = Want { v4: self.tables[0].is_some(), v6: self.tables[1].is_some() };
            let query = match &search.torrent {
                Some(torrent) => Query::GetPeers { info_hash: torrent.info_hash, want },
                None => Query::FindNode { target: lookup.target, want },
            };
            self.query(now, node, addr, &query, Some(id));
        }
    }

    fn end_round(&mut self, now: Instant, id: SearchId, family: Family) {
        let good = self.good(now, family);
        let max_wait = MAX_RETRY
            .max(EMPTY_ROUND_SPACING * u32::try_from(self.searches.len()).unwrap_or(u32::MAX))
            .min(ROUND_INTERVAL);
        let Some(search) = self.searches.get_mut(&id) else { return };
        let round = &mut search.rounds[family as usize];
        let Some(lookup) = round.lookup.take() else { return };
        round.isolated = lookup.answers() == 0;
        let succeeded = match &search.torrent {
            Some(torrent) => torrent.found_at.is_some_and(|at| now.saturating_duration_since(at) < ROUND_INTERVAL),
            None => good >= K,
        };
        if succeeded {
            (round.next, round.retry) = (now + ROUND_INTERVAL, FIRST_RETRY);
        } else {
            let limit = if round.isolated { ISOLATED_RETRY } else { max_wait };
            (round.next, round.retry) = (now + round.retry.min(limit), (round.retry * 2).min(max_wait));
        }
        let Some(torrent) = &search.torrent else { return };
        if let Some(port) = torrent.announce {
            let info_hash = torrent.info_hash;
            for (contact, token) in lookup.tokens() {
                let query = Query::Announce { info_hash, port: Some(port), token };
                self.query(now, Some(contact.id), contact.addr, &query, None);
            }
        }
    }

    /// Pings a quiet node and removes expired announces.
    fn maintain(&mut self, now: Instant) {
        if now < self.maintenance {
            return;
        }
        self.maintenance = now + MAINTENANCE_INTERVAL;
        self.store.expire(now);
        for family in Family::BOTH {
            let quiet = self.tables[family as usize].as_mut().and_then(|table| table.due_for_ping(now));
            if let Some(quiet) = quiet.filter(|_| self.queries.take(now, 1.0)) {
                self.query(now, Some(quiet.id), quiet.addr, &Query::Ping, None);
            }
        }
    }

    fn wakeup(&mut self, now: Instant) -> Instant {
        let timeouts = self.pending.values().map(|pending| pending.sent + TIMEOUT);
        let mut wakeup = timeouts.fold(self.maintenance, Instant::min);
        let active_rounds = self.active_rounds();
        if active_rounds > 0 && !self.queries.has(now, 1.0) {
            return now + self.queries.wait();
        }
        for (at, round) in self.searches.values().flat_map(|search| search.rounds.iter().enumerate()) {
            match &round.lookup {
                Some(lookup) => wakeup = lookup.wakeup(now).map_or(wakeup, |slow| wakeup.min(slow)),
                None if self.tables[at].is_some() && active_rounds < MAX_ROUNDS => wakeup = wakeup.min(round.next),
                None => {}
            }
        }
        wakeup
    }
}

#[cfg(test)]
mod tests;
