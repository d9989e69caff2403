//! `torrentfs get` and `torrentfs seed`, with flags that keep their traffic on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{ALONE, Process, TORRENTFS};

/// A run of our program without a mount. Its output goes to a file.
pub struct Transfer {
    pub process: Process,
    log: PathBuf,
}

impl Transfer {
    /// Starts `torrentfs COMMAND` with the cache `base/cache`, which may exist from an earlier run.
    pub fn start(command: &str, base: &Path, args: &[&str], paths: &[&Path]) -> Self {
        Self::start_at(command, base, "0", args, paths)
    }

    /// Does the same at a port.
    pub fn start_at(command: &str, base: &Path, port: &str, args: &[&str], paths: &[&Path]) -> Self {
        fs::create_dir_all(base).unwrap();
        let log = base.join(format!("{command}.txt"));
        let output = fs::File::create(&log).unwrap();
        let process = Process::start(
            Command::new(TORRENTFS)
                .arg(command)
                .args(ALONE)
                .args(["--port", port, "--cache-dir"])
                .arg(base.join("cache"))
                .args(args)
                .args(paths)
                .stdout(Stdio::from(output.try_clone().unwrap()))
                .stderr(output),
        );
        Self { process, log }
    }

    /// Starts `torrentfs get -o base/out`.
    pub fn get(base: &Path, args: &[&str], torrent: &Path) -> Self {
        Self::start("get", base, args, &[Path::new("-o"), &base.join("out"), torrent])
    }

    /// Returns the output so far, standard error included.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.0.try_wait().unwrap().is_none()
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.process.wait(Duration::from_secs(180));
        status.unwrap_or_else(|| panic!("{} does not end", self.output()))
    }

    /// Interrupts the process as Ctrl-C does. Returns its exit code.
    pub fn interrupt(&mut self) -> Option<i32> {
        self.process.signal("INT");
        self.wait().code()
    }

    /// Kills the process, as the kernel does when memory runs out.
    pub fn kill(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.output());
        }
    }
}
