//! One swarm and peers that other clients are like, message by message.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fixedbitset::FixedBitSet;
use torrentfs::metainfo::Lengths;
use torrentfs::swarm::{Action, Config, Direction, DisconnectReason, Event, NewPeer, PeerKey, Swarm};
use torrentfs::wire::{ExtensionHandshake, Message, PeerId, Request};

use crate::simulation::config;

const PIECES: u32 = 31;
const PIECE: u32 = 256 << 10;

/// A swarm that is handled message by message.
struct Lab {
    swarm: Swarm,
    now: Instant,
}

impl Lab {
    /// Starts a swarm that has every piece or none.
    fn new(complete: bool, change: impl Fn(&mut Config)) -> Self {
        let (now, lengths) = (Instant::now(), Lengths::new(u64::from(PIECES * PIECE), PIECE.into()).unwrap());
        let mut config = config(lengths, 1);
        change(&mut config);
        let mut have = FixedBitSet::with_capacity(PIECES as usize);
        have.set_range(.., complete);
        Self { swarm: Swarm::new(config, have, now), now }
    }

    fn connect(&mut self, number: u64, fast: bool) -> PeerKey {
        let addr = ([10, 0, 0, number as u8], 6881).into();
        let new = NewPeer::new(PeerKey(number), addr, Direction::Incoming, PeerId([number as u8; 20]));
        self.event(Event::Connected(NewPeer { fast, ..new }));
        PeerKey(number)
    }

    fn event(&mut self, event: Event) {
        self.now += Duration::from_millis(1);
        self.swarm.handle(self.now, event);
        self.swarm.check_invariants();
    }

    /// Passes a message on. Returns what the swarm does.
    fn says(&mut self, peer: PeerKey, message: Message) -> Vec<Action> {
        self.event(Event::Message(peer, message));
        self.actions()
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.swarm.poll()).collect()
    }

    fn seeds(&self) -> usize {
        self.swarm.stats(self.now).seeds
    }
}

fn requests(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Send(_, Message::Request(_)))).count()
}

fn bitfield(bytes: [u8; 4]) -> Message {
    Message::Bitfield(Bytes::copy_from_slice(&bytes))
}

fn sends(peer: PeerKey, message: Message) -> Action {
    Action::Send(peer, message)
}

#[test]
fn a_peer_may_state_its_pieces_at_any_time() {
    let mut lab = Lab::new(false, |_| {});
    let peer = lab.connect(1, true);
    lab.actions();
    assert!(lab.says(peer, Message::HaveNone).is_empty());
    assert!(lab.says(peer, Message::Unchoke).is_empty());
    // As aria2 does, once it has got some pieces, and once it is complete.
    let asked = lab.says(peer, bitfield([0x80, 0, 0, 0]));
    assert!(asked.contains(&sends(peer, Message::Interested)) && requests(&asked) > 0);
    lab.says(peer, Message::Have(7));
    assert_eq!(lab.seeds(), 0);
    lab.says(peer, Message::HaveAll);
    assert_eq!((lab.seeds(), lab.swarm.connections()), (1, 1));
    assert!(lab.says(peer, Message::HaveAll).is_empty());
    // As libtorrent takes it, too: the last word counts.
    assert_eq!(lab.says(peer, Message::HaveNone), [sends(peer, Message::NotInterested)]);
    assert_eq!(lab.seeds(), 0);
    let actions = lab.says(peer, bitfield([0, 0, 0, 0b1111_1110]));
    assert!(actions.contains(&sends(peer, Message::Interested)));
    lab.says(peer, bitfield([0xff; 4]));
    assert_eq!((lab.seeds(), lab.swarm.connections()), (1, 1), "the spare bit is ignored");
}

#[test]
fn a_peer_that_takes_back_its_pieces_without_end_is_disconnected() {
    let mut lab = Lab::new(false, |_| {});
    let peer = lab.connect(1, true);
    let mut changes = 0;
    while lab.swarm.connections() > 0 {
        lab.says(peer, Message::HaveAll);
        lab.says(peer, Message::HaveNone);
        changes += 1;
    }
    assert!((5..50).contains(&changes), "{changes} changes");
}

#[test]
fn hints_about_pieces_that_do_not_exist_are_ignored() {
    let mut lab = Lab::new(false, |_| {});
    let peer = lab.connect(1, true);
    lab.actions();
    for piece in [PIECES, u32::MAX] {
        assert!(lab.says(peer, Message::Suggest(piece)).is_empty());
        assert!(lab.says(peer, Message::AllowedFast(piece)).is_empty());
    }
    assert_eq!(lab.swarm.connections(), 1);
}

/// Returns what our extension handshake says about us.
fn upload_only(complete: bool, change: impl Fn(&mut Config)) -> bool {
    let mut lab = Lab::new(complete, change);
    lab.connect(1, true);
    let handshake = lab.actions().into_iter().find_map(|action| match action {
        Action::Send(_, Message::Extended { id: 0, payload }) => Some(payload),
        _ => None,
    });
    ExtensionHandshake::decode(&handshake.unwrap()).unwrap().upload_only
}

#[test]
fn a_super_seed_does_not_say_that_it_wants_nothing_because_it_says_that_it_has_nothing() {
    assert!(upload_only(true, |_| {}));
    assert!(upload_only(false, |config| config.partial_seed = true));
    assert!(!upload_only(false, |_| {}));
    assert!(!upload_only(true, |config| config.super_seed = true));
}

/// Requests of one block each, all different.
fn block(number: u32) -> Request {
    let blocks = PIECE / 1024;
    Request { piece: number / blocks % PIECES, begin: number % blocks * 1024, length: 1024 }
}

/// A peer sends as many requests as we say that we queue, and more: it is not read until half of them are answered.
#[test]
fn a_peer_with_more_requests_than_we_queue_is_held_and_none_is_lost() {
    for fast in [false, true] {
        let mut lab = Lab::new(true, |_| {});
        let peer = lab.connect(1, fast);
        let reqq = lab.actions().into_iter().find_map(|action| match action {
            Action::Send(_, Message::Extended { id: 0, payload }) => {
                ExtensionHandshake::decode(&payload).unwrap().request_queue
            }
            _ => None,
        });
        let reqq = reqq.expect("we state how many requests we queue");
        assert!(reqq >= 2_000 - 1, "other clients have up to 2,000 requests outstanding");
        lab.says(peer, Message::Interested);
        let (mut uploads, mut sent, mut held, mut answered) = (Vec::new(), 0, false, 0);
        let all = PIECES * PIECE / 1024;
        let mut holds = 0;
        while answered < all {
            if !held && sent < all {
                let request = block(sent);
                lab.event(Event::Message(peer, Message::Request(request)));
                sent += 1;
            } else {
                assert!(sent == all || sent >= reqq, "held after {sent} requests");
                let request = uploads.remove(0);
                lab.event(Event::Uploaded { peer, request, sent: true });
                answered += 1;
            }
            for action in lab.actions() {
                match action {
                    Action::Upload(_, request) => uploads.push(request),
                    Action::Hold(_) => held = true,
                    Action::Release(_) => held = false,
                    Action::Disconnect(_, reason) => panic!("{reason:?}"),
                    Action::Send(_, Message::Reject(request)) => panic!("{request:?} was rejected"),
                    _ => {}
                }
                holds += u32::from(held);
            }
        }
        assert!(sent == all && all > 2 * reqq && holds > 0);
    }
}

/// A driver that goes on to hand over requests has its peer disconnected: a request is never lost without a word.
#[test]
fn a_request_beyond_the_queue_ends_the_connection() {
    let mut lab = Lab::new(true, |_| {});
    let peer = lab.connect(1, false);
    lab.says(peer, Message::Interested);
    let mut ended = None;
    for number in 0..PIECES * PIECE / 1024 {
        ended = lab.says(peer, Message::Request(block(number))).into_iter().find_map(|action| match action {
            Action::Disconnect(_, reason) => Some(reason),
            _ => None,
        });
        if ended.is_some() {
            break;
        }
    }
    assert!(matches!(ended, Some(DisconnectReason::Protocol(_))), "{ended:?}");
}

/// As rqbit, which does not announce a piece to a peer that has it.
#[test]
fn a_super_seed_goes_on_when_a_peer_does_not_announce_what_it_got() {
    let mut lab = Lab::new(true, |config| config.super_seed = true);
    let peer = lab.connect(1, true);
    let (mut offered, mut served) = (Vec::new(), 0);
    let mut actions = lab.actions();
    actions.extend(lab.says(peer, Message::Interested));
    while served < PIECES {
        for action in std::mem::take(&mut actions) {
            if let Action::Send(_, Message::Have(piece)) = action {
                offered.push(piece);
            }
        }
        assert!(!offered.is_empty(), "no piece is offered after {served}");
        let piece = offered.remove(0);
        served += 1;
        for begin in (0..PIECE).step_by(16_384) {
            let request = Request { piece, begin, length: 16_384 };
            lab.event(Event::Message(peer, Message::Request(request)));
            assert!(lab.actions().contains(&Action::Upload(peer, request)));
            lab.event(Event::Uploaded { peer, request, sent: true });
            actions.extend(lab.actions());
        }
    }
}

#[test]
fn a_peer_without_the_fast_extension_is_told_at_once_that_no_bitfield_follows() {
    // rtorrent's handshake ends with the first message that is neither an extension handshake nor a DHT port.
    let first = |change: &dyn Fn(&mut Config), extended| {
        let mut lab = Lab::new(false, change);
        let addr = ([10, 0, 0, 1], 6881).into();
        let new = NewPeer::new(PeerKey(1), addr, Direction::Incoming, PeerId([1; 20]));
        lab.event(Event::Connected(NewPeer { fast: false, extended, our_dht_port: Some(7_001), ..new }));
        let sent = lab.actions().into_iter().filter_map(|action| match action {
            Action::Send(_, Message::Extended { .. } | Message::Port(_)) => None,
            Action::Send(_, message) => Some(message),
            _ => None,
        });
        sent.collect::<Vec<_>>()
    };
    assert_eq!(first(&|_| {}, true), [Message::KeepAlive]);
    assert_eq!(first(&|_| {}, false), [Message::KeepAlive]);
}

#[test]
fn a_peer_without_the_fast_extension_gets_one_more_message_soon() {
    // rtorrent does not look at what it read together with an encrypted handshake before something else comes.
    let mut lab = Lab::new(true, |_| {});
    lab.connect(1, false);
    lab.connect(2, true);
    lab.actions();
    let mut sent = Vec::new();
    for _ in 0..90 {
        lab.now += Duration::from_secs(1);
        lab.event(Event::Tick);
        sent.extend(lab.actions());
    }
    assert_eq!(sent, [sends(PeerKey(1), Message::KeepAlive)]);
}
