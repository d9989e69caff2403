//! The raw `info` value of a torrent: in memory, or read back when it is needed.
//!
//! Nearly all of it are piece hashes, which nobody needs while the torrent is idle. Of thousands of torrents in one mount
//! most are. An owner that has somewhere to store the value implements [`InfoSource`]; what it reads back is as little
//! trusted as a file from a stranger, and counts only if it has the info hash.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::identity::InfoHash;

/// Where an `info` value is stored while it is not in memory.
pub trait InfoSource: Send + Sync {
    /// Reads the value. Blocking.
    fn read(&self) -> io::Result<Vec<u8>>;
}

/// A raw `info` value. Clones share the value, and whether it is in memory.
#[derive(Clone)]
pub struct RawInfo(Arc<Shared>);

struct Shared {
    info_hash: InfoHash,
    len: usize,
    place: Mutex<Place>,
}

struct Place {
    /// The value; `None` only if there is a source.
    resident: Option<Bytes>,
    source: Option<Arc<dyn InfoSource>>,
}

impl RawInfo {
    /// Takes the raw bytes of an `info` value, exactly as they are in the file. Hashes them.
    pub fn new(bytes: Bytes) -> Self {
        let (info_hash, len) = (InfoHash::of(&bytes), bytes.len());
        Self(Arc::new(Shared { info_hash, len, place: Mutex::new(Place { resident: Some(bytes), source: None }) }))
    }

    fn place(&self) -> MutexGuard<'_, Place> {
        self.0.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the SHA-1 of the value.
    pub fn info_hash(&self) -> InfoHash {
        self.0.info_hash
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Returns whether the value has no bytes, as that of a torrent that is not to be served.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Returns the value if it is in memory. Never waits for the disk.
    pub fn resident(&self) -> Option<Bytes> {
        self.place().resident.clone()
    }

    /// Returns the value. Blocking, if it has to be read back: then it stays in memory until [`Self::release`]. Fails if it
    /// cannot be read, or is not the same any more.
    pub fn load(&self) -> io::Result<Bytes> {
        let source = {
            let place = self.place();
            if let Some(bytes) = &place.resident {
                return Ok(bytes.clone());
            }
            place.source.clone()
        };
        // Without a source it is in memory.
        let bytes = source.ok_or(io::ErrorKind::NotFound)?.read()?;
        if bytes.len() != self.0.len || InfoHash::of(&bytes) != self.0.info_hash {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has other content than was stored"));
        }
        Ok(self.place().resident.get_or_insert_with(|| bytes.into()).clone())
    }

    /// Records where the value is stored. The first source stays.
    pub fn store_in(&self, source: Arc<dyn InfoSource>) {
        self.place().source.get_or_insert(source);
    }

    /// Returns whether the value is stored outside memory, too.
    pub fn is_stored(&self) -> bool {
        self.place().source.is_some()
    }

    /// Frees the memory if the value is stored elsewhere.
    pub fn release(&self) {
        let mut place = self.place();
        if place.source.is_some() {
            place.resident = None;
        }
    }
}

impl From<Bytes> for RawInfo {
    fn from(bytes: Bytes) -> Self {
        Self::new(bytes)
    }
}

impl PartialEq for RawInfo {
    fn eq(&self, other: &Self) -> bool {
        (self.0.len, self.0.info_hash) == (other.0.len, other.0.info_hash)
    }
}

impl Eq for RawInfo {}

impl fmt::Debug for RawInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.resident().is_some() { "in memory" } else { "stored" };
        write!(f, "RawInfo({}, {} bytes, {place})", self.0.info_hash, self.0.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what the test has put there.
    #[derive(Default)]
    struct Shelf(Mutex<Option<Vec<u8>>>);

    impl InfoSource for Shelf {
        fn read(&self) -> io::Result<Vec<u8>> {
            self.0.lock().unwrap().clone().ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }

    #[test]
    fn a_released_value_is_read_back_and_checked() {
        let info = RawInfo::new(Bytes::from_static(b"d4:name1:xe"));
        info.release();
        assert!(info.resident().is_some(), "it is nowhere else");

        let shelf = Arc::new(Shelf::default());
        info.store_in(shelf.clone());
        info.clone().release();
        assert_eq!((info.resident(), info.len()), (None, 11));
        assert_eq!(info.load().unwrap_err().kind(), io::ErrorKind::NotFound);
        for other in [&b"d4:name1:ye"[..], b"d4:name1:xe\n", b""] {
            *shelf.0.lock().unwrap() = Some(other.to_vec());
            assert_eq!(info.load().unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(info.resident(), None);
        }
        *shelf.0.lock().unwrap() = Some(b"d4:name1:xe".to_vec());
        assert_eq!(info.load().unwrap(), &b"d4:name1:xe"[..]);
        *shelf.0.lock().unwrap() = None;
        assert_eq!(info.load().unwrap(), &b"d4:name1:xe"[..], "it stays in memory");
    }
}
