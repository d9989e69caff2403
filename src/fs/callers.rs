//! Programs that are to end while a read of theirs waits.
//!
//! A program that waits for a page of the page cache dies of a signal at once. A direct-I/O read (`O_DIRECT`) waits for our
//! answer instead, and the kernel announces the signal with `FUSE_INTERRUPT`. fuser 0.18 answers that with ENOSYS by
//! itself, and has no way for a filesystem to see it. After that answer the kernel sends no more of them, and not even
//! SIGKILL ends the read. So we look in `/proc` at the programs whose reads wait for long, and answer EINTR:
//!
//! - to every read of a program that is dying or has died, so that nothing more is fetched for it either;
//! - to the direct-I/O read of a program that catches a signal by which users end programs (SIGINT, SIGTERM, SIGHUP,
//!   SIGQUIT), so that its handler runs. Other caught signals, such as those of timers, do not end a read, because few
//!   programs expect that of a regular file.
//!
//! This does not work for programs that this process cannot see: those of another user if `/proc` is mounted with
//! `hidepid`, and those outside of the PID namespace of the mount. Their direct-I/O reads end at the read timeout.

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::sys::process;

/// Time that a read waits before we look at its program, and interval at which we look. A user notices no such delay, and
/// a read that its peers answer normally costs nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Signals whose default action does not end a process, as bits.
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);
/// Signals by which users end programs, as bits.
const ENDING: u64 = bit(libc::SIGINT) | bit(libc::SIGTERM) | bit(libc::SIGHUP) | bit(libc::SIGQUIT);

const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// State of a program whose read waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It waits, or we cannot see it.
    Waits,
    /// A signal waits to be handled by the program, by which users end programs.
    Interrupted,
    /// It dies, or is dead.
    Dead,
}

/// The programs whose reads have waited for long. There is one watcher for each, however many reads it has.
#[derive(Debug, Default)]
pub(super) struct Callers(Mutex<HashMap<u32, watch::Sender<State>>>);

impl Callers {
    /// Waits until a read of this thread must end early. `pid` is 0 for a program outside of the PID namespace.
    pub(super) async fn interrupted(self: &Arc<Self>, pid: u32, is_direct: bool) {
        sleep(LOOK_INTERVAL).await;
        let ends = |state: &State| match state {
            State::Waits => false,
            State::Interrupted => is_direct,
            State::Dead => true,
        };
        // An error means that we cannot see the program.
        if pid == 0 || self.watch(pid).wait_for(ends).await.is_err() {
            pending::<()>().await;
        }
    }

    fn watch(self: &Arc<Self>, pid: u32) -> watch::Receiver<State> {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = watched.get(&pid) {
            return state.subscribe();
        }
        let (sender, state) = watch::channel(State::Waits);
        watched.insert(pid, sender);
        tokio::spawn(self.clone().look(pid));
        state
    }

    /// Looks at a program until no read of it waits any more.
    async fn look(self: Arc<Self>, pid: u32) {
        while self.update(pid, state(pid)) {
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Tells the reads of a program its state, `None` if it cannot be seen. Returns false if there is none to tell any more.
    fn update(&self, pid: u32, state: Option<State>) -> bool {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = watched.get(&pid) else { return false };
        match state {
            Some(state) if sender.receiver_count() > 0 => {
                sender.send_if_modified(|last| std::mem::replace(last, state) != state);
                true
            }
            _ => {
                watched.remove(&pid);
                false
            }
        }
    }
}

/// Returns the state of a thread and its process, or `None` if we cannot see it.
fn state(pid: u32) -> Option<State> {
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => parse(&status),
        // With `hidepid`, the files of other users' processes do not exist, either.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !process::exists(pid) => Some(State::Dead),
        // The thread ended between the opening of the file and the reading.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Some(State::Dead),
        Err(_) => None,
    }
}

/// Parses `/proc/PID/status`, see proc_pid_status(5).
fn parse(status: &str) -> Option<State> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    };
    let set = |name| u64::from_str_radix(field(name)?, 16).ok();
    if field("State")?.starts_with(['Z', 'X']) {
        return Some(State::Dead);
    }
    let pending = set("SigPnd")? | set("ShdPnd")?;
    let (blocked, ignored, caught) = (set("SigBlk")?, set("SigIgn")?, set("SigCgt")?);
    // The kernel turns most fatal signals into SIGKILL, but not those that write a core file.
    let is_dying = pending & bit(libc::SIGKILL) != 0 || pending & !(HARMLESS | blocked | ignored | caught) != 0;
    let is_asked_to_end = pending & ENDING & caught & !blocked != 0;
    Some(match () {
        () if is_dying => State::Dead,
        () if is_asked_to_end => State::Interrupted,
        () => State::Waits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(state: &str, [pending, shared, blocked, ignored, caught]: [u64; 5]) -> Option<State> {
        parse(&format!(
            "Name:\tcat\nState:\t{state}\nSigQ:\t0/1\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        ))
    }

    #[test]
    fn signals_that_end_a_program_are_recognised() {
        let [kill, int, quit] = [libc::SIGKILL, libc::SIGINT, libc::SIGQUIT].map(bit);
        let [chld, alrm, wakeup] = [libc::SIGCHLD, libc::SIGALRM, libc::SIGCONT].map(bit);
        for (signals, state) in [
            ([0, 0, 0, 0, 0], State::Waits),
            ([kill, 0, 0, 0, 0], State::Dead),
            ([0, int, 0, 0, 0], State::Dead),
            ([0, quit, 0, 0, int], State::Dead),
            ([0, alrm, 0, 0, 0], State::Dead),
            ([0, int, int, 0, 0], State::Waits),
            ([0, int, 0, int, 0], State::Waits),
            ([0, int, 0, 0, int], State::Interrupted),
            ([0, int, int, 0, int], State::Waits),
            ([chld | wakeup, alrm, 0, 0, alrm], State::Waits),
        ] {
            assert_eq!(with("D (disk sleep)", signals), Some(state), "{signals:?}");
        }
        assert_eq!(with("Z (zombie)", [0; 5]), Some(State::Dead));
        assert_eq!(parse("Name:\tcat\n"), None);
        assert_eq!(parse("State:\tR\nSigPnd:\tx\n"), None);
    }

    #[test]
    fn processes_are_seen_and_missed() {
        assert_eq!(state(std::process::id()), Some(State::Waits));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(state(child.id()), Some(State::Dead));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_ends_with_the_last_read() {
        let callers = Arc::new(Callers::default());
        let (me, limit) = (std::process::id(), 10 * LOOK_INTERVAL);
        let reads = [false, true].map(|is_direct| tokio::time::timeout(limit, callers.interrupted(me, is_direct)));
        let [buffered, direct] = reads;
        let (buffered, direct) = tokio::join!(buffered, direct);
        assert!(buffered.is_err() && direct.is_err(), "this process is alive");
        sleep(limit).await;
        assert!(callers.0.lock().unwrap().is_empty());
        assert!(tokio::time::timeout(limit, callers.interrupted(0, true)).await.is_err());
    }
}
