//! Web seeds against real servers (nginx, Python's) and against a server that misbehaves, on loopback.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Process, can_run, free_port, sh, wait_until};
use crate::web_server::*;
use torrentfs::internals::http::HttpClient;
use torrentfs::internals::net::Limits;
use torrentfs::internals::webseed::WebSeed;
use torrentfs::metainfo::{FileKind, Layout, Metainfo};
use torrentfs::wire::{Message, Request};

const MANY: [(&str, usize); 7] = [
    ("a.bin", 1_000_000),
    ("empty", 0),
    ("sub dir/b é?#%.bin", 300_001),
    ("sub dir/tiny", 1),
    ("sub dir/small", 700),
    ("c+&=.bin", 2_500_000),
    ("last", 5),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_serves_files_by_ranges_over_few_connections() {
    if !can_run(&["nginx"]) {
        return;
    }
    let (metainfo, data) = torrent(&MANY, 65_536);
    let dir = tempfile::tempdir().unwrap();
    let (root, log, port) = (dir.path().join("www"), dir.path().join("log"), free_port());
    publish(&metainfo, &data, &root);
    // The workers run as nobody when root starts nginx.
    sh(&format!("chmod -R a+rX {}", dir.path().display()));
    let config = dir.path().join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error; events {{}}
         http {{ access_log off; log_format own '$connection $request'; server {{
           listen 127.0.0.1:{port}; root {root}; access_log {log} own; keepalive_timeout 30s; }} }}",
        dir = dir.path().display(),
        root = root.display(),
        log = log.display(),
    );
    fs::write(&config, text).unwrap();
    let mut nginx = Process::start(Command::new("nginx").arg("-c").arg(&config).stderr(Stdio::null()));
    wait_until("nginx answers", LONG, || TcpStream::connect(("127.0.0.1", port)).is_ok());

    let mut driver = Driver::files(metainfo, &format!("http://127.0.0.1:{port}/"));
    // First every seventh block, then the others.
    let all = driver.blocks_in(0, u64::MAX);
    let (some, rest): (Vec<_>, Vec<_>) = all.iter().copied().enumerate().partition(|(n, _)| n % 7 == 3);
    driver.request(some.into_iter().map(|(_, request)| request).collect());
    driver.request(rest.into_iter().map(|(_, request)| request).collect());
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), data.len());

    let log = fs::read_to_string(log).unwrap();
    let connections: std::collections::HashSet<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(log.lines().count() < all.len() * 2 / 3, "{} requests for {} blocks", log.lines().count(), all.len());
    assert!(connections.len() <= 8, "{} connections", connections.len());

    // Without the server the seed chokes. Once the server is back, the seed serves again.
    nginx.signal("TERM");
    assert!(nginx.wait(LONG).is_some(), "nginx did not end");
    driver.blocks.clear();
    driver.request_all();
    driver.until(|driver| driver.choked && driver.outstanding == 0).await;
    assert!(driver.seed.fault().is_some());
    let _nginx = Process::start(Command::new("nginx").arg("-c").arg(&config).stderr(Stdio::null()));
    wait_until("nginx answers", LONG, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    while driver.blocks.len() < all.len() {
        driver.until(|driver| !driver.choked).await;
        let missing = all.iter().filter(|request| !driver.blocks.contains_key(&(request.piece, request.begin)));
        driver.request(missing.copied().collect());
        driver.wait_for_answers().await;
    }
    assert_eq!(driver.check(&data), data.len());
    // The fault is cleared when the last answer has ended, just after its last block.
    wait_until("the fault is cleared", LONG, || driver.seed.fault().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_server_serves_without_ranges() {
    if !can_run(&["python3"]) {
        return;
    }
    let (metainfo, data) = torrent(&MANY, 65_536);
    let dir = tempfile::tempdir().unwrap();
    publish(&metainfo, &data, dir.path());
    let port = free_port();
    let _python = Process::start(
        Command::new("python3")
            .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string(), "--directory"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    wait_until("python answers", LONG, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    // Without the trailing slash, which some torrents omit.
    let mut driver = Driver::files(metainfo, &format!("http://127.0.0.1:{port}"));
    let last = driver.blocks_in(3_000_000, 3_100_000);
    driver.request(last.clone());
    driver.wait_for_answers().await;
    assert_eq!(driver.blocks.len(), last.len());
    let rest = driver.blocks_in(0, u64::MAX).into_iter().filter(|request| !last.contains(request)).collect();
    driver.request(rest);
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), data.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_far_from_the_start_are_not_fetched_without_ranges() {
    let (mut metainfo, _) = torrent(&[("big", 1000)], 16_384);
    // A file of 100 MB, of which only zeros are sent.
    let lengths = torrentfs::metainfo::Lengths::new(100_000_000, 1 << 20).unwrap();
    let mut files = metainfo.layout.files().to_vec();
    files[0].len = 100_000_000;
    metainfo.layout = Layout::new(lengths, files).into();
    let server = FakeServer::start(|_, stream| {
        write_head(stream, "200 OK", "", 100_000_000)?;
        while stream.write_all(&[0; 65_536]).is_ok() {}
        Ok(false)
    });
    let mut driver = Driver::files(metainfo, &format!("{}/big", server.url));
    driver.request(driver.blocks_in(90_000_000, 90_100_000));
    driver.wait_for_answers().await;
    assert!(driver.blocks.is_empty() && driver.seed.fault().unwrap().contains("no ranges"));
    let near = driver.blocks_in(5_000_000, 5_100_000);
    driver.request(near.clone());
    driver.wait_for_answers().await;
    assert_eq!(driver.blocks.len(), near.len());
    // A new connection announces the pieces that can be fetched.
    driver.connect().unwrap();
    driver.until(|driver| !driver.choked).await;
    let Some(Message::Bitfield(bits)) = &driver.offer else { panic!("{:?}", driver.offer) };
    assert_eq!(bits.iter().map(|byte| byte.count_ones()).sum::<u32>(), 32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pad_files_are_not_requested() {
    let (mut metainfo, mut data) = torrent(&[("a", 50_000), ("pad", 15_536), ("b", 40_000)], 65_536);
    let mut files = metainfo.layout.files().to_vec();
    files[1].kind = FileKind::Pad;
    metainfo.layout = Layout::new(*metainfo.layout.lengths(), files).into();
    data[50_000..65_536].fill(0);
    let served = data.clone();
    let server = FakeServer::start(move |request, stream| match request.path.as_str() {
        "/x/t/a" => serve_range(request, stream, &served[..50_000]),
        "/x/t/b" => serve_range(request, stream, &served[65_536..]),
        _ => respond_empty(stream, "404 Not Found"),
    });
    let mut driver = Driver::files(metainfo, &format!("{}/x/", server.url));
    driver.request_all();
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), data.len());
    assert!(driver.rejected.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_block_does_not_wait_for_the_last() {
    let (metainfo, data) = torrent(&[("f", 1 << 20)], 65_536);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (file, wait) = (data.clone(), Mutex::new(wait));
    let server = FakeServer::start(move |_, stream| {
        write_head(stream, "206 Partial Content", &content_range(0, file.len(), file.len()), file.len())?;
        stream.write_all(&file[..20_000])?;
        let _ = wait.lock().unwrap().recv_timeout(LONG);
        stream.write_all(&file[20_000..])?;
        Ok(true)
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", server.url));
    driver.request_all();
    driver.until(|driver| !driver.blocks.is_empty()).await;
    assert_eq!(driver.blocks.len(), 1);
    go.send(()).unwrap();
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), data.len());
    assert_eq!(server.requests().len(), 1, "one request for one range");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_blocks_are_not_requested() {
    let (metainfo, data) = torrent(&[("f", 4 << 20)], 65_536);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (file, wait) = (data.clone(), Mutex::new(wait));
    let server = FakeServer::start(move |request, stream| {
        let _ = wait.lock().unwrap().recv_timeout(LONG);
        serve_range(request, stream, &file)
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", server.url));
    // Blocks in different ranges: four ranges are fetched at a time, the others wait.
    let apart: Vec<Request> = driver.blocks_in(0, u64::MAX).into_iter().step_by(16).collect();
    driver.request(apart.clone());
    wait_until("four requests", LONG, || server.requests().len() == 4);
    driver.send(apart[4..].iter().map(|request| Message::Cancel(*request)).collect());
    driver.until(|driver| driver.rejected.len() == apart.len() - 4).await;
    for _ in 0..4 {
        go.send(()).unwrap();
    }
    driver.wait_for_answers().await;
    assert_eq!((driver.blocks.len(), server.requests().len()), (4, 4));
    // Requests that are cancelled under way do not delay a new one.
    driver.request(apart[4..8].to_vec());
    wait_until("four more requests", LONG, || server.requests().len() == 8);
    driver.send(apart[4..8].iter().map(|request| Message::Cancel(*request)).collect());
    driver.request(vec![apart[9]]);
    wait_until("the new request", LONG, || server.requests().len() == 9);
    for _ in 0..5 {
        go.send(()).unwrap();
    }
    driver.wait_for_answers().await;
    driver.check(&data);
    assert_eq!(driver.blocks.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_remembered_until_they_fail() {
    let (metainfo, data) = torrent(&[("f", 200_000)], 65_536);
    let generation = Arc::new(AtomicUsize::new(0));
    let (file, now) = (data.clone(), generation.clone());
    let server = FakeServer::start(move |request, stream| {
        let good = format!("/mirror{}", now.load(Ordering::Relaxed));
        match request.path.as_str() {
            "/f" => write_head(stream, "302 Found", "Location: hop\r\n", 0).map(|()| true),
            "/hop" => write_head(stream, "307 Temporary Redirect", &format!("Location: {good}\r\n"), 0).map(|()| true),
            path if path == good => serve_range(request, stream, &file),
            _ => respond_empty(stream, "403 Forbidden"),
        }
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", server.url));
    for (from, to) in [(0, 10), (50_000, 70_000)] {
        driver.request(driver.blocks_in(from, to));
        driver.wait_for_answers().await;
    }
    let paths = |server: &FakeServer| server.requests().into_iter().map(|request| request.path).collect::<Vec<_>>();
    assert_eq!(paths(&server), ["/f", "/hop", "/mirror0", "/mirror0"]);
    generation.store(1, Ordering::Relaxed);
    driver.request(driver.blocks_in(100_000, 200_000));
    driver.wait_for_answers().await;
    assert_eq!(paths(&server)[4..], ["/mirror0", "/f", "/hop", "/mirror1"]);
    driver.check(&data);
    assert!(driver.rejected.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_file_does_not_affect_the_others() {
    let (metainfo, data) = torrent(&[("a", 200_000), ("b", 4 << 20), ("c", 200_000)], 65_536);
    let (a, c) = (data[..200_000].to_vec(), data[data.len() - 200_000..].to_vec());
    let server = FakeServer::start(move |request, stream| match request.path.as_str() {
        "/t/a" => serve_range(request, stream, &a),
        "/t/c" => serve_range(request, stream, &c),
        _ => respond_empty(stream, "404 Not Found"),
    });
    let mut driver = Driver::files(metainfo, &format!("{}/", server.url));
    driver.request(driver.blocks_in(200_000, 300_000));
    driver.wait_for_answers().await;
    assert!(driver.blocks.is_empty() && driver.closed.is_none() && !driver.choked);
    // The other files are served. After enough failed requests the seed reconnects with a bitfield.
    driver.request(driver.blocks_in(0, 190_000));
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), 196_608);
    driver.request(driver.blocks_in(300_000, 4 << 20));
    driver.until(|driver| driver.closed.is_some()).await;
    assert!(driver.closed.as_ref().unwrap().contains("404"), "{:?}", driver.closed);
    driver.connect().unwrap();
    driver.until(|driver| !driver.choked).await;
    assert!(matches!(driver.offer, Some(Message::Bitfield(_))));
    driver.request(driver.blocks_in((4 << 20) + 262_144, u64::MAX));
    driver.wait_for_answers().await;
    driver.check(&data);
    assert_eq!(server.requests().iter().filter(|request| request.path == "/t/b").count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_answers_end_the_seed_with_a_reason() {
    type Answer = fn(&ReceivedRequest, &mut TcpStream) -> std::io::Result<bool>;
    let cases: [(&str, Answer); 12] = [
        ("404", |_, stream| respond_empty(stream, "404 Not Found")),
        ("416", |_, stream| respond_empty(stream, "416 Range Not Satisfiable")),
        ("another range", |_, stream| {
            write_head(stream, "206 Partial Content", "Content-Range: bytes 5-104/1000000\r\n", 100).map(|()| true)
        }),
        ("77 bytes there", |_, stream| {
            write_head(stream, "206 Partial Content", "Content-Range: bytes 0-76/77\r\n", 77).map(|()| true)
        }),
        ("does not say which", |_, stream| write_head(stream, "206 Partial Content", "", 5).map(|()| true)),
        ("9 bytes there", |_, stream| {
            write_head(stream, "200 OK", "Content-Type: text/html\r\n", 9)?;
            stream.write_all(b"not found")?;
            Ok(true)
        }),
        ("web page", |_, stream| {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>")?;
            Ok(false)
        }),
        ("compressed", |_, stream| {
            let headers = "Content-Encoding: gzip\r\nContent-Range: bytes 0-999999/1000000\r\n";
            write_head(stream, "206 Partial Content", headers, 5000).map(|()| true)
        }),
        ("too many times", |_, stream| write_head(stream, "302 Found", "Location: /f\r\n", 0).map(|()| true)),
        ("not HTTP", |_, stream| write_head(stream, "302 Found", "Location: file:///etc/passwd\r\n", 0).map(|()| true)),
        ("to an invalid URL", |_, stream| write_head(stream, "302 Found", "Location: http://[/\r\n", 0).map(|()| true)),
        // On this machine a web seed's URL may not get a query by a redirect.
        ("not asked", |_, stream| write_head(stream, "302 Found", "Location: /inside?do=it\r\n", 0).map(|()| true)),
    ];
    for (reason, answer) in cases {
        let server = FakeServer::start(answer);
        let (metainfo, _) = torrent(&[("f", 1_000_000)], 65_536);
        let url = format!("{}/f", server.url);
        let mut driver = Driver::new(metainfo, &[&url], &[], Limits::new(0, 0));
        driver.request_all();
        driver.until(|driver| driver.closed.is_some()).await;
        let why = driver.closed.clone().unwrap();
        assert!(why.contains(reason), "{reason}: {why}");
        assert!(driver.blocks.is_empty());
        assert!(
            server.requests().len() <= 6 && server.requests().iter().all(|request| request.path == "/f"),
            "{reason}"
        );
        assert!(driver.connect().unwrap_err().contains(reason), "the seed was tried again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_is_respected() {
    let (metainfo, data) = torrent(&[("f", 500_000)], 65_536);
    let (file, visits) = (data.clone(), AtomicUsize::new(0));
    let server = FakeServer::start(move |request, stream| {
        if visits.fetch_add(1, Ordering::Relaxed) == 0 {
            write_head(stream, "503 Service Unavailable", "Retry-After: 1\r\n", 0).map(|()| true)
        } else {
            serve_range(request, stream, &file)
        }
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", server.url));
    driver.until(|driver| !driver.choked).await;
    let started = Instant::now();
    driver.request_all();
    driver.until(|driver| driver.choked && driver.outstanding == 0).await;
    assert!(driver.seed.fault().unwrap().contains("503"));
    // Blocks requested meanwhile are rejected without a request to the server.
    driver.request(driver.blocks_in(0, 1));
    driver.wait_for_answers().await;
    assert_eq!((driver.blocks.len(), server.requests().len()), (0, 1));
    driver.until(|driver| !driver.choked).await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    driver.request_all();
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), data.len());
    // The fault is cleared when the last answer has ended, just after its last block.
    wait_until("the fault is cleared", LONG, || driver.seed.fault().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_fails_on_the_server_pauses_alone() {
    // Each way in which a file fails, and what the status says about it. The arguments are the requested bytes.
    type Answer = fn(usize, usize, &mut TcpStream) -> std::io::Result<bool>;
    let cases: [(&str, Answer); 4] = [
        ("it answers 500 Internal Server Error", |_, _, stream| respond_empty(stream, "500 Internal Server Error")),
        ("it answers 503 Service Unavailable", |_, _, stream| respond_empty(stream, "503 Service Unavailable")),
        ("its answer ends too early", |from, end, stream| {
            // A body without a length that ends at once.
            let range = content_range(from, end, 200_000);
            write!(stream, "HTTP/1.1 206 Partial Content\r\n{range}Connection: close\r\n\r\n").map(|()| false)
        }),
        ("", |from, end, stream| {
            write_head(stream, "206 Partial Content", &content_range(from, end, 200_000), end - from)?;
            stream.write_all(&[7; 100]).map(|()| false)
        }),
    ];
    for (why, answer) in cases {
        let (metainfo, data) = torrent(&[("a", 196_608), ("b", 200_000), ("c", 300_000)], 65_536);
        let files: Vec<(u64, u64)> =
            metainfo.layout.files().iter().map(|file| (file.range().start, file.range().end)).collect();
        let (bytes, ranges, broken) = (data.clone(), files.clone(), Arc::new(AtomicBool::new(true)));
        let is_broken = broken.clone();
        let server = FakeServer::start(move |request, stream| {
            let file = match request.path.as_str() {
                "/t/b" if is_broken.load(Ordering::Relaxed) => {
                    let (from, to) = request.range.unwrap();
                    return answer(from as usize, (to as usize + 1).min(200_000), stream);
                }
                "/t/a" => ranges[0],
                "/t/b" => ranges[1],
                _ => ranges[2],
            };
            serve_range(request, stream, &bytes[file.0 as usize..file.1 as usize])
        });
        let mut driver = Driver::files(metainfo, &format!("{}/", server.url));
        driver.until(|driver| !driver.choked).await;
        driver.request_all();
        driver.wait_for_answers().await;
        assert!(!driver.choked && driver.closed.is_none(), "{why}: the whole server is paused");
        let fault = driver.seed.fault().unwrap();
        assert!(fault.starts_with("b fails: ") && fault.contains(why), "{fault}");
        let rejected = driver.rejected.len();
        assert!(rejected > 0 && driver.rejected.iter().all(|request| (3..=6).contains(&request.piece)), "{why}");
        assert_eq!(driver.check(&data), data.len() - rejected * 16_384);
        // A paused file costs the server no requests.
        let requests = |server: &FakeServer| server.requests().iter().filter(|one| one.path == "/t/b").count();
        let before = requests(&server);
        let (from, to) = (files[1].0 + 65_536, files[1].0 + 131_072);
        driver.request(driver.blocks_in(from, to));
        driver.wait_for_answers().await;
        assert_eq!(requests(&server), before, "{why}");
        // Once the server has it again, so have we.
        broken.store(false, Ordering::Relaxed);
        driver.blocks.clear();
        let begun = Instant::now();
        while driver.blocks.is_empty() {
            assert!(begun.elapsed() < LONG, "{why}: it is never requested again");
            tokio::time::sleep(Duration::from_millis(100)).await;
            driver.request(driver.blocks_in(from, to));
            driver.wait_for_answers().await;
        }
        driver.check(&data);
        wait_until("the fault is cleared", LONG, || driver.seed.fault().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_pauses_whole_if_it_says_so_or_delivers_no_file() {
    for headers in ["Retry-After: 1\r\n", ""] {
        let (metainfo, data) = torrent(&[("a", 196_608), ("b", 200_000)], 65_536);
        let bytes = data.clone();
        let server = FakeServer::start(move |request, stream| match request.path.as_str() {
            // With a time given by the server for one of its files, the other is not requested either.
            "/t/a" if !headers.is_empty() => serve_range(request, stream, &bytes[..196_608]),
            _ => write_head(stream, "503 Service Unavailable", headers, 0).map(|()| true),
        });
        let mut driver = Driver::files(metainfo, &format!("{}/", server.url));
        driver.until(|driver| !driver.choked).await;
        driver.request_all();
        driver.until(|driver| driver.choked && driver.outstanding == 0).await;
        assert_eq!(driver.seed.fault().unwrap(), "it answers 503 Service Unavailable");
        driver.check(&data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_answer_is_continued() {
    let (metainfo, data) = torrent(&[("f", 1_000_000)], 65_536);
    let (file, visits) = (data.clone(), AtomicUsize::new(0));
    let server = FakeServer::start(move |request, stream| {
        let (from, to) = request.range.unwrap();
        let (from, end) = (from as usize, to as usize + 1);
        match visits.fetch_add(1, Ordering::Relaxed) {
            // The connection breaks.
            0 => {
                write_head(stream, "206 Partial Content", &content_range(from, end, file.len()), end - from)?;
                stream.write_all(&file[from..from + 100_000])?;
                Ok(false)
            }
            // No answer has more than 300 kB.
            _ => {
                let end = end.min(from + 300_000);
                write_head(stream, "206 Partial Content", &content_range(from, end, file.len()), end - from)?;
                stream.write_all(&file[from..end])?;
                Ok(true)
            }
        }
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", server.url));
    driver.request_all();
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), data.len());
    assert!(driver.rejected.is_empty());
    let starts: Vec<u64> = server.requests().iter().map(|request| request.range.unwrap().0).collect();
    assert_eq!(starts, [0, 98_304, 398_304, 698_304, 998_304]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_script_serves_pieces_and_its_retry_time_is_respected() {
    let (metainfo, data) = torrent(&[("a", 100_000), ("b", 200_000)], 65_536);
    let (bytes, visits) = (data.clone(), AtomicUsize::new(0));
    let hash: String = metainfo.info_hash.0.iter().map(|byte| format!("%{byte:02X}")).collect();
    let server = FakeServer::start(move |request, stream| {
        let query = request.path.strip_prefix("/seed?").unwrap();
        let query: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
        assert_eq!(decoded(query["info_hash"]), decoded(&hash));
        if visits.fetch_add(1, Ordering::Relaxed) == 0 {
            write_head(stream, "503 Service Unavailable", "", 1)?;
            stream.write_all(b"1")?;
            return Ok(true);
        }
        let at = query["piece"].parse::<usize>().unwrap() * 65_536;
        let piece = &bytes[at..(at + 65_536).min(bytes.len())];
        let part = match query.get("ranges").and_then(|ranges| ranges.split_once('-')) {
            Some((from, to)) => &piece[from.parse().unwrap()..=to.parse().unwrap()],
            None => piece,
        };
        write_head(stream, "200 OK", "", part.len())?;
        stream.write_all(part)?;
        Ok(true)
    });
    let url = format!("{}/seed", server.url);
    let mut driver = Driver::new(metainfo, &[], &[&url], Limits::new(0, 0));
    driver.request(driver.blocks_in(20_000, 60_000));
    driver.until(|driver| driver.choked && driver.outstanding == 0).await;
    driver.until(|driver| !driver.choked).await;
    driver.request(driver.blocks_in(20_000, 60_000));
    driver.wait_for_answers().await;
    let part: Vec<Request> =
        driver.blocks.keys().map(|(piece, begin)| Request { piece: *piece, begin: *begin, length: 0 }).collect();
    assert_eq!(part.len(), 2);
    assert!(server.requests().last().unwrap().path.ends_with("&piece=0&ranges=32768-65535"));
    driver.blocks.clear();
    driver.request_all();
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), data.len());
    assert!(
        server.requests().iter().any(|request| request.path.ends_with("&piece=4")),
        "a whole piece is requested without ranges"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_download_limit_is_respected() {
    let (metainfo, data) = torrent(&[("f", 1_000_000)], 65_536);
    let file = data.clone();
    let server = FakeServer::start(move |request, stream| serve_range(request, stream, &file));
    let url = format!("{}/f", server.url);
    let mut driver = Driver::new(metainfo, &[&url], &[], Limits::new(1_000_000, 0));
    let begun = Instant::now();
    driver.request_all();
    driver.wait_for_answers().await;
    assert_eq!(driver.check(&data), data.len());
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_connection_ends_its_requests() {
    let (metainfo, data) = torrent(&[("f", 32 << 20)], 1 << 20);
    let ended = Arc::new(AtomicUsize::new(0));
    let (file, count) = (data, ended.clone());
    let server = FakeServer::start(move |request, stream| {
        let (from, to) = request.range.unwrap();
        let (from, end) = (from as usize, to as usize + 1);
        write_head(stream, "206 Partial Content", &content_range(from, end, file.len()), end - from)?;
        // One block, then a byte every 10 ms.
        stream.write_all(&file[from..from + 16_384])?;
        loop {
            thread::sleep(Duration::from_millis(10));
            if stream.write_all(&[0]).is_err() {
                count.fetch_add(1, Ordering::Relaxed);
                return Ok(false);
            }
        }
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", server.url));
    driver.request(driver.blocks_in(0, 1 << 20));
    driver.until(|driver| !driver.blocks.is_empty()).await;
    driver.connection = None;
    wait_until("the connection to the server is closed", LONG, || ended.load(Ordering::Relaxed) == 1);
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_urls_and_requests_are_rejected() {
    let (mut metainfo, _) = torrent(&[("f", 100_000)], 65_536);
    metainfo.web_seeds = ["http://127.0.0.1:1/f", "ftp://h/f", "nonsense", "http://127.0.0.1:1/f", "https://h/g"]
        .map(str::to_owned)
        .to_vec();
    metainfo.web_seeds.push("http://127.0.0.1:2/".into());
    metainfo.http_seeds = vec!["http://127.0.0.1:1/f".into()];
    let metainfo = Arc::new(metainfo);
    let seeds = WebSeed::all(&metainfo, &HttpClient::new().unwrap());
    let shown: Vec<String> = seeds.iter().map(|seed| seed.url().to_string()).collect();
    assert_eq!(shown, ["http://127.0.0.1:1/f", "https://h/g", "http://127.0.0.1:2/", "http://127.0.0.1:1/f"]);
    let skipped: Vec<String> =
        WebSeed::skipped(&metainfo).iter().map(|seed| format!("{}: {}", seed.url, seed.error)).collect();
    assert_eq!(
        skipped,
        ["ftp://h/f: ftp:// is not supported, only http and https", "nonsense: it is not a URL of a web server"]
    );
    let addrs: std::collections::HashSet<_> = seeds.iter().map(|seed| seed.addr().ip()).collect();
    assert_eq!(addrs.len(), 4);
    assert_eq!(seeds[1].addr().port(), 443);
    assert_ne!(seeds[0].peer_id(), seeds[1].peer_id());

    let mut driver = Driver::files(Metainfo::clone(&metainfo), "http://127.0.0.1:1/f");
    let strange = [(7, 0, 16_384), (0, 5, 16_384), (0, 0, 5), (0, 0, u32::MAX), (u32::MAX, u32::MAX, 1)];
    driver.request(strange.map(|(piece, begin, length)| Request { piece, begin, length }).to_vec());
    driver.wait_for_answers().await;
    assert_eq!(driver.rejected.len(), strange.len());
}
