//! An untrusted magnet link: it is refused, or its own text is read as the same link.

#![no_main]

use libfuzzer_sys::fuzz_target;
use torrentfs::metainfo::{Magnet, unquote};

fuzz_target!(|link: &str| {
    let _ = unquote(link);
    let Some(Ok(magnet)) = Magnet::from_text(link) else { return };
    assert!(magnet.name.as_ref().is_none_or(|name| name.len() <= 255));
    let text = magnet.to_string();
    assert!(text.is_ascii());
    let read = Magnet::parse(&text).expect("our own link");
    assert_eq!((read.info_hash, &read.trackers, &read.web_seeds), (magnet.info_hash, &magnet.trackers, &magnet.web_seeds));
});
