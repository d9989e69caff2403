//! Collecting the body of an answer: bounded, and decompressed.

use std::io::{self, Write};

use flate2::write::GzDecoder;

use super::RequestError;

/// The first bytes of gzip data with its only method of compression.
const GZIP: &[u8] = b"\x1f\x8b\x08";

/// Collects a body up to a limit. Data compressed by gzip is decompressed, whatever the headers say: servers send it
/// without a header, and plain data with one. Bencode and text never start like it.
pub(super) struct Collector {
    limit: usize,
    state: State,
}

enum State {
    /// Too short to tell.
    Start(Vec<u8>),
    Plain(Bounded),
    Gzip(GzDecoder<Bounded>),
    /// After the end of the gzip data; anything that follows is dropped.
    Ended(GzDecoder<Bounded>),
}

impl Collector {
    /// Creates a collector for at most `limit` bytes, counted after decompression.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: State::Start(Vec::new()) }
    }

    /// Adds the next bytes as received.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), RequestError> {
        let head;
        if let State::Start(start) = &mut self.state {
            start.extend_from_slice(&bytes[..bytes.len().min(GZIP.len())]);
            bytes = &bytes[bytes.len().min(GZIP.len())..];
            if start.len() < GZIP.len() && GZIP.starts_with(start) {
                return Ok(());
            }
            head = std::mem::take(start);
            let bounded = Bounded { bytes: Vec::new(), limit: self.limit, exceeded: false };
            self.state = match head.starts_with(GZIP) {
                true => State::Gzip(GzDecoder::new(bounded)),
                false => State::Plain(bounded),
            };
            self.write(&head)?;
        }
        self.write(bytes)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), RequestError> {
        while !bytes.is_empty() {
            let written = match &mut self.state {
                State::Plain(plain) => plain.write(bytes),
                State::Gzip(gzip) => gzip.write(bytes),
                State::Start(_) | State::Ended(_) => return Ok(()),
            };
            match (written, &self.state) {
                (Ok(0), _) => {
                    if let State::Gzip(gzip) = std::mem::replace(&mut self.state, State::Start(Vec::new())) {
                        self.state = State::Ended(gzip);
                    }
                }
                (Ok(len), _) => bytes = &bytes[len..],
                (Err(_), State::Gzip(gzip)) if !gzip.get_ref().exceeded => return Err(damaged()),
                (Err(_), _) => return Err(RequestError::TooLong(self.limit)),
            }
        }
        Ok(())
    }

    /// Returns what there is so far, once it is known whether it is compressed.
    pub(super) fn so_far(&mut self) -> &[u8] {
        match &mut self.state {
            State::Start(_) => &[],
            State::Plain(plain) => &plain.bytes,
            State::Gzip(gzip) | State::Ended(gzip) => {
                // A failure shows again at the next write or at the end.
                let _ = gzip.flush();
                &gzip.get_ref().bytes
            }
        }
    }

    /// Returns the body, and what is wrong with its end.
    pub(super) fn finish(self) -> (Vec<u8>, Option<RequestError>) {
        match self.state {
            State::Start(start) => (start, None),
            State::Plain(plain) => (plain.bytes, None),
            State::Gzip(mut gzip) | State::Ended(mut gzip) => {
                let ended = gzip.try_finish();
                let output = std::mem::take(&mut gzip.get_mut().bytes);
                let fault = match ended {
                    Ok(()) => None,
                    Err(_) if gzip.get_ref().exceeded => Some(RequestError::TooLong(self.limit)),
                    Err(_) => Some(damaged()),
                };
                (output, fault)
            }
        }
    }
}

fn damaged() -> RequestError {
    RequestError::Transport("its gzip data is damaged or cut off".into())
}

/// A buffer that takes no more than `limit` bytes.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    exceeded: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.limit - self.bytes.len());
        if taken == 0 && !bytes.is_empty() {
            self.exceeded = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use proptest::prelude::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn collect(limit: usize, chunks: &[&[u8]]) -> (Vec<u8>, Option<RequestError>) {
        let mut collector = Collector::new(limit);
        for chunk in chunks {
            if let Err(error) = collector.push(chunk) {
                return (collector.finish().0, Some(error));
            }
        }
        collector.finish()
    }

    #[test]
    fn a_bomb_is_cut_off_at_the_limit() {
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(bomb.len() < 100 << 10);
        let (body, fault) = collect(1 << 20, &[&bomb]);
        assert_eq!(fault, Some(RequestError::TooLong(1 << 20)));
        assert!(body.len() <= 1 << 20 && body.capacity() <= 2 << 20);
    }

    #[test]
    fn damaged_data_is_reported_and_its_beginning_kept() {
        let data: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let compressed = gzip(&data);
        let (body, fault) = collect(1 << 20, &[&compressed[..compressed.len() / 2]]);
        assert!(data.starts_with(&body) && body.len() > 10_000);
        assert_eq!(fault, Some(damaged()));
        let mut wrong = compressed.clone();
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(collect(1 << 20, &[&wrong]).1, Some(damaged()));
        // Bytes after the data are dropped.
        assert_eq!(collect(1 << 20, &[&compressed, b"<!-- -->", b"more"]), (data, None));
    }

    proptest! {
        #[test]
        fn bodies_are_collected_whatever_the_chunks(
            data in prop::collection::vec(any::<u8>(), 0..3000), compressed: bool, chunk in 1usize..1000, limit in 0usize..4000,
        ) {
            prop_assume!(!data.starts_with(&GZIP[..1]));
            let sent = if compressed { gzip(&data) } else { data.clone() };
            let chunks: Vec<&[u8]> = sent.chunks(chunk).collect();
            let (body, fault) = collect(limit, &chunks);
            if data.len() <= limit {
                prop_assert_eq!((body, fault), (data, None));
            } else {
                prop_assert_eq!(fault, Some(RequestError::TooLong(limit)));
                prop_assert!(body.len() <= limit && data.starts_with(&body));
            }
        }

        #[test]
        fn so_far_shows_all_that_was_sent_before(data in prop::collection::vec(any::<u8>(), 1..3000), chunk in 1usize..500) {
            prop_assume!(!data.starts_with(&GZIP[..1]));
            let mut collector = Collector::new(1 << 20);
            for part in gzip(&data).chunks(chunk) {
                collector.push(part).unwrap();
                prop_assert!(data.starts_with(collector.so_far()));
            }
            prop_assert_eq!(collector.so_far(), &data[..]);
        }
    }
}
