//! Becoming a daemon, what this process may take, and signalling and waiting for another process.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// The result of a system call, or the error it left in `errno`.
pub(super) fn check<T: Default + PartialOrd>(result: T) -> io::Result<T> {
    if result < T::default() { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The effective user.
pub fn user() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() }
}

/// The effective group.
pub fn group() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::getegid() }
}

/// Lets this process open `wanted` files and connections, or as many as its hard limit has (`setrlimit(2)`). Returns how
/// many that are; there may have been more before, and then there are still.
pub fn allow_descriptors(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable and outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    let raised = libc::rlimit { rlim_cur: wanted.min(limit.rlim_max), ..limit };
    if raised.rlim_cur > limit.rlim_cur {
        // SAFETY: `raised` outlives the call, which only reads it.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) })?;
        return Ok(raised.rlim_cur);
    }
    Ok(limit.rlim_cur)
}

/// Has the GNU allocator keep little of what is freed (`mallopt(3)`); others are left as they are. Left alone, it has a
/// heap a thread, eight times as many as there are cores, and pieces of some MiB leave holes in each: with ten torrents
/// at work a third of the memory was such holes. Measured, streaming takes no more time for it.
pub fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    // What the allocator refuses stays as it was.
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        // Bytes free at the end of a heap from which they are given back.
        (libc::M_TRIM_THRESHOLD, 4 << 20),
        // Bytes from which on a block is a mapping of its own, zeroed by the kernel: not the pieces of most torrents.
        (libc::M_MMAP_THRESHOLD, 8 << 20),
    ] {
        // SAFETY: takes two integers.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Has the GNU allocator give what is free in the middle of its heaps back to the kernel (`malloc_trim(3)`). Whoever
/// allocates meanwhile waits, for some milliseconds if there is much to give.
pub fn give_heap_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A process held by descriptor: its number cannot come to mean another process while this lives.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// `pidfd_open(2)`; ESRCH if there is no such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        // SAFETY: the call takes two integers.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: the kernel just made this descriptor (closed on exec) for us alone; descriptors fit in a C int.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }))
    }

    /// Asks it to end: `SIGTERM` through `pidfd_send_signal(2)`.
    pub fn terminate(&self) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is a pidfd, and a null `siginfo` asks for the default one.
        check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGTERM, no_info, 0) })?;
        Ok(())
    }

    /// Waits until it ends, or for the time given. Says whether it has ended.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one valid `pollfd`.
        match check(unsafe { libc::poll(&raw mut poll, 1, limit) }) {
            Ok(ready) => Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A descriptor of another process, as our own (`pidfd_getfd(2)`, Linux 5.6). Takes the right to trace that process.
pub fn descriptor_of(process: &Process, number: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers; the descriptor of the process is open.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.0.as_raw_fd(), number, 0) })?;
    // SAFETY: the kernel just made this descriptor (closed on exec) for us alone; descriptors fit in a C int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Whether a descriptor is in error, as that of the FUSE device is for as long as it belongs to no mount.
pub fn is_in_error(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one valid `pollfd`.
    check(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    Ok(poll.revents & libc::POLLERR != 0)
}

/// The most that a daemon's message to its parent can be, in bytes.
const MAX_MESSAGE: u64 = 64 * 1024;

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The one that was started: it waits for the daemon's word and ends.
    Parent(Waiter),
    /// The daemon to be.
    Child(Notifier),
}

/// Waits for the daemon's word.
#[derive(Debug)]
pub struct Waiter {
    pipe: File,
    child: Child,
}

/// Gives the daemon's word. Dropping it without a word, or dying, is a failure to the parent.
#[derive(Debug)]
pub struct Notifier {
    pipe: File,
}

/// Splits off a daemon. It stays in this process group until [`Notifier::ready`]: while an automount waits for its mount,
/// autofs lets nobody else reach the mount point (systemd runs mount(8) in its own group for that). And whoever gives up
/// waiting, by Ctrl-C, ends both.
///
/// It keeps its working directory and its standard streams until [`Notifier::ready`], so that relative paths and
/// messages still work while it starts. Must come before any thread is started, the async runtime's above all: a fork
/// takes along only the thread that calls it, and every lock as it stands. With more than one thread it is an error.
pub fn fork() -> io::Result<Side> {
    let (read, write) = io::pipe()?;
    match split()? {
        None => {
            drop(read);
            Ok(Side::Child(Notifier { pipe: File::from(OwnedFd::from(write)) }))
        }
        Some(child) => Ok(Side::Parent(Waiter { pipe: File::from(OwnedFd::from(read)), child })),
    }
}

/// Begins a session: Ctrl-C in the terminal, and the terminal's end, do not reach this process any more (`setsid(2)`). Fails
/// for the leader of a process group, which the child of a fork is not.
pub fn new_session() -> io::Result<()> {
    // SAFETY: takes nothing.
    check(unsafe { libc::setsid() })?;
    Ok(())
}

/// `fork(2)`, on the conditions of [`fork`]: the child, or `None` in the child.
pub fn split() -> io::Result<Option<Child>> {
    // Under test the harness has threads of its own; they hold nothing that the child uses.
    if !cfg!(test) && std::fs::read_dir("/proc/self/task")?.count() > 1 {
        return Err(io::Error::other("cannot become a daemon after threads were started"));
    }
    // SAFETY: this is the only thread (checked above), so the child finds every lock free.
    let child = check(unsafe { libc::fork() })?;
    Ok((child > 0).then_some(Child(child)))
}

/// A process that was split off. It stays a zombie until it is reaped.
#[derive(Debug)]
pub struct Child(libc::pid_t);

impl Child {
    /// Asks it to end: `SIGTERM`.
    pub fn terminate(&self) -> io::Result<()> {
        // SAFETY: takes integers; the child is not reaped yet, so its number is still its own.
        check(unsafe { libc::kill(self.0, libc::SIGTERM) })?;
        Ok(())
    }

    /// Waits for its end: the exit code, or the signal that killed it.
    pub fn reap(self) -> io::Result<Result<u8, u8>> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is a valid place for the result.
            match check(unsafe { libc::waitpid(self.0, &raw mut status, 0) }) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Both are below 256.
        Ok(if libc::WIFSIGNALED(status) {
            Err(libc::WTERMSIG(status) as u8)
        } else {
            Ok(libc::WEXITSTATUS(status) as u8)
        })
    }
}

/// Leaves the working directory, so that it can be unmounted, and the terminal.
pub fn leave_terminal() -> io::Result<()> {
    leave(|| Ok(()))
}

fn leave(last_word: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // The word comes before the streams go, for a failure to be heard.
    last_word()?;
    for stream in 0..=2 {
        // SAFETY: takes two integers; the standard streams are not owned by any Rust value that closes them.
        check(unsafe { libc::dup2(null.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// Closes whatever a caller left open, but for the standard streams (`close_range(2)`). For a program that stays, and has
/// not opened anything itself yet.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: takes integers. The caller has no descriptor that a Rust value owns.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) })?;
    Ok(())
}

/// The name of this process in `ps`, cut after 15 bytes (`PR_SET_NAME`).
pub fn set_name(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is NUL-terminated and outlives the call; the other arguments are not looked at.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) })?;
    Ok(())
}

/// SIGINT, SIGTERM and SIGHUP as something to wait for: they are blocked, and the descriptor becomes readable instead
/// (`signalfd(2)`). For a process of one thread.
pub fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: `sigset_t` is plain data, made valid by `sigemptyset`; all calls get that one set.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut set))?;
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            check(libc::sigaddset(&raw mut set, signal))?;
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC))?
    };
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until one of two descriptors can be read, or is closed at its other end: which of them.
pub fn readable(two: [BorrowedFd<'_>; 2]) -> io::Result<[bool; 2]> {
    let mut polls = two.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    loop {
        // SAFETY: two valid `pollfd`.
        match check(unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(polls.map(|poll| poll.revents != 0)),
        }
    }
}

impl Waiter {
    /// The daemon's word: what it says when it is ready, or why it could not start (`Err`), or how it died before either.
    pub fn wait(self) -> io::Result<Result<String, String>> {
        let mut said = Vec::new();
        self.pipe.take(MAX_MESSAGE).read_to_end(&mut said)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(match said.split_first() {
            Some((b'+', message)) => Ok(text(message)),
            Some((_, message)) => Err(text(message)),
            None => Err(format!("the daemon {} before it was ready", death(self.child)?)),
        })
    }
}

/// Reaps a child that has closed its pipe, and says how it ended.
fn death(child: Child) -> io::Result<String> {
    Ok(match child.reap()? {
        Err(signal) => format!("was killed by signal {signal}"),
        Ok(code) => format!("ended with exit code {code}"),
    })
}

impl Notifier {
    /// Says that all is well, leaves the working directory (so that it can be unmounted), the terminal and its session.
    ///
    /// `BrokenPipe` if the parent is gone: whoever started this has given up.
    pub fn ready(self, message: &str) -> io::Result<()> {
        leave(|| new_session().and_then(|()| self.say(b'+', message)))
    }

    /// Whether somebody still waits for the word.
    pub fn is_awaited(&self) -> bool {
        // A pipe whose other end is closed is in error.
        !is_in_error(self.pipe.as_fd()).unwrap_or(false)
    }

    /// Says why it could not start. The caller then ends the process.
    pub fn failed(self, message: &str) -> io::Result<()> {
        self.say(b'-', message)
    }

    fn say(&self, sign: u8, message: &str) -> io::Result<()> {
        let mut bytes = vec![sign];
        bytes.extend_from_slice(message.as_bytes());
        (&self.pipe).write_all(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    const ROLE: &str = "TORRENTFS_TEST_DAEMON";

    /// Runs `daemon_helper` in a process of its own and gives what its parent side heard.
    fn heard(role: &str) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sys::process::tests::daemon_helper", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (_, heard) = text.split_once("HEARD ").unwrap_or_else(|| panic!("nothing heard in {text:?}"));
        heard.lines().next().unwrap().to_owned()
    }

    #[test]
    fn descriptors_are_never_fewer() {
        let now = allow_descriptors(0).unwrap();
        assert_eq!(allow_descriptors(1).unwrap(), now);
        let more = allow_descriptors(now + 1).unwrap();
        assert!(more == now || more == now + 1);
        assert_eq!(allow_descriptors(0).unwrap(), more);
    }

    /// Not a test of its own: the process that the tests below start.
    #[test]
    fn daemon_helper() {
        let Ok(role) = std::env::var(ROLE) else { return };
        match fork().unwrap() {
            Side::Parent(waiter) => {
                println!("HEARD {:?}", waiter.wait().unwrap());
                io::stdout().flush().unwrap();
            }
            Side::Child(notifier) => {
                let code = match role.as_str() {
                    "ready" => {
                        let ready = notifier.ready("mounted").is_ok();
                        let at_root = std::env::current_dir().unwrap() == std::path::Path::new("/");
                        i32::from(!(ready && at_root))
                    }
                    "failed" => i32::from(notifier.failed("no such torrent").is_err()),
                    "killed" => {
                        // SAFETY: sends a signal to this very process.
                        unsafe { libc::raise(libc::SIGKILL) };
                        1
                    }
                    _ => 7,
                };
                // SAFETY: ends the child at once, without the harness's exit handlers.
                unsafe { libc::_exit(code) };
            }
        }
    }

    #[test]
    fn the_parent_hears_how_the_daemon_fares() {
        assert_eq!(heard("ready"), r#"Ok("mounted")"#);
        assert_eq!(heard("failed"), r#"Err("no such torrent")"#);
        assert_eq!(heard("killed"), r#"Err("the daemon was killed by signal 9 before it was ready")"#);
        assert_eq!(heard("silent"), r#"Err("the daemon ended with exit code 7 before it was ready")"#);
    }

    #[test]
    fn a_process_is_ended_and_waited_for() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.wait(Duration::ZERO).unwrap());
        process.terminate().unwrap();
        assert!(process.wait(Duration::from_secs(60)).unwrap());
        assert!(!child.wait().unwrap().success());
        assert_eq!(Process::open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
