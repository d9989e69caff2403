//! The only `unsafe` code: thin, safe wrappers over system calls that the standard library does not have.
//!
//! Each function does one call, checks its result and says which promise of the call it keeps. No policy lives here.

pub mod datagrams;
pub mod file;
pub mod mount;
pub mod privileges;
pub mod process;
