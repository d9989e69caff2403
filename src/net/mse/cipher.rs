//! RC4 over a stream.

use std::fmt;

use rc4::{KeyInit, Rc4, StreamCipher};

use super::key::Secret;
use crate::metainfo::InfoHash;

/// The first bytes of RC4's stream give its key away, and are thrown away.
const DISCARD: usize = 1024;

/// One direction's cipher. Each byte of the stream must pass it once, in order.
pub struct Cipher(Rc4);

impl Cipher {
    pub(super) fn new(key: [u8; 20]) -> Self {
        // RC4 takes keys of 1 to 256 bytes.
        let mut rc4 = Rc4::new_from_slice(&key).expect("20 bytes are a key");
        rc4.apply_keystream(&mut [0; DISCARD]);
        Self(rc4)
    }

    /// Encrypts or decrypts in place: they are the same.
    pub fn apply(&mut self, bytes: &mut [u8]) {
        self.0.apply_keystream(bytes);
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

/// Both directions.
#[derive(Debug)]
pub struct Ciphers {
    /// For what we send.
    pub send: Cipher,
    /// For what we receive.
    pub receive: Cipher,
}

impl Ciphers {
    pub(super) fn of_caller(secret: &Secret, skey: &InfoHash) -> Box<Self> {
        let cipher = |label| Cipher::new(secret.cipher_key(label, skey));
        Box::new(Self { send: cipher(b"keyA"), receive: cipher(b"keyB") })
    }

    pub(super) fn of_answerer(secret: &Secret, skey: &InfoHash) -> Box<Self> {
        let Self { send, receive } = *Self::of_caller(secret, skey);
        Box::new(Self { send: receive, receive: send })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6229's stream for the key of the bytes 1 to 16; ours has 20 bytes, so RC4 itself is asked here.
    #[test]
    fn rc4_is_rc4() {
        let key: [u8; 16] = std::array::from_fn(|n| n as u8 + 1);
        let mut rc4 = Rc4::new_from_slice(&key).unwrap();
        let mut stream = vec![0; DISCARD + 16];
        rc4.apply_keystream(&mut stream);
        let at = |offset: usize| stream[offset..offset + 16].iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(at(0), "9ac7cc9a609d1ef7b2932899cde41b97");
        assert_eq!(at(1024), "bdf0324e6083dcc6d3cedd3ca8c53c16");
    }

    #[test]
    fn the_beginning_is_thrown_away() {
        let mut whole = vec![0; DISCARD + 64];
        Rc4::new_from_slice(&[7; 20]).unwrap().apply_keystream(&mut whole);
        let mut ours = [0; 64];
        Cipher::new([7; 20]).apply(&mut ours);
        assert_eq!(ours, whole[DISCARD..]);
    }
}
