//! Both ends against each other, and each against nonsense.

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::key::{KEY_LEN, PrivateKey};
use super::*;
use crate::metainfo::InfoHash;

const HERE: InfoHash = InfoHash([7; 20]);
const OTHER: InfoHash = InfoHash([8; 20]);
const INITIAL: &[u8] = b"the caller's first words";

fn found(matches: &dyn Fn(&InfoHash) -> bool) -> Option<InfoHash> {
    [OTHER, HERE].into_iter().find(|hash| matches(hash))
}

/// Two ends and the bytes between them, which travel in pieces of random length.
struct Pair {
    rng: StdRng,
    caller: Caller,
    answerer: Answerer,
    to_answerer: BytesMut,
    to_caller: BytesMut,
    at_caller: Option<Secured>,
    at_answerer: Option<Secured>,
}

impl Pair {
    fn new(seed: u64, pads: [Pads; 2], skey: InfoHash, offer: Methods, allowed: Methods) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut to_answerer = BytesMut::new();
        let caller = Caller::begin_with(pads[0], skey, offer, INITIAL, &mut rng, &mut to_answerer);
        let answerer = Answerer::with(pads[1], allowed, &mut rng);
        Self { rng, caller, answerer, to_answerer, to_caller: BytesMut::new(), at_caller: None, at_answerer: None }
    }

    /// Until both are done.
    fn run(&mut self, most: usize) -> Result<(), MseError> {
        let (mut heard_by_answerer, mut heard_by_caller) = (BytesMut::new(), BytesMut::new());
        for _ in 0..10_000 {
            let mut pass = |from: &mut BytesMut, to: &mut BytesMut| {
                let len = self.rng.random_range(1..=most).min(from.len());
                to.unsplit(from.split_to(len));
            };
            pass(&mut self.to_answerer, &mut heard_by_answerer);
            pass(&mut self.to_caller, &mut heard_by_caller);
            if self.at_answerer.is_none() {
                self.at_answerer = self.answerer.handle(&mut heard_by_answerer, &mut self.to_caller, found)?;
            }
            if self.at_caller.is_none() {
                self.at_caller = self.caller.handle(&mut heard_by_caller, &mut self.to_answerer)?;
            }
            if self.at_answerer.is_some() && self.at_caller.is_some() {
                return Ok(());
            }
        }
        panic!("the handshake does not end");
    }
}

fn pads(key: usize, choice: usize) -> Pads {
    Pads { key, choice }
}

fn speaks(from: &mut Secured, to: &mut Secured, word: &[u8], encrypted: bool) {
    let mut bytes = word.to_vec();
    if let Some(ciphers) = &mut from.ciphers {
        ciphers.send.apply(&mut bytes);
    }
    assert_eq!(bytes != word, encrypted);
    if let Some(ciphers) = &mut to.ciphers {
        ciphers.receive.apply(&mut bytes);
    }
    assert_eq!(bytes, word);
}

#[test]
fn every_policy_against_every_policy() {
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
        let (mut caller, mut answerer) = (pair.at_caller.unwrap(), pair.at_answerer.unwrap());
        assert_eq!(answerer.early, INITIAL);
        assert!(caller.early.is_empty());
        // Plaintext wherever both may.
        let encrypted = common & Method::Plaintext.bit() == 0;
        assert_eq!(caller.ciphers.is_some(), encrypted);
        for word in [&b"one"[..], b"two and more"] {
            speaks(&mut caller, &mut answerer, word, encrypted);
            speaks(&mut answerer, &mut caller, word, encrypted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_pads_and_any_split(
        seed: u64,
        most in prop_oneof![Just(1_usize), 2..40_usize, Just(5_000)],
        a in 0..=MAX_PAD, b in 0..=MAX_PAD, c in 0..=MAX_PAD, d in 0..=MAX_PAD,
        rc4: bool,
    ) {
        let methods = if rc4 { Methods::RC4 } else { Methods::BOTH };
        let mut pair = Pair::new(seed, [pads(a, c), pads(b, d)], HERE, methods, Methods::BOTH);
        prop_assert_eq!(pair.run(most), Ok(()));
        prop_assert_eq!(&pair.at_answerer.unwrap().early[..], INITIAL);
    }

    /// Whatever comes, it ends in an error or waits for more, within the bounds.
    #[test]
    fn noise_is_survived(seed: u64, len in 0..3_000_usize, most in 1..700_usize) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; len];
        rng.fill(&mut bytes[..]);
        let mut output = BytesMut::new();
        let mut caller = Caller::begin(HERE, Methods::BOTH, INITIAL, &mut rng, &mut output);
        let mut answerer = Answerer::new(Methods::BOTH, &mut rng);
        let (mut at_caller, mut at_answerer) = (BytesMut::new(), BytesMut::new());
        let (mut caller_ended, mut answerer_ended) = (None, None);
        for part in bytes.chunks(most) {
            at_caller.extend_from_slice(part);
            at_answerer.extend_from_slice(part);
            caller_ended = caller_ended.or(caller.handle(&mut at_caller, &mut output).err());
            answerer_ended = answerer_ended.or(answerer.handle(&mut at_answerer, &mut output, found).err());
        }
        let enough = len >= KEY_LEN + MAX_PAD + 20;
        prop_assert!(!enough || (caller_ended.is_some() && answerer_ended.is_some()));
        prop_assert!(output.len() < 2 * (KEY_LEN + 2 * MAX_PAD));
    }
}

#[test]
fn payload_that_comes_with_the_handshake_is_not_lost() {
    for methods in [Methods::RC4, Methods::PLAINTEXT] {
        let mut rng = StdRng::seed_from_u64(3);
        let (mut to_answerer, mut to_caller) = (BytesMut::new(), BytesMut::new());
        let mut caller = Caller::begin(HERE, methods, INITIAL, &mut rng, &mut to_answerer);
        let mut answerer = Answerer::new(methods, &mut rng);
        assert!(answerer.handle(&mut to_answerer, &mut to_caller, found).unwrap().is_none());
        assert!(caller.handle(&mut to_caller, &mut to_answerer).unwrap().is_none());
        let mut answered = answerer.handle(&mut to_answerer, &mut to_caller, found).unwrap().unwrap();
        assert_eq!(answered.early, INITIAL);
        // The answerer speaks in the same packet.
        let mut word = *b"welcome";
        if let Some(ciphers) = &mut answered.ciphers {
            ciphers.send.apply(&mut word);
        }
        to_caller.extend_from_slice(&word);
        let called = caller.handle(&mut to_caller, &mut to_answerer).unwrap().unwrap();
        assert_eq!(&called.early[..], b"welcome");
    }
}

#[test]
fn a_torrent_that_is_not_here_is_refused() {
    let mut pair = Pair::new(1, [pads(0, 0); 2], InfoHash([9; 20]), Methods::BOTH, Methods::BOTH);
    assert_eq!(pair.run(10_000), Err(MseError::UnknownTorrent));
}

/// An answerer that has found its torrent, and the ciphers of a caller that does as it likes.
fn answerer_with_a_rogue() -> (Answerer, Box<Ciphers>) {
    let mut rng = StdRng::seed_from_u64(5);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let key = PrivateKey::generate(&mut rng);
    let mut answerer = Answerer::with(pads(0, 0), Methods::BOTH, &mut rng);
    input.extend_from_slice(&key.public());
    assert!(answerer.handle(&mut input, &mut output, found).unwrap().is_none());
    let secret = key.secret(&take(&mut output).unwrap()).unwrap();
    input.extend_from_slice(&secret.req1());
    input.extend_from_slice(&secret.request(&HERE));
    assert!(answerer.handle(&mut input, &mut output, found).unwrap().is_none());
    (answerer, Ciphers::of_caller(&secret, &HERE))
}

#[test]
fn rogue_callers_are_refused() {
    let offer = |constant: u64, provide: u32, pad: u16| {
        let mut bytes = BytesMut::new();
        bytes.put_u64(constant);
        bytes.put_u32(provide);
        bytes.put_u16(pad);
        let (mut answerer, mut ciphers) = answerer_with_a_rogue();
        ciphers.send.apply(&mut bytes);
        answerer.handle(&mut bytes, &mut BytesMut::new(), found).err()
    };
    assert_eq!(offer(1, 3, 0), Some(MseError::BadConstant));
    assert_eq!(offer(0, 0, 0), Some(MseError::NoCommonMethod));
    assert_eq!(offer(0, 0xFFFF_FFFC, 0), Some(MseError::NoCommonMethod));
    assert_eq!(offer(0, 3, 513), Some(MseError::PadTooLong(513)));
    assert_eq!(offer(0, 0xFFFF_FFFF, 512), None);
}

#[test]
fn rogue_answerers_are_refused() {
    let answer = |select: u32, pad: u16, offer: Methods| {
        let mut rng = StdRng::seed_from_u64(6);
        let (mut output, mut input) = (BytesMut::new(), BytesMut::new());
        let mut caller = Caller::begin_with(pads(0, 0), HERE, offer, &[], &mut rng, &mut output);
        let key = PrivateKey::generate(&mut rng);
        let secret = key.secret(&take(&mut output).unwrap()).unwrap();
        let mut ciphers = Ciphers::of_answerer(&secret, &HERE);
        let mut choice = BytesMut::new();
        choice.put_u64(0);
        choice.put_u32(select);
        choice.put_u16(pad);
        ciphers.send.apply(&mut choice);
        input.extend_from_slice(&key.public());
        input.unsplit(choice);
        caller.handle(&mut input, &mut output).err()
    };
    assert_eq!(answer(0, 0, Methods::BOTH), Some(MseError::BadChoice));
    assert_eq!(answer(3, 0, Methods::BOTH), Some(MseError::BadChoice));
    assert_eq!(answer(1, 0, Methods::RC4), Some(MseError::BadChoice));
    assert_eq!(answer(2, 513, Methods::RC4), Some(MseError::PadTooLong(513)));
    assert_eq!(answer(2, 512, Methods::RC4), None);
}
