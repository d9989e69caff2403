//! Tests of the commands: output, exit codes, configuration, and the files that they read and write.

#[path = "../support/mod.rs"]
mod support;

mod check;
mod config;
mod create;
mod edit;
mod pictures;
mod program;
mod sources;
mod top;
