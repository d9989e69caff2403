//! The state file of our own tracker.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| torrentfs::internals::tracker::fuzz_state(bytes));
