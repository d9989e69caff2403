//! `torrentfs add`: adds torrents to a running mount.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use super::running_mount;
use super::runtime::runtime;
use super::sources;
use crate::control::orders::{AddedTorrent, NewTorrent};
use crate::library::{Named, SourceError};
use crate::web::MAX_UPLOAD;
use crate::web::client::New;

const DESCRIPTION: &str = "\
The torrents stay until `torrentfs remove`, or until the mount ends. If one
SOURCE cannot be added, the others still are.";

const EXAMPLES: &str = "\
Examples:
  torrentfs add /mnt/all film.torrent
  torrentfs add /mnt/all c12fe1c06bba254a9dc9f519b335aa7c1367a88a";

/// Add torrents to a running mount
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = EXAMPLES)]
pub(super) struct AddArgs {
    /// Mountpoint, or a path below it
    mountpoint: PathBuf,

    /// .torrent or .magnet files, http(s) URLs of such files, magnet links, or info hashes
    #[arg(value_name = "SOURCE", required = true, num_args = 1..)]
    sources: Vec<OsString>,
}

/// Adds torrents, one after the other, and continues after a failure.
pub(super) fn run(args: &AddArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mount = running_mount::find(&args.mountpoint)?;
        let mut failure = None;
        for source in &args.sources {
            let added = match read(source) {
                Ok(new) => mount.client.add::<AddedTorrent>(&new).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match added {
                Ok(AddedTorrent { name, already: true, .. }) => println!("{name} was already there"),
                Ok(AddedTorrent { name, .. }) => println!("added {name}"),
                Err(reason) => {
                    let next = Failure::of_torrent("add", &sources::shown(source), reason);
                    // The caller prints the last failure, so print the one before.
                    if let Some(earlier) = failure.replace(next) {
                        eprintln!("torrentfs: {earlier}");
                    }
                }
            }
        }
        failure.map_or(Ok(()), Err)
    })
}

/// Reads a SOURCE. Files are read here, because the mount's process may run as another user or in another directory.
fn read(source: &OsStr) -> Result<New, SourceError> {
    match Named::new(source)? {
        Named::Path(path) if path.is_dir() => {
            Err(io::Error::other("it is a directory; give a directory to `torrentfs mount`").into())
        }
        Named::Path(path) => {
            let mut bytes = Vec::new();
            File::open(path)?.take(MAX_UPLOAD as u64 + 1).read_to_end(&mut bytes)?;
            if bytes.len() > MAX_UPLOAD {
                return Err(io::Error::other("it is longer than 16 MiB, and so can only be mounted, not added").into());
            }
            Ok(New::File(bytes))
        }
        Named::Magnet(magnet) => Ok(New::Named(NewTorrent { source: magnet.to_string() })),
        Named::Url(source) => Ok(New::Named(NewTorrent { source })),
    }
}
