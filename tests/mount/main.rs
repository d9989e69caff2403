//! Tests of real mounts: what programs see, what the mount reports and serves, and how it copes with failures.

#[path = "../support/mod.rs"]
mod support;

mod api;
mod control;
mod disk;
mod filesystem;
mod fixture;
mod hostile_http;
mod http;
mod large_pieces;
mod many;
mod many_pieces;
mod passthrough;
mod process;
mod queue;
mod tools;
mod trouble;
mod waiting;
mod webseed_mount;
