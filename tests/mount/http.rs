//! The HTTP server of a running mount: files, metrics, and refusal of unauthorized and malformed requests.

use std::fs;
use std::io::Write;
use std::time::Duration;

use crate::api::*;
use crate::support::*;

struct Web(std::net::SocketAddr);

impl Web {
    fn of(mounted: &Mounted) -> Self {
        let url = status(mounted)["http"].as_str().expect("an HTTP server").to_owned();
        Self(url.strip_prefix("http://").unwrap().strip_suffix('/').unwrap().parse().unwrap())
    }

    fn send(&self, bytes: &[u8]) -> Option<Answer> {
        let stream = std::net::TcpStream::connect(self.0).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        exchange(stream, bytes)
    }

    /// Sends a request that may be malformed or incomplete, with a short time limit for the answer.
    fn send_malformed(&self, bytes: &[u8], whole: bool) -> Option<Answer> {
        let mut stream = std::net::TcpStream::connect(self.0).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        if !whole {
            let _ = stream.write_all(bytes);
            stream.shutdown(std::net::Shutdown::Write).ok()?;
            return exchange(stream, b"");
        }
        exchange(stream, bytes)
    }

    fn send_to(&self, method: &str, path: &str, headers: &[&str]) -> Answer {
        let host = format!("Host: {}", self.0);
        let headers: Vec<&str> = std::iter::once(host.as_str()).chain(headers.iter().copied()).collect();
        self.send(&request(method, path, &headers, "")).unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }
}

#[test]
fn files_and_ranges_of_them_are_served() {
    if !can_run(&[TOOLS[0], TOOLS[1], TOOLS[2], "curl"]) {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(0);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand", "--http", "127.0.0.1:0"]);
    let web = Web::of(&mounted);
    assert!(mounted.log().contains(&format!("status and files: http://{}/", web.0)), "{}", mounted.log());
    let film = noise(3 << 20, 1);
    let path = "/files/show/film.mkv";

    // Nothing is downloaded yet.
    let part = web.send_to("GET", path, &["Range: bytes=2000000-2099999"]);
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 2000000-2099999/3145728")));
    assert_eq!(part.body, film[2_000_000..2_100_000]);
    let whole = web.send_to("GET", path, &[]);
    assert_eq!((whole.status, whole.header("content-type")), (200, Some("video/x-matroska")));
    assert_eq!((whole.header("accept-ranges"), whole.header("content-length")), (Some("bytes"), Some("3145728")));
    assert_eq!(whole.body, film);
    let etag = whole.header("etag").unwrap().to_owned();
    assert!(etag.contains(&lab.info_hash()), "{etag}");
    assert!(whole.header("content-security-policy").is_none(), "a film cannot be embedded");
    let head = web.send_to("HEAD", path, &[]);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("3145728"), 0));
    for (headers, code, body) in [
        (&["Range: bytes=-5"][..], 206, &film[(3 << 20) - 5..]),
        (&["Range: bytes=3145727-"], 206, &film[(3 << 20) - 1..]),
        (&["Range: bytes=0-0"], 206, &film[..1]),
        (&["Range: bytes=3145728-"], 416, &[][..]),
        (&["Range: bytes=0-1,5-6"], 200, &film),
        (&["Range: bytes=5-1"], 200, &film),
        (&["Range: bytes=0-9", "If-Range: \"other\""], 200, &film),
        (&["Range: bytes=0-9", &format!("If-Range: {etag}")], 206, &film[..10]),
        (&[&format!("If-None-Match: {etag}")], 304, &[]),
    ] {
        let answer = web.send_to("GET", path, headers);
        assert!(answer.status == code && answer.body == body, "{headers:?}: {} {}", answer.status, answer.body.len());
    }
    assert_eq!(web.send_to("GET", path, &["Range: bytes=3145728-"]).header("content-range"), Some("bytes */3145728"));

    // Active content is sandboxed.
    fs::write(lab.path("page.html"), "<script>alert(1)</script>").unwrap();
    sh(&format!("cd '{}' && mktorrent -o page.torrent page.html", lab.dir.path().display()));
    stdout_of(&["add", text(&mounted.dir), text(&lab.path("page.torrent"))]);
    let page = web.send_to("HEAD", "/files/page.html", &[]);
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html")));
    assert!(page.header("content-security-policy").unwrap().starts_with("sandbox;"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));

    // Directories, and names with characters that are special in HTML and URLs. curl follows the links as a browser does.
    let listing = web.send_to("GET", "/files/show/extra/", &[]);
    assert!(
        listing.text().contains(r#"<a href="./notes%20%26%20%3Cmore%3E.txt">notes &amp; &lt;more&gt;.txt</a>"#),
        "{}",
        listing.text()
    );
    assert_eq!(web.send_to("GET", "/files/show/extra", &[]).header("location"), Some("extra/"));
    let notes = run("curl", &["-sfL", &format!("http://{}/files/show/extra/notes%20%26%20%3Cmore%3E.txt", web.0)]);
    assert_eq!(notes.stdout, noise(1 << 20, 2));
    assert!(run("curl", &["-sfL", &format!("http://{}/files/show", web.0)]).stdout.starts_with(b"<!DOCTYPE html>"));
    let root = web.send_to("GET", "/files/", &[]);
    assert!(root.text().contains(r#"<a href="./show/">show/</a>"#), "{}", root.text());
    let page = web.send_to("GET", "/", &[]);
    assert!(page.status == 200 && page.text().contains("<td>show<td>"), "{}", page.text());
    assert!(!page.text().contains("<script") && !page.text().contains("http"), "{}", page.text());

    // Paths that try to leave the mount.
    for (path, code) in [
        ("/files/..", 400),
        ("/files/../../etc/passwd", 400),
        ("/files/show/%2e%2e/%2e%2e/etc/passwd", 400),
        ("/files/show/..%2f..%2fetc%2fpasswd", 400),
        ("/files/show/film.mkv%00", 400),
        ("/files/show/%ff", 400),
        ("/files//etc/passwd", 404),
        ("/files/show/film.mkv/more", 404),
        ("/files/show/Film.mkv", 404),
        ("/files/other", 404),
        ("/filesystem", 404),
    ] {
        assert_eq!(web.send_to("GET", path, &[]).status, code, "{path}");
    }
    assert_eq!(web.send_to("DELETE", path, &["Content-Type: application/json"]).status, 405);
    mounted.stop();
}

#[test]
fn unauthorized_requests_are_refused() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(SLOW);
    let token = lab.path("token");
    fs::write(&token, "correct-horse-battery\n").unwrap();
    let args = ["--on-demand", "--http", "0.0.0.0:0", "--http-token", text(&token)];
    let mounted = lab.mount("a", &torrent_file, &args);
    let web = Web((std::net::Ipv4Addr::LOCALHOST, Web::of(&mounted).0.port()).into());
    let bearer = "Authorization: Bearer correct-horse-battery";
    let basic = "Authorization: Basic bWU6Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5";
    for path in ["/status", "/files/show/film.mkv", "/", "/metrics", "/openapi.json", "/nothing"] {
        let answer = web.send_to("GET", path, &[]);
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.header("www-authenticate").unwrap().starts_with("Basic"));
        for wrong in ["Authorization: Bearer correct-horse-batterz", "Authorization: Bearer", "Authorization: x"] {
            assert_eq!(web.send_to("GET", path, &[wrong]).status, 401, "{path}");
        }
        for right in [bearer, basic] {
            // HEAD, because GET would have to fetch the film first.
            let method = if path.starts_with("/files") { "HEAD" } else { "GET" };
            assert_eq!(
                web.send_to(method, path, &[right]).status,
                if path == "/nothing" { 404 } else { 200 },
                "{path}"
            );
        }
    }
    let with = |headers: &[&str]| web.send(&request("GET", "/status", headers, "")).unwrap().status;
    let here = format!("Host: {}", web.0);
    assert_eq!(with(&["Host: rebound.example", bearer]), 403);
    assert_eq!(with(&[bearer]), 400);
    assert_eq!(with(&[&here, "Origin: http://evil.example", bearer]), 403);
    assert_eq!(with(&[&here, "Origin: null", bearer]), 403);
    assert_eq!(with(&[&here, &format!("Origin: http://{}", web.0), bearer]), 200);
    assert_eq!(with(&[&here, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", bearer]), 403);
    // A form of another site cannot change anything.
    let form = ["Content-Type: text/plain", bearer];
    assert_eq!(web.send_to("POST", &format!("/torrents/{}/verify", lab.info_hash()), &form).status, 415);
    assert!(torrent(&mounted)["verification"].is_null());
    // Oversized requests are refused.
    let long = format!("X: {}", "x".repeat(100_000));
    assert_eq!(web.send_to("GET", "/status", &[bearer, &long]).status, 431);
    let many: Vec<String> = (0..500).map(|n| format!("X-{n}: x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain([bearer]).collect();
    assert_eq!(web.send_to("GET", "/status", &many).status, 431);
    let host = format!("Host: {}", web.0);
    let headers = [host.as_str(), bearer, "Content-Type: application/json"];
    let large = web.send(&request("PATCH", "/limits", &headers, &"9".repeat(100_000))).unwrap();
    assert_eq!(large.status, 413);
    mounted.stop();

    // Without a valid token, a mount that others could reach does not start.
    let mnt = lab.path("b");
    fs::create_dir_all(&mnt).unwrap();
    for (args, code, word) in [
        (&["--http", "0.0.0.0:0"][..], 2, "--http-token"),
        (&["--http", "127.0.0.1:0", "--http-token", "short"], 2, "at least 16"),
        (&["--http", "127.0.0.1:0", "--http-token", "/nowhere/token"], 5, "/nowhere/token"),
        (&["--http-token", "correct-horse-battery"], 2, "--http"),
    ] {
        let cache = lab.path("cache-b");
        let output =
            mount_command().args(args).arg("--cache-dir").arg(&cache).args([&torrent_file, &mnt]).output().unwrap();
        let line = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && line.contains(word), "{args:?}: {output:?}");
        assert!(!is_mounted(&mnt));
    }
}

#[test]
fn prometheus_can_read_the_metrics() {
    if !can_run(&TOOLS) || !has_validators() {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(0);
    let mounted = lab.mount("a", &torrent_file, &["--http", "127.0.0.1:0", "--download-limit", "50MiB"]);
    assert_eq!(mounted.read("show/film.mkv"), noise(3 << 20, 1));
    wait_for_status(&mounted, "the torrent is complete", |torrent| torrent["state"] == "seeding");
    let answer = Web::of(&mounted).send_to("GET", "/metrics", &[]);
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let samples = validate(&["metrics"], &answer.body);
    let labels = format!("info_hash={},torrent=show", lab.info_hash());
    let sample = |name: &str| {
        let line = samples
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")))
            .unwrap_or_else(|| panic!("{name}: {samples}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(samples.contains(&labels) && sample("torrentfs_torrent_size_bytes") == f64::from(4 << 20), "{samples}");
    assert_eq!(sample("torrentfs_torrent_have_bytes"), f64::from(4 << 20));
    assert!(sample("torrentfs_torrent_downloaded_bytes_total") >= f64::from(4 << 20));
    assert_eq!(sample("torrentfs_download_limit_bytes_per_second"), f64::from(50 << 20));
    let reads: f64 = samples
        .lines()
        .filter(|line| line.starts_with("torrentfs_torrent_reads_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    let counted = torrent(&mounted)["reads"].clone();
    assert!(
        reads > 0.0 && reads <= ["memory", "disk", "missed"].iter().map(|key| number(&counted[key]) as f64).sum(),
        "{counted} {samples}"
    );
    mounted.stop();
}

/// Malformed requests get no answer or one below 500, and leave neither memory nor connections.
#[test]
fn ten_thousand_malformed_requests_do_no_harm() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(0);
    let args = ["--http", "127.0.0.1:0", "--metadata-timeout", "100ms"];
    let mounted = lab.mount("a", &torrent_file, &args);
    wait_for_status(&mounted, "the torrent is complete", |torrent| torrent["state"] == "seeding");
    let (web, hash, pid) = (Web::of(&mounted), lab.info_hash(), mounted.process.0.id());
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let work = |from: u64, to: u64| {
        let mut answered = 0;
        for seed in from..to {
            let (bytes, whole) = mutated_request(seed, &web.0.to_string(), &hash);
            if let Some(answer) = web.send_malformed(&bytes, whole) {
                assert!(
                    answer.status < 500,
                    "{}: {} {}",
                    answer.status,
                    String::from_utf8_lossy(&bytes),
                    answer.text()
                );
                answered += 1;
            }
        }
        answered
    };
    // Warms up, so that memory for the first requests is not counted.
    work(0, 1_000);
    let (files_before, memory_before) = (descriptors(), memory());
    let answered: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|n| scope.spawn(move || work(1_000 + n * 2_250, 1_000 + (n + 1) * 2_250))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(answered > 5_000, "{answered} of 9,000 were answered");
    wait_until("the connections are closed", LONG, || descriptors() <= files_before + 2);
    assert!(memory() < memory_before + (32 << 10), "{memory_before} KiB became {} KiB", memory());
    assert_eq!(web.send_to("GET", "/status", &[]).status, 200);
    assert!(!mounted.log().contains("panicked"), "{}", mounted.log());
    assert_eq!(mounted.read("show/film.mkv"), noise(3 << 20, 1));
    mounted.stop();
}

/// Makes a request that is mostly valid, with random errors. Returns whether it is complete.
fn mutated_request(seed: u64, host: &str, hash: &str) -> (Vec<u8>, bool) {
    let bytes = noise(4_096, seed);
    let mut at = 0;
    let mut next = |below: usize| {
        at += 2;
        usize::from(u16::from_le_bytes([bytes[at % 4_000], bytes[at % 4_000 + 1]])) % below
    };
    fn one<'a>(list: &[&'a str], n: usize) -> &'a str {
        list[n % list.len()]
    }
    let torrent = format!("/torrents/{hash}");
    let paths = [
        "/",
        "/status",
        "/limits",
        "/priority",
        "/metrics",
        "/openapi.json",
        "/torrents",
        &torrent,
        "/files",
        "/files/",
        "/files/show/",
        "/files/show/film.mkv",
        "/files/show/extra/notes%20%26%20%3Cmore%3E.txt",
        "/torrents/xyz",
        "*",
        "",
    ];
    let ends = [
        "",
        "",
        "",
        "/verify",
        "/pieces",
        "/pieces?cells=",
        "?delete=true&",
        "/..",
        "/%2e%2e/",
        "%00",
        "%",
        "//",
        "?",
        "#",
    ];
    let methods = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "\u{7f}"];
    // Without DELETE, which would remove the only torrent.
    let mut path = one(&paths, next(99)).to_owned() + one(&ends, next(99));
    for _ in 0..next(4) {
        let junk = next(256) as u8;
        path += &if next(2) == 0 { format!("%{junk:02x}") } else { char::from(junk % 94 + 33).to_string() };
    }
    let kinds = ["application/json", "application/json", "text/plain", "application/x-bittorrent", ""];
    let number = ["0", "-1", "1e99", "18446744073709551616", "null", "\"x\"", "[[[[", "500000000"];
    let values = ["true", "null", "1", "\"skip\"", "\"\\u0000\"", "{}"];
    let keys = ["download", "upload", "paused", "on_demand", "path", "priority", "source", "x"];
    let value = if next(2) == 0 { one(&number, next(99)) } else { one(&values, next(99)) };
    let body = match next(4) {
        0 => String::new(),
        1 => format!("{{\"{}\":{value}}}", one(&keys, next(99))),
        2 => format!("{{\"path\":\"show\",\"priority\":{value}}}"),
        _ => String::from_utf8_lossy(&noise(next(200), seed + 1)).into_owned(),
    };
    let hosts = [host, host, host, host, "evil.example", "", "[::1"];
    let ranges = ["bytes=0-9", "bytes=-1", "bytes=99999999999-", "bytes=5-1", "x", "bytes=0-1,2-3"];
    let mut headers =
        vec![format!("Host: {}", one(&hosts, next(99))), format!("Content-Type: {}", one(&kinds, next(99)))];
    if next(3) == 0 {
        headers.push(format!("Range: {}", one(&ranges, next(99))));
    }
    if next(20) == 0 {
        headers.push(format!("X: {}", "x".repeat(next(30_000))));
    }
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let mut bytes = request(one(&methods, next(99)), &path, &headers, &body);
    // Damages some requests and truncates others.
    for _ in 0..next(8).saturating_sub(5) {
        let at = next(bytes.len());
        bytes[at] = next(256) as u8;
    }
    let whole = next(40) != 0;
    if !whole {
        bytes.truncate(next(bytes.len()));
    }
    (bytes, whole)
}
