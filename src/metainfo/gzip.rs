//! Bounded decompression of gzip: what a server or a user has compressed.

use std::io::{ErrorKind, Read};

use flate2::bufread::GzDecoder;

/// Largest number of bytes that one compressed byte may become. Torrents consist of hashes and shrink by a factor of ten
/// at most; a bomb grows by a thousand.
const MAX_RATIO: usize = 100;
/// Number of bytes that any data may become, whatever its ratio.
const SMALL: usize = 1 << 20;

/// Why gzip data cannot be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GunzipError {
    /// It becomes more than this number of bytes.
    #[error("the gzip-compressed data becomes more than {0} bytes")]
    TooLarge(usize),
    /// It is cut off or its checksum is wrong.
    #[error("the gzip-compressed data is damaged or cut off")]
    Damaged,
}

/// Returns whether data begins like gzip.
pub fn is_gzip(bytes: &[u8]) -> bool {
    // The third byte is the method: 8 is deflate, and there is no other.
    bytes.starts_with(&[0x1f, 0x8b, 8])
}

/// Decompresses gzip data to at most `limit` bytes, and to less if that would be far more than it has compressed. Bytes
/// after the last member are ignored.
pub fn gunzip(bytes: &[u8], limit: usize) -> Result<Vec<u8>, GunzipError> {
    let limit = limit.min(bytes.len().saturating_mul(MAX_RATIO).max(SMALL));
    let (mut rest, mut out) = (bytes, Vec::new());
    // A file may have several members, which are one after the other what it contains.
    loop {
        let room = (limit - out.len()) as u64 + 1;
        let mut member = GzDecoder::new(rest);
        match member.by_ref().take(room).read_to_end(&mut out) {
            Ok(_) if out.len() > limit => return Err(GunzipError::TooLarge(limit)),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::OutOfMemory => return Err(GunzipError::TooLarge(limit)),
            Err(_) => return Err(GunzipError::Damaged),
        }
        rest = member.into_inner();
        if !is_gzip(rest) {
            return Ok(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn members_follow_each_other_and_other_bytes_end_the_data() {
        let two = [gzip(b"ab"), gzip(b"cd"), b"\0\0".to_vec()].concat();
        assert_eq!(gunzip(&two, 4), Ok(b"abcd".to_vec()));
        assert_eq!(gunzip(&two, 3), Err(GunzipError::TooLarge(3)));
    }

    #[test]
    fn bombs_are_refused_early() {
        let bomb = gzip(&vec![0; 50 << 20]);
        assert!(bomb.len() < 60_000);
        let limit = bomb.len() * MAX_RATIO;
        assert_eq!(gunzip(&bomb, 96 << 20), Err(GunzipError::TooLarge(limit)));
        // Many small members must not get around the limit.
        let many = gzip(&[0; 1000]).repeat(10_000);
        assert!(matches!(gunzip(&many, 1 << 20), Err(GunzipError::TooLarge(_))));
        assert_eq!(gunzip(&gzip(&[0; 1 << 20]), 96 << 20).map(|bytes| bytes.len()), Ok(1 << 20));
    }

    #[test]
    fn damage_is_found() {
        let mut damaged = gzip(b"a torrent");
        assert_eq!(gunzip(&damaged[..damaged.len() - 1], 100), Err(GunzipError::Damaged));
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(gunzip(&damaged, 100), Err(GunzipError::Damaged));
    }

    proptest! {
        #[test]
        fn compressed_data_comes_back(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(gunzip(&gzip(&bytes), 2000), Ok(bytes));
        }

        #[test]
        fn random_data_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [&[0x1f, 0x8b, 8][..], &bytes].concat();
            prop_assert!(gunzip(&bytes, 1000).is_err() || !bytes.is_empty());
        }
    }
}
