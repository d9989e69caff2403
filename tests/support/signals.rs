//! Dispositions of signals, which child processes inherit.

use std::sync::Once;

/// Gives SIGINT and SIGHUP their default effect on the programs that this process starts from now on. A shell ignores
/// SIGINT in its background jobs, and nohup(1) SIGHUP; a test that sends one would wait for ever.
#[allow(unsafe_code)]
pub fn use_defaults() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGINT, libc::SIGHUP] {
            // SAFETY: the default disposition runs no code of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    });
}
