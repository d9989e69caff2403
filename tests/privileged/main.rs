//! Tests that need root and namespaces: the mount helper, the packages, units under systemd.

#[path = "../support/mod.rs"]
mod support;

mod mount_helper;
mod names;
mod package;
mod passthrough;
