//! Users of the system, and giving up what a process may do. Each step is for good.

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::process::check;

/// Room for one entry of the user database; glibc asks for more where an entry has more.
const ENTRY: usize = 1024;
/// No entry is longer.
const MAX_ENTRY: usize = 1 << 20;
/// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Kill processes of other users: `CAP_KILL`.
pub const KILL: u32 = 5;
/// Read and follow what the file modes forbid: `CAP_DAC_READ_SEARCH`.
pub const READ_SEARCH: u32 = 2;
/// Mount and unmount, among much else: `CAP_SYS_ADMIN`.
pub const SYS_ADMIN: u32 = 21;

/// A user of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// As in `/etc/passwd`, or from wherever the system has its users.
    pub name: String,
    /// The number.
    pub user: u32,
    /// The number of the user's own group.
    pub group: u32,
}

/// Looks a user up by name (`getpwnam_r(3)`), or by number (`getpwuid_r(3)`). `None`: there is none.
pub fn account(name: &str) -> io::Result<Option<Account>> {
    let by_name = CString::new(name)?;
    let number: Option<libc::uid_t> = name.parse().ok();
    let mut room = vec![0; ENTRY];
    loop {
        // SAFETY: `passwd` is plain data for which all zeros is valid.
        let mut entry: libc::passwd = unsafe { mem::zeroed() };
        let mut found = ptr::null_mut();
        let (buffer, len) = (room.as_mut_ptr(), room.len());
        let error = match number {
            // SAFETY: `entry`, `found` and `room` are writable for the lengths stated and outlive the call.
            Some(number) => unsafe { libc::getpwuid_r(number, &raw mut entry, buffer, len, &raw mut found) },
            // SAFETY: as above, and the name is NUL-terminated.
            None => unsafe { libc::getpwnam_r(by_name.as_ptr(), &raw mut entry, buffer, len, &raw mut found) },
        };
        match error {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: on success the entry's strings are NUL-terminated and stand in `room`, which is still there.
                let name = unsafe { CStr::from_ptr(entry.pw_name) }.to_string_lossy().into_owned();
                return Ok(Some(Account { name, user: entry.pw_uid, group: entry.pw_gid }));
            }
            libc::ERANGE if room.len() < MAX_ENTRY => room.resize(room.len() * 2, 0),
            // Some sources of users say "there is none" so.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Becomes a user, with that user's groups, without any capability and without a way to new ones: the bounding set is
/// empty and programs with the set-user-id bit give nothing.
///
/// Only while there is one thread: capabilities are a thread's own.
pub fn become_user(account: &Account) -> io::Result<()> {
    let name = CString::new(account.name.as_str())?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    check(unsafe { libc::initgroups(name.as_ptr(), account.group) })?;
    empty_bounding_set()?;
    // SAFETY: takes integers.
    check(unsafe { libc::setresgid(account.group, account.group, account.group) })?;
    // SAFETY: takes integers.
    check(unsafe { libc::setresuid(account.user, account.user, account.user) })?;
    keep_capabilities(&[])
}

/// Keeps these capabilities and no others, for this process and for what it may start; no new ones ever.
///
/// Only while there is one thread: capabilities are a thread's own.
pub fn keep_capabilities(kept: &[u32]) -> io::Result<()> {
    /// `__user_cap_header_struct`
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    /// `__user_cap_data_struct`; there are two, for the lower and the upper 32 capabilities.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    let halves = [0, 32].map(|from| {
        let bits =
            kept.iter().filter(|bit| (from..from + 32).contains(*bit)).fold(0, |set, bit| set | 1 << (bit - from));
        Data { effective: bits, permitted: bits, inheritable: 0 }
    });
    let header = Header { version: CAPABILITY_VERSION, pid: 0 };
    // SAFETY: version 3 of the call reads one header and two data structures, all valid.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })?;
    Ok(())
}

/// Takes every capability out of the bounding set. Needs `CAP_SETPCAP`.
pub fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            // Beyond the last one that this kernel has.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

fn prctl(operation: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: the operations that are used take integers.
    check(unsafe { libc::prctl(operation, argument, none, none, none) })?;
    Ok(())
}

/// Enters another mount namespace (`setns(2)`), named by an open file of `/proc/PID/ns/mnt`.
pub fn enter_mount_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes integers; the descriptor is open.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let root = Account { name: "root".into(), user: 0, group: 0 };
        assert_eq!(account("root").unwrap(), Some(root.clone()));
        assert_eq!(account("0").unwrap(), Some(root));
        assert_eq!(account("no-such-user-here").unwrap(), None);
        assert_eq!(account("4294967294").unwrap(), None);
        assert_eq!(account("").unwrap(), None);
        assert!(account("a\0b").is_err());
    }
}
