//! Trackers and web seeds that send without end: the memory of the program stays bounded.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::*;

const LIMIT: Duration = Duration::from_secs(180);
/// The memory that a mount may use whatever servers send.
const MAX_RSS_MIB: u64 = 150;
/// After so many bytes from all servers, the program has shown how it copes. The servers then keep their connections open
/// and send nothing, because they would take all of the processor.
const ENOUGH: u64 = 512 << 20;
/// Torrents that use all servers at the same time.
const TORRENTS: usize = 4;

/// Starts a server that answers each request with `start`, and then with `more` until the connection breaks. Returns its
/// address; `sent` counts the bytes.
fn endless(start: Vec<u8>, more: &[u8], sent: Arc<AtomicU64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (start, more) = (Arc::new(start), Arc::new(more.repeat((256 << 10) / more.len())));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (start, more, sent) = (start.clone(), more.clone(), sent.clone());
            std::thread::spawn(move || answer(stream, &start, &more, &sent));
        }
    });
    addr
}

fn answer(mut stream: TcpStream, start: &[u8], more: &[u8], sent: &AtomicU64) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    stream.write_all(start)?;
    loop {
        stream.write_all(more)?;
        if sent.fetch_add(more.len() as u64, Ordering::Relaxed) > ENOUGH {
            std::thread::sleep(LIMIT);
        }
    }
}

/// Compresses with the program gzip.
fn gzip(data: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip").arg("-9").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, data) = (child.stdin.take().unwrap(), data.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&data));
    let mut compressed = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut compressed).unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    compressed
}

fn peak_rss_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn endless_answers_do_not_fill_the_memory() {
    if !can_run(&["mktorrent", "gzip"]) {
        return;
    }
    let _turn = turn();
    let lab = Lab::new();
    let sent = Arc::new(AtomicU64::new(0));
    let bomb =
        [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n".as_slice(), &gzip(&vec![b'd'; 200 << 20])].concat();
    let servers: [(&[u8], &[u8]); 11] = [
        (b"HTTP/1.1 200 OK\r\n\r\nd5:peers999999999999:", b"\x7f\0\0\x01\0\0"),
        (b"HTTP/1.1 200 OK\r\n\r\nd5:peersl", b"d2:ip9:127.0.0.14:porti1ee"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"d1:al"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (b"HTTP/1.2 200 OK\r\nx: ", b"a"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 206 Partial\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nd\r\n"),
        (b"HTTP/1.0 206 Partial\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a"),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 99999999999999\r\n\r\n", b"a"),
        (&bomb, b"d"),
    ];
    let addrs: Vec<String> =
        servers.into_iter().map(|(start, more)| endless(start.to_vec(), more, sent.clone())).collect();
    let film = lab.path("film.bin");
    fs::write(&film, noise(32 << 20, 3)).unwrap();
    let torrents = lab.path("torrents");
    fs::create_dir(&torrents).unwrap();
    for n in 0..TORRENTS {
        let mut command = Command::new("mktorrent");
        command.args(["-l", "18", "-n", &format!("film{n}.bin"), "-o"]).arg(torrents.join(format!("{n}.torrent")));
        for addr in &addrs {
            command.args(["-a", &format!("http://{addr}/announce"), "-w", &format!("http://{addr}/film.bin")]);
        }
        assert!(command.arg(&film).stdout(Stdio::null()).status().unwrap().success());
    }
    let mount = lab.mount("m", &torrents, &["--read-timeout", "5s"]);
    wait_until("all torrents are mounted", LIMIT, || fs::read_dir(&mount.dir).unwrap().count() == TORRENTS);
    let readers: Vec<_> = (0..TORRENTS)
        .map(|n| mount.path(&format!("film{n}.bin")))
        .map(|path| std::thread::spawn(move || read_at(&path, 1 << 20, 100_000)))
        .collect();
    wait_until("enough was sent", LIMIT, || sent.load(Ordering::Relaxed) > ENOUGH);
    for reader in readers {
        assert!(reader.join().unwrap().is_err(), "wrong bytes were shown");
    }
    let peak = peak_rss_mib(mount.process.0.id());
    println!("peak of {peak} MiB after {} MiB from servers", sent.load(Ordering::Relaxed) >> 20);
    assert!(peak <= MAX_RSS_MIB, "{peak} MiB");
    mount.stop();
}
