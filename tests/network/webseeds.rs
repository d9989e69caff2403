//! Web seeds against real servers (nginx, Python's) and against one that misbehaves, all on loopback.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support;
use crate::web::*;
use torrentfs::http::HttpClient;
use torrentfs::metainfo::{FileKind, Layout, Metainfo};
use torrentfs::net::Limits;
use torrentfs::webseed::WebSeed;
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
    if !support::can_run(&["nginx"]) {
        return;
    }
    let (metainfo, data) = torrent(&MANY, 65_536);
    let dir = tempfile::tempdir().unwrap();
    let (root, log, port) = (dir.path().join("www"), dir.path().join("log"), support::free_port());
    publish(&metainfo, &data, &root);
    // Its workers are nobody's when root starts it.
    support::sh(&format!("chmod -R a+rX {}", dir.path().display()));
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
    let mut nginx = support::Process::start(Command::new("nginx").arg("-c").arg(&config).stderr(Stdio::null()));
    support::wait_until("nginx answers", LONG, || TcpStream::connect(("127.0.0.1", port)).is_ok());

    let mut driver = Driver::files(metainfo, &format!("http://127.0.0.1:{port}/"));
    // First some from everywhere, then the rest.
    let all = driver.blocks_in(0, u64::MAX);
    let (some, rest): (Vec<_>, Vec<_>) = all.iter().copied().enumerate().partition(|(n, _)| n % 7 == 3);
    driver.ask(some.into_iter().map(|(_, request)| request).collect());
    driver.ask(rest.into_iter().map(|(_, request)| request).collect());
    driver.answered().await;
    assert_eq!(driver.check(&data), data.len());

    let log = fs::read_to_string(log).unwrap();
    let connections: std::collections::HashSet<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(log.lines().count() < all.len() * 2 / 3, "{} requests for {} blocks", log.lines().count(), all.len());
    assert!(connections.len() <= 8, "{} connections", connections.len());

    // Once it is gone, the seed chokes; once it is back, it serves again.
    nginx.signal("TERM");
    assert!(nginx.wait(LONG).is_some(), "nginx did not end");
    driver.blocks.clear();
    driver.ask_all();
    driver.until(|driver| driver.choked && driver.outstanding == 0).await;
    assert!(driver.seed.fault().is_some());
    let _nginx = support::Process::start(Command::new("nginx").arg("-c").arg(&config).stderr(Stdio::null()));
    support::wait_until("nginx answers", LONG, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    while driver.blocks.len() < all.len() {
        driver.until(|driver| !driver.choked).await;
        let missing = all.iter().filter(|request| !driver.blocks.contains_key(&(request.piece, request.begin)));
        driver.ask(missing.copied().collect());
        driver.answered().await;
    }
    assert_eq!(driver.check(&data), data.len());
    // Known once the last answer has ended, just after its last block.
    support::wait_until("it counts as sound", LONG, || driver.seed.fault().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_server_which_has_no_ranges_serves_all_the_same() {
    if !support::can_run(&["python3"]) {
        return;
    }
    let (metainfo, data) = torrent(&MANY, 65_536);
    let dir = tempfile::tempdir().unwrap();
    publish(&metainfo, &data, dir.path());
    let port = support::free_port();
    let _python = support::Process::start(
        Command::new("python3")
            .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string(), "--directory"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    support::wait_until("python answers", LONG, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    // The slash left out, as some do.
    let mut driver = Driver::files(metainfo, &format!("http://127.0.0.1:{port}"));
    let last = driver.blocks_in(3_000_000, 3_100_000);
    driver.ask(last.clone());
    driver.answered().await;
    assert_eq!(driver.blocks.len(), last.len());
    let rest = driver.blocks_in(0, u64::MAX).into_iter().filter(|request| !last.contains(request)).collect();
    driver.ask(rest);
    driver.answered().await;
    assert_eq!(driver.check(&data), data.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_too_far_from_the_start_is_not_had_of_a_server_without_ranges() {
    let (mut metainfo, _) = torrent(&[("big", 1000)], 16_384);
    // As if it were 100 MB: no byte of it is needed here.
    let lengths = torrentfs::metainfo::Lengths::new(100_000_000, 1 << 20).unwrap();
    let mut files = metainfo.layout.files().to_vec();
    files[0].len = 100_000_000;
    metainfo.layout = Layout::new(lengths, files).into();
    let fake = Fake::start(|_, stream| {
        head(stream, "200 OK", "", 100_000_000)?;
        while stream.write_all(&[0; 65_536]).is_ok() {}
        Ok(false)
    });
    let mut driver = Driver::files(metainfo, &format!("{}/big", fake.url));
    driver.ask(driver.blocks_in(90_000_000, 90_100_000));
    driver.answered().await;
    assert!(driver.blocks.is_empty() && driver.seed.fault().unwrap().contains("no ranges"));
    let near = driver.blocks_in(5_000_000, 5_100_000);
    driver.ask(near.clone());
    driver.answered().await;
    assert_eq!(driver.blocks.len(), near.len());
    // Made anew it says what it has.
    driver.connect().unwrap();
    driver.until(|driver| !driver.choked).await;
    let Some(Message::Bitfield(bits)) = &driver.offer else { panic!("{:?}", driver.offer) };
    assert_eq!(bits.iter().map(|byte| byte.count_ones()).sum::<u32>(), 32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pads_are_made_up_and_not_asked_for() {
    let (mut metainfo, mut data) = torrent(&[("a", 50_000), ("pad", 15_536), ("b", 40_000)], 65_536);
    let mut files = metainfo.layout.files().to_vec();
    files[1].kind = FileKind::Pad;
    metainfo.layout = Layout::new(*metainfo.layout.lengths(), files).into();
    data[50_000..65_536].fill(0);
    let served = data.clone();
    let fake = Fake::start(move |asked, stream| match asked.path.as_str() {
        "/x/t/a" => give(asked, stream, &served[..50_000]),
        "/x/t/b" => give(asked, stream, &served[65_536..]),
        _ => refuse(stream, "404 Not Found"),
    });
    let mut driver = Driver::files(metainfo, &format!("{}/x/", fake.url));
    driver.ask_all();
    driver.answered().await;
    assert_eq!(driver.check(&data), data.len());
    assert!(driver.rejected.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_block_does_not_wait_for_the_last() {
    let (metainfo, data) = torrent(&[("f", 1 << 20)], 65_536);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (file, wait) = (data.clone(), Mutex::new(wait));
    let fake = Fake::start(move |_, stream| {
        head(stream, "206 Partial Content", &content_range(0, file.len(), file.len()), file.len())?;
        stream.write_all(&file[..20_000])?;
        let _ = wait.lock().unwrap().recv_timeout(LONG);
        stream.write_all(&file[20_000..])?;
        Ok(true)
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", fake.url));
    driver.ask_all();
    driver.until(|driver| !driver.blocks.is_empty()).await;
    assert_eq!(driver.blocks.len(), 1);
    go.send(()).unwrap();
    driver.answered().await;
    assert_eq!(driver.check(&data), data.len());
    assert_eq!(fake.asked().len(), 1, "one range");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_requests_are_never_made() {
    let (metainfo, data) = torrent(&[("f", 4 << 20)], 65_536);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (file, wait) = (data.clone(), Mutex::new(wait));
    let fake = Fake::start(move |asked, stream| {
        let _ = wait.lock().unwrap().recv_timeout(LONG);
        give(asked, stream, &file)
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", fake.url));
    // Far from each other: four are fetched at a time, the others wait.
    let apart: Vec<Request> = driver.blocks_in(0, u64::MAX).into_iter().step_by(16).collect();
    driver.ask(apart.clone());
    support::wait_until("four are asked for", LONG, || fake.asked().len() == 4);
    driver.send(apart[4..].iter().map(|request| Message::Cancel(*request)).collect());
    driver.until(|driver| driver.rejected.len() == apart.len() - 4).await;
    for _ in 0..4 {
        go.send(()).unwrap();
    }
    driver.answered().await;
    assert_eq!((driver.blocks.len(), fake.asked().len()), (4, 4));
    // And those that are cancelled under way do not hold up what is wanted now.
    driver.ask(apart[4..8].to_vec());
    support::wait_until("four more", LONG, || fake.asked().len() == 8);
    driver.send(apart[4..8].iter().map(|request| Message::Cancel(*request)).collect());
    driver.ask(vec![apart[9]]);
    support::wait_until("the one that is wanted", LONG, || fake.asked().len() == 9);
    for _ in 0..5 {
        go.send(()).unwrap();
    }
    driver.answered().await;
    driver.check(&data);
    assert_eq!(driver.blocks.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_remembered_until_they_fail() {
    let (metainfo, data) = torrent(&[("f", 200_000)], 65_536);
    let generation = Arc::new(AtomicUsize::new(0));
    let (file, now) = (data.clone(), generation.clone());
    let fake = Fake::start(move |asked, stream| {
        let good = format!("/mirror{}", now.load(Ordering::Relaxed));
        match asked.path.as_str() {
            "/f" => head(stream, "302 Found", "Location: hop\r\n", 0).map(|()| true),
            "/hop" => head(stream, "307 Temporary Redirect", &format!("Location: {good}\r\n"), 0).map(|()| true),
            path if path == good => give(asked, stream, &file),
            _ => refuse(stream, "403 Forbidden"),
        }
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", fake.url));
    for (from, to) in [(0, 10), (50_000, 70_000)] {
        driver.ask(driver.blocks_in(from, to));
        driver.answered().await;
    }
    let paths = |fake: &Fake| fake.asked().into_iter().map(|asked| asked.path).collect::<Vec<_>>();
    assert_eq!(paths(&fake), ["/f", "/hop", "/mirror0", "/mirror0"]);
    generation.store(1, Ordering::Relaxed);
    driver.ask(driver.blocks_in(100_000, 200_000));
    driver.answered().await;
    assert_eq!(paths(&fake)[4..], ["/mirror0", "/f", "/hop", "/mirror1"]);
    driver.check(&data);
    assert!(driver.rejected.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_there_leaves_the_others() {
    let (metainfo, data) = torrent(&[("a", 200_000), ("b", 4 << 20), ("c", 200_000)], 65_536);
    let (a, c) = (data[..200_000].to_vec(), data[data.len() - 200_000..].to_vec());
    let fake = Fake::start(move |asked, stream| match asked.path.as_str() {
        "/t/a" => give(asked, stream, &a),
        "/t/c" => give(asked, stream, &c),
        _ => refuse(stream, "404 Not Found"),
    });
    let mut driver = Driver::files(metainfo, &format!("{}/", fake.url));
    driver.ask(driver.blocks_in(200_000, 300_000));
    driver.answered().await;
    assert!(driver.blocks.is_empty() && driver.closed.is_none() && !driver.choked);
    // The rest comes, until so much was asked for in vain that it says anew what it has.
    driver.ask(driver.blocks_in(0, 190_000));
    driver.answered().await;
    assert_eq!(driver.check(&data), 196_608);
    driver.ask(driver.blocks_in(300_000, 4 << 20));
    driver.until(|driver| driver.closed.is_some()).await;
    assert!(driver.closed.as_ref().unwrap().contains("404"), "{:?}", driver.closed);
    driver.connect().unwrap();
    driver.until(|driver| !driver.choked).await;
    assert!(matches!(driver.offer, Some(Message::Bitfield(_))));
    driver.ask(driver.blocks_in((4 << 20) + 262_144, u64::MAX));
    driver.answered().await;
    driver.check(&data);
    assert_eq!(fake.asked().iter().filter(|asked| asked.path == "/t/b").count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_cannot_be_right_end_it_with_a_reason() {
    type Answer = fn(&Asked, &mut TcpStream) -> std::io::Result<bool>;
    let cases: [(&str, Answer); 12] = [
        ("404", |_, stream| refuse(stream, "404 Not Found")),
        ("416", |_, stream| refuse(stream, "416 Range Not Satisfiable")),
        ("another range", |_, stream| {
            head(stream, "206 Partial Content", "Content-Range: bytes 5-104/1000000\r\n", 100).map(|()| true)
        }),
        ("77 bytes there", |_, stream| {
            head(stream, "206 Partial Content", "Content-Range: bytes 0-76/77\r\n", 77).map(|()| true)
        }),
        ("does not say which", |_, stream| head(stream, "206 Partial Content", "", 5).map(|()| true)),
        ("9 bytes there", |_, stream| {
            head(stream, "200 OK", "Content-Type: text/html\r\n", 9)?;
            stream.write_all(b"not found")?;
            Ok(true)
        }),
        ("web page", |_, stream| {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>")?;
            Ok(false)
        }),
        ("compressed", |_, stream| {
            let headers = "Content-Encoding: gzip\r\nContent-Range: bytes 0-99/1000000\r\n";
            head(stream, "206 Partial Content", headers, 100).map(|()| true)
        }),
        ("too many times", |_, stream| head(stream, "302 Found", "Location: /f\r\n", 0).map(|()| true)),
        ("not HTTP", |_, stream| head(stream, "302 Found", "Location: file:///etc/passwd\r\n", 0).map(|()| true)),
        ("to nowhere", |_, stream| head(stream, "302 Found", "Location: http://[/\r\n", 0).map(|()| true)),
        // Towards this machine, a query is not a web seed's.
        ("not asked", |_, stream| head(stream, "302 Found", "Location: /inside?do=it\r\n", 0).map(|()| true)),
    ];
    for (reason, answer) in cases {
        let fake = Fake::start(answer);
        let (metainfo, _) = torrent(&[("f", 1_000_000)], 65_536);
        let url = format!("{}/f", fake.url);
        let mut driver = Driver::new(metainfo, &[&url], &[], Limits::new(0, 0));
        driver.ask_all();
        driver.until(|driver| driver.closed.is_some()).await;
        let why = driver.closed.clone().unwrap();
        assert!(why.contains(reason), "{reason}: {why}");
        assert!(driver.blocks.is_empty());
        assert!(fake.asked().len() <= 6 && fake.asked().iter().all(|asked| asked.path == "/f"), "{reason}");
        assert!(driver.connect().unwrap_err().contains(reason), "it is not tried again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_is_left_alone_for_as_long_as_it_says() {
    let (metainfo, data) = torrent(&[("f", 500_000)], 65_536);
    let (file, visits) = (data.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |asked, stream| {
        if visits.fetch_add(1, Ordering::Relaxed) == 0 {
            head(stream, "503 Service Unavailable", "Retry-After: 1\r\n", 0).map(|()| true)
        } else {
            give(asked, stream, &file)
        }
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", fake.url));
    driver.until(|driver| !driver.choked).await;
    let asked = Instant::now();
    driver.ask_all();
    driver.until(|driver| driver.choked && driver.outstanding == 0).await;
    assert!(driver.seed.fault().unwrap().contains("503"));
    // What is asked while it rests is rejected, and not passed on.
    driver.ask(driver.blocks_in(0, 1));
    driver.answered().await;
    assert_eq!((driver.blocks.len(), fake.asked().len()), (0, 1));
    driver.until(|driver| !driver.choked).await;
    assert!(asked.elapsed() >= Duration::from_secs(1));
    driver.ask_all();
    driver.answered().await;
    assert_eq!(driver.check(&data), data.len());
    // Known once the last answer has ended, just after its last block.
    support::wait_until("it counts as sound", LONG, || driver.seed.fault().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_cut_short_is_asked_for_from_there() {
    let (metainfo, data) = torrent(&[("f", 1_000_000)], 65_536);
    let (file, visits) = (data.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |asked, stream| {
        let (from, to) = asked.range.unwrap();
        let (from, end) = (from as usize, to as usize + 1);
        match visits.fetch_add(1, Ordering::Relaxed) {
            // The connection breaks.
            0 => {
                head(stream, "206 Partial Content", &content_range(from, end, file.len()), end - from)?;
                stream.write_all(&file[from..from + 100_000])?;
                Ok(false)
            }
            // It gives no more than 300 kB at a time.
            _ => {
                let end = end.min(from + 300_000);
                head(stream, "206 Partial Content", &content_range(from, end, file.len()), end - from)?;
                stream.write_all(&file[from..end])?;
                Ok(true)
            }
        }
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", fake.url));
    driver.ask_all();
    driver.answered().await;
    assert_eq!(driver.check(&data), data.len());
    assert!(driver.rejected.is_empty());
    let starts: Vec<u64> = fake.asked().iter().map(|asked| asked.range.unwrap().0).collect();
    assert_eq!(starts, [0, 98_304, 398_304, 698_304, 998_304]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_gives_pieces_and_says_when_to_come_back() {
    let (metainfo, data) = torrent(&[("a", 100_000), ("b", 200_000)], 65_536);
    let (bytes, visits) = (data.clone(), AtomicUsize::new(0));
    let hash: String = metainfo.info_hash.0.iter().map(|byte| format!("%{byte:02X}")).collect();
    let fake = Fake::start(move |asked, stream| {
        let query = asked.path.strip_prefix("/seed?").unwrap();
        let query: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
        assert_eq!(decoded(query["info_hash"]), decoded(&hash));
        if visits.fetch_add(1, Ordering::Relaxed) == 0 {
            head(stream, "503 Service Unavailable", "", 1)?;
            stream.write_all(b"1")?;
            return Ok(true);
        }
        let at = query["piece"].parse::<usize>().unwrap() * 65_536;
        let piece = &bytes[at..(at + 65_536).min(bytes.len())];
        let part = match query.get("ranges").and_then(|ranges| ranges.split_once('-')) {
            Some((from, to)) => &piece[from.parse().unwrap()..=to.parse().unwrap()],
            None => piece,
        };
        head(stream, "200 OK", "", part.len())?;
        stream.write_all(part)?;
        Ok(true)
    });
    let url = format!("{}/seed", fake.url);
    let mut driver = Driver::new(metainfo, &[], &[&url], Limits::new(0, 0));
    driver.ask(driver.blocks_in(20_000, 60_000));
    driver.until(|driver| driver.choked && driver.outstanding == 0).await;
    driver.until(|driver| !driver.choked).await;
    driver.ask(driver.blocks_in(20_000, 60_000));
    driver.answered().await;
    let part: Vec<Request> =
        driver.blocks.keys().map(|(piece, begin)| Request { piece: *piece, begin: *begin, length: 0 }).collect();
    assert_eq!(part.len(), 2);
    assert!(fake.asked().last().unwrap().path.ends_with("&piece=0&ranges=32768-65535"));
    driver.blocks.clear();
    driver.ask_all();
    driver.answered().await;
    assert_eq!(driver.check(&data), data.len());
    assert!(fake.asked().iter().any(|asked| asked.path.ends_with("&piece=4")), "a whole piece has no ranges");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_download_limit_holds() {
    let (metainfo, data) = torrent(&[("f", 1_000_000)], 65_536);
    let file = data.clone();
    let fake = Fake::start(move |asked, stream| give(asked, stream, &file));
    let url = format!("{}/f", fake.url);
    let mut driver = Driver::new(metainfo, &[&url], &[], Limits::new(1_000_000, 0));
    let begun = Instant::now();
    driver.ask_all();
    driver.answered().await;
    assert_eq!(driver.check(&data), data.len());
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_connection_ends_what_is_under_way() {
    let (metainfo, data) = torrent(&[("f", 32 << 20)], 1 << 20);
    let ended = Arc::new(AtomicUsize::new(0));
    let (file, count) = (data, ended.clone());
    let fake = Fake::start(move |asked, stream| {
        let (from, to) = asked.range.unwrap();
        let (from, end) = (from as usize, to as usize + 1);
        head(stream, "206 Partial Content", &content_range(from, end, file.len()), end - from)?;
        // One block, then drops.
        stream.write_all(&file[from..from + 16_384])?;
        loop {
            thread::sleep(Duration::from_millis(10));
            if stream.write_all(&[0]).is_err() {
                count.fetch_add(1, Ordering::Relaxed);
                return Ok(false);
            }
        }
    });
    let mut driver = Driver::files(metainfo, &format!("{}/f", fake.url));
    driver.ask(driver.blocks_in(0, 1 << 20));
    driver.until(|driver| !driver.blocks.is_empty()).await;
    driver.connection = None;
    support::wait_until("the server is hung up on", LONG, || ended.load(Ordering::Relaxed) == 1);
    assert_eq!(fake.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_rejected_and_seeds_are_told_apart() {
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
    let addrs: std::collections::HashSet<_> = seeds.iter().map(|seed| seed.addr().ip()).collect();
    assert_eq!(addrs.len(), 4);
    assert_eq!(seeds[1].addr().port(), 443);
    assert_ne!(seeds[0].peer_id(), seeds[1].peer_id());

    let mut driver = Driver::files(Metainfo::clone(&metainfo), "http://127.0.0.1:1/f");
    let strange = [(7, 0, 16_384), (0, 5, 16_384), (0, 0, 5), (0, 0, u32::MAX), (u32::MAX, u32::MAX, 1)];
    driver.ask(strange.map(|(piece, begin, length)| Request { piece, begin, length }).to_vec());
    driver.answered().await;
    assert_eq!(driver.rejected.len(), strange.len());
}
