//! A client's HTTP request to our own tracker: its head, and the query of an announce and of a scrape.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| torrentfs::internals::tracker::fuzz_http(bytes));
