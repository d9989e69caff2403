//! Both sides against each other, and each against invalid input.

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::key::{KEY_LEN, PrivateKey};
use super::*;
use crate::metainfo::InfoHash;

const HERE: InfoHash = InfoHash([7; 20]);
const OTHER: InfoHash = InfoHash([8; 20]);
const INITIAL: &[u8] = b"the initiator's payload";

fn found(matches: &dyn Fn(&InfoHash) -> bool) -> Option<InfoHash> {
    [OTHER, HERE].into_iter().find(|hash| matches(hash))
}

/// Both sides and the bytes in transit, which arrive in fragments of random length.
struct Pair {
    rng: StdRng,
    initiator: Initiator,
    responder: Responder,
    to_responder: BytesMut,
    to_initiator: BytesMut,
    at_initiator: Option<Secured>,
    at_responder: Option<Secured>,
}

impl Pair {
    fn new(seed: u64, pads: [Pads; 2], skey: InfoHash, offer: Methods, allowed: Methods) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut to_responder = BytesMut::new();
        let initiator = Initiator::start_with(pads[0], skey, offer, INITIAL, &mut rng, &mut to_responder);
        let responder = Responder::with(pads[1], allowed, &mut rng);
        Self {
            rng,
            initiator,
            responder,
            to_responder,
            to_initiator: BytesMut::new(),
            at_initiator: None,
            at_responder: None,
        }
    }

    /// Exchanges bytes until both sides are done. Fragments have at most `most` bytes.
    fn run(&mut self, most: usize) -> Result<(), MseError> {
        let (mut received_by_responder, mut received_by_initiator) = (BytesMut::new(), BytesMut::new());
        for _ in 0..10_000 {
            let mut pass = |from: &mut BytesMut, to: &mut BytesMut| {
                let len = self.rng.random_range(1..=most).min(from.len());
                to.unsplit(from.split_to(len));
            };
            pass(&mut self.to_responder, &mut received_by_responder);
            pass(&mut self.to_initiator, &mut received_by_initiator);
            if self.at_responder.is_none() {
                self.at_responder = self.responder.handle(&mut received_by_responder, &mut self.to_initiator, found)?;
            }
            if self.at_initiator.is_none() {
                self.at_initiator = self.initiator.handle(&mut received_by_initiator, &mut self.to_responder)?;
            }
            if self.at_responder.is_some() && self.at_initiator.is_some() {
                return Ok(());
            }
        }
        panic!("the handshake does not end");
    }
}

fn pads(key: usize, choice: usize) -> Pads {
    Pads { key, choice }
}

fn check_direction(from: &mut Secured, to: &mut Secured, text: &[u8], encrypted: bool) {
    let mut bytes = text.to_vec();
    if let Some(ciphers) = &mut from.ciphers {
        ciphers.send.apply(&mut bytes);
    }
    assert_eq!(bytes != text, encrypted);
    if let Some(ciphers) = &mut to.ciphers {
        ciphers.receive.apply(&mut bytes);
    }
    assert_eq!(bytes, text);
}

#[test]
fn all_combinations_of_methods_agree_or_fail() {
    let all = [Methods::BOTH, Methods::RC4, Methods::PLAINTEXT];
    for (n, (offer, allowed)) in all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b))).enumerate() {
        let mut pair = Pair::new(n as u64, [pads(100, 0); 2], HERE, offer, allowed);
        let ended = pair.run(600);
        let common = offer.0 & allowed.0;
        if common == 0 {
            assert_eq!(ended, Err(MseError::NoCommonMethod));
            continue;
        }
        assert_eq!(ended, Ok(()));
        let (mut initiator, mut responder) = (pair.at_initiator.unwrap(), pair.at_responder.unwrap());
        assert_eq!(responder.early, INITIAL);
        assert!(initiator.early.is_empty());
        // Plaintext if both sides allow it.
        let encrypted = common & Method::Plaintext.bit() == 0;
        assert_eq!(initiator.ciphers.is_some(), encrypted);
        for text in [&b"one"[..], b"two and more"] {
            check_direction(&mut initiator, &mut responder, text, encrypted);
            check_direction(&mut responder, &mut initiator, text, encrypted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_pads_and_fragments_work(
        seed: u64,
        most in prop_oneof![Just(1_usize), 2..40_usize, Just(5_000)],
        a in 0..=MAX_PAD, b in 0..=MAX_PAD, c in 0..=MAX_PAD, d in 0..=MAX_PAD,
        rc4: bool,
    ) {
        let methods = if rc4 { Methods::RC4 } else { Methods::BOTH };
        let mut pair = Pair::new(seed, [pads(a, c), pads(b, d)], HERE, methods, Methods::BOTH);
        prop_assert_eq!(pair.run(most), Ok(()));
        prop_assert_eq!(&pair.at_responder.unwrap().early[..], INITIAL);
    }

    /// Any input ends in an error or waits for more, within the bounds.
    #[test]
    fn random_input_ends_in_an_error_or_waits(seed: u64, len in 0..3_000_usize, most in 1..700_usize) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes[..]);
        let mut output = BytesMut::new();
        let mut initiator = Initiator::start(HERE, Methods::BOTH, INITIAL, &mut rng, &mut output);
        let mut responder = Responder::new(Methods::BOTH, &mut rng);
        let (mut at_initiator, mut at_responder) = (BytesMut::new(), BytesMut::new());
        let (mut initiator_ended, mut responder_ended) = (None, None);
        for part in bytes.chunks(most) {
            at_initiator.extend_from_slice(part);
            at_responder.extend_from_slice(part);
            initiator_ended = initiator_ended.or(initiator.handle(&mut at_initiator, &mut output).err());
            responder_ended = responder_ended.or(responder.handle(&mut at_responder, &mut output, found).err());
        }
        let enough = len >= KEY_LEN + MAX_PAD + 20;
        prop_assert!(!enough || (initiator_ended.is_some() && responder_ended.is_some()));
        prop_assert!(output.len() < 2 * (KEY_LEN + 2 * MAX_PAD));
    }
}

#[test]
fn payload_after_the_handshake_is_kept() {
    for methods in [Methods::RC4, Methods::PLAINTEXT] {
        let mut rng = StdRng::seed_from_u64(3);
        let (mut to_responder, mut to_initiator) = (BytesMut::new(), BytesMut::new());
        let mut initiator = Initiator::start(HERE, methods, INITIAL, &mut rng, &mut to_responder);
        let mut responder = Responder::new(methods, &mut rng);
        assert!(responder.handle(&mut to_responder, &mut to_initiator, found).unwrap().is_none());
        assert!(initiator.handle(&mut to_initiator, &mut to_responder).unwrap().is_none());
        let mut answered = responder.handle(&mut to_responder, &mut to_initiator, found).unwrap().unwrap();
        assert_eq!(answered.early, INITIAL);
        // The responder sends payload in the same packet.
        let mut text = *b"welcome";
        if let Some(ciphers) = &mut answered.ciphers {
            ciphers.send.apply(&mut text);
        }
        to_initiator.extend_from_slice(&text);
        let called = initiator.handle(&mut to_initiator, &mut to_responder).unwrap().unwrap();
        assert_eq!(&called.early[..], b"welcome");
    }
}

#[test]
fn an_unknown_torrent_is_rejected() {
    let mut pair = Pair::new(1, [pads(0, 0); 2], InfoHash([9; 20]), Methods::BOTH, Methods::BOTH);
    assert_eq!(pair.run(10_000), Err(MseError::UnknownTorrent));
}

/// Returns a responder that has found its torrent, and the ciphers of a misbehaving initiator.
fn responder_and_rogue_ciphers() -> (Responder, Box<Ciphers>) {
    let mut rng = StdRng::seed_from_u64(5);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let key = PrivateKey::generate(&mut rng);
    let mut responder = Responder::with(pads(0, 0), Methods::BOTH, &mut rng);
    input.extend_from_slice(&key.public());
    assert!(responder.handle(&mut input, &mut output, found).unwrap().is_none());
    let secret = key.secret(&take(&mut output).unwrap()).unwrap();
    input.extend_from_slice(&secret.req1());
    input.extend_from_slice(&secret.request(&HERE));
    assert!(responder.handle(&mut input, &mut output, found).unwrap().is_none());
    (responder, Ciphers::of_initiator(&secret, &HERE))
}

#[test]
fn misbehaving_initiators_are_rejected() {
    let offer = |constant: u64, provide: u32, pad: u16| {
        let mut bytes = BytesMut::new();
        bytes.put_u64(constant);
        bytes.put_u32(provide);
        bytes.put_u16(pad);
        let (mut responder, mut ciphers) = responder_and_rogue_ciphers();
        ciphers.send.apply(&mut bytes);
        responder.handle(&mut bytes, &mut BytesMut::new(), found).err()
    };
    assert_eq!(offer(1, 3, 0), Some(MseError::BadConstant));
    assert_eq!(offer(0, 0, 0), Some(MseError::NoCommonMethod));
    assert_eq!(offer(0, 0xFFFF_FFFC, 0), Some(MseError::NoCommonMethod));
    assert_eq!(offer(0, 3, 513), Some(MseError::PadTooLong(513)));
    assert_eq!(offer(0, 0xFFFF_FFFF, 512), None);
}

#[test]
fn misbehaving_responders_are_rejected() {
    let reply = |select: u32, pad: u16, offer: Methods| {
        let mut rng = StdRng::seed_from_u64(6);
        let (mut output, mut input) = (BytesMut::new(), BytesMut::new());
        let mut initiator = Initiator::start_with(pads(0, 0), HERE, offer, &[], &mut rng, &mut output);
        let key = PrivateKey::generate(&mut rng);
        let secret = key.secret(&take(&mut output).unwrap()).unwrap();
        let mut ciphers = Ciphers::of_responder(&secret, &HERE);
        let mut choice = BytesMut::new();
        choice.put_u64(0);
        choice.put_u32(select);
        choice.put_u16(pad);
        ciphers.send.apply(&mut choice);
        input.extend_from_slice(&key.public());
        input.unsplit(choice);
        initiator.handle(&mut input, &mut output).err()
    };
    assert_eq!(reply(0, 0, Methods::BOTH), Some(MseError::BadChoice));
    assert_eq!(reply(3, 0, Methods::BOTH), Some(MseError::BadChoice));
    assert_eq!(reply(1, 0, Methods::RC4), Some(MseError::BadChoice));
    assert_eq!(reply(2, 513, Methods::RC4), Some(MseError::PadTooLong(513)));
    assert_eq!(reply(2, 512, Methods::RC4), None);
}

/// rtorrent leaves out leading zeros, so that it hashes another secret than we do.
#[test]
fn no_secret_begins_with_a_zero() {
    let theirs = PrivateKey::generate(&mut StdRng::seed_from_u64(1));
    let public = theirs.public();
    let mut unsuitable = 0;
    for seed in 0..20_000 {
        if seed > 300 && unsuitable > 0 {
            break;
        }
        let rng = &mut StdRng::seed_from_u64(seed);
        let pads = Pads { key: 0, choice: 0 };
        let mut output = BytesMut::new();
        let answer =
            Responder::with(pads, Methods::RC4, rng).handle(&mut BytesMut::from(&public[..]), &mut output, found);
        assert!(answer.unwrap().is_none());
        assert!(!theirs.secret(output[..].first_chunk::<KEY_LEN>().unwrap()).unwrap().is_short(), "{seed}");

        let mut output = BytesMut::new();
        let mut initiator = Initiator::start_with(pads, HERE, Methods::RC4, INITIAL, rng, &mut output);
        let ours: [u8; KEY_LEN] = *output.first_chunk().unwrap();
        let is_short = theirs.secret(&ours).unwrap().is_short();
        unsuitable += usize::from(is_short);
        let answer = initiator.handle(&mut BytesMut::from(&public[..]), &mut output);
        assert_eq!(answer.err(), is_short.then_some(MseError::ShortSecret));
    }
    assert!(unsuitable > 0, "there was something to avoid");
}
