//! A damaged or invented state file of the cache. Its checksum is corrected, because the decoder checks it first.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| torrentfs::internals::store::fuzz_state(bytes));
