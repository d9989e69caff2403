//! The only `unsafe` code: thin, safe wrappers over system calls that the standard library does not have.
//!
//! Each function wraps one call and checks its result; every `unsafe` block says why it upholds the call's contract. No
//! policy lives here.

pub mod datagrams;
pub mod descriptors;
mod errno;
pub mod file;
pub mod mount;
pub mod passthrough;
pub mod privileges;
pub mod process;
pub mod time;
