//! Entry point of the fuzz target.

use super::body::Collector;
use super::mended;

/// The limit of a body in this target.
const LIMIT: usize = 64 << 10;

/// Checks that the head of an answer is corrected once, and that a body is bounded, in pieces of any size.
pub fn fuzz_answer(bytes: &[u8], chunk: usize) {
    mended::check_correction(bytes, chunk);
    let mut collector = Collector::new(LIMIT);
    let complete = bytes.chunks(chunk).all(|chunk| collector.push(chunk).is_ok() && collector.so_far().len() <= LIMIT);
    let (body, fault) = collector.finish();
    assert!(body.len() <= LIMIT);
    let compressed = bytes.starts_with(b"\x1f\x8b\x08");
    assert!(compressed || !complete || (body == bytes && fault.is_none()));
}
