//! `torrentfs add`: adds torrents to a running mount.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{Exit, Failure};
use super::running_mount;
use super::runtime::runtime;
use crate::control::orders::{AddedTorrent, NewTorrent};
use crate::metainfo::{InfoHash, MAX_TORRENT_LEN};
use crate::web::client::New;

/// Show more torrents in a running mount
#[derive(Args, Clone, Debug, PartialEq)]
pub(super) struct AddArgs {
    /// A mount, or a path in it
    mountpoint: PathBuf,

    /// .torrent files, their http(s) URLs, magnet links (in quotes), or info hashes
    #[arg(value_name = "SOURCE", required = true, num_args = 1..)]
    sources: Vec<OsString>,
}

/// Adds torrents, one after the other. Those that can be are added, whatever becomes of the others.
pub(super) fn run(args: &AddArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let reached = running_mount::find(&args.mountpoint)?;
        let mut failure = None;
        for source in &args.sources {
            let shown = source.to_string_lossy();
            let added = match new(source) {
                Ok(new) => reached.client.add::<AddedTorrent>(&new).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match added {
                Ok(AddedTorrent { name, already: true, .. }) => println!("{name} was there already"),
                Ok(AddedTorrent { name, .. }) => println!("added {name}"),
                Err(why) => {
                    let next = Failure::new(Exit::Torrent, format!("cannot add {shown}: {why}"));
                    // Each is said; the last one as every command says why it failed.
                    if let Some(earlier) = failure.replace(next) {
                        eprintln!("torrentfs: {earlier}");
                    }
                }
            }
        }
        failure.map_or(Ok(()), Err)
    })
}

/// What a SOURCE is: a file is read here, for the mount's process may stand elsewhere.
fn new(source: &OsStr) -> std::io::Result<New> {
    let path = Path::new(source);
    if path.is_file() {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_TORRENT_LEN as u64 + 1).read_to_end(&mut bytes)?;
        return Ok(New::File(bytes));
    }
    let named = source.to_string_lossy();
    if path.exists() || !(named.contains(':') || named.parse::<InfoHash>().is_ok()) {
        // A directory, or a name of nothing: the reason is the system's.
        std::fs::File::open(path)?;
        return Err(std::io::Error::other("it is no file; a directory can only be mounted"));
    }
    Ok(New::Named(NewTorrent { source: named.into_owned() }))
}
