//! A state file in the cache directory, damaged or made up; its checksum is made to fit, or nothing would be reached.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| torrentfs::internals::store::fuzz_state(bytes));
