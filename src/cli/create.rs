//! `torrentfs create`: makes a `.torrent` file from a file or a directory.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::failure::{Exit, Failure};
use super::flags::values::{Tier, name, tier, web_seed};
use super::make_torrent::{self, Recipe};
use crate::metainfo::MAX_PIECE_LEN;

/// Smallest piece length in bytes that other clients accept.
const MIN_PIECE_LEN: u64 = 16 << 10;

const DESCRIPTION: &str = "\
The torrent is written to NAME.torrent in the current directory, or to --output.
An existing file is replaced only with --force. PATH is only read. A file that
changes while it is hashed is an error.

Hashing uses all processors. Memory use does not depend on the piece length, and
holes in sparse files are not read.";

const SECTIONS: &str = "\
Included files:
  Hidden files, whose names begin with a dot, are left out unless --hidden is
  given; --ignore leaves out more. Empty directories are left out, since a
  torrent cannot contain them. Symbolic links within PATH and executable bits
  are kept (BEP 47). Links that lead out of PATH, FIFOs, sockets, devices and
  names that are not UTF-8 are errors; leave them out with --ignore.

Same info hash as other programs:
  libtorrent            if its files are sorted by the bytes of their paths
  mktorrent             --hidden --dereference --no-executable
  transmission-create   --private --dereference --no-executable, if no file is
                        empty and names are ASCII in a single case
  With --no-date, or a fixed SOURCE_DATE_EPOCH, the same files and options give
  the same bytes.

Values:
  GLOB  a shell pattern: without '/' for names at any depth, with '/' for paths
        below PATH; '/' at the end matches directories only, '**' any depth
  SIZE  a power of two with a unit: 256KiB, 4MiB

Environment:
  SOURCE_DATE_EPOCH  creation date to store, in seconds since 1970

JSON:
  torrent (path; null for standard output), name, info_hash, magnet, size,
  files (number), piece_length, pieces (number), private, left_out (numbers:
  hidden, ignored, empty_directories)

Examples:
  torrentfs create film -a http://tracker.example.org/announce
  torrentfs create album -a http://a.example.org/announce \\
      -a udp://b.example.org:80,udp://c.example.org:80
  torrentfs create photos --ignore '*.xmp' --ignore thumbnails/ --private";

/// Make a .torrent file from a file or a directory
#[derive(Args, Clone, Debug)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS, args_override_self = true)]
pub(super) struct CreateArgs {
    /// File or directory to share
    path: PathBuf,

    /// File or directory to write the torrent to, or "-" for standard output [default: NAME.torrent]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace an existing torrent file
    #[arg(short, long)]
    force: bool,

    /// Announce URL of a tracker, or several URLs of one tier; repeat the option for further tiers
    #[arg(short = 'a', long = "tracker", value_name = "URL[,URL]", value_parser = tier, help_heading = "Torrent")]
    trackers: Vec<Tier>,

    /// URL of an HTTP server that has the files (BEP 19); may be repeated
    #[arg(short, long = "web-seed", value_name = "URL", value_parser = web_seed, help_heading = "Torrent")]
    web_seeds: Vec<String>,

    /// Make a private torrent, whose peers come from its trackers only (BEP 27)
    #[arg(short, long, help_heading = "Torrent")]
    private: bool,

    /// Comment to store in the torrent
    #[arg(short, long, value_name = "TEXT", help_heading = "Torrent")]
    comment: Option<String>,

    /// Source tag, which gives the same files another info hash
    #[arg(short, long, value_name = "TEXT", help_heading = "Torrent")]
    source: Option<String>,

    /// Name of the torrent [default: the name of PATH]
    #[arg(short, long, value_parser = name, help_heading = "Torrent")]
    name: Option<String>,

    /// Piece length [default: the smallest that gives at most 2048 pieces, up to 4MiB]
    #[arg(short = 'l', long, value_name = "SIZE", value_parser = piece_len, help_heading = "Torrent")]
    piece_length: Option<u32>,

    /// Store no creation date
    #[arg(long, help_heading = "Torrent")]
    no_date: bool,

    /// Include hidden files
    #[arg(long, help_heading = "Files")]
    hidden: bool,

    /// Leave out files and directories that match; may be repeated
    #[arg(short, long, value_name = "GLOB", help_heading = "Files")]
    ignore: Vec<String>,

    /// Store the targets of symbolic links instead of the links
    #[arg(short = 'L', long, help_heading = "Files")]
    dereference: bool,

    /// Do not store executable bits
    #[arg(long, help_heading = "Files")]
    no_executable: bool,

    /// Version of the torrent format; only v1 is supported so far
    #[arg(long, value_enum, default_value_t = Format::V1, hide_possible_values = true, help_heading = "Torrent")]
    format: Format,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Value of `--format`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    V1,
    // Not supported yet.
    #[value(hide = true)]
    V2,
    // Not supported yet.
    #[value(hide = true)]
    Hybrid,
}

/// Makes the torrent.
pub(super) fn run(args: CreateArgs, quiet: bool) -> Result<(), Failure> {
    if args.format != Format::V1 {
        return Err(Failure::new(Exit::Usage, "BitTorrent v2 torrents are not supported yet; use --format v1"));
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

/// Parses a piece length.
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
    fn piece_lengths_are_powers_of_two() {
        assert_eq!((piece_len("16KiB"), piece_len("4MiB"), piece_len("32768")), (Ok(16384), Ok(4 << 20), Ok(32768)));
        for nonsense in ["", "8KiB", "17KiB", "1MB", "256MiB", "0", "-1"] {
            assert!(piece_len(nonsense).is_err(), "{nonsense}");
        }
    }
}
