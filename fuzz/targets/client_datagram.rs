//! A client's datagram to our own tracker, with a good connection id and without.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| torrentfs::internals::tracker::fuzz_datagram(bytes));
