//! Complete files that the kernel reads itself (FUSE passthrough).

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::*;

/// Time limit of waits. Only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

fn status(mounted: &Mounted) -> Value {
    let output = run(TORRENTFS, &["status", "--json", mounted.dir.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the files of all torrents that the kernel reads itself.
fn passed(mounted: &Mounted) -> Vec<String> {
    let status = status(mounted);
    let torrents = status["torrents"].as_array().unwrap().iter();
    torrents
        .flat_map(|torrent| torrent["passthrough"].as_array().unwrap())
        .map(|path| path.as_str().unwrap().to_owned())
        .collect()
}

fn wait_until_passed(mounted: &Mounted, expected: &[&str]) {
    wait_until(&format!("the kernel reads {expected:?}"), LONG, || passed(mounted) == expected);
}

/// Puts a complete file into the cache of a mount that does not exist yet. Returns its path there.
fn fill(lab: &Lab, name: &str, torrent: &Path, data: &[u8]) -> PathBuf {
    let path = in_cache(&lab.path(name).join("cache"), torrent).join(torrent.file_stem().unwrap());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, data).unwrap();
    path
}

/// Returns the directory of a torrent's files in a cache.
fn in_cache(cache: &Path, torrent: &Path) -> PathBuf {
    let metainfo = torrentfs::Metainfo::parse(&fs::read(torrent).unwrap()).unwrap();
    cache.join(metainfo.info_hash.to_string()).join("data")
}

fn read_all(file: &File, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[test]
fn the_kernel_reads_complete_files_itself() {
    if !can_run(&["mktorrent", "opentracker", "python3"]) || !can_pass_through() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let album = lab.path("album");
    fs::create_dir_all(album.join("cd1")).unwrap();
    // No file but the first begins at a piece.
    let files =
        [("cd1/a", noise(300_001, 1)), ("cd1/b", noise(2 << 20, 2)), ("empty", Vec::new()), ("last", noise(5, 3))];
    files.iter().for_each(|(path, data)| fs::write(album.join(path), data).unwrap());
    let torrent = lab.publish_path(&album, 16);
    let at = in_cache(&lab.path("m/cache"), &torrent).join("album");
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    sh(&format!("cp -r {} {}", album.display(), at.display()));
    let mounted = lab.mount("m", &torrent, &[]);

    let (name, data) = &files[1];
    let path = mounted.path("album").join(name);
    assert_eq!(passed(&mounted), [""; 0]);
    let readers: Vec<_> = (0..8u64)
        .map(|n| {
            let (path, data) = (path.clone(), data.clone());
            thread::spawn(move || {
                for round in 0..20u64 {
                    let file = File::open(&path).unwrap();
                    assert_eq!(file.metadata().unwrap().len(), data.len() as u64);
                    for step in 0..20u64 {
                        let offset = (n * 7919 + round * 104_729 + step * 65_537) % data.len() as u64;
                        let len = (data.len() as u64 - offset).min(10_000) as usize;
                        let mut bytes = vec![0; len];
                        file.read_exact_at(&mut bytes, offset).unwrap();
                        assert!(bytes == data[offset as usize..][..len]);
                    }
                }
            })
        })
        .collect();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    wait_until_passed(&mounted, &[]);
    let open: Vec<File> = files.iter().map(|(name, _)| File::open(mounted.path("album").join(name)).unwrap()).collect();
    // An empty file needs no reads.
    assert_eq!(passed(&mounted), ["album/cd1/a", "album/cd1/b", "album/last"]);
    for (file, (name, data)) in open.iter().zip(&files) {
        assert!(read_all(file, data.len()).unwrap() == *data, "{name}");
        assert_eq!(file.read_at(&mut [0; 9], data.len() as u64).unwrap(), 0, "{name} has an end");
    }
    let text = sh(&format!("{TORRENTFS} status {}", mounted.dir.display()));
    assert!(text.contains("\n    passthrough: album/cd1/b\n"), "{text}");
    let reads = &status(&mounted)["cache"]["reads"];
    assert_eq!((&reads["memory"], &reads["disk"], &reads["missed"]), (&0.into(), &0.into(), &0.into()), "{reads}");

    // The kernel has the bytes once, and runs and maps such files, too.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cachestat.py");
    let cached = sh(&format!("python3 {script} {} {}", path.display(), at.join(name).display()));
    assert_eq!(cached.lines().collect::<Vec<_>>(), ["0", &data.len().to_string()]);
    let map = "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n\
               sys.exit(m[:] != open(sys.argv[2],'rb').read())";
    assert!(run("python3", &["-c", map, path.to_str().unwrap(), album.join(name).to_str().unwrap()]).status.success());
    drop(open);
    wait_until_passed(&mounted, &[]);
    mounted.stop();

    let mounted = lab.mount("m", &torrent, &["--no-passthrough"]);
    let file = File::open(mounted.path("album").join(name)).unwrap();
    assert!(read_all(&file, data.len()).unwrap() == *data);
    assert_eq!(passed(&mounted), [""; 0]);
    drop(file);
    mounted.stop();
}

#[test]
fn a_handle_that_is_older_than_the_file_stays_as_it_is() {
    if !can_run(&["mktorrent", "opentracker", "libtorrent"]) || !can_pass_through() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(2 << 20, 4);
    let torrent = lab.publish("film.bin", &data, 16);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let mounted = lab.mount("m", &torrent, &["--on-demand", "--peer", &seeder.addr]);
    let path = mounted.path("film.bin");
    let before = File::open(&path).unwrap();
    assert!(read_all(&before, data.len()).unwrap() == data);
    wait_until("the torrent is complete", LONG, || status(&mounted)["torrents"][0]["pieces_had"] == 32);
    // The kernel allows one kind of handle at a time.
    let also = File::open(&path).unwrap();
    assert!(read_all(&also, data.len()).unwrap() == data && passed(&mounted).is_empty());
    drop(before);
    assert!(read_all(&also, data.len()).unwrap() == data);
    drop(also);
    wait_until("a new handle is one of the kernel's", LONG, || {
        let file = File::open(&path).unwrap();
        assert!(read_all(&file, data.len()).unwrap() == data);
        passed(&mounted) == ["film.bin"]
    });
    // Where the file is not read by the kernel already, a program with `O_DIRECT` may read at any offset.
    wait_until_passed(&mounted, &[]);
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let mut bytes = vec![0; 1000];
    direct.read_exact_at(&mut bytes, 77).unwrap();
    assert!(bytes == data[77..1077] && passed(&mounted).is_empty());
    drop(direct);
    let file = File::open(&path).unwrap();
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    assert!(read_all(&file, data.len()).unwrap() == data && direct.metadata().is_ok());
    drop((file, direct));
    mounted.stop();
}

#[test]
fn a_file_that_the_kernel_reads_is_not_evicted() {
    if !can_run(&["mktorrent", "opentracker", "libtorrent"]) || !can_pass_through() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let (film, other) = (noise(2 << 20, 5), noise(2 << 20, 6));
    let first = lab.publish("film.bin", &film, 16);
    let cached = fill(&lab, "m", &first, &film);
    let second = lab.publish("other.bin", &other, 16);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &second);
    let more = ["--on-demand", "--memory", "1MiB", "--cache-size", "2560KiB", "--peer", &seeder.addr];
    let mounted = lab.mount("m", &first, &[&more[..], &[second.to_str().unwrap()]].concat());
    let file = File::open(mounted.path("film.bin")).unwrap();
    assert_eq!(passed(&mounted), ["film.bin"]);
    assert!(mounted.read("other.bin") == other);
    assert!(read_all(&file, film.len()).unwrap() == film && fs::read(&cached).unwrap() == film);
    let have = |n: usize| status(&mounted)["torrents"][n]["have"].as_u64().unwrap();
    assert_eq!(have(0), film.len() as u64);
    wait_until("the other file has no room", LONG, || have(1) < other.len() as u64);
    assert_eq!(have(0), film.len() as u64);
    drop(file);
    wait_until_passed(&mounted, &[]);
    sh("echo 3 > /proc/sys/vm/drop_caches");
    assert!(mounted.read("other.bin") == other);
    wait_until("its pieces make room", LONG, || have(0) < film.len() as u64);
    mounted.stop();
}

#[test]
fn no_new_reader_gets_bytes_that_another_program_wrote() {
    if !can_run(&["mktorrent", "opentracker", "libtorrent"]) || !can_pass_through() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(4 << 20, 7);
    let torrent = lab.publish("film.bin", &data, 16);
    let cached = fill(&lab, "m", &torrent, &data);
    let seeder = lab.libtorrent("seed", 2, 0, &lab.path("payload"), &torrent);
    let mounted = lab.mount("m", &torrent, &["--peer", &seeder.addr]);
    let path = mounted.path("film.bin");
    let inode = fs::metadata(&path).unwrap().ino();
    let damages: [fn(&Path); 4] = [
        |path| open_rw(path).write_all_at(b"bad", 1 << 20).unwrap(),
        |path| open_rw(path).set_len(1 << 20).unwrap(),
        |path| fs::remove_file(path).unwrap(),
        |path| {
            let copy = path.with_extension("copy");
            fs::write(&copy, vec![7; 4 << 20]).unwrap();
            fs::rename(&copy, path).unwrap();
        },
    ];
    for (round, damage) in damages.into_iter().enumerate() {
        let old = File::open(&path).unwrap();
        assert!(read_all(&old, data.len()).unwrap() == data, "round {round}");
        assert_eq!(passed(&mounted), ["film.bin"], "round {round}: {}", mounted.log());
        damage(&cached);
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (path, data) = (path.clone(), data.clone());
                thread::spawn(move || {
                    for _ in 0..5 {
                        assert!(fs::read(&path).unwrap() == data);
                    }
                })
            })
            .collect();
        for reader in readers {
            assert!(reader.join().is_ok(), "round {round}: {}", mounted.log());
        }
        // Reads of the open handle fail.
        wait_until("old handles fail", LONG, || {
            read_all(&old, data.len()).is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
        });
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        drop(old);
        wait_until("the file is whole again and read by the kernel", LONG, || {
            let file = File::open(&path).unwrap();
            assert!(read_all(&file, data.len()).unwrap() == data);
            passed(&mounted) == ["film.bin"]
        });
        wait_until_passed(&mounted, &[]);
    }
    mounted.stop();
}

fn open_rw(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_file_that_is_only_touched_stays_open() {
    if !can_run(&["mktorrent", "opentracker"]) || !can_pass_through() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(2 << 20, 8);
    let torrent = lab.publish("film.bin", &data, 16);
    let cached = fill(&lab, "m", &torrent, &data);
    let mounted = lab.mount("m", &torrent, &[]);
    let path = mounted.path("film.bin");
    let old = File::open(&path).unwrap();
    for round in 0..3 {
        fs::hard_link(&cached, lab.path(&format!("link{round}"))).unwrap();
        let new = File::open(&path).unwrap();
        assert!(read_all(&new, data.len()).unwrap() == data && read_all(&old, data.len()).unwrap() == data);
        assert_eq!(passed(&mounted), ["film.bin"]);
    }
    let verified = sh(&format!("{TORRENTFS} verify {}", mounted.dir.display()));
    assert!(verified.contains("all fetched data is correct"), "{verified}");
    assert!(read_all(&old, data.len()).unwrap() == data);
    assert_eq!(passed(&mounted), ["film.bin"]);
    // `verify` finds damage before the watch does, or after.
    open_rw(&cached).write_all_at(b"bad", 5).unwrap();
    let verified = run(TORRENTFS, &["verify", mounted.dir.to_str().unwrap()]);
    assert!(!verified.status.success(), "{verified:?}");
    wait_until("old handles fail", LONG, || read_all(&old, data.len()).is_err());
    assert!(read_at(&path, 1 << 20, 9).unwrap() == data[1 << 20..][..9]);
    mounted.stop();
}

#[test]
fn a_removed_torrent_and_an_ended_mount_let_go_of_the_file() {
    if !can_run(&["mktorrent", "opentracker"]) || !can_pass_through() {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let data = noise(2 << 20, 9);
    let torrent = lab.publish("film.bin", &data, 16);
    let cached = fill(&lab, "m", &torrent, &data);
    let mounted = lab.mount("m", &torrent, &[]);
    let at = mounted.dir.to_str().unwrap().to_owned();
    let path = mounted.path("film.bin");
    let file = File::open(&path).unwrap();
    sh(&format!("{TORRENTFS} remove {at} film.bin --delete"));
    assert!(File::open(&path).is_err() && cached.exists());
    assert!(read_all(&file, data.len()).unwrap() == data);
    // It comes back while it is open.
    sh(&format!("{TORRENTFS} add {at} {}", torrent.display()));
    let again = File::open(&path).unwrap();
    assert!(read_all(&again, data.len()).unwrap() == data);
    assert_eq!(passed(&mounted), ["film.bin"]);
    drop(again);
    sh(&format!("{TORRENTFS} remove {at} film.bin --delete"));
    drop(file);
    wait_until("the cache lets go of it", LONG, || !cached.exists());
    mounted.stop();

    fill(&lab, "m", &torrent, &data);
    let mut mounted = lab.mount("m", &torrent, &[]);
    let file = File::open(&path).unwrap();
    assert_eq!(passed(&mounted), ["film.bin"]);
    assert!(run(TORRENTFS, &["unmount", &at]).status.success());
    assert!(mounted.process.wait(LONG).expect("it ends").success());
    assert_eq!(read_all(&file, data.len()).unwrap_err().raw_os_error(), Some(libc::EIO));
}
