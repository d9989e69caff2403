//! The system calls that the server of a system mount may make (seccomp, see seccomp(2)).
//!
//! The server talks to strangers. If one takes it over, it must not be able to run a program, trace or signal its way into
//! another process, mount, or reach the rarely used parts of the kernel. So all system calls are refused with EPERM but
//! those that the async runtime, FUSE, TLS, name resolution and the C library need. This costs some 50 ns a call.
//!
//! An allow-list can be too short: a call that a later C library makes fails then. It is refused, not fatal, and libraries
//! have fallbacks. `clone3` is refused with ENOSYS, because its flags are out of the filter's reach and the C library falls
//! back to `clone`, whose flags the filter checks: it may start threads, but no process and no namespace.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// Flags of `clone` that make a namespace, and the one that makes a thread instead of a process.
const NAMESPACES: libc::c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;
const THREAD: libc::c_int = libc::CLONE_THREAD;

/// Calls on open files and directories.
const FILES: &[libc::c_long] = &[
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ioctl,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Calls on sockets, and for waiting.
const EVENTS: &[libc::c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettimeofday,
    libc::SYS_listen,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_signalfd4,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
];

/// Calls for memory, threads and signals, and about this process. `clone3` is here for the other filter to refuse.
const PROCESS: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setsid,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_tgkill,
    libc::SYS_uname,
    // futex_wake, futex_wait and futex_requeue, which libc does not name yet; the same numbers everywhere.
    454,
    455,
    456,
];

/// Older forms of calls above, which only x86-64 has.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_inotify_init,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[libc::c_long] = &[];

/// Refuses this thread, and all threads that it starts, every system call that a server does not need. It cannot be undone.
///
/// Does nothing on processors other than x86-64 and aarch64, and if the kernel lacks seccomp.
pub(super) fn restrict() -> io::Result<()> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(()) };
    if arch == TargetArch::riscv64 {
        // It lacks some calls of the lists above.
        return Ok(());
    }
    for program in [clone3(arch), allowed(arch)] {
        let program = program.map_err(io::Error::other)?;
        match apply_filter(&program) {
            // The kernel was built without seccomp, or emulates another one.
            Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error))
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) =>
            {
                return Ok(());
            }
            other => other.map_err(io::Error::other)?,
        }
    }
    Ok(())
}

/// Refuses `clone3` as a kernel does that lacks it.
fn clone3(arch: TargetArch) -> Result<BpfProgram, BackendError> {
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?.try_into()
}

/// Refuses all calls that are not in the lists, and all of `clone` but to start a thread.
fn allowed(arch: TargetArch) -> Result<BpfProgram, BackendError> {
    let mask = SeccompCmpOp::MaskedEq((NAMESPACES | THREAD) as u32 as u64);
    let thread = SeccompCondition::new(0, SeccompCmpArgLen::Qword, mask, THREAD as u64)?;
    let listed = [FILES, EVENTS, PROCESS, LEGACY].concat().into_iter().map(|call| (call, Vec::new()));
    // A call with a signal that would end another process is refused to unprivileged users anyway; signal 0 asks whether
    // one exists.
    let exists = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)?;
    let checked = [(libc::SYS_clone, thread), (libc::SYS_kill, exists)];
    let mut rules: BTreeMap<_, _> = listed.collect();
    for (call, condition) in checked {
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
    }
    SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::raw_call;

    /// Runs `test` in a thread under the filter, which applies to it and the threads that it starts.
    fn restricted<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(|| {
            restrict().unwrap();
            test()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn a_server_can_run_no_program_and_trace_no_process() {
        let refused = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_open,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_open_tree,
            libc::SYS_fsopen,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_capset,
            libc::SYS_personality,
            libc::SYS_sethostname,
            libc::SYS_settimeofday,
            libc::SYS_mknodat,
            libc::SYS_open_by_handle_at,
            // A number that no kernel has.
            100_000,
        ];
        for call in refused {
            let error = restricted(move || raw_call(call, [0; 4]).unwrap_err());
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "system call {call}");
        }
        let error = restricted(|| raw_call(libc::SYS_clone3, [0; 4]).unwrap_err());
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
        let error = restricted(|| std::process::Command::new("true").status().unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_server_can_start_threads_but_no_process_and_no_namespace() {
        for flags in [libc::SIGCHLD, libc::CLONE_NEWUSER | libc::SIGCHLD, THREAD | libc::CLONE_NEWNET] {
            let error = restricted(move || raw_call(libc::SYS_clone, [flags.into(), 0, 0, 0]).unwrap_err());
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{flags:#x}");
        }
        let me = i64::from(std::process::id());
        assert_eq!(restricted(move || raw_call(libc::SYS_kill, [me, 0, 0, 0])).unwrap(), 0);
        let term = i64::from(libc::SIGTERM);
        let error = restricted(move || raw_call(libc::SYS_kill, [me, term, 0, 0]).unwrap_err());
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert_eq!(restricted(|| std::thread::spawn(|| 5).join().unwrap()), 5);
    }

    /// Name resolution, sockets, timers, files, randomness and threads. Real mounts are tested in `tests/privileged`.
    #[test]
    fn a_server_can_do_its_work() {
        restricted(|| {
            let dir = tempfile::tempdir().unwrap();
            let (old, new) = (dir.path().join("a"), dir.path().join("b"));
            std::fs::write(&old, "x").unwrap();
            std::fs::rename(&old, &new).unwrap();
            std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            assert!(crate::sys::process::exists(1));
            crate::cli::runtime::runtime().unwrap().block_on(async {
                let listener = tokio::net::TcpListener::bind("localhost:0").await.unwrap();
                let addr = listener.local_addr().unwrap();
                let (stream, accepted) = tokio::join!(tokio::net::TcpStream::connect(addr), listener.accept());
                stream.unwrap().set_nodelay(true).unwrap();
                drop(accepted.unwrap());
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                assert!(tokio::task::spawn_blocking(move || std::fs::read(new)).await.unwrap().is_ok());
                rand::random::<u64>();
            });
        });
    }
}
