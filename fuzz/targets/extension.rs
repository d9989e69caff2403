//! A peer's extension handshake: a decoded one decodes to itself after encoding.

#![no_main]

use libfuzzer_sys::fuzz_target;
use torrentfs::wire::ExtensionHandshake;

fuzz_target!(|bytes: &[u8]| {
    let Ok(handshake) = ExtensionHandshake::decode(bytes) else { return };
    assert_eq!(ExtensionHandshake::decode(&handshake.encode()), Ok(handshake));
});
