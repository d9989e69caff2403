//! The `mount.torrentfs` command, which mount(8) runs for `mount -t torrentfs` and for `/etc/fstab`.

use std::process::ExitCode;

fn main() -> ExitCode {
    torrentfs::cli::run_mount_helper()
}
