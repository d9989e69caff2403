//! The file of nodes from the last run, which makes a start possible without bootstrap nodes.
//!
//! ```text
//! 8  "tfdht01\n"
//! 20 SHA-1 of all that follows
//! 2  count of IPv4 nodes, then 26 bytes each: id and address
//! 2  count of IPv6 nodes, then 38 bytes each
//! ```
//!
//! Integers are big-endian. A file that does not match this format exactly is ignored; that costs only time.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use sha1::{Digest, Sha1};

use super::address::{Family, is_plausible};
use super::krpc::{self, Contact};
use crate::sys::file::{create_anew, open_regular};

/// First bytes of the file, with the version of the format.
const MAGIC: &[u8; 8] = b"tfdht01\n";
/// Nodes saved per family. A table has room for more but rarely holds as many.
const MAX_SAVED: usize = 400;
/// Longest file that is read, in bytes; ours are always shorter.
const MAX_LEN: u64 = 64 << 10;

fn encode(nodes: &[Contact]) -> Vec<u8> {
    let mut body = Vec::new();
    for family in Family::BOTH {
        let of_family = nodes.iter().filter(|node| Family::of(node.addr) == family).take(MAX_SAVED);
        let of_family: Vec<Contact> = of_family.copied().collect();
        // At most `MAX_SAVED`, so it fits.
        body.extend_from_slice(&(of_family.len() as u16).to_be_bytes());
        body.extend(krpc::compact(&of_family, family));
    }
    [MAGIC.as_slice(), &Sha1::digest(&body), &body].concat()
}

fn decode(bytes: &[u8]) -> Option<Vec<Contact>> {
    let (sum, mut body) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<20>()?;
    if Sha1::digest(body)[..] != sum[..] {
        return None;
    }
    let mut nodes = Vec::new();
    for family in Family::BOTH {
        let (count, rest) = body.split_first_chunk()?;
        let count = usize::from(u16::from_be_bytes(*count));
        let (of_family, rest) = rest.split_at_checked(count * krpc::entry_len(family))?;
        nodes.extend(krpc::contacts(of_family, family).take(MAX_SAVED));
        body = rest;
    }
    nodes.retain(|node| is_plausible(node.addr, node.addr));
    body.is_empty().then_some(nodes)
}

/// Reads the nodes of a state file; `Ok(None)` means that the file is invalid.
pub(super) fn load(path: &Path) -> io::Result<Option<Vec<Contact>>> {
    let mut bytes = Vec::new();
    open_regular(path, File::options().read(true))?.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
    Ok(if bytes.len() as u64 > MAX_LEN { None } else { decode(&bytes) })
}

/// Replaces the file atomically.
pub(super) fn save(path: &Path, nodes: &[Contact]) -> io::Result<()> {
    // Several processes may share the directory, so the temporary name has the process id. The nodes of any are as
    // good.
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        create_anew(&new)?.write_all(&encode(nodes))?;
        fs::rename(&new, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::krpc::NodeId;
    use super::*;

    fn nodes() -> Vec<Contact> {
        let contact = |n: u8, addr: &str| Contact { id: NodeId([n; 20]), addr: addr.parse().unwrap() };
        vec![contact(1, "1.2.3.4:5"), contact(2, "127.0.0.1:6"), contact(3, "[2001:db8::1]:7")]
    }

    #[test]
    fn saved_nodes_are_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dht.nodes");
        assert!(load(&path).is_err());
        for nodes in [nodes(), Vec::new(), vec![nodes()[0]; MAX_SAVED]] {
            save(&path, &nodes).unwrap();
            assert_eq!(load(&path).unwrap(), Some(nodes));
        }
        save(&path, &vec![nodes()[0]; 1000]).unwrap();
        assert_eq!(load(&path).unwrap().unwrap().len(), MAX_SAVED);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert_eq!(load(&path).unwrap(), None);
        assert!(save(&dir.path().join("no/such"), &nodes()).is_err());
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_rejected(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut bytes = encode(&nodes());
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != byte);
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            prop_assert_eq!(decode(&bytes), None);
        }

        #[test]
        fn arbitrary_content_with_a_valid_checksum_does_not_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[MAGIC.as_slice(), &Sha1::digest(&body), &body].concat());
        }
    }
}
