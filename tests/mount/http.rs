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

/// Opens connections from an address of this machine and sends the same bytes on each.
fn open_connections(to: std::net::SocketAddr, from: &str, count: usize, bytes: &[u8]) -> Vec<std::net::TcpStream> {
    (0..count)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&std::net::SocketAddr::new(from.parse().unwrap(), 0).into()).unwrap();
            socket.connect(&to.into()).unwrap();
            let mut stream = std::net::TcpStream::from(socket);
            let _ = stream.write_all(bytes);
            stream
        })
        .collect()
}

/// Slow headers, slow bodies, idle connections and blocked readers of one client, each more than there are connections.
#[test]
fn slow_and_blocked_clients_lock_nobody_out() {
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let (lab, seeder, torrent_file) = lab(0);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand", "--http", "127.0.0.1:0"]);
    let web = Web::of(&mounted);
    let notes = noise(1 << 20, 2);
    assert_eq!(mounted.read("show/extra/notes & <more>.txt"), notes);
    drop(seeder);

    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", web.0).into_bytes();
    let (film, local) = ("/files/show/film.mkv", "127.0.0.1");
    let slow_head = open_connections(web.0, local, 140, b"GET /status HTTP/1.1\r\nHost: ");
    let kinds = "Content-Type: application/json\r\nContent-Length: 60000";
    let slow_body = format!("PATCH /limits HTTP/1.1\r\nHost: {}\r\n{kinds}\r\n\r\n{{", web.0);
    let slow_body = open_connections(web.0, local, 140, slow_body.as_bytes());
    let kinds = "Content-Type: application/x-bittorrent\r\nContent-Length: 60000";
    let upload = format!("POST /torrents HTTP/1.1\r\nHost: {}\r\n{kinds}\r\n\r\nd", web.0);
    let uploads = open_connections(web.0, local, 140, upload.as_bytes());
    let idle = open_connections(web.0, local, 140, &get("/status"));
    let blocked = open_connections(web.0, local, 140, &get(film));
    let kinds = "Content-Type: application/json\r\nContent-Length";
    let link = format!("{{\"source\":\"{}\"}}", "1".repeat(40));
    let add = format!("POST /torrents HTTP/1.1\r\nHost: {}\r\n{kinds}: {}\r\n\r\n{link}", web.0, link.len());
    let adds = open_connections(web.0, local, 140, add.as_bytes());

    // The same client is served, and so are other clients, the commands and readers of the mount.
    for _ in 0..20 {
        assert_eq!(web.send_to("GET", "/status", &[]).status, 200);
    }
    assert_eq!(web.send_to("GET", film, &[]).status, 429);
    assert_eq!(web.send_to("GET", film, &[]).header("retry-after"), Some("5"));
    let notes_path = "/files/show/extra/notes%20%26%20%3Cmore%3E.txt";
    let request = request("GET", notes_path, &[&format!("Host: {}", web.0)], "");
    let answer = exchange(open_connections(web.0, "127.0.0.2", 1, b"").remove(0), &request).unwrap();
    assert!(answer.status == 200 && answer.body == notes, "{}", answer.head);
    assert_eq!(status(&mounted)["torrents"].as_array().unwrap().len(), 1);
    assert_eq!(fs::read(mounted.path("show/extra/notes & <more>.txt")).unwrap(), notes);

    // What was let go leaves nothing behind: a reader is served again.
    drop((slow_head, slow_body, uploads, idle, blocked, adds));
    wait_until("the file is served again", LONG, || web.send_to("GET", notes_path, &[]).status == 200);
    mounted.stop();
}

/// Sends the head of a request and a body of zeros, however the server answers.
fn send_zeros(mut stream: impl Write, head: &str, start: &[u8], len: usize) {
    let zeros = vec![0; 1 << 20];
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(start));
    let mut left = len - start.len();
    while left > 0 && stream.write_all(&zeros[..left.min(zeros.len())]).is_ok() {
        left -= left.min(zeros.len());
    }
    let _ = stream.flush();
}

/// Uploads of almost the largest allowed size, in parallel, over TCP and the socket, and from a web server.
#[test]
fn whatever_clients_send_the_memory_stays_bounded() {
    const LEN: usize = 95 << 20;
    const LIMIT_KIB: u64 = 150 << 10;
    if !can_run(&TOOLS) {
        return;
    }
    let _turn = turn();
    let (lab, _seeder, torrent_file) = lab(0);
    let mounted = lab.mount("a", &torrent_file, &["--on-demand", "--http", "127.0.0.1:0"]);
    let (web, socket, pid) = (Web::of(&mounted), socket_of(&mounted), mounted.process.0.id());
    let peak = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    // A valid beginning, so that nothing is refused for its first bytes.
    let start = format!("d4:infod6:lengthi1e4:name1:a12:piece lengthi16384e6:pieces{LEN}:");
    let host = format!("Host: {}\r\nContent-Type: application/x-bittorrent\r\n", web.0);
    let whole = format!("POST /torrents HTTP/1.1\r\n{host}Content-Length: {LEN}\r\n\r\n");
    // One chunk of that length.
    let chunked = format!("POST /torrents HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n{LEN:x}\r\n");
    // Just what is accepted at a time.
    let accepted = 15 << 20;
    let small = format!("POST /torrents HTTP/1.1\r\n{host}Content-Length: {accepted}\r\n\r\n");
    std::thread::scope(|scope| {
        let (whole, start) = (&whole, start.as_bytes());
        for _ in 0..6 {
            for (head, len) in [(whole, LEN), (&chunked, LEN), (&small, accepted)] {
                let stream = std::net::TcpStream::connect(web.0).unwrap();
                scope.spawn(move || send_zeros(stream, head, start, len));
            }
            for head in [whole, &chunked] {
                let stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
                scope.spawn(move || send_zeros(stream, head, start, LEN));
            }
        }
    });
    assert!(peak() < LIMIT_KIB, "uploads: {} KiB", peak());

    // A valid torrent of the largest size that is accepted here.
    let pieces = 15 << 20;
    let length = (pieces as u64 / 20) * 16384;
    let head = format!("d4:infod6:lengthi{length}e4:name5:large12:piece lengthi16384e6:pieces{pieces}:");
    let torrent = [head.as_bytes(), &noise(pieces, 7), b"ee"].concat();
    let head = format!("POST /torrents HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\n", torrent.len());
    let answer = web.send(&[head.as_bytes(), b"", &torrent].concat());
    assert_eq!(answer.map(|answer| answer.status), Some(200));
    assert!(peak() < LIMIT_KIB, "a large torrent: {} KiB", peak());

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/announce.torrent", listener.local_addr().unwrap());
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (head, start) = (head.clone(), start.clone());
            std::thread::spawn(move || send_zeros(stream, &head, start.as_bytes(), LEN));
        }
    });
    let body = format!("{{\"source\":\"{url}\"}}");
    let json = [&format!("Host: {}", web.0), "Content-Type: application/json"];
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let refused = web.send(&request("POST", "/torrents", &json, &body)).unwrap();
                assert_eq!(refused.status, 422, "{}", refused.text());
            });
        }
    });
    eprintln!("peak: {} KiB", peak());
    assert!(peak() < LIMIT_KIB, "torrents from a web server: {} KiB", peak());
    assert_eq!(web.send_to("GET", "/status", &[]).status, 200);
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
