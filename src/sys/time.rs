//! Clocks that the standard library lacks.

use std::mem::MaybeUninit;
use std::time::Duration;

/// Returns the time since boot, including the time that the machine was suspended, which `Instant` leaves out.
pub fn since_boot() -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is valid for writes of a timespec.
    if unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, time.as_mut_ptr()) } != 0 {
        // Linux older than 2.6.39.
        return Duration::ZERO;
    }
    // SAFETY: the call succeeded, so it wrote the time.
    let time = unsafe { time.assume_init() };
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_boot_advances() {
        let before = since_boot();
        std::thread::sleep(Duration::from_millis(20));
        let passed = since_boot() - before;
        assert!(!before.is_zero() && passed >= Duration::from_millis(20), "{before:?} {passed:?}");
    }
}
