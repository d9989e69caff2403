//! Locks of directories against other processes.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use super::error::{StoreError, io_error};
use crate::sys::file::open_regular;

/// The lock of a directory, released on drop.
#[derive(Debug)]
pub(super) struct DirLock(File);

#[cfg(test)]
impl DirLock {
    /// Returns a copy of the descriptor, as a forked process has it.
    pub fn copy(&self) -> File {
        self.0.try_clone().unwrap()
    }
}

impl Drop for DirLock {
    /// Unlocks the file before it is closed: a program that another thread is just starting has a copy of every descriptor
    /// until it executes, and a lock lasts until the last copy is closed.
    fn drop(&mut self) {
        // Closing the file unlocks it as well, only later.
        let _ = self.0.unlock();
    }
}

/// Locks a directory, because only one process at a time may count and evict in it.
pub(super) fn take_lock(dir: &Path) -> Result<DirLock, StoreError> {
    let path = dir.join("lock");
    let mut options = File::options();
    let opened = open_regular(&path, options.read(true).write(true).create(true).truncate(false));
    let mut file = opened.map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = (&file).take(20).read_to_string(&mut pid);
            let pid = pid.trim();
            let known = !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
            let holder = if known { format!("process {pid}") } else { "another process".into() };
            return Err(StoreError::InUse { dir: dir.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(io_error("write", &path))?;
    Ok(DirLock(file))
}
