//! Tests of real mounts: what programs see, what the mount reports and serves, and how it copes with failures.

#[path = "../support/mod.rs"]
mod support;

mod asking;
mod control;
mod filesystem;
mod http;
mod many;
mod mounting;
mod process;
mod tools;
mod trouble;
mod waiting;
mod webseed_mount;
