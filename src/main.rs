//! The `torrentfs` command.

use torrentfs::cli::Exit;

fn main() -> Exit {
    torrentfs::cli::run()
}
