//! The initiating side of the handshake.

use bytes::{BufMut, BytesMut};
use rand::Rng;

use super::key::{KEY_LEN, PrivateKey};
use super::{Ciphers, MAX_PAD, Method, Methods, MseError, Pads, Secured, VC_LEN, random_bytes, synchronize, take};
use crate::metainfo::InfoHash;

/// A handshake that we started.
pub struct Initiator {
    skey: InfoHash,
    offer: Methods,
    initial: Vec<u8>,
    pads: Pads,
    state: State,
}

enum State {
    /// Waiting for the responder's public key.
    Key(PrivateKey),
    /// Searching for the encrypted verification constant.
    Constant {
        ciphers: Box<Ciphers>,
        mark: [u8; VC_LEN],
    },
    /// Waiting for the responder's choice and the length of PadD.
    Choice(Box<Ciphers>),
    /// Waiting for PadD.
    Pad {
        ciphers: Box<Ciphers>,
        method: Method,
        len: usize,
    },
    Done,
}

impl Initiator {
    /// Starts a handshake for the torrent `skey` and appends the bytes to send to `output`. `initial` (at most 64 KiB)
    /// is sent as soon as the other side can decrypt it.
    pub fn start(skey: InfoHash, offer: Methods, initial: &[u8], rng: &mut impl Rng, output: &mut BytesMut) -> Self {
        let pads = Pads::random(rng);
        Self::start_with(pads, skey, offer, initial, rng, output)
    }

    pub(super) fn start_with(
        pads: Pads,
        skey: InfoHash,
        offer: Methods,
        initial: &[u8],
        rng: &mut impl Rng,
        output: &mut BytesMut,
    ) -> Self {
        let key = PrivateKey::generate(rng);
        output.extend_from_slice(&key.public());
        random_bytes(pads.key, rng, output);
        let initial = initial[..initial.len().min(usize::from(u16::MAX))].to_vec();
        Self { skey, offer, initial, pads, state: State::Key(key) }
    }

    /// Consumes as much of `input` as possible and appends the bytes to send to `output`. Returns `None` if more input
    /// is needed.
    pub fn handle(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<Option<Secured>, MseError> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Done) {
                State::Key(key) => {
                    let Some(theirs) = take::<KEY_LEN>(input) else {
                        self.state = State::Key(key);
                        return Ok(None);
                    };
                    self.request(&key, &theirs, output)?
                }
                State::Constant { ciphers, mark } => {
                    if !synchronize(input, &mark)? {
                        self.state = State::Constant { ciphers, mark };
                        return Ok(None);
                    }
                    State::Choice(ciphers)
                }
                State::Choice(mut ciphers) => {
                    let Some(mut bytes) = take::<6>(input) else {
                        self.state = State::Choice(ciphers);
                        return Ok(None);
                    };
                    ciphers.receive.apply(&mut bytes);
                    let [a, b, c, d, e, f] = bytes;
                    let method = Methods::only(u32::from_be_bytes([a, b, c, d])).ok_or(MseError::BadChoice)?;
                    let len = usize::from(u16::from_be_bytes([e, f]));
                    if !self.offer.has(method) {
                        return Err(MseError::BadChoice);
                    }
                    if len > MAX_PAD {
                        return Err(MseError::PadTooLong(len));
                    }
                    State::Pad { ciphers, method, len }
                }
                State::Pad { mut ciphers, method, len } => {
                    if input.len() < len {
                        self.state = State::Pad { ciphers, method, len };
                        return Ok(None);
                    }
                    ciphers.receive.apply(&mut input.split_to(len));
                    let mut early = input.split();
                    let ciphers = (method == Method::Rc4).then_some(ciphers).map(|mut ciphers| {
                        ciphers.receive.apply(&mut early);
                        ciphers
                    });
                    return Ok(Some(Secured { ciphers, early }));
                }
                State::Done => return Ok(None),
            }
        }
    }

    /// Writes step 3.
    fn request(&self, key: &PrivateKey, theirs: &[u8; KEY_LEN], output: &mut BytesMut) -> Result<State, MseError> {
        let secret = key.secret(theirs)?;
        if secret.is_short() {
            return Err(MseError::ShortSecret);
        }
        let mut ciphers = Ciphers::of_initiator(&secret, &self.skey);
        output.extend_from_slice(&secret.req1());
        output.extend_from_slice(&secret.request(&self.skey));
        let from = output.len();
        output.put_bytes(0, VC_LEN);
        output.put_u32(self.offer.0);
        output.put_u16(self.pads.choice as u16);
        output.put_bytes(0, self.pads.choice);
        output.put_u16(self.initial.len() as u16);
        output.extend_from_slice(&self.initial);
        ciphers.send.apply(&mut output[from..]);
        let mut mark = [0; VC_LEN];
        ciphers.receive.apply(&mut mark);
        Ok(State::Constant { ciphers, mark })
    }
}
