//! Torrents whose pieces are larger than the memory of the cache.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::transfer::Transfer;
use crate::support::*;
use torrentfs::metainfo::{FileKind, NewFile, NewTorrent, hash_pieces};

const LIMIT: Duration = Duration::from_secs(180);

/// Returns bytes that are mostly zeros, which is quick to make and to compare.
fn sparse(len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    for (n, at) in (0..len).step_by(1 << 19).enumerate() {
        data[at] = (n % 255) as u8 + 1;
    }
    data
}

/// `get` and a mount that nobody reads fetch pieces of any length in the background. Our own `seed` serves them.
#[test]
fn pieces_of_any_length_are_fetched_in_the_background_and_served() {
    let _turn = turn();
    let lab = Lab::new();
    // The second is no power of two, and the last is the largest that is accepted.
    for (mib, extra) in [(33, 3 << 20), (64, 70_000), (128, 1)] {
        let (data, base) = (sparse((mib << 20) + extra), lab.path(&mib.to_string()));
        fs::create_dir_all(&base).unwrap();
        let (file, torrent) = (base.join("film.bin"), base.join("film.torrent"));
        fs::write(&file, &data).unwrap();
        if mib == 33 {
            let (hashes, len) = hash_pieces(&data[..], 33 << 20).unwrap();
            let film = NewFile { path: vec![], len, kind: FileKind::Regular { executable: false } };
            let new =
                NewTorrent { name: "film.bin".into(), piece_len: 33 << 20, files: vec![film], ..NewTorrent::default() };
            fs::write(&torrent, new.build(&hashes).unwrap()).unwrap();
        } else {
            let size = format!("{mib}MiB");
            let made =
                run(TORRENTFS, &["create", "-l", &size, "-o", torrent.to_str().unwrap(), file.to_str().unwrap()]);
            assert!(made.status.success(), "{made:?}");
        }
        let port = free_port();
        let addr = format!("127.0.0.1:{port}");
        let mut seed = Transfer::start_at("seed", &base.join("seed"), &port.to_string(), &[], &[&torrent, &file]);
        wait_until("the seeder is ready", LIMIT, || {
            assert!(seed.is_running(), "{}", seed.output());
            seed.output().contains("seeding ")
        });
        let peer = ["--peer", addr.as_str()];
        let mut get = Transfer::get(&base, &peer, &torrent);
        assert!(get.wait().success(), "pieces of {mib} MiB: {}", get.output());
        assert!(fs::read(base.join("out/film.bin")).unwrap() == data, "pieces of {mib} MiB");
        fs::remove_file(base.join("out/film.bin")).unwrap();

        let mount = Mounted::start(&base.join("m"), &torrent, &peer);
        let cached = || blocks_below(&mount.cache) >= data.len() as u64 / 2;
        wait_until(&format!("an unread mount fetches pieces of {mib} MiB; {}", mount.log()), LIMIT, cached);
        assert!(mount.read("film.bin") == data, "pieces of {mib} MiB");
        mount.stop();
        fs::remove_dir_all(&base).unwrap();
    }
}

/// Returns the bytes of disk space that the files below a directory take.
fn blocks_below(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() => blocks_below(&entry.path()),
        Ok(about) => about.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
