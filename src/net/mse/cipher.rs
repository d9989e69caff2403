//! The RC4 stream cipher.

use std::fmt;

use rc4::{KeyInit, Rc4, StreamCipher};

use super::key::Secret;
use crate::metainfo::InfoHash;

/// Bytes of the key stream that are discarded, because the first ones reveal information about the key.
const DISCARD: usize = 1024;

/// The cipher of one direction. Every byte of the stream must pass it exactly once, in order.
pub struct Cipher(Rc4);

impl Cipher {
    pub(super) fn new(key: [u8; 20]) -> Self {
        // Cannot fail: RC4 accepts keys of 1 to 256 bytes.
        let mut rc4 = Rc4::new_from_slice(&key).expect("RC4 accepts keys of 20 bytes");
        rc4.apply_keystream(&mut [0; DISCARD]);
        Self(rc4)
    }

    /// Encrypts or decrypts in place; RC4 makes no difference.
    pub fn apply(&mut self, bytes: &mut [u8]) {
        self.0.apply_keystream(bytes);
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

/// The ciphers of both directions.
#[derive(Debug)]
pub struct Ciphers {
    /// Cipher for sent bytes.
    pub send: Cipher,
    /// Cipher for received bytes.
    pub receive: Cipher,
}

impl Ciphers {
    pub(super) fn of_initiator(secret: &Secret, skey: &InfoHash) -> Box<Self> {
        let cipher = |label| Cipher::new(secret.cipher_key(label, skey));
        Box::new(Self { send: cipher(b"keyA"), receive: cipher(b"keyB") })
    }

    pub(super) fn of_responder(secret: &Secret, skey: &InfoHash) -> Box<Self> {
        let Self { send, receive } = *Self::of_initiator(secret, skey);
        Box::new(Self { send: receive, receive: send })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vector of RFC 6229 for the key of the bytes 1 to 16. It tests the crate, because our own keys have 20
    /// bytes.
    #[test]
    fn rc4_matches_the_test_vector() {
        let key: [u8; 16] = std::array::from_fn(|n| n as u8 + 1);
        let mut rc4 = Rc4::new_from_slice(&key).unwrap();
        let mut stream = vec![0; DISCARD + 16];
        rc4.apply_keystream(&mut stream);
        let at = |offset: usize| stream[offset..offset + 16].iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(at(0), "9ac7cc9a609d1ef7b2932899cde41b97");
        assert_eq!(at(1024), "bdf0324e6083dcc6d3cedd3ca8c53c16");
    }

    #[test]
    fn the_beginning_of_the_key_stream_is_discarded() {
        let mut whole = vec![0; DISCARD + 64];
        Rc4::new_from_slice(&[7; 20]).unwrap().apply_keystream(&mut whole);
        let mut ours = [0; 64];
        Cipher::new([7; 20]).apply(&mut ours);
        assert_eq!(ours, whole[DISCARD..]);
    }
}
