//! The node: what it does with a datagram and with the passing of time. Sans-io: datagrams go in and come out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::address::{Family, is_believable};
use super::krpc::{self, Contact, Fault, Message, NodeId, Query, Reply, Want};
use super::limits::{Bucket, Sources};
use super::lookup::Lookup;
use super::store::{Store, Tokens};
use super::table::{K, Table};
use crate::metainfo::InfoHash;

/// A query unanswered for so long has failed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Our queries, in a second and at once.
const QUERIES: (f64, f64) = (100.0, 100.0);
/// Bytes of our answers, in a second and at once. With the size of an answer this is all that a flood gets out of us.
const ANSWERS: (f64, f64) = (20_000.0, 60_000.0);
/// Datagrams that wait for the socket; more are lost, as the network loses them.
const MAX_OUTBOX: usize = 256;
/// Bare addresses remembered: bootstrap nodes, a torrent's nodes, peers that have a node.
const MAX_CONTACTS: usize = 64;
/// Addresses passed on in one round.
const MAX_FOUND: usize = 500;
/// Rounds under way at a time; others wait.
const MAX_ROUNDS: usize = 16;
/// A torrent with peers is announced this often: others forget it after half an hour.
const ROUND: Duration = Duration::from_secs(15 * 60);
/// Without success: after this long, then twice as long each time, to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5 * 60));
/// Rounds without success of all torrents together begin no more often than this, in the long run.
const FRUITLESS: Duration = Duration::from_secs(1);
/// The longest of these waits while not one node answers.
const STARVED: Duration = Duration::from_secs(60);
/// Asked for more, a torrent is looked up no more often than this.
const WANTED: Duration = Duration::from_secs(60);
/// The least time between two questions whether a node is still there.
const UPKEEP: Duration = Duration::from_secs(3);

/// A torrent that is looked for, by a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct GoalId(u64);

/// Something to be looked up again and again.
#[derive(Debug)]
struct Goal {
    /// `None`: nodes for our own routing table.
    torrent: Option<Torrent>,
    rounds: [Round; 2],
}

#[derive(Debug)]
struct Torrent {
    info_hash: InfoHash,
    announce: Option<u16>,
    /// Passed on in this round.
    found: HashSet<SocketAddr>,
    found_at: Option<Instant>,
}

/// A goal in one family.
#[derive(Debug)]
struct Round {
    lookup: Option<Lookup>,
    started: Instant,
    next: Instant,
    /// The next wait, should this round bring nothing.
    retry: Duration,
    /// The last round reached nobody: the first node that turns up starts the next.
    starved: bool,
}

#[derive(Debug)]
struct Pending {
    sent: Instant,
    /// Who is expected to answer, if it is known.
    id: Option<NodeId>,
    /// On whose behalf; `None`: upkeep, or an announce.
    goal: Option<GoalId>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Node {
    id: NodeId,
    rng: StdRng,
    /// Of the families that we have a socket for.
    tables: [Option<Table>; 2],
    store: Store,
    tokens: Tokens,
    pending: HashMap<([u8; 2], SocketAddr), Pending>,
    goals: HashMap<GoalId, Goal>,
    goals_made: u64,
    contacts: VecDeque<SocketAddr>,
    queries: Bucket,
    answers: Bucket,
    sources: Sources,
    upkeep: Instant,
    outbox: VecDeque<(SocketAddr, Vec<u8>)>,
    found: Vec<(GoalId, SocketAddr)>,
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
            goals: HashMap::new(),
            goals_made: 0,
            contacts: VecDeque::new(),
            queries: Bucket::new(now, QUERIES.0, QUERIES.1),
            answers: Bucket::new(now, ANSWERS.0, ANSWERS.1),
            sources: Sources::default(),
            upkeep: now,
            outbox: VecDeque::new(),
            found: Vec::new(),
        };
        node.pursue(now, None);
        node
    }

    fn pursue(&mut self, now: Instant, torrent: Option<Torrent>) -> GoalId {
        let round = || Round { lookup: None, started: now, next: now, retry: RETRY.0, starved: false };
        let id = GoalId(self.goals_made);
        self.goals_made += 1;
        self.goals.insert(id, Goal { torrent, rounds: [round(), round()] });
        id
    }

    /// Looks for a torrent's peers until [`forget`](Self::forget), and announces us at that port.
    pub fn search(&mut self, now: Instant, info_hash: InfoHash, announce: Option<u16>) -> GoalId {
        self.pursue(now, Some(Torrent { info_hash, announce, found: HashSet::new(), found_at: None }))
    }

    pub fn forget(&mut self, goal: GoalId) {
        self.goals.remove(&goal);
    }

    /// More peers are wanted than were found.
    pub fn want_peers(&mut self, goal: GoalId) {
        for round in self.goals.get_mut(&goal).into_iter().flat_map(|goal| &mut goal.rounds) {
            round.next = round.next.min(round.started + WANTED);
        }
    }

    /// A node of an earlier run.
    pub fn restore(&mut self, contact: Contact) {
        if let Some(table) = self.table(contact.addr) {
            table.restore(contact);
        }
    }

    /// An address at which a node should be.
    pub fn add_contact(&mut self, now: Instant, addr: SocketAddr) {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        // Whoever names it is not known here, so only what can be called at all is asked for.
        if !is_believable(addr, addr) || self.table(addr).is_none() || self.contacts.contains(&addr) {
            return;
        }
        if self.contacts.len() >= MAX_CONTACTS {
            self.contacts.pop_front();
        }
        self.contacts.push_back(addr);
        self.offer(now, None, addr);
        if self.queries.take(now, 1.0) {
            self.ask(now, None, addr, &Query::Ping, None);
        }
    }

    fn table(&mut self, addr: SocketAddr) -> Option<&mut Table> {
        self.tables[Family::of(addr) as usize].as_mut()
    }

    /// Nodes that do their duty, of a family.
    pub fn good(&self, now: Instant, family: Family) -> usize {
        self.tables[family as usize].as_ref().map_or(0, |table| table.good(now))
    }

    /// Nodes worth remembering for the next run.
    pub fn worth_saving(&self, now: Instant) -> Vec<Contact> {
        self.tables.iter().flatten().flat_map(|table| table.worth_saving(now)).collect()
    }

    /// The next datagram to send.
    pub fn outgoing(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outbox.pop_front()
    }

    /// Peers found since the last call.
    pub fn found(&mut self) -> Vec<(GoalId, SocketAddr)> {
        std::mem::take(&mut self.found)
    }

    fn send(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        if self.outbox.len() < MAX_OUTBOX {
            self.outbox.push_back((to, bytes));
        }
    }

    fn ask(&mut self, now: Instant, id: Option<NodeId>, addr: SocketAddr, query: &Query, goal: Option<GoalId>) {
        let tid: [u8; 2] = self.rng.random();
        self.pending.insert((tid, addr), Pending { sent: now, id, goal });
        self.send(addr, krpc::encode_query(&tid, &self.id, query));
    }

    /// A node that may be of use to lookups: the hungry ones get it at once.
    fn offer(&mut self, now: Instant, id: Option<NodeId>, addr: SocketAddr) {
        let family = Family::of(addr) as usize;
        for goal in self.goals.values_mut() {
            let round = &mut goal.rounds[family];
            match &mut round.lookup {
                Some(lookup) if lookup.answers() < K => lookup.add(id, addr),
                Some(_) => {}
                None if round.starved => (round.next, round.starved) = (now, false),
                None => {}
            }
        }
    }

    /// A datagram has come.
    pub fn handle(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        if from.port() == 0 || self.table(from).is_none() {
            return;
        }
        match krpc::decode(bytes) {
            Some(Message::Reply { tid, reply }) => self.on_reply(now, from, &tid, reply),
            Some(Message::Error { tid }) => {
                if let Some(pending) = self.settle(&tid, from) {
                    self.on_failure(from, &pending, true);
                }
            }
            Some(Message::Query { id, .. }) if id == self.id => {}
            Some(message) if self.sources.admit(now, from.ip()) => self.on_query(now, from, message),
            Some(_) | None => {}
        }
    }

    fn settle(&mut self, tid: &[u8], from: SocketAddr) -> Option<Pending> {
        self.pending.remove(&(tid.try_into().ok()?, from))
    }

    fn on_reply(&mut self, now: Instant, from: SocketAddr, tid: &[u8], reply: Reply) {
        let Some(pending) = self.settle(tid, from) else { return };
        // Another node at that address than was said, or we ourselves.
        if pending.id.is_some_and(|id| id != reply.id) || reply.id == self.id {
            return self.on_failure(from, &pending, false);
        }
        let contact = Contact { id: reply.id, addr: from };
        if let Some(table) = self.table(from) {
            table.heard(now, contact);
        }
        let believed = |addr: &SocketAddr| is_believable(*addr, from);
        if let Some(goal) = pending.goal {
            for peer in reply.peers.iter().copied().filter(believed) {
                self.on_peer(now, goal, peer);
            }
            let family = Family::of(from);
            let nodes = reply.nodes.iter().filter(|node| node.id != self.id && believed(&node.addr));
            let goal = self.goals.get_mut(&goal);
            if let Some(lookup) = goal.and_then(|goal| goal.rounds[family as usize].lookup.as_mut()) {
                lookup.answered(contact, reply.token);
                nodes.clone().filter(|node| Family::of(node.addr) == family).for_each(|node| {
                    lookup.add(Some(node.id), node.addr);
                });
            }
            // A node of the other family leads into its network where nothing else does (BEP 32).
            let other: Vec<Contact> = nodes.filter(|node| Family::of(node.addr) != family).copied().collect();
            for node in other {
                if self.table(node.addr).is_some_and(|table| table.closest(&node.id, K).len() < K) {
                    self.add_contact(now, node.addr);
                }
            }
        }
        self.offer(now, Some(contact.id), from);
    }

    /// `answered`: it is there, and said no.
    fn on_failure(&mut self, addr: SocketAddr, pending: &Pending, answered: bool) {
        if let Some(id) = pending.id.filter(|_| !answered)
            && let Some(table) = self.table(addr)
        {
            table.failed(Contact { id, addr });
        }
        let goal = pending.goal.and_then(|goal| self.goals.get_mut(&goal));
        if let Some(lookup) = goal.and_then(|goal| goal.rounds[Family::of(addr) as usize].lookup.as_mut()) {
            lookup.failed(addr);
        }
    }

    fn on_peer(&mut self, now: Instant, id: GoalId, peer: SocketAddr) {
        let Some(torrent) = self.goals.get_mut(&id).and_then(|goal| goal.torrent.as_mut()) else { return };
        torrent.found_at = Some(now);
        if torrent.found.len() < MAX_FOUND && torrent.found.insert(peer) {
            self.found.push((id, peer));
        }
    }

    fn on_query(&mut self, now: Instant, from: SocketAddr, message: Message) {
        let (tid, id, read_only, query) = match message {
            Message::Query { tid, id, read_only, query } => (tid, id, read_only, query),
            Message::Faulty { tid, fault } => return self.answer(now, from, krpc::encode_error(&tid, fault)),
            Message::Reply { .. } | Message::Error { .. } => return,
        };
        let mut reply = Reply::bare(self.id);
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
                    return self.answer(now, from, krpc::encode_error(&tid, Fault::Protocol));
                }
                let peer = SocketAddr::new(from.ip(), port.unwrap_or(from.port()));
                self.store.put(now, info_hash, peer);
                // Whom we look for ourselves need not be asked for.
                let ours = self
                    .goals
                    .iter()
                    .filter(|(_, goal)| goal.torrent.as_ref().is_some_and(|torrent| torrent.info_hash == info_hash));
                let ours: Vec<GoalId> = ours.map(|(id, _)| *id).collect();
                ours.into_iter().for_each(|goal| self.on_peer(now, goal, peer));
            }
        }
        self.answer(now, from, krpc::encode_reply(&tid, from, &reply, families));
        // One that may fill a gap must first show that it is there.
        let contact = Contact { id, addr: from };
        let has_place = self.table(from).is_some_and(|table| table.has_place_for(&contact));
        if has_place && !read_only && !self.is_asked(from) && self.queries.take(now, 1.0) {
            self.ask(now, Some(id), from, &Query::Ping, None);
        }
    }

    fn is_asked(&self, addr: SocketAddr) -> bool {
        self.pending.keys().any(|(_, asked)| *asked == addr)
    }

    fn answer(&mut self, now: Instant, to: SocketAddr, bytes: Vec<u8>) {
        if self.answers.take(now, bytes.len() as f64) {
            self.send(to, bytes);
        }
    }

    /// The nodes closest to a point, and of which families.
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
        nodes.retain(|node| node.addr != asker && is_believable(node.addr, asker));
        (nodes, families)
    }

    /// Does what is due, and says when something will be due again.
    pub fn poll(&mut self, now: Instant) -> Instant {
        self.expire(now);
        self.start_rounds(now);
        let under_way = self.goals.iter().filter(|(_, goal)| goal.rounds.iter().any(|round| round.lookup.is_some()));
        let goals: Vec<GoalId> = under_way.map(|(id, _)| *id).collect();
        for goal in goals {
            for family in Family::BOTH {
                self.advance(now, goal, family);
            }
        }
        self.keep_up(now);
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
        let room = MAX_ROUNDS.saturating_sub(self.under_way());
        let mut due: Vec<(Instant, GoalId, Family)> = Vec::new();
        for (id, goal) in &self.goals {
            for family in Family::BOTH {
                let round = &goal.rounds[family as usize];
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

    fn under_way(&self) -> usize {
        self.goals.values().flat_map(|goal| &goal.rounds).filter(|round| round.lookup.is_some()).count()
    }

    fn start_round(&mut self, now: Instant, id: GoalId, family: Family) {
        let (Some(goal), Some(table)) = (self.goals.get_mut(&id), &self.tables[family as usize]) else { return };
        let target = match &mut goal.torrent {
            Some(torrent) => {
                torrent.found.retain(|peer| Family::of(*peer) != family);
                torrent.info_hash.into()
            }
            // Around ourselves while there are few nodes, then anywhere, to keep every part of the table fresh.
            None if table.good(now) < 2 * K => self.id,
            None => NodeId(self.rng.random()),
        };
        let mut lookup = Lookup::new(target);
        let known = table.closest_or_any(&target, 2 * K);
        // Those who do nothing but help others to start are not asked without need.
        if table.good(now) < K {
            let contacts = self.contacts.iter().filter(|addr| Family::of(**addr) == family);
            contacts
                .for_each(|addr| lookup.add(known.iter().find(|node| node.addr == *addr).map(|node| node.id), *addr));
        }
        known.iter().for_each(|node| lookup.add(Some(node.id), node.addr));
        let round = &mut goal.rounds[family as usize];
        (round.lookup, round.started) = (Some(lookup), now);
        if let Some(info_hash) = goal.torrent.as_ref().map(|torrent| torrent.info_hash) {
            let asker = match family {
                Family::V4 => SocketAddr::from(([127, 0, 0, 1], 1)),
                Family::V6 => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 1)),
            };
            for peer in self.store.get(now, info_hash, asker, &mut self.rng) {
                self.on_peer(now, id, peer);
            }
        }
    }

    /// Asks whom a lookup would ask now, and ends it when nobody is left.
    fn advance(&mut self, now: Instant, id: GoalId, family: Family) {
        loop {
            let Some(goal) = self.goals.get_mut(&id) else { return };
            let Some(lookup) = &mut goal.rounds[family as usize].lookup else { return };
            if lookup.is_done() {
                return self.end_round(now, id, family);
            }
            if !self.queries.has(now, 1.0) {
                return;
            }
            let Some((node, addr)) = lookup.next(now) else { return };
            self.queries.take(now, 1.0);
            let want = Want { v4: self.tables[0].is_some(), v6: self.tables[1].is_some() };
            let query = match &goal.torrent {
                Some(torrent) => Query::GetPeers { info_hash: torrent.info_hash, want },
                None => Query::FindNode { target: lookup.target, want },
            };
            self.ask(now, node, addr, &query, Some(id));
        }
    }

    fn end_round(&mut self, now: Instant, id: GoalId, family: Family) {
        let good = self.good(now, family);
        let most = RETRY.1.max(FRUITLESS * u32::try_from(self.goals.len()).unwrap_or(u32::MAX)).min(ROUND);
        let Some(goal) = self.goals.get_mut(&id) else { return };
        let round = &mut goal.rounds[family as usize];
        let Some(lookup) = round.lookup.take() else { return };
        round.starved = lookup.answers() == 0;
        let content = match &goal.torrent {
            Some(torrent) => torrent.found_at.is_some_and(|at| now.saturating_duration_since(at) < ROUND),
            None => good >= K,
        };
        if content {
            (round.next, round.retry) = (now + ROUND, RETRY.0);
        } else {
            let longest = if round.starved { STARVED } else { most };
            (round.next, round.retry) = (now + round.retry.min(longest), (round.retry * 2).min(most));
        }
        let Some(torrent) = &goal.torrent else { return };
        if let Some(port) = torrent.announce {
            let info_hash = torrent.info_hash;
            for (contact, token) in lookup.tokens() {
                let query = Query::Announce { info_hash, port: Some(port), token };
                self.ask(now, Some(contact.id), contact.addr, &query, None);
            }
        }
    }

    /// Asks a node that is quiet whether it is still there, and forgets old announces.
    fn keep_up(&mut self, now: Instant) {
        if now < self.upkeep {
            return;
        }
        self.upkeep = now + UPKEEP;
        self.store.expire(now);
        for family in Family::BOTH {
            let quiet = self.tables[family as usize].as_mut().and_then(|table| table.due_for_ping(now));
            if let Some(quiet) = quiet.filter(|_| self.queries.take(now, 1.0)) {
                self.ask(now, Some(quiet.id), quiet.addr, &Query::Ping, None);
            }
        }
    }

    fn wakeup(&mut self, now: Instant) -> Instant {
        let timeouts = self.pending.values().map(|pending| pending.sent + TIMEOUT);
        let mut wakeup = timeouts.fold(self.upkeep, Instant::min);
        let under_way = self.under_way();
        if under_way > 0 && !self.queries.has(now, 1.0) {
            return now + self.queries.wait();
        }
        for (at, round) in self.goals.values().flat_map(|goal| goal.rounds.iter().enumerate()) {
            match &round.lookup {
                Some(lookup) => wakeup = lookup.wakeup(now).map_or(wakeup, |slow| wakeup.min(slow)),
                None if self.tables[at].is_some() && under_way < MAX_ROUNDS => wakeup = wakeup.min(round.next),
                None => {}
            }
        }
        wakeup
    }
}

#[cfg(test)]
mod tests;
