//! `torrentfs create`: a file or a tree to a `.torrent`.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::failure::{Exit, Failure};
use super::flags::values::{Tier, name, tier, web_seed};
use super::make_torrent::{self, Recipe};
use crate::metainfo::MAX_PIECE_LEN;

/// The smallest piece that others take.
const MIN_PIECE_LEN: u64 = 16 << 10;

const AFTER_HELP: &str = "\
A tracker tier is one --tracker; trackers within a tier are separated by commas.
GLOB is as in a shell: without a '/' it is of names at any depth, with one of
paths below PATH; '/' at its end is of directories alone; '**' is of any depth.
SIZE is a power of two with a unit: 256KiB, 4MiB.

Links within the tree and owners' x bits are kept (BEP 47). What begins with a
dot is left out. FIFOs, sockets, devices and names that are not UTF-8 are
errors: --ignore leaves them out. SOURCE_DATE_EPOCH is the date, if it is set.

Examples:
  torrentfs create film -a http://tracker.example.org/announce
  torrentfs create album -a http://a.example.org/announce \\
      -a udp://b.example.org:80,udp://c.example.org:80
  torrentfs create photos --ignore '*.xmp' --ignore thumbnails/ --private";

/// Make a .torrent of a file or a directory
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP, args_override_self = true)]
pub(super) struct CreateArgs {
    /// A file, or a directory of files
    path: PathBuf,

    /// Where the torrent is written, or the directory for it; "-": standard output [default: NAME.torrent]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace a file that is there already
    #[arg(short, long)]
    force: bool,

    /// A tracker's announce URL, or several of a tier, separated by commas; again: the next tier
    #[arg(short = 'a', long = "tracker", value_name = "URL[,URL]", value_parser = tier)]
    trackers: Vec<Tier>,

    /// The URL of an HTTP server that has the files, too (BEP 19)
    #[arg(short, long = "web-seed", value_name = "URL", value_parser = web_seed)]
    web_seeds: Vec<String>,

    /// Peers may come from the trackers alone (BEP 27)
    #[arg(short, long)]
    private: bool,

    /// A text for those who look into the torrent
    #[arg(short, long, value_name = "TEXT")]
    comment: Option<String>,

    /// Whom it is for; makes another torrent of the same files
    #[arg(short, long, value_name = "TEXT")]
    source: Option<String>,

    /// What it is called [default: the name of PATH]
    #[arg(short, long, value_parser = name)]
    name: Option<String>,

    /// Bytes of a piece [default: such that there are at most 2048, but no more than 4MiB]
    #[arg(short = 'l', long, value_name = "SIZE", value_parser = piece_len)]
    piece_length: Option<u32>,

    /// Leave out the date, so that the same files make the same torrent
    #[arg(long)]
    no_date: bool,

    /// Take what begins with a dot, too
    #[arg(long, help_heading = "Files")]
    hidden: bool,

    /// Leave out what is called so
    #[arg(short, long, value_name = "GLOB", help_heading = "Files")]
    ignore: Vec<String>,

    /// Take what links lead to, in place of the links
    #[arg(short = 'L', long, help_heading = "Files")]
    dereference: bool,

    /// Do not keep which files may be run
    #[arg(long, help_heading = "Files")]
    no_executable: bool,

    /// Of which version of BitTorrent
    #[arg(long, value_enum, default_value_t = Format::V1)]
    format: Format,

    /// Tell the result as JSON: torrent, name, info_hash, magnet, size, files, piece_length, pieces, private, left_out
    #[arg(long)]
    json: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// BitTorrent v1
    V1,
    /// Not yet
    #[value(hide = true)]
    V2,
    /// Not yet
    #[value(hide = true)]
    Hybrid,
}

pub(super) fn run(args: CreateArgs, quiet: bool) -> Result<(), Failure> {
    if args.format != Format::V1 {
        return Err(Failure::new(Exit::Usage, "torrents of BitTorrent v2 cannot be made yet; leave out --format"));
    }
    make_torrent::make(&args.into(), quiet).map(drop)
}

impl From<CreateArgs> for Recipe {
    fn from(args: CreateArgs) -> Self {
        Self {
            path: args.path,
            output: args.output,
            force: args.force,
            trackers: args.trackers,
            web_seeds: args.web_seeds,
            private: args.private,
            comment: args.comment,
            source: args.source,
            name: args.name,
            piece_length: args.piece_length,
            no_date: args.no_date,
            hidden: args.hidden,
            ignore: args.ignore,
            dereference: args.dereference,
            no_executable: args.no_executable,
            json: args.json,
        }
    }
}

fn piece_len(text: &str) -> Result<u32, String> {
    let size = text.parse::<ByteSize>().ok().map(|size| size.as_u64());
    size.filter(|size| size.is_power_of_two() && (MIN_PIECE_LEN..=MAX_PIECE_LEN.into()).contains(size))
        .and_then(|size| u32::try_from(size).ok())
        .ok_or_else(|| "expected a power of two from 16KiB to 128MiB, such as 256KiB or 4MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_powers_of_two() {
        assert_eq!((piece_len("16KiB"), piece_len("4MiB"), piece_len("32768")), (Ok(16384), Ok(4 << 20), Ok(32768)));
        for nonsense in ["", "8KiB", "17KiB", "1MB", "256MiB", "0", "-1"] {
            assert!(piece_len(nonsense).is_err(), "{nonsense}");
        }
    }
}
