//! An untrusted file or download: a torrent, a magnet link, compressed or not, or an error of one line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use torrentfs::metainfo::{Document, Edit, gunzip};

fuzz_target!(|bytes: &[u8]| {
    match Document::parse(bytes.to_vec()) {
        // An edited torrent is the same torrent.
        Ok(Document::Torrent(torrent)) => {
            let edited = Edit::new(bytes).expect("what is read can be edited").build();
            let Ok(Document::Torrent(again)) = Document::parse(edited) else { panic!("our own torrent") };
            assert_eq!(again.info_hash, torrent.info_hash);
        }
        Ok(Document::Magnet(_)) => {}
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
    if let Ok(plain) = gunzip(bytes, 1 << 20) {
        assert!(plain.len() <= 1 << 20);
    }
});
