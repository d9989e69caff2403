//! Ordinary tools read the exact bytes of a mount that is still being downloaded.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::*;

const TOOLS: [&str; 7] = ["opentracker", "mktorrent", "libtorrent", "rsync", "tar", "ffprobe", "ffmpeg"];

/// Writes a directory with empty, small and large files, unusual names, depth and a film.
fn make_tree(root: &Path) {
    let deep = root.join("a/b c/d\u{e9}/e");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("deep.txt"), "far down\n").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("large.bin"), noise(9_000_001, 21)).unwrap();
    for n in 0..200u64 {
        fs::write(root.join(format!("a/small {n:03}")), noise(n as usize * 37, n + 100)).unwrap();
    }
    let film = root.join("film.mkv");
    let made = run(
        "ffmpeg",
        &["-v", "error", "-f", "lavfi", "-i", "testsrc=duration=20:size=320x240:rate=25", film.to_str().unwrap()],
    );
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn tools_read_the_exact_bytes() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let tree = lab.path("payload/tree");
    fs::create_dir_all(&tree).unwrap();
    make_tree(&tree);
    let torrent = lab.publish_path(&tree, 17);
    let _seeder = lab.libtorrent("seed", 2, 4_000_000, &lab.path("payload"), &torrent);
    let tree = tree.display();

    // Each tool gets its own mount with an empty cache.
    let fresh = |name: &str, check: &dyn Fn(&str, &str)| {
        let mount = lab.mount(name, &torrent, &[]);
        let out = lab.path(&format!("{name}-out"));
        fs::create_dir_all(&out).unwrap();
        check(mount.path("tree").to_str().unwrap(), out.to_str().unwrap());
        assert_eq!(mount.log().lines().count(), 1, "unexpected warnings: {}", mount.log());
        mount.stop();
    };
    fresh("ffprobe", &|from, out| {
        let seconds = sh(&format!("ffprobe -v error -show_entries format=duration -of csv=p=0 '{from}/film.mkv'"));
        assert!(seconds.starts_with("20."), "{seconds}");
        // Seeks to the end of the film and decodes a frame.
        sh(&format!("ffmpeg -v error -ss 18 -i '{from}/film.mkv' -frames:v 1 '{out}/frame.png'"));
        sh(&format!("ffmpeg -v error -ss 18 -i '{tree}/film.mkv' -frames:v 1 '{out}/expected.png'"));
        sh(&format!("cmp '{out}/frame.png' '{out}/expected.png'"));
    });
    fresh("cp", &|from, out| drop(sh(&format!("cp -r '{from}' '{out}/' && diff -r '{tree}' '{out}/tree'"))));
    fresh("rsync", &|from, out| drop(sh(&format!("rsync -a '{from}' '{out}/' && diff -r '{tree}' '{out}/tree'"))));
    fresh("tar", &|from, out| {
        sh(&format!("tar -C '{from}' -cf '{out}/t.tar' . && mkdir '{out}/x' && tar -C '{out}/x' -xf '{out}/t.tar'"));
        sh(&format!("diff -r '{tree}' '{out}/x'"));
    });
    fresh("sparse", &|from, out| {
        sh(&format!("tar -C '{from}' -S -cf '{out}/t.tar' . && mkdir '{out}/x' && tar -C '{out}/x' -xf '{out}/t.tar'"));
        sh(&format!("diff -r '{tree}' '{out}/x'"));
    });
    fresh("sums", &|from, _| {
        let sums = |dir: &str| sh(&format!("cd '{dir}' && find . -type f -print0 | sort -z | xargs -0 md5sum"));
        assert_eq!(sums(from), sums(&tree.to_string()));
        sh(&format!("cmp '{from}/large.bin' '{tree}/large.bin'"));
    });
    fresh("mmap", &|from, _| {
        // Two ranges before the whole file, so that page faults wait for the download.
        let script = "import mmap, sys\n\
            got, expected = (open(name, 'rb') for name in sys.argv[1:])\n\
            got = mmap.mmap(got.fileno(), 0, prot=mmap.PROT_READ)\n\
            expected = expected.read()\n\
            for place in slice(-70000, None), slice(5000000, 5300000), slice(None):\n    \
                assert got[place] == expected[place], place";
        let read = Command::new("python3")
            .args(["-c", script, &format!("{from}/large.bin"), &format!("{tree}/large.bin")])
            .output()
            .unwrap();
        assert!(read.status.success(), "{read:?}");
    });
}

#[test]
fn a_mount_looks_like_a_download_directory() {
    if !can_run(&TOOLS[..3]) {
        return;
    }
    let _turn = turn();
    let mut lab = Lab::new();
    let torrent = lab.publish("film.bin", &noise(3_000_001, 22), 18);
    let mount = lab.mount("m", &torrent, &[]);
    let names: Vec<_> = fs::read_dir(&mount.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["film.bin"]);
    let stat = fs::metadata(mount.path("film.bin")).unwrap();
    assert_eq!((stat.len(), stat.permissions().mode() & 0o7777), (3_000_001, 0o444));
    {
        use std::os::unix::fs::MetadataExt;
        assert_eq!((stat.blocks(), stat.nlink()), (3_000_001u64.div_ceil(512), 1));
    }
    let readonly = fs::write(mount.path("film.bin"), "x").unwrap_err();
    assert_eq!(readonly.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::create_dir(mount.path("new")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    mount.stop();
}
