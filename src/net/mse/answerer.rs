//! The side that is called.

use bytes::{BufMut, BytesMut};
use rand::Rng;

use super::key::{KEY_LEN, PrivateKey, Secret};
use super::{Ciphers, MAX_PAD, Method, Methods, MseError, Pads, Secured, VC_LEN, noise, synchronize, take};
use crate::metainfo::InfoHash;

/// Bytes of the verification constant, the offer and the length of PadC.
const OFFER_LEN: usize = VC_LEN + 4 + 2;

/// A handshake that a caller began.
pub struct Answerer {
    allowed: Methods,
    /// Ours, to be sent once theirs is here: who only connects costs no exponentiation.
    pads: Pads,
    key: PrivateKey,
    tail: BytesMut,
    state: State,
}

enum State {
    /// Their public key is to come.
    Key,
    /// Somewhere in what comes is HASH('req1', S).
    Mark(Secret),
    /// Which torrent.
    Torrent(Secret),
    /// The verification constant, their offer, the length of PadC.
    Offer(Box<Ciphers>),
    /// PadC and the length of IA.
    Pad {
        ciphers: Box<Ciphers>,
        method: Method,
        len: usize,
    },
    /// IA.
    Initial {
        ciphers: Box<Ciphers>,
        method: Method,
        len: usize,
    },
    Over,
}

impl Answerer {
    /// Waits for a caller's key; methods other than those in `allowed` are refused.
    pub fn new(allowed: Methods, rng: &mut impl Rng) -> Self {
        let pads = Pads::random(rng);
        Self::with(pads, allowed, rng)
    }

    pub(super) fn with(pads: Pads, allowed: Methods, rng: &mut impl Rng) -> Self {
        let mut tail = BytesMut::new();
        noise(pads.key, rng, &mut tail);
        Self { allowed, pads, key: PrivateKey::generate(rng), tail, state: State::Key }
    }

    /// Takes what it can of `input` and appends to `output` what is to be sent. `None`: more must come. `find` gives
    /// the torrent of ours that satisfies its argument.
    pub fn handle(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        find: impl Fn(&dyn Fn(&InfoHash) -> bool) -> Option<InfoHash>,
    ) -> Result<Option<Secured>, MseError> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Over) {
                State::Key => {
                    let Some(theirs) = take::<KEY_LEN>(input) else {
                        self.state = State::Key;
                        return Ok(None);
                    };
                    let secret = self.key.secret(&theirs)?;
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
                    State::Offer(Ciphers::of_answerer(&secret, &skey))
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
                State::Over => return Ok(None),
            }
        }
    }

    /// Step 4.
    fn choose(&self, method: Method, ciphers: &mut Ciphers, output: &mut BytesMut) {
        let from = output.len();
        output.put_bytes(0, VC_LEN);
        output.put_u32(method.bit());
        output.put_u16(self.pads.choice as u16);
        output.put_bytes(0, self.pads.choice);
        ciphers.send.apply(&mut output[from..]);
    }
}
