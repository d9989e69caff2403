//! Message stream encryption (MSE, also called protocol encryption): a Diffie-Hellman exchange, then RC4 or plaintext.
//!
//! Sans-io: [`Caller`] and [`Answerer`] take what was received and say what to send; time limits and sockets are the
//! business of `handshake`. The torrent's info hash is the shared key, so who does not know it learns only that two
//! hosts talk. It hides the protocol from devices on the way that slow it down; it is no secrecy: RC4 is broken and
//! nobody proves who he is.
//!
//! ```text
//! 1 caller   Ya, PadA
//! 2 answerer Yb, PadB
//! 3 caller   HASH('req1', S), HASH('req2', SKEY) ^ HASH('req3', S),
//!            ENCRYPT(VC, crypto_provide, len(PadC), PadC, len(IA)), ENCRYPT(IA)
//! 4 answerer ENCRYPT(VC, crypto_select, len(PadD), PadD), then what it has to say
//! ```
//!
//! What the other side sends is bounded: pads are 512 bytes at most, so that each side knows how far it must look for
//! the place where the other one's hash (or VC) begins; the caller's first payload (IA) is 64 KiB at most by its format.

mod answerer;
mod caller;
mod cipher;
mod key;
#[cfg(test)]
mod tests;

use bytes::BytesMut;
use rand::{Rng, RngExt};

pub use answerer::Answerer;
pub use caller::Caller;
pub use cipher::{Cipher, Ciphers};

/// The longest pad.
const MAX_PAD: usize = 512;

/// The verification constant: that many zeros.
const VC_LEN: usize = 8;

/// How the payload is sent after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As it is.
    Plaintext,
    /// Under RC4.
    Rc4,
}

impl Method {
    const fn bit(self) -> u32 {
        match self {
            Method::Plaintext => 1,
            Method::Rc4 => 2,
        }
    }
}

/// A set of methods, as in `crypto_provide`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Methods(u32);

impl Methods {
    /// Whatever the other side likes.
    pub const BOTH: Self = Self(Method::Plaintext.bit() | Method::Rc4.bit());
    /// RC4 alone.
    pub const RC4: Self = Self(Method::Rc4.bit());
    /// Plaintext alone (after the encrypted handshake).
    pub const PLAINTEXT: Self = Self(Method::Plaintext.bit());

    /// Whether `method` is one of them.
    pub fn has(self, method: Method) -> bool {
        self.0 & method.bit() != 0
    }

    /// The one to use where both sides have several. What the handshake hides is hidden by then, and plaintext costs
    /// nothing; who wants RC4 offers nothing else.
    fn choose(self, other: Self) -> Option<Method> {
        [Method::Plaintext, Method::Rc4].into_iter().find(|method| self.has(*method) && other.has(*method))
    }

    /// The one method that `bits` stand for.
    fn only(bits: u32) -> Option<Method> {
        [Method::Plaintext, Method::Rc4].into_iter().find(|method| method.bit() == bits)
    }
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MseError {
    /// Zero, one, or not below the prime: no side that means it sends such a key.
    #[error("its encryption key is none")]
    BadKey,
    /// What must follow the pad did not.
    #[error("its encryption handshake makes no sense")]
    NotSynchronized,
    /// No torrent of ours has the hash that it asks for.
    #[error("it asks under encryption for a torrent that is not here")]
    UnknownTorrent,
    /// The verification constant, decrypted, is not zero.
    #[error("its encryption handshake cannot be decrypted")]
    BadConstant,
    /// Longer than 512 bytes.
    #[error("its encryption handshake has a pad of {0} bytes")]
    PadTooLong(usize),
    /// `crypto_provide` and what we take have nothing in common.
    #[error("it offers no encryption method that is allowed here")]
    NoCommonMethod,
    /// `crypto_select` names no method, several, or one that was not offered.
    #[error("it chose an encryption method that was not offered")]
    BadChoice,
}

/// What a handshake ends with.
#[derive(Debug)]
pub struct Secured {
    /// RC4 each way, or `None` for plaintext.
    pub ciphers: Option<Box<Ciphers>>,
    /// Payload that came with the handshake, decrypted.
    pub early: BytesMut,
}

/// Pads of one side: behind its public key, and behind its offer or choice.
#[derive(Clone, Copy, Debug)]
struct Pads {
    key: usize,
    choice: usize,
}

impl Pads {
    /// Of random length behind the key, so that no packet length gives the protocol away; none behind the choice, where
    /// the specification keeps the place for later versions.
    fn random(rng: &mut impl Rng) -> Self {
        Self { key: rng.random_range(0..=MAX_PAD), choice: 0 }
    }
}

/// Appends `len` random bytes.
fn noise(len: usize, rng: &mut impl Rng, out: &mut BytesMut) {
    let from = out.len();
    out.resize(from + len, 0);
    rng.fill(&mut out[from..]);
}

/// Drops what precedes `mark` and `mark` itself, which must begin within the first [`MAX_PAD`] + 1 bytes.
/// False: more must come.
fn synchronize(input: &mut BytesMut, mark: &[u8]) -> Result<bool, MseError> {
    let window = &input[..input.len().min(MAX_PAD + mark.len())];
    if let Some(at) = window.windows(mark.len()).position(|bytes| bytes == mark) {
        let _ = input.split_to(at + mark.len());
        return Ok(true);
    }
    if input.len() >= MAX_PAD + mark.len() { Err(MseError::NotSynchronized) } else { Ok(false) }
}

/// The next `N` bytes, if they are there.
fn take<const N: usize>(input: &mut BytesMut) -> Option<[u8; N]> {
    let bytes = *input.first_chunk()?;
    let _ = input.split_to(N);
    Some(bytes)
}
