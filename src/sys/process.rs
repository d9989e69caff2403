//! Daemons, resource limits, the allocator, and signals to other processes.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::errno::check;

/// Returns the effective user ID.
pub fn user() -> u32 {
    // SAFETY: the call takes no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Returns the effective group ID.
pub fn group() -> u32 {
    // SAFETY: the call takes no arguments and cannot fail.
    unsafe { libc::getegid() }
}

/// Raises the soft limit on open descriptors to `wanted`, or to the hard limit if that is lower (`setrlimit(2)`). Never
/// lowers it. Returns the limit that now applies.
pub fn raise_descriptor_limit(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable and outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    let raised = libc::rlimit { rlim_cur: wanted.min(limit.rlim_max), ..limit };
    if raised.rlim_cur > limit.rlim_cur {
        // SAFETY: the call only reads `raised`, which outlives it.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) })?;
        return Ok(raised.rlim_cur);
    }
    Ok(limit.rlim_cur)
}

/// Makes a write beyond the limit on file sizes (`ulimit -f`) fail with `EFBIG`. By default its signal, `SIGXFSZ`, ends the
/// process.
pub fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal installs no handler, so no code of ours runs at an unexpected time.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Makes the GNU allocator return freed memory to the kernel early (`mallopt(3)`); does nothing with other allocators. By
/// default it keeps up to eight heaps per core, and buffers of some MiB leave holes in each: with ten active torrents a
/// third of the memory was such holes. Measured, streaming is no slower with these settings.
pub fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // A setting that the allocator refuses keeps its default.
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        // Free bytes at the end of a heap above which the heap shrinks.
        (libc::M_TRIM_THRESHOLD, 4 << 20),
        // Size from which an allocation is a mapping of its own, which the kernel zeroes: larger than most pieces.
        (libc::M_MMAP_THRESHOLD, 8 << 20),
    ] {
        // SAFETY: the call takes two integers and touches none of our memory.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Makes the GNU allocator return the free pages in the middle of its heaps to the kernel (`malloc_trim(3)`). Allocations
/// by other threads wait meanwhile, up to some milliseconds if there is much to return.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes an integer and frees only memory that nobody uses.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Returns whether there is a process or thread with this ID in our PID namespace, dead but not reaped ones included.
pub fn exists(pid: u32) -> bool {
    let Ok(pid @ 1..) = libc::pid_t::try_from(pid) else { return false };
    // SAFETY: the call takes integers; signal 0 only checks whether the process exists.
    let result = check(unsafe { libc::kill(pid, 0) });
    result.map_or_else(|error| error.raw_os_error() != Some(libc::ESRCH), |_| true)
}

/// Makes a system call by number, with integers as arguments, to test whether it is refused. None may point to memory.
#[cfg(test)]
pub fn raw_call(number: libc::c_long, arguments: [libc::c_long; 4]) -> io::Result<libc::c_long> {
    let [a, b, c, d] = arguments;
    // SAFETY: null pointers and the small integers of the tests are no addresses of our memory.
    check(unsafe { libc::syscall(number, a, b, c, d) })
}

/// A process held by descriptor: its ID cannot be reused for another process while this value exists.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// Opens a process by ID (`pidfd_open(2)`); `ESRCH` if there is no such process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        // SAFETY: the call takes two integers and touches none of our memory.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: the kernel just made this descriptor (closed on exec) for us alone; descriptors fit in a C int.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }))
    }

    /// Sends `SIGTERM` to the process (`pidfd_send_signal(2)`).
    pub fn terminate(&self) -> io::Result<()> {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is an open pidfd, and the call accepts a null `siginfo`.
        check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGTERM, no_info, 0) })?;
        Ok(())
    }

    /// Waits until the process ends, for at most `limit`. Returns whether it has ended.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `poll` is one valid `pollfd` that outlives the call.
        match check(unsafe { libc::poll(&raw mut poll, 1, limit) }) {
            Ok(ready) => Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Duplicates a descriptor of another process (`pidfd_getfd(2)`, Linux 5.6). Needs the right to trace that process.
pub fn descriptor_of(process: &Process, number: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers; the process's descriptor is open.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.0.as_raw_fd(), number, 0) })?;
    // SAFETY: the kernel just made this descriptor (closed on exec) for us alone; descriptors fit in a C int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Returns whether `poll(2)` reports an error on a descriptor, as it does on a FUSE device that belongs to no mount.
pub fn has_poll_error(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: `poll` is one valid `pollfd` that outlives the call.
    check(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    Ok(poll.revents & libc::POLLERR != 0)
}

/// Largest message from a daemon to its parent, in bytes: an error text of many lines fits.
const MAX_MESSAGE: u64 = 64 * 1024;

/// The process that [`fork_daemon`] returns in.
#[derive(Debug)]
pub enum Side {
    /// The process that was started; it waits for the daemon's report and ends.
    Parent(Waiter),
    /// The future daemon.
    Child(Notifier),
}

/// The parent's end: waits for the daemon's report.
#[derive(Debug)]
pub struct Waiter {
    pipe: File,
    child: Child,
}

/// The daemon's end: reports success or failure. Dropped without a report, it counts as a failure in the parent.
#[derive(Debug)]
pub struct Notifier {
    pipe: File,
}

/// Forks a daemon. It stays in this process group until [`Notifier::ready`]: while an automount waits for its mount, autofs
/// lets only the mounting process group reach the mount point (systemd runs mount(8) in a group of its own for that). It
/// also means that Ctrl-C during the wait ends both processes.
///
/// The daemon keeps its working directory and its standard streams until [`Notifier::ready`], so that relative paths and
/// messages still work while it starts. Call this before any thread is started, the async runtime's included: a fork
/// copies only the calling thread, and every lock in its present state. With more than one thread it is an error.
pub fn fork_daemon() -> io::Result<Side> {
    let (read, write) = io::pipe()?;
    match fork_child()? {
        None => {
            drop(read);
            Ok(Side::Child(Notifier { pipe: File::from(OwnedFd::from(write)) }))
        }
        Some(child) => Ok(Side::Parent(Waiter { pipe: File::from(OwnedFd::from(read)), child })),
    }
}

/// Starts a session, so that Ctrl-C in the terminal and the terminal's closing no longer reach this process (`setsid(2)`).
/// Fails for the leader of a process group, which the child of a fork is not.
pub fn new_session() -> io::Result<()> {
    // SAFETY: the call takes no arguments.
    check(unsafe { libc::setsid() })?;
    Ok(())
}

/// Forks (`fork(2)`). Returns the child, or `None` in the child itself. Like [`fork_daemon`] it needs a single thread.
pub fn fork_child() -> io::Result<Option<Child>> {
    // Under test the harness has threads of its own; they hold no lock that the child uses.
    if !cfg!(test) && std::fs::read_dir("/proc/self/task")?.count() > 1 {
        return Err(io::Error::other("cannot fork: other threads have already started"));
    }
    // SAFETY: this is the only thread (checked above), so no lock is held by a thread that the child lacks.
    let child = check(unsafe { libc::fork() })?;
    Ok((child > 0).then_some(Child(child)))
}

/// A forked process. It stays a zombie until it is reaped.
#[derive(Debug)]
pub struct Child(libc::pid_t);

impl Child {
    /// Sends `SIGTERM` to the child.
    pub fn terminate(&self) -> io::Result<()> {
        // SAFETY: the call takes integers. The child is not reaped yet, so its ID is not reused.
        check(unsafe { libc::kill(self.0, libc::SIGTERM) })?;
        Ok(())
    }

    /// Waits until the child ends. Returns its exit code, or the signal that killed it as the inner error.
    pub fn reap(self) -> io::Result<Result<u8, u8>> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is writable and outlives the call.
            match check(unsafe { libc::waitpid(self.0, &raw mut status, 0) }) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Exit codes and signal numbers are below 256.
        Ok(if libc::WIFSIGNALED(status) {
            Err(libc::WTERMSIG(status) as u8)
        } else {
            Ok(libc::WEXITSTATUS(status) as u8)
        })
    }
}

/// Changes to the root directory, so that the old one can be unmounted, and replaces the standard streams by `/dev/null`.
pub fn detach_from_terminal() -> io::Result<()> {
    detach_after(|| Ok(()))
}

/// Detaches as [`detach_from_terminal`] does, after a report.
fn detach_after(report: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // Report while the streams are still open, so that an error can be printed.
    report()?;
    for stream in 0..=2 {
        // SAFETY: the call takes two integers. No Rust value that closes its descriptor owns a standard stream.
        check(unsafe { libc::dup2(null.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// Closes every descriptor inherited from the parent process, except the standard streams (`close_range(2)`). Call it
/// before the program opens anything itself.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: the call takes integers. No Rust value owns a descriptor yet, so none is closed under its owner.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) })?;
    Ok(())
}

/// Sets the name of this process in `ps`, cut to 15 bytes (`PR_SET_NAME`).
pub fn set_name(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is NUL-terminated and outlives the call; the other arguments are ignored.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) })?;
    Ok(())
}

/// Blocks SIGINT, SIGTERM and SIGHUP, and returns a descriptor that becomes readable when one arrives (`signalfd(2)`). For
/// a process with one thread.
pub fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: `sigset_t` is plain data that `sigemptyset` initialises; every call gets that one set, which outlives them.
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

/// An event to wait for with [`poll`].
#[derive(Clone, Copy, Debug)]
pub enum Awaited<'fd> {
    /// The descriptor is readable, or closed at its other end (`POLLIN`).
    Readable(BorrowedFd<'fd>),
    /// The file of `/proc` has changed since it was last polled (`POLLPRI`).
    Changed(BorrowedFd<'fd>),
}

/// Waits until one of the events has happened. Returns for each whether it has.
pub fn poll<const N: usize>(events: [Awaited<'_>; N]) -> io::Result<[bool; N]> {
    let mut polls = events.map(|event| {
        let (fd, events) = match event {
            Awaited::Readable(fd) => (fd, libc::POLLIN),
            Awaited::Changed(fd) => (fd, libc::POLLPRI),
        };
        libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
    });
    loop {
        // SAFETY: `polls` is `N` valid `pollfd` that outlive the call.
        match check(unsafe { libc::poll(polls.as_mut_ptr(), N as libc::nfds_t, -1) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(polls.map(|poll| poll.revents != 0)),
        }
    }
}

impl Waiter {
    /// Waits for the daemon's report: its message when it is ready, or, as the inner error, why it could not start or how
    /// it died before it reported.
    pub fn wait(self) -> io::Result<Result<String, String>> {
        let mut report = Vec::new();
        self.pipe.take(MAX_MESSAGE).read_to_end(&mut report)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(match report.split_first() {
            Some((b'+', message)) => Ok(text(message)),
            Some((_, message)) => Err(text(message)),
            None => Err(format!("the daemon {} before it was ready", describe_exit(self.child)?)),
        })
    }
}

/// Reaps a child that has closed its pipe, and describes how it ended.
fn describe_exit(child: Child) -> io::Result<String> {
    Ok(match child.reap()? {
        Err(signal) => format!("was killed by signal {signal}"),
        Ok(code) => format!("ended with exit code {code}"),
    })
}

impl Notifier {
    /// Reports that the daemon is ready, and leaves the working directory (so that it can be unmounted), the terminal and
    /// its session.
    ///
    /// Fails with `BrokenPipe` if the parent is gone, which means that the user gave up waiting.
    pub fn ready(self, message: &str) -> io::Result<()> {
        detach_after(|| new_session().and_then(|()| self.send(b'+', message)))
    }

    /// Returns whether the parent still waits for the report.
    pub fn is_awaited(&self) -> bool {
        // `poll` reports an error on a pipe whose other end is closed.
        !has_poll_error(self.pipe.as_fd()).unwrap_or(false)
    }

    /// Reports why the daemon could not start. The caller then ends the process.
    pub fn failed(self, message: &str) -> io::Result<()> {
        self.send(b'-', message)
    }

    fn send(&self, sign: u8, message: &str) -> io::Result<()> {
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

    /// Runs `daemon_helper` in a process of its own and returns the report that its parent side received.
    fn report_of(role: &str) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sys::process::tests::daemon_helper", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (_, report) = text.split_once("REPORT ").unwrap_or_else(|| panic!("no report in {text:?}"));
        report.lines().next().unwrap().to_owned()
    }

    #[test]
    fn the_descriptor_limit_is_never_lowered() {
        let now = raise_descriptor_limit(0).unwrap();
        assert_eq!(raise_descriptor_limit(1).unwrap(), now);
        let more = raise_descriptor_limit(now + 1).unwrap();
        assert!(more == now || more == now + 1);
        assert_eq!(raise_descriptor_limit(0).unwrap(), more);
    }

    /// The process that the test below starts; does nothing when run as a test.
    #[test]
    fn daemon_helper() {
        let Ok(role) = std::env::var(ROLE) else { return };
        match fork_daemon().unwrap() {
            Side::Parent(waiter) => {
                println!("REPORT {:?}", waiter.wait().unwrap());
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
                        // SAFETY: the call takes an integer and kills this process.
                        unsafe { libc::raise(libc::SIGKILL) };
                        1
                    }
                    _ => 7,
                };
                // SAFETY: the call takes an integer and ends the child at once, without the harness's exit handlers.
                unsafe { libc::_exit(code) };
            }
        }
    }

    #[test]
    fn the_parent_receives_the_daemons_report() {
        assert_eq!(report_of("ready"), r#"Ok("mounted")"#);
        assert_eq!(report_of("failed"), r#"Err("no such torrent")"#);
        assert_eq!(report_of("killed"), r#"Err("the daemon was killed by signal 9 before it was ready")"#);
        assert_eq!(report_of("silent"), r#"Err("the daemon ended with exit code 7 before it was ready")"#);
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
