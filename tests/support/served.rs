//! `torrentfs tracker`, as a test has it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Lab, Process, TORRENTFS, drain, run, wait_until};

const LONG: Duration = Duration::from_secs(60);

/// `torrentfs tracker`, up and answering.
pub struct Served {
    pub process: Process,
    pub addr: SocketAddr,
    pub said: Arc<Mutex<String>>,
}

impl Served {
    /// At a free port of 127.0.0.1, and wherever else `args` say.
    pub fn start(args: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", args)
    }

    pub fn start_at(listen: &str, args: &[&str]) -> Self {
        let mut process = Process::start(
            Command::new(TORRENTFS)
                .args(["tracker", "-v", "--listen", listen])
                .args(args)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        );
        let mut output = BufReader::new(process.0.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let addr = line.strip_prefix("listening on ").and_then(|rest| rest.split(',').next()?.parse().ok());
        let addr = addr.unwrap_or_else(|| panic!("{line}: {}", drain(process.0.stderr.take().unwrap())));
        let said = Arc::new(Mutex::new(line));
        let log = process.0.stderr.take().unwrap();
        for mut from in [Box::new(output) as Box<dyn BufRead + Send>, Box::new(BufReader::new(log))] {
            let said = said.clone();
            std::thread::spawn(move || {
                let mut line = String::new();
                while from.read_line(&mut line).is_ok_and(|len| len > 0) {
                    said.lock().unwrap().push_str(&line);
                    line.clear();
                }
            });
        }
        Self { process, addr, said }
    }

    pub fn said(&self, words: &str) -> bool {
        self.said.lock().unwrap().contains(words)
    }

    pub fn wait_said(&self, words: &str) {
        wait_until(&format!("it says {words:?}"), LONG, || self.said(words));
    }

    /// The answer to a GET, head and all.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        reply.escape_ascii().to_string()
    }

    pub fn metric(&self, name: &str) -> u64 {
        let name = format!("torrentfs_tracker_{name} ").replace('"', "\\\"");
        let metrics = self.get("/metrics");
        let value = metrics.split("\\n").find_map(|line| line.strip_prefix(&name)?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {metrics}"))
    }

    /// Seeders and leechers.
    pub fn peers(&self) -> (u64, u64) {
        (self.metric("peers{role=\"seeder\"}"), self.metric("peers{role=\"leecher\"}"))
    }

    pub fn stop(mut self) {
        self.process.signal("TERM");
        let status = self.process.wait(LONG).expect("it ends");
        assert!(status.success(), "{status}: {}", self.said.lock().unwrap());
    }
}

/// A file to share and its torrent, with `announce` for a tracker.
pub fn publish(lab: &Lab, announce: &str, data: &[u8]) -> PathBuf {
    let (payload, torrent) = (lab.path("payload"), lab.path("film.torrent"));
    fs::create_dir_all(&payload).unwrap();
    fs::write(payload.join("film.bin"), data).unwrap();
    let _ = fs::remove_file(&torrent);
    let made = run(
        "mktorrent",
        &["-l", "16", "-a", announce, "-o", torrent.to_str().unwrap(), payload.join("film.bin").to_str().unwrap()],
    );
    assert!(made.status.success(), "{made:?}");
    torrent
}
