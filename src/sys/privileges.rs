//! User accounts, and dropping privileges. Dropped privileges cannot be regained.

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::errno::check;

/// First size of the buffer for an entry of the user database, in bytes; `ERANGE` asks for a larger one.
const ENTRY_LEN: usize = 1024;
/// Largest size of that buffer, in bytes; a longer entry is an error.
const MAX_ENTRY_LEN: usize = 1 << 20;
/// `_LINUX_CAPABILITY_VERSION_3` in `linux/capability.h`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `CAP_KILL`: signal processes of other users.
pub const KILL: u32 = 5;
/// `CAP_DAC_READ_SEARCH`: read files and directories whatever their modes say.
pub const READ_SEARCH: u32 = 2;
/// `CAP_SYS_ADMIN`: mount and unmount, among much else.
pub const SYS_ADMIN: u32 = 21;

/// A user account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user name in the system's user database.
    pub name: String,
    /// The user ID.
    pub user: u32,
    /// The ID of the user's primary group.
    pub group: u32,
}

/// Looks up a user by name (`getpwnam_r(3)`) or by ID (`getpwuid_r(3)`). Returns `None` if there is no such user.
pub fn account(name: &str) -> io::Result<Option<Account>> {
    let by_name = CString::new(name)?;
    let number: Option<libc::uid_t> = name.parse().ok();
    let mut strings = vec![0; ENTRY_LEN];
    loop {
        // SAFETY: all-zero bytes are a valid `passwd`: null pointers and zeros.
        let mut entry: libc::passwd = unsafe { mem::zeroed() };
        let mut found = ptr::null_mut();
        let (buffer, len) = (strings.as_mut_ptr(), strings.len());
        let error = match number {
            // SAFETY: `entry`, `found` and the `len` bytes of `buffer` are writable and outlive the call.
            Some(number) => unsafe { libc::getpwuid_r(number, &raw mut entry, buffer, len, &raw mut found) },
            // SAFETY: as above; the name is NUL-terminated and outlives the call.
            None => unsafe { libc::getpwnam_r(by_name.as_ptr(), &raw mut entry, buffer, len, &raw mut found) },
        };
        match error {
            0 if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: on success the entry's strings are NUL-terminated and within `strings`, which is unchanged.
                let name = unsafe { CStr::from_ptr(entry.pw_name) }.to_string_lossy().into_owned();
                return Ok(Some(Account { name, user: entry.pw_uid, group: entry.pw_gid }));
            }
            libc::ERANGE if strings.len() < MAX_ENTRY_LEN => strings.resize(strings.len() * 2, 0),
            // Some user databases report a missing user by these errors.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Switches to a user with that user's groups, without any capability and without a means to regain one: the bounding set
/// is empty, and set-user-id programs grant nothing.
///
/// Call it while there is one thread, because capabilities belong to a thread.
pub fn become_user(account: &Account) -> io::Result<()> {
    let name = CString::new(account.name.as_str())?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    check(unsafe { libc::initgroups(name.as_ptr(), account.group) })?;
    clear_bounding_set()?;
    // SAFETY: the call takes integers.
    check(unsafe { libc::setresgid(account.group, account.group, account.group) })?;
    // SAFETY: the call takes integers.
    check(unsafe { libc::setresuid(account.user, account.user, account.user) })?;
    keep_capabilities(&[])
}

/// Drops every capability without a means to regain one, and stays the same user.
///
/// Call it while there is one thread, because capabilities belong to a thread.
pub fn drop_capabilities() -> io::Result<()> {
    clear_bounding_set()?;
    keep_capabilities(&[])
}

/// Keeps these capabilities and drops all others. Neither this process nor a program that it executes can gain new ones.
///
/// Call it while there is one thread, because capabilities belong to a thread.
pub fn keep_capabilities(kept: &[u32]) -> io::Result<()> {
    /// `__user_cap_header_struct`
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    /// `__user_cap_data_struct`; the call takes two, for the lower and the upper 32 capabilities.
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
    // SAFETY: version 3 of the call reads one header and two data structures, which are valid and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })?;
    Ok(())
}

/// Removes every capability from the bounding set. Needs `CAP_SETPCAP`.
pub fn clear_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            // The last capability that this kernel knows was the one before.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

fn prctl(operation: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: the operations that the callers use take integers.
    check(unsafe { libc::prctl(operation, argument, none, none, none) })?;
    Ok(())
}

/// Enters the mount namespace of an open `/proc/PID/ns/mnt` (`setns(2)`).
pub fn enter_mount_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes integers; the descriptor is open.
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
