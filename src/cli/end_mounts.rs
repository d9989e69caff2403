//! Ending every mount that the package's helper has made, before the package is removed.
//!
//! A mount belongs to the helper if the process behind it runs the helper's file: its keeper, or the process that serves a
//! mount of an ordinary user. Mounts of `torrentfs mount` run another file and stay; those of torrentfs@.service run in a
//! mount namespace of their own, and the service manager ends them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::failure::{Exit, Failure};
use crate::sys::process::Process;

/// How long the processes may take in all: each tells its trackers for 2 s at most, and saves its state.
const LIMIT: Duration = Duration::from_secs(20);

/// Ends the mounts that this program serves, and waits for them.
pub(super) fn run() -> Result<(), Failure> {
    let failed = |error| Failure::new(Exit::Failure, format!("cannot end the mounts: {error}"));
    let own = std::process::id();
    let about = |pid: u32| About::of(Path::new("/proc"), pid);
    let ours = about(own).map_err(failed)?;
    let pids = fs::read_dir("/proc").map_err(failed)?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid: &u32| *pid != own);
    // Opened first and looked at then: a process that ends in between cannot be taken for another one.
    let opened = pids.filter_map(|pid| Some((pid, Process::open(pid).ok()?, about(pid).ok()?)));
    let found: HashMap<u32, (Process, About)> =
        opened.filter(|(.., it)| it.is_like(&ours)).map(|(pid, process, it)| (pid, (process, it))).collect();
    // A server ends with its keeper.
    let first: Vec<&Process> =
        found.values().filter(|(_, it)| !found.contains_key(&it.parent)).map(|(process, _)| process).collect();
    // One that has ended meanwhile is no error.
    first.iter().for_each(|process| drop(process.terminate()));
    let end = Instant::now() + LIMIT;
    for (process, _) in found.values() {
        let _ = process.wait(end.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// What tells the processes of this program from others.
#[derive(Debug)]
struct About {
    /// The file that it runs. An upgrade may have replaced it.
    program: PathBuf,
    namespace: PathBuf,
    parent: u32,
}

impl About {
    fn of(proc: &Path, pid: u32) -> io::Result<Self> {
        let dir = proc.join(pid.to_string());
        let program = fs::read_link(dir.join("exe"))?.into_os_string();
        let program = program.as_bytes().strip_suffix(b" (deleted)").unwrap_or(program.as_bytes());
        let status = fs::read_to_string(dir.join("status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        Ok(Self {
            program: OsStr::from_bytes(program).into(),
            namespace: fs::read_link(dir.join("ns/mnt"))?,
            parent: parent.unwrap_or_default(),
        })
    }

    /// Returns whether both run the same program in the same mount namespace.
    fn is_like(&self, other: &Self) -> bool {
        self.program == other.program && self.namespace == other.namespace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processes_of_a_program_are_told_from_others() {
        let about = |pid| About::of(Path::new("/proc"), pid).unwrap();
        let (own, other) = (about(std::process::id()), about(std::process::id()));
        assert!(own.is_like(&other) && own.parent == std::os::unix::process::parent_id());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let sleeper = about(child.id());
        assert!(!sleeper.is_like(&own) && sleeper.parent == std::process::id());
        child.kill().and_then(|()| child.wait()).unwrap();
    }

    #[test]
    fn a_program_that_was_replaced_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("7");
        fs::create_dir_all(at.join("ns")).unwrap();
        std::os::unix::fs::symlink("/usr/sbin/mount.torrentfs (deleted)", at.join("exe")).unwrap();
        std::os::unix::fs::symlink("mnt:[1]", at.join("ns/mnt")).unwrap();
        fs::write(at.join("status"), "Name:\tx\nPPid:\t5\n").unwrap();
        let about = About::of(dir.path(), 7).unwrap();
        assert_eq!((about.program.as_path(), about.parent), (Path::new("/usr/sbin/mount.torrentfs"), 5));
    }
}
