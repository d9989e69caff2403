//! A tracker's datagrams, and its response to a scrape.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| torrentfs::internals::discovery::fuzz_counts_and_datagram(bytes));
