//! A client's announce to our own tracker.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| torrentfs::tracker::fuzz_query(text));
