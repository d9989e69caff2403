//! `torrentfs get` and `torrentfs seed`, with nothing that would leave this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{ALONE, Process, TORRENTFS};

/// Our program at work without a mount; what it says goes to a file.
pub struct Transfer {
    pub process: Process,
    log: PathBuf,
}

impl Transfer {
    /// `torrentfs COMMAND`; `base/cache` is its cache directory, which may be there from an earlier run.
    pub fn start(command: &str, base: &Path, args: &[&str], paths: &[&Path]) -> Self {
        fs::create_dir_all(base).unwrap();
        let log = base.join(format!("{command}.txt"));
        let output = fs::File::create(&log).unwrap();
        let process = Process::start(
            Command::new(TORRENTFS)
                .arg(command)
                .args(ALONE)
                .args(["--port", "0", "--cache-dir"])
                .arg(base.join("cache"))
                .args(args)
                .args(paths)
                .stdout(Stdio::from(output.try_clone().unwrap()))
                .stderr(output),
        );
        Self { process, log }
    }

    /// `torrentfs get -o base/out`.
    pub fn get(base: &Path, args: &[&str], torrent: &Path) -> Self {
        Self::start("get", base, args, &[Path::new("-o"), &base.join("out"), torrent])
    }

    /// All it has said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.0.try_wait().unwrap().is_none()
    }

    /// How it ends, by itself.
    pub fn ends(&mut self) -> ExitStatus {
        let status = self.process.wait(Duration::from_secs(180));
        status.unwrap_or_else(|| panic!("it does not end: {}", self.said()))
    }

    /// Its exit code, after Ctrl-C.
    pub fn interrupt(&mut self) -> Option<i32> {
        self.process.signal("INT");
        self.ends().code()
    }

    /// As the kernel's out-of-memory killer would.
    pub fn kill(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.said());
        }
    }
}
