//! The responding side of the handshake.

use bytes::{BufMut, BytesMut};
use rand::Rng;

use super::key::{KEY_LEN, PrivateKey, Secret};
use super::{Ciphers, MAX_PAD, Method, Methods, MseError, Pads, Secured, VC_LEN, random_bytes, synchronize, take};
use crate::metainfo::InfoHash;

/// Bytes of the verification constant, the offer and the length of PadC.
const OFFER_LEN: usize = VC_LEN + 4 + 2;

/// Keys that are tried until one gives a suitable secret; each does with a probability of 255 in 256.
const MAX_KEYS: usize = 4;

/// A handshake that the other side started.
pub struct Responder {
    allowed: Methods,
    /// Pads of ours. They are sent after the initiator's key arrived, so that a mere connection costs us no
    /// exponentiation.
    pads: Pads,
    key: PrivateKey,
    tail: BytesMut,
    state: State,
}

enum State {
    /// Waiting for the initiator's public key.
    Key,
    /// Searching for HASH('req1', S).
    Mark(Secret),
    /// Waiting for the hash that identifies the torrent.
    Torrent(Secret),
    /// Waiting for the verification constant, the offer and the length of PadC.
    Offer(Box<Ciphers>),
    /// Waiting for PadC and the length of IA.
    Pad {
        ciphers: Box<Ciphers>,
        method: Method,
        len: usize,
    },
    /// Waiting for IA.
    Initial {
        ciphers: Box<Ciphers>,
        method: Method,
        len: usize,
    },
    Done,
}

impl Responder {
    /// Starts to wait for the initiator's key. Methods that are not in `allowed` are rejected.
    pub fn new(allowed: Methods, rng: &mut impl Rng) -> Self {
        let pads = Pads::random(rng);
        Self::with(pads, allowed, rng)
    }

    pub(super) fn with(pads: Pads, allowed: Methods, rng: &mut impl Rng) -> Self {
        let mut tail = BytesMut::new();
        random_bytes(pads.key, rng, &mut tail);
        Self { allowed, pads, key: PrivateKey::generate(rng), tail, state: State::Key }
    }

    /// Consumes as much of `input` as possible and appends the bytes to send to `output`. Returns `None` if more input
    /// is needed. `find` returns the info hash that satisfies its argument.
    pub fn handle(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        find: impl Fn(&dyn Fn(&InfoHash) -> bool) -> Option<InfoHash>,
    ) -> Result<Option<Secured>, MseError> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Done) {
                State::Key => {
                    let Some(theirs) = take::<KEY_LEN>(input) else {
                        self.state = State::Key;
                        return Ok(None);
                    };
                    let mut secret = self.key.secret(&theirs)?;
                    for _ in 0..MAX_KEYS {
                        if secret.is_short() {
                            self.key = self.key.next();
                            secret = self.key.secret(&theirs)?;
                        }
                    }
                    output.extend_from_slice(&self.key.public());
                    output.unsplit(self.tail.split());
                    State::Mark(secret)
                }
                State::Mark(secret) => {
                    if !synchronize(input, &secret.req1())? {
                        self.state = State::Mark(secret);
                        return Ok(None);
                    }
                    State::Torrent(secret)
                }
                State::Torrent(secret) => {
                    let Some(asked) = take::<20>(input) else {
                        self.state = State::Torrent(secret);
                        return Ok(None);
                    };
                    let skey = find(&|hash| secret.request(hash) == asked).ok_or(MseError::UnknownTorrent)?;
                    State::Offer(Ciphers::of_responder(&secret, &skey))
                }
                State::Offer(mut ciphers) => {
                    let Some(mut bytes) = take::<OFFER_LEN>(input) else {
                        self.state = State::Offer(ciphers);
                        return Ok(None);
                    };
                    ciphers.receive.apply(&mut bytes);
                    let [constant @ .., a, b, c, d, e, f] = bytes;
                    if constant != [0; VC_LEN] {
                        return Err(MseError::BadConstant);
                    }
                    let offer = Methods(u32::from_be_bytes([a, b, c, d]));
                    let method = self.allowed.choose(offer).ok_or(MseError::NoCommonMethod)?;
                    let len = usize::from(u16::from_be_bytes([e, f]));
                    if len > MAX_PAD {
                        return Err(MseError::PadTooLong(len));
                    }
                    State::Pad { ciphers, method, len }
                }
                State::Pad { mut ciphers, method, len } => {
                    if input.len() < len + 2 {
                        self.state = State::Pad { ciphers, method, len };
                        return Ok(None);
                    }
                    let mut bytes = input.split_to(len + 2);
                    ciphers.receive.apply(&mut bytes);
                    let len = usize::from(u16::from_be_bytes([bytes[len], bytes[len + 1]]));
                    State::Initial { ciphers, method, len }
                }
                State::Initial { mut ciphers, method, len } => {
                    if input.len() < len {
                        self.state = State::Initial { ciphers, method, len };
                        return Ok(None);
                    }
                    self.choose(method, &mut ciphers, output);
                    let mut early = input.split();
                    let encrypted = if method == Method::Rc4 { early.len() } else { len };
                    ciphers.receive.apply(&mut early[..encrypted]);
                    let ciphers = (method == Method::Rc4).then_some(ciphers);
                    return Ok(Some(Secured { ciphers, early }));
                }
                State::Done => return Ok(None),
            }
        }
    }

    /// Writes step 4.
    fn choose(&self, method: Method, ciphers: &mut Ciphers, output: &mut BytesMut) {
        let from = output.len();
        output.put_bytes(0, VC_LEN);
        output.put_u32(method.bit());
        output.put_u16(self.pads.choice as u16);
        output.put_bytes(0, self.pads.choice);
        ciphers.send.apply(&mut output[from..]);
    }
}
