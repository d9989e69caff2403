//! A client's datagram to our own tracker, with a valid connection id and without one.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| torrentfs::internals::tracker::fuzz_datagram(bytes));
