//! Odd sources: what people and programs do to `.torrent` files, URLs and magnet links, in every command that takes one.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use torrentfs::metainfo::Metainfo;

use crate::support::*;

/// A torrent of two empty files, `odd/a` and `odd/d/b`: it is complete without peers.
const EMPTY: &[u8] =
    b"d4:infod5:filesld6:lengthi0e4:pathl1:aeed6:lengthi0e4:pathl1:d1:beee4:name3:odd12:piece lengthi16384e6:pieces0:ee";

fn output(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(TORRENTFS);
    command.args(args).current_dir(dir).env("XDG_CACHE_HOME", dir).env_remove("TORRENTFS_LOG").output().unwrap()
}

/// Returns the one line of a failure with the exit code 3.
fn failure(dir: &Path, args: &[&str]) -> String {
    let output = output(dir, args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(3), 1), "{args:?}: {stderr}");
    stderr.trim_end().to_owned()
}

fn info_hash() -> String {
    Metainfo::parse(EMPTY).unwrap().info_hash.to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Starts a server that answers every request in the same way. Returns a URL. Asserts that compression is asked for.
fn serve(status: &'static str, head: &str, body: &[u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let head = format!("HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let answer = [head.as_bytes(), body].concat();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = vec![0; 4096];
            let len = stream.read(&mut request).unwrap_or(0);
            let asked = String::from_utf8_lossy(&request[..len]).to_ascii_lowercase().contains("accept-encoding: gzip");
            let _ = stream.write_all(if asked { &answer } else { b"HTTP/1.1 406 No\r\n\r\n" });
        }
    });
    format!("http://{addr}/dl?file=1")
}

/// Writes files, and returns sources that all name [`EMPTY`]: those that are a whole torrent, and those that are a link.
fn sources(dir: &Path) -> (Vec<String>, Vec<String>) {
    let hash = info_hash();
    let link = format!("magnet:?xt=urn:btih:{hash}&dn=odd");
    let write = |name: &str, content: &[u8]| {
        fs::write(dir.join(name), content).unwrap();
        name.to_owned()
    };
    let utf16: Vec<u8> = format!("\u{feff}{link}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let url = format!("file://{}", dir.join("a%20b.torrent").display());
    let torrents = vec![
        write("plain.torrent", EMPTY),
        write("zeros.torrent", &[EMPTY, &[0; 16]].concat()),
        write("php.torrent", &[EMPTY, b"errot: no is id"].concat()),
        write("mark.torrent", &[b"\xef\xbb\xbf", EMPTY].concat()),
        write("packed.torrent", &gzip(EMPTY)),
        write("packed.torrent.gz", &gzip(&[EMPTY, b"\n"].concat())),
        write("wrong.magnet", EMPTY),
        write("a b.torrent", EMPTY).replace("a b", " a b"),
        url.clone(),
        format!(" {url}\n"),
        url.replace("file://", "file:"),
        url.replace("file://", "FILE://localhost"),
        serve("200 OK", "Content-Encoding: gzip\r\n", &gzip(EMPTY)),
        serve("200 OK", "", &gzip(EMPTY)),
        serve("200 OK", "Content-Type: text/html\r\n", &[EMPTY, b"\n<!-- 0.1 s -->"].concat()),
        format!(" {} ", serve("200 OK", "", EMPTY)),
    ];
    let links = vec![
        format!(" {link}\n"),
        link.replace('&', "&amp;"),
        format!("\"{link}\""),
        link.replace("urn:btih:", "urn%3Abtih%3A"),
        hash.to_uppercase(),
        write("link.magnet", link.as_bytes()),
        write("mark.magnet", format!("\u{feff}{link}\r\n").as_bytes()),
        write("utf16.magnet", &utf16),
        write("quoted.magnet", format!("\"{link}\"\n").as_bytes()),
        write("short.url", format!("[InternetShortcut]\r\nURL={link}\r\n").as_bytes()),
        write("rtorrent.torrent", format!("d10:magnet-uri{}:{link}e", link.len()).as_bytes()),
        serve("302 Found", &format!("Location: {link}\r\n"), b""),
        serve("302 Found", &format!("Location: {}\r\n", link.replace('&', "&amp;")), b""),
        serve("200 OK", "", format!("{link}\n").as_bytes()),
    ];
    (torrents, links)
}

#[test]
fn odd_sources_are_shown_and_got() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (torrents, links) = sources(dir);
    let hash = info_hash();
    for source in torrents.iter().chain(&links) {
        let shown = output(dir, &["show", "--json", source]);
        let text = String::from_utf8_lossy(&shown.stdout);
        assert!(text.contains(&hash), "{source:?}: {shown:?}");
    }
    // The metadata of the links is in the cache, as if an earlier run had fetched it.
    fs::create_dir_all(dir.join("torrentfs/metainfo")).unwrap();
    fs::write(dir.join(format!("torrentfs/metainfo/{hash}.torrent")), EMPTY).unwrap();
    for (number, source) in torrents.iter().chain(&links).enumerate() {
        let to = format!("out{number}");
        let got = output(dir, &["get", "--no-dht", "--no-lsd", "--no-port-mapping", "--port", "0", "-o", &to, source]);
        assert!(got.status.success(), "{source:?}: {got:?}");
        assert_eq!(fs::metadata(dir.join(&to).join("odd/d/b")).unwrap().len(), 0);
        if !source.contains("://") && torrents.contains(source) {
            let checked = output(dir, &["check", source, &to]);
            assert!(checked.status.success(), "{source:?}: {checked:?}");
        }
    }
    // An edited file is plain again, and a `file:` URL is edited in its place.
    for source in ["packed.torrent", "zeros.torrent", &torrents[8]] {
        let edited = output(dir, &["edit", "--comment", "new", source]);
        assert!(edited.status.success(), "{source:?}: {edited:?}");
    }
    for name in ["packed.torrent", "zeros.torrent", "a b.torrent"] {
        let bytes = fs::read(dir.join(name)).unwrap();
        assert!(bytes.starts_with(b"d7:comment3:new") && bytes.ends_with(b"6:pieces0:ee"), "{name}");
    }
}

#[test]
fn odd_sources_are_mounted_added_and_watched() {
    if !can_run(&[]) {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (torrents, links) = sources(dir.path());
    let hash = info_hash();
    let base = dir.path().join("m");
    fs::create_dir_all(base.join("cache/metainfo")).unwrap();
    fs::write(base.join(format!("cache/metainfo/{hash}.torrent")), EMPTY).unwrap();
    let absolute = |source: &str| match dir.path().join(source.trim_start()) {
        path if path.exists() => path.display().to_string(),
        _ => source.to_owned(),
    };
    for source in [&torrents[1], &torrents[4], &torrents[8], &torrents[12], &links[1], &links[7], &links[11]] {
        let mount = Mounted::start(&base, Path::new(&absolute(source)), &[]);
        assert_eq!(mount.read("odd/d/b"), b"", "{source}");
        mount.stop();
    }

    let watched = dir.path().join("watched");
    fs::create_dir(&watched).unwrap();
    let other = [b"d4:info", &EMPTY[7..EMPTY.len() - 1]].concat();
    let first = String::from_utf8_lossy(&other).replace("3:odd", "5:first");
    fs::write(watched.join("first.torrent"), format!("{first}e\0\0")).unwrap();
    let mount = Mounted::start(&base, &watched, &[]);
    let listed = || fs::read_dir(&mount.dir).unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for (name, content) in [
        ("packed.torrent", gzip(EMPTY)),
        ("utf16.magnet", fs::read(dir.path().join("utf16.magnet")).unwrap()),
        ("link.torrent", fs::read(dir.path().join("quoted.magnet")).unwrap()),
    ] {
        fs::write(watched.join(name), content).unwrap();
        wait_until(&format!("{name} is mounted"), Duration::from_secs(20), || listed().any(|name| name == "odd"));
        fs::remove_file(watched.join(name)).unwrap();
        wait_until("it is gone", Duration::from_secs(20), || listed().all(|name| name != "odd"));
    }
    let mnt = mount.dir.to_str().unwrap().to_owned();
    for source in torrents.iter().chain(&links) {
        let added = output(dir.path(), &["add", &mnt, source]);
        assert!(added.status.success(), "{source:?}: {added:?}");
        assert!(listed().any(|name| name == "odd"), "{source:?}");
        assert!(output(dir.path(), &["remove", &mnt, "odd"]).status.success());
    }
    mount.stop();
}

#[test]
fn other_files_are_named_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let v2 = b"d4:infod9:file treed1:td0:d6:lengthi0eeee12:meta versioni2e4:name1:t12:piece lengthi16384eee";
    let subtitle: &[u8] = b"1\r\n00:00:01,000 --> 00:00:02,000\r\nHello\r\n";
    let (page, passkey) = (&b"<!doctype html><title>x"[..], &b"d14:failure reason15:invalid passkeye"[..]);
    let cases: [(&str, &[u8], &str); 9] = [
        ("film.srt", subtitle, "not a .torrent file: it looks like a subtitle"),
        ("page.torrent", page, "not a .torrent file: it looks like a web page"),
        ("packed.torrent", &gzip(page), "not a .torrent file: it looks like a web page"),
        ("empty.torrent", b"", "not a .torrent file: it is empty"),
        ("zip.torrent", b"PK\x03\x04\x14\0\0\0\x08\0", "not a .torrent file: it looks like an archive (.zip)"),
        ("cut.torrent", &EMPTY[..60], "not a valid .torrent file: it is truncated"),
        ("passkey.torrent", passkey, "not a .torrent file: it is an answer that says \"invalid passkey\""),
        ("v2.torrent", v2, "BitTorrent v2-only torrents are not supported yet"),
        ("none.magnet", b"# nothing", "the file contains no magnet link"),
    ];
    for (name, content, text) in cases {
        fs::write(dir.join(name), content).unwrap();
        let commands: [&[&str]; 6] = [
            &["show", name],
            &["mount", name, "mnt"],
            &["get", name],
            &["check", name, "."],
            &["edit", "--comment", "x", name],
            &["seed", name, "."],
        ];
        fs::create_dir_all(dir.join("mnt")).unwrap();
        for args in commands {
            // Other commands speak of torrents, whatever the name of the file.
            let text = if name.ends_with(".magnet") && matches!(args[0], "check" | "edit") {
                "it looks like text"
            } else {
                text
            };
            let line = failure(dir, args);
            assert!(line.contains(text), "{args:?}: {line}");
        }
    }
    let url = serve("200 OK", "", page);
    assert!(failure(dir, &["show", &url]).contains("it looks like a web page"));
    let link = "magnet:?xt=urn:btih:0123456789012345678901234567890123456789";
    fs::write(dir.join("link.magnet"), link).unwrap();
    for args in [&["check", link, "."][..], &["check", "link.magnet", "."], &["edit", "--comment", "x", "link.magnet"]]
    {
        assert!(failure(dir, args).contains("it is a magnet link"), "{args:?}");
    }
    assert!(failure(dir, &["show", "ftp://a/b"]).contains("scheme \"ftp\""));
}

#[test]
fn a_torrent_of_empty_files_is_made_and_seeded() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("odd/d")).unwrap();
    fs::create_dir_all(dir.join("odd/e/f")).unwrap();
    for name in ["odd/a", "odd/d/b"] {
        fs::write(dir.join(name), "").unwrap();
    }
    let created = output(dir, &["create", "odd"]);
    assert!(created.status.success(), "{created:?}");
    let stderr = String::from_utf8_lossy(&created.stderr);
    assert!(stderr.contains("left out: 1 directory without files, which a torrent cannot contain"), "{stderr}");
    let metainfo = Metainfo::parse(&fs::read(dir.join("odd.torrent")).unwrap()).unwrap();
    let paths: Vec<_> = metainfo.layout.files().iter().map(|file| file.path.join("/")).collect();
    assert_eq!(paths, ["odd/a", "odd/d/b"]);
    let checked = output(dir, &["check", "odd.torrent", "."]);
    assert!(checked.status.success(), "{checked:?}");
    let seeded = output(
        dir,
        &[
            "seed",
            "--no-dht",
            "--no-lsd",
            "--no-port-mapping",
            "--port",
            "0",
            "--seed-time",
            "1s",
            "odd.torrent",
            "odd",
        ],
    );
    assert!(seeded.status.success(), "{seeded:?}");
}
