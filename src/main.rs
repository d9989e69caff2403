//! The `torrentfs` command.

use torrentfs::cli::args::Exit;

fn main() -> Exit {
    torrentfs::cli::run()
}
