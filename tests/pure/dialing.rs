//! Which addresses are dialed while a read is blocked.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::simulation::config;
use fixedbitset::FixedBitSet;
use torrentfs::metainfo::Lengths;
use torrentfs::swarm::{
    Action, Direction, DisconnectReason, Event, NewPeer, PeerKey, PeerSource, ReaderId, Swarm, WantId,
};
use torrentfs::wire::{ExtensionHandshake, Message, PeerId};

const PIECES: u32 = 16;
const PIECE: u64 = 256 << 10;
const SECOND: Duration = Duration::from_secs(1);

struct Clocked {
    swarm: Swarm,
    now: Instant,
}

fn clocked(have: u32) -> Clocked {
    let lengths = Lengths::new(u64::from(PIECES) * PIECE, PIECE).unwrap();
    let mut bits = FixedBitSet::with_capacity(PIECES as usize);
    bits.insert_range(..have as usize);
    let now = Instant::now();
    let on_demand = torrentfs::swarm::Config { on_demand: true, ..config(lengths, 1) };
    Clocked { swarm: Swarm::new(on_demand, bits, now), now }
}

fn addr(host: u8) -> SocketAddr {
    ([192, 0, 2, host], 6881).into()
}

impl Clocked {
    /// Handles an event and returns what the swarm does.
    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.swarm.handle(self.now, event);
        self.swarm.check_invariants();
        std::iter::from_fn(|| self.swarm.poll()).collect()
    }

    fn found(&mut self, addrs: &[SocketAddr]) -> Vec<Action> {
        self.handle(Event::PeersFound { addrs: addrs.to_vec(), source: PeerSource::Tracker })
    }

    fn want(&mut self, piece: u64) -> Vec<Action> {
        let (reader, bytes) = (ReaderId(1), 0..u64::from(PIECES) * PIECE);
        let mut actions = self.handle(Event::Open { reader, bytes });
        actions.extend(self.handle(Event::Want { want: WantId(1), reader, bytes: piece * PIECE..piece * PIECE + 1 }));
        actions
    }

    /// Lets time pass in steps and returns what the swarm does in each.
    fn pass(&mut self, time: Duration, step: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while self.now < end {
            self.now += step;
            actions.extend(self.handle(Event::Tick));
        }
        actions
    }

    fn fails(&mut self, addr: SocketAddr, times: usize) {
        for _ in 0..times {
            while !dialed(&self.handle(Event::Tick)).contains(&addr) {
                self.now += SECOND;
            }
            self.handle(Event::ConnectFailed(addr));
        }
    }
}

fn dialed(actions: &[Action]) -> Vec<SocketAddr> {
    actions.iter().filter_map(|action| if let Action::Connect(addr) = action { Some(*addr) } else { None }).collect()
}

#[test]
fn a_read_without_peers_dials_at_once_and_keeps_trying() {
    let mut clocked = clocked(0);
    assert_eq!(dialed(&clocked.found(&[addr(1)])), [addr(1)]);
    clocked.handle(Event::ConnectFailed(addr(1)));
    clocked.fails(addr(1), 4);
    assert!(dialed(&clocked.pass(30 * SECOND, SECOND)).is_empty(), "it waits after each failure");
    let actions = clocked.want(3);
    assert_eq!(dialed(&actions), [addr(1)]);
    assert!(actions.contains(&Action::FindPeers));
    // It comes back at some time, and is noticed within seconds.
    for _ in 0..10 {
        clocked.handle(Event::ConnectFailed(addr(1)));
        assert_eq!(dialed(&clocked.pass(6 * SECOND, SECOND)), [addr(1)]);
    }
    // An answered read leaves it alone again.
    clocked.handle(Event::Unwant(WantId(1)));
    clocked.handle(Event::ConnectFailed(addr(1)));
    let actions = clocked.pass(60 * SECOND, SECOND);
    assert!(dialed(&actions).is_empty() && !actions.contains(&Action::FindPeers));
}

#[test]
fn a_peer_that_cannot_help_is_no_reason_to_wait() {
    for message in [Message::Unchoke, Message::Choke] {
        let mut clocked = clocked(0);
        clocked.found(&[addr(1), addr(2)]);
        clocked.handle(Event::ConnectFailed(addr(2)));
        clocked.handle(Event::Connected(NewPeer::new(PeerKey(1), addr(1), Direction::Outgoing, PeerId([1; 20]))));
        clocked.handle(Event::Message(PeerKey(1), Message::HaveAll));
        clocked.handle(Event::Message(PeerKey(1), Message::Unchoke));
        clocked.fails(addr(2), 4);
        clocked.pass(6 * SECOND, SECOND);
        clocked.handle(Event::Message(PeerKey(1), message.clone()));
        let actions = clocked.want(3);
        assert_eq!(dialed(&actions).is_empty(), message != Message::Choke, "{message:?}");
        // It is asked and sends nothing.
        let actions = clocked.pass(3 * SECOND, SECOND / 8);
        if message != Message::Choke {
            assert_eq!(dialed(&actions), [addr(2)], "{message:?}");
        }
    }
}

#[test]
fn a_lost_connection_is_replaced_at_once_while_a_read_is_blocked() {
    let mut clocked = clocked(0);
    clocked.found(&[addr(1)]);
    clocked.now += 5 * SECOND;
    clocked.handle(Event::Connected(NewPeer::new(PeerKey(1), addr(1), Direction::Outgoing, PeerId([1; 20]))));
    clocked.handle(Event::Message(PeerKey(1), Message::HaveAll));
    clocked.handle(Event::Message(PeerKey(1), Message::Unchoke));
    assert!(dialed(&clocked.want(3)).is_empty());
    clocked.now += SECOND;
    assert_eq!(dialed(&clocked.handle(Event::Disconnected(PeerKey(1)))), [addr(1)]);
}

#[test]
fn a_seed_that_had_called_us_is_dialed_when_a_piece_of_a_complete_torrent_is_bad() {
    let mut clocked = clocked(PIECES);
    let caller = SocketAddr::from(([192, 0, 2, 9], 50_000));
    clocked.handle(Event::Connected(NewPeer::new(PeerKey(1), caller, Direction::Incoming, PeerId([1; 20]))));
    let handshake = ExtensionHandshake { port: Some(6881), ..ExtensionHandshake::default() };
    clocked.handle(Event::Message(PeerKey(1), Message::Extended { id: 0, payload: handshake.encode() }));
    let actions = clocked.handle(Event::Message(PeerKey(1), Message::HaveAll));
    assert!(actions.contains(&Action::Disconnect(PeerKey(1), DisconnectReason::Useless)));
    assert!(dialed(&clocked.pass(60 * SECOND, SECOND)).is_empty(), "neither side wants anything");
    let bad = Lengths::new(u64::from(PIECES) * PIECE, PIECE).unwrap().piece(3).unwrap();
    let mut actions = clocked.handle(Event::Evicted(bad));
    actions.extend(clocked.want(3));
    assert_eq!(dialed(&actions), [addr(9)]);
}
