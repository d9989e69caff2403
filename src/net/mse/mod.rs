//! Message stream encryption (MSE, also called protocol encryption): a Diffie-Hellman exchange, then RC4 or plaintext.
//!
//! Sans-io: [`Initiator`] and [`Responder`] consume received bytes and produce bytes to send; `handshake` owns sockets
//! and timeouts. The info hash is the shared key, so an observer without it learns only that two hosts communicate. MSE
//! hides the protocol from devices that throttle it. It is not secure encryption: RC4 is broken, and nobody is
//! authenticated.
//!
//! ```text
//! 1 initiator  Ya, PadA
//! 2 responder  Yb, PadB
//! 3 initiator  HASH('req1', S), HASH('req2', SKEY) ^ HASH('req3', S),
//!              ENCRYPT(VC, crypto_provide, len(PadC), PadC, len(IA)), ENCRYPT(IA)
//! 4 responder  ENCRYPT(VC, crypto_select, len(PadD), PadD), then its payload
//! ```
//!
//! Input is bounded: pads have at most 512 bytes, so each side knows how far to search for the other side's hash or VC,
//! and the length field of the initial payload (IA) allows at most 64 KiB.

mod cipher;
mod initiator;
mod key;
mod responder;
#[cfg(test)]
mod tests;

use bytes::BytesMut;
use rand::{Rng, RngExt};

pub use cipher::{Cipher, Ciphers};
pub use initiator::Initiator;
pub use responder::Responder;

/// Longest pad in bytes, by the specification.
const MAX_PAD: usize = 512;

/// Length of the verification constant, which consists of zeros.
const VC_LEN: usize = 8;

/// The encryption method of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// No encryption.
    Plaintext,
    /// RC4.
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
    /// Both methods.
    pub const BOTH: Self = Self(Method::Plaintext.bit() | Method::Rc4.bit());
    /// Only RC4.
    pub const RC4: Self = Self(Method::Rc4.bit());
    /// Only plaintext (after the encrypted handshake).
    pub const PLAINTEXT: Self = Self(Method::Plaintext.bit());

    /// Returns whether the set contains `method`.
    pub fn has(self, method: Method) -> bool {
        self.0 & method.bit() != 0
    }

    /// Returns the method to use with a peer that supports `other`. Prefers plaintext, which is free: the handshake is
    /// already hidden, and a peer that wants RC4 offers nothing else.
    fn choose(self, other: Self) -> Option<Method> {
        [Method::Plaintext, Method::Rc4].into_iter().find(|method| self.has(*method) && other.has(*method))
    }

    /// Returns the method for a `crypto_select` value, if it is exactly one.
    fn only(bits: u32) -> Option<Method> {
        [Method::Plaintext, Method::Rc4].into_iter().find(|method| method.bit() == bits)
    }
}

/// The reason why an encryption handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MseError {
    /// The public key is 0, 1 or at least the prime minus one, which no correct implementation sends.
    #[error("its encryption key is invalid")]
    BadKey,
    /// The expected hash or constant did not follow the pad.
    #[error("its encryption handshake is malformed")]
    NotSynchronized,
    /// The secret begins with a zero byte, which some clients get wrong. Another attempt has another secret.
    #[error("the secret of its encryption handshake is unsuitable")]
    ShortSecret,
    /// The requested torrent is not one of ours.
    #[error("it asks under encryption for a torrent that we do not have")]
    UnknownTorrent,
    /// The decrypted verification constant is not zero.
    #[error("its encryption handshake cannot be decrypted")]
    BadConstant,
    /// A pad is longer than 512 bytes.
    #[error("its encryption handshake has a pad of {0} bytes")]
    PadTooLong(usize),
    /// `crypto_provide` has no method that we allow.
    #[error("it offers no encryption method that is allowed")]
    NoCommonMethod,
    /// `crypto_select` has no method, several, or one that we did not offer.
    #[error("it chose an encryption method that was not offered")]
    BadChoice,
}

/// The result of a handshake.
#[derive(Debug)]
pub struct Secured {
    /// RC4 ciphers, or `None` for plaintext.
    pub ciphers: Option<Box<Ciphers>>,
    /// Decrypted payload that arrived together with the handshake.
    pub early: BytesMut,
}

/// Lengths of one side's pads: after its public key, and after its offer or choice.
#[derive(Clone, Copy, Debug)]
struct Pads {
    key: usize,
    choice: usize,
}

impl Pads {
    /// Chooses a random length for the pad after the key, so that no packet has a typical length. The pad after the
    /// choice is empty, because the specification reserves it for extensions.
    fn random(rng: &mut impl Rng) -> Self {
        Self { key: rng.random_range(0..=MAX_PAD), choice: 0 }
    }
}

/// Appends `len` random bytes.
fn random_bytes(len: usize, rng: &mut impl Rng, out: &mut BytesMut) {
    let from = out.len();
    out.resize(from + len, 0);
    rng.fill(&mut out[from..]);
}

/// Removes `mark` and everything before it. `mark` must start within the first [`MAX_PAD`] + 1 bytes. Returns false if
/// more input is needed.
fn synchronize(input: &mut BytesMut, mark: &[u8]) -> Result<bool, MseError> {
    let window = &input[..input.len().min(MAX_PAD + mark.len())];
    if let Some(at) = window.windows(mark.len()).position(|bytes| bytes == mark) {
        let _ = input.split_to(at + mark.len());
        return Ok(true);
    }
    if input.len() >= MAX_PAD + mark.len() { Err(MseError::NotSynchronized) } else { Ok(false) }
}

/// Removes and returns the next `N` bytes, if there are enough.
fn take<const N: usize>(input: &mut BytesMut) -> Option<[u8; N]> {
    let bytes = *input.first_chunk()?;
    let _ = input.split_to(N);
    Some(bytes)
}
