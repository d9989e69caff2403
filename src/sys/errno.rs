//! The C convention for errors.

use std::io;

/// Returns the result of a system call, or the error that the call left in `errno` if the result is negative.
pub(super) fn check<T: Default + PartialOrd>(result: T) -> io::Result<T> {
    if result < T::default() { Err(io::Error::last_os_error()) } else { Ok(result) }
}
