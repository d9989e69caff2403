//! A server's answer: the correction of its head, and a body that may be compressed.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| torrentfs::internals::http::fuzz_answer(input.1, usize::from(input.0) + 1));
