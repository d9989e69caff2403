//! Web seeds whose answers differ from the standard, and files with names that are no text.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;

use crate::support;
use crate::web_server::*;
use torrentfs::metainfo::{Metainfo, hash_pieces};

type Answer = fn(&ReceivedRequest, &mut TcpStream, &[u8]) -> std::io::Result<bool>;

/// Returns the requested range.
fn range(request: &ReceivedRequest, file: &[u8]) -> (usize, usize) {
    let (from, to) = request.range.unwrap();
    (from as usize, (to as usize + 1).min(file.len()))
}

/// Answers with the requested range, and with these headers beside `Content-Range`.
fn with_headers(
    headers: &str,
    request: &ReceivedRequest,
    stream: &mut TcpStream,
    file: &[u8],
) -> std::io::Result<bool> {
    let (from, end) = range(request, file);
    let headers = format!("{headers}{}", content_range(from, end, file.len()));
    respond(stream, "206 Partial Content", &headers, &file[from..end])
}

/// Answers with the requested range, and with this `Content-Range`.
fn with_range(text: &str, request: &ReceivedRequest, stream: &mut TcpStream, file: &[u8]) -> std::io::Result<bool> {
    let (from, end) = range(request, file);
    let text = text.replace("FROM", &from.to_string()).replace("TO", &(end - 1).to_string());
    let headers = format!("Content-Range: {}\r\n", text.replace("LEN", &file.len().to_string()));
    respond(stream, "206 Partial Content", &headers, &file[from..end])
}

fn respond(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<bool> {
    write_head(stream, status, headers, body.len())?;
    stream.write_all(body)?;
    Ok(true)
}

fn chunked(stream: &mut TcpStream, head: &str, body: &[u8]) -> std::io::Result<bool> {
    write!(stream, "{head}\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for chunk in body.chunks(50_000) {
        write!(stream, "{:x}\r\n", chunk.len())?;
        stream.write_all(chunk)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(b"0\r\n\r\n")?;
    Ok(true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_in_other_words_are_understood() {
    let answers: [(&str, Answer); 24] = [
        ("identity", |r, s, f| with_headers("Content-Encoding: identity\r\n", r, s, f)),
        ("none", |r, s, f| with_headers("Content-Encoding: none\r\n", r, s, f)),
        ("no coding", |r, s, f| with_headers("Content-Encoding:\r\n", r, s, f)),
        ("a character set", |r, s, f| with_headers("Content-Encoding: UTF-8\r\n", r, s, f)),
        ("x-gzip of the right length", |r, s, f| with_headers("Content-Encoding: x-gzip\r\n", r, s, f)),
        ("gzip of the whole", |_, s, f| respond(s, "200 OK", "Content-Encoding: gzip\r\n", f)),
        ("no unit", |r, s, f| with_range("FROM-TO/LEN", r, s, f)),
        ("equals", |r, s, f| with_range("bytes=FROM-TO/LEN", r, s, f)),
        ("colon", |r, s, f| with_range("bytes: FROM-TO/LEN", r, s, f)),
        ("spaces", |r, s, f| with_range("Bytes  FROM - TO / LEN", r, s, f)),
        ("no length", |r, s, f| with_range("bytes FROM-TO", r, s, f)),
        ("no numbers", |r, s, f| with_range("bytes", r, s, f)),
        ("no content-range", |r, s, f| respond(s, "206 Partial Content", "", &f[range(r, f).0..range(r, f).1])),
        ("chunks without content-range", |r, s, f| {
            chunked(s, "HTTP/1.1 206 Partial Content", &f[range(r, f).0..range(r, f).1])
        }),
        ("206 of the whole", |_, s, f| respond(s, "206 Partial Content", &content_range(0, f.len(), f.len()), f)),
        ("206 of the whole without content-range", |_, s, f| respond(s, "206 Partial Content", "", f)),
        ("206 of the whole that names the range", |r, s, f| {
            let (from, end) = range(r, f);
            respond(s, "206 Partial Content", &content_range(from, end, f.len()), f)
        }),
        ("more than the range", |r, s, f| {
            let (from, end) = (range(r, f).0.saturating_sub(5000), (range(r, f).1 + 5000).min(f.len()));
            respond(s, "206 Partial Content", &content_range(from, end, f.len()), &f[from..end])
        }),
        ("200 with content-range", |r, s, f| {
            let (from, end) = range(r, f);
            respond(s, "200 OK", &content_range(from, end, f.len()), &f[from..end])
        }),
        ("200 of the whole with content-range", |_, s, f| respond(s, "200 OK", &content_range(0, f.len(), f.len()), f)),
        ("200 of the whole in chunks", |_, s, f| chunked(s, "HTTP/1.1 200 OK", f)),
        ("chunks in HTTP/1.0", |_, s, f| chunked(s, "HTTP/1.0 200 OK", f).map(|_| false)),
        ("HTTP/1.2", |r, s, f| {
            let (from, end) = range(r, f);
            let head = format!("HTTP/1.2 206 Partial\r\n{}", content_range(from, end, f.len()));
            write!(s, "{head}Content-Length: {}\r\n\r\n", end - from)?;
            s.write_all(&f[from..end]).map(|()| false)
        }),
        ("a redirect in UTF-8", |r, s, f| match r.path.as_str() {
            "/f" => respond(s, "302 Found", "Location: /café.bin\r\n", b""),
            "/caf%C3%A9.bin" => serve_range(r, s, f),
            _ => respond_empty(s, "404 Not Found"),
        }),
    ];
    for (name, answer) in answers {
        let (metainfo, data) = torrent(&[("f", 300_000)], 65_536);
        let file = data.clone();
        let server = FakeServer::start(move |request, stream| answer(request, stream, &file));
        let mut driver = Driver::files(metainfo, &format!("{}/f", server.url));
        let some = driver.blocks_in(100_000, 200_000);
        driver.request(some.clone());
        driver.wait_for_answers().await;
        assert_eq!(
            (driver.blocks.len(), driver.closed.as_deref()),
            (some.len(), None),
            "{name}: {:?}",
            driver.seed.fault()
        );
        let rest = driver.blocks_in(0, u64::MAX).into_iter().filter(|request| !some.contains(request)).collect();
        driver.request(rest);
        driver.wait_for_answers().await;
        assert_eq!(driver.check(&data), data.len(), "{name}: {:?}", driver.seed.fault());
    }
}

/// Makes a torrent `name` of files with these names, of 20,000 bytes each.
fn named(name: &[u8], files: &[&[u8]]) -> (Metainfo, Vec<u8>) {
    let data = support::noise(20_000 * files.len(), 3);
    let (hashes, _) = hash_pieces(&data[..], 32_768).unwrap();
    let string = |text: &[u8]| [text.len().to_string().as_bytes(), b":", text].concat();
    let entry = |file: &&[u8]| [b"d6:lengthi20000e4:pathl".as_slice(), &string(file), b"ee"].concat();
    let info = [
        b"d5:filesl".as_slice(),
        &files.iter().flat_map(entry).collect::<Vec<u8>>(),
        b"e4:name",
        &string(name),
        b"12:piece lengthi32768e6:pieces",
        &string(hashes.as_flattened()),
        b"e",
    ];
    let torrent = [b"d4:info".as_slice(), &info.concat(), b"e"].concat();
    (Metainfo::parse(&torrent).unwrap(), data)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_requested_by_their_original_names() {
    let long = "x".repeat(300);
    let files: [&[u8]; 7] = [
        b"\xf4\xe8\xeb\xfc\xec.bin",
        b"a\nb.bin",
        "a\u{202e}nib.exe".as_bytes(),
        long.as_bytes(),
        b"a/b",
        b"same",
        b"same",
    ];
    let paths = ["%F4%E8%EB%FC%EC.bin", "a%0Ab.bin", "a%E2%80%AEnib.exe", &long, "a%2Fb", "same", "same"];
    let (metainfo, data) = named(b"\xe9t\xe9", &files);
    let (served, expected) = (data.clone(), paths.map(|path| format!("/pub/%E9t%E9/{path}")));
    let names = expected.clone();
    let server = FakeServer::start(move |request, stream| {
        // The last two files have one name, so the server has one file; its bytes are those of the first of them.
        match names.iter().position(|name| *name == request.path) {
            Some(file) => serve_range(request, stream, &served[file * 20_000..(file + 1) * 20_000]),
            None => respond_empty(stream, "404 Not Found"),
        }
    });
    let mut driver = Driver::files(metainfo, &format!("{}/pub/", server.url));
    driver.request(driver.blocks_in(0, 6 * 20_000 - 16_384));
    driver.wait_for_answers().await;
    assert!(driver.rejected.is_empty(), "{:?}", server.requests());
    assert!(driver.check(&data) >= 100_000);
    let requested = server.requests();
    assert!(requested.iter().all(|request| expected.contains(&request.path)), "{requested:?}");
    assert!(expected[..6].iter().all(|path| requested.iter().any(|request| request.path == *path)), "{requested:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_lead_elsewhere_are_not_requested() {
    let (metainfo, data) = named(b"t", &[b"..", b".", b"a"]);
    let served = data.clone();
    let server = FakeServer::start(move |request, stream| match request.path.as_str() {
        "/t/__" => serve_range(request, stream, &served[..20_000]),
        "/t/_" => serve_range(request, stream, &served[20_000..40_000]),
        "/t/a" => serve_range(request, stream, &served[40_000..]),
        _ => respond_empty(stream, "404 Not Found"),
    });
    let mut driver = Driver::files(metainfo, &format!("{}/", server.url));
    driver.request_all();
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), data.len(), "{:?}", server.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_have_the_displayed_names() {
    let (metainfo, data) = named(b"t", &[b"a\nb", b"c\xff"]);
    let displayed: Vec<String> = metainfo.layout.files().iter().map(|file| file.path[1].clone()).collect();
    let served: HashMap<String, Vec<u8>> = displayed
        .iter()
        .zip(data.chunks(20_000))
        .map(|(name, data)| {
            (
                format!("/t/{}", percent_encoding::percent_encode(name.as_bytes(), percent_encoding::NON_ALPHANUMERIC)),
                data.to_vec(),
            )
        })
        .collect();
    let served: HashMap<String, Vec<u8>> =
        served.into_iter().map(|(path, data)| (path.replace("%5F", "_"), data)).collect();
    let server = FakeServer::start(move |request, stream| match served.get(&request.path) {
        Some(data) => serve_range(request, stream, data),
        None => respond_empty(stream, "404 Not Found"),
    });
    let mut driver = Driver::files(metainfo, &format!("{}/", server.url));
    for (from, to) in [(0, 1), (16_384, 17_000), (20_000, 40_000)] {
        driver.request(driver.blocks_in(from, to));
        driver.wait_for_answers().await;
    }
    assert_eq!(driver.check(&data), data.len(), "{:?}", server.requests());
    // The name that worked is remembered.
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths.iter().filter(|path| *path == "/t/a%0Ab").count(), 1, "{paths:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_file_of_another_length_what_is_there_is_used() {
    // Longer, shorter; with ranges and without.
    for (len, ranges) in [(400_000, true), (400_000, false), (150_000, true), (150_000, false)] {
        let (metainfo, data) = torrent(&[("a", 300_000), ("b", 300_000)], 65_536);
        let (mut a, b) = (data[..300_000].to_vec(), data[300_000..].to_vec());
        a.resize(len, 7);
        let server = FakeServer::start(move |request, stream| {
            let file = if request.path == "/t/a" { &a } else { &b };
            let (from, _) = range(request, file);
            match (ranges, from < file.len()) {
                (true, true) => serve_range(request, stream, file),
                (true, false) => {
                    let range = format!("Content-Range: bytes */{}\r\n", file.len());
                    respond(stream, "416 Range Not Satisfiable", &range, b"")
                }
                (false, _) => respond(stream, "200 OK", "", file),
            }
        });
        let mut driver = Driver::files(metainfo, &format!("{}/", server.url));
        for (from, to) in [(0, 100_000), (310_000, u64::MAX), (100_000, 310_000)] {
            driver.request(driver.blocks_in(from, to));
            driver.wait_for_answers().await;
        }
        assert!(driver.closed.is_none(), "{:?}", driver.closed);
        driver.check(&data);
        let all = driver.blocks_in(0, u64::MAX).len();
        // Blocks of 16,384 bytes that reach into the missing part of `a`.
        let missing = if len < 300_000 { 300_000_usize.div_ceil(16_384) - len / 16_384 } else { 0 };
        assert_eq!((driver.blocks.len(), driver.rejected.len()), (all - missing, missing), "{len} {ranges}");
    }
}
