//! An untrusted `.torrent` file: it is refused, or its files tile the torrent and no path leaves the mount.

#![no_main]

use libfuzzer_sys::fuzz_target;
use torrentfs::metainfo::Metainfo;

fuzz_target!(|bytes: &[u8]| {
    let Ok(metainfo) = Metainfo::parse(bytes) else { return };
    let lengths = metainfo.layout.lengths();
    let mut end = 0;
    for file in metainfo.layout.files() {
        assert_eq!(file.offset, end, "no gap and no overlap");
        end += file.len;
        assert!(!file.path.is_empty());
        for part in &file.path {
            assert!(!matches!(part.as_str(), "" | "." | "..") && !part.contains(['/', '\0']) && part.len() <= 255);
        }
    }
    assert_eq!(end, lengths.total());
    for piece in lengths.iter().take(8).chain(lengths.iter().rev().take(8)) {
        let bytes: u64 = metainfo.layout.extents_of(piece).map(|(_, range)| range.end - range.start).sum();
        assert_eq!(bytes, u64::from(lengths.len_of(piece)));
    }
});
