//! A tracker's response to our announce.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| torrentfs::internals::discovery::fuzz_reply(bytes));
