//! `torrentfs tracker`, started for a test.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Lab, Process, TORRENTFS, drain, run, wait_until};

const LONG: Duration = Duration::from_secs(180);

/// A `torrentfs tracker` that listens.
pub struct TrackerServer {
    pub process: Process,
    pub addr: SocketAddr,
    pub output: Arc<Mutex<String>>,
}

impl TrackerServer {
    /// Starts a tracker at a free port of 127.0.0.1, and at the addresses that `args` add.
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
        let mut stdout = BufReader::new(process.0.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let addr = line.strip_prefix("listening on ").and_then(|rest| rest.split(',').next()?.parse().ok());
        let addr = addr.unwrap_or_else(|| panic!("{line}: {}", drain(process.0.stderr.take().unwrap())));
        let output = Arc::new(Mutex::new(line));
        let log = process.0.stderr.take().unwrap();
        for mut from in [Box::new(stdout) as Box<dyn BufRead + Send>, Box::new(BufReader::new(log))] {
            let output = output.clone();
            std::thread::spawn(move || {
                let mut line = String::new();
                while from.read_line(&mut line).is_ok_and(|len| len > 0) {
                    output.lock().unwrap().push_str(&line);
                    line.clear();
                }
            });
        }
        Self { process, addr, output }
    }

    pub fn has_printed(&self, text: &str) -> bool {
        self.output.lock().unwrap().contains(text)
    }

    pub fn wait_for_output(&self, text: &str) {
        wait_until(&format!("output of {text:?}"), LONG, || self.has_printed(text));
    }

    /// Returns the whole answer to a GET, with its head.
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

    /// Returns the seeders and leechers that the tracker counts.
    pub fn peers(&self) -> (u64, u64) {
        (self.metric("peers{role=\"seeder\"}"), self.metric("peers{role=\"leecher\"}"))
    }

    pub fn stop(mut self) {
        self.process.signal("TERM");
        let status = self.process.wait(LONG).expect("the tracker ends");
        assert!(status.success(), "{status}: {}", self.output.lock().unwrap());
    }
}

/// Writes a file and its torrent, which names the tracker `announce`.
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
