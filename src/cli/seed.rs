//! `torrentfs seed`: the user's own files to others, as they lie.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use clap::Args;
use fixedbitset::FixedBitSet;

use super::Failure;
use super::adding;
use super::args::Exit;
use super::create::{self, CreateArgs};
use super::engine::{Engine, refused};
use super::giving::Giving;
use super::log::{self, Verbosity};
use super::network::{NetworkArgs, NetworkFlags};
use super::progress::Progress;
use super::service::{self, Signals};
use crate::library::Source;
use crate::metainfo::{File, FileKind, Layout};
use crate::session::{SessionError, TorrentOptions};
use crate::store::Place;

/// Files looked at to tell where the data is.
const LOOKED_AT: usize = 1000;
/// Files named of those that are not whole.
const NAMED: usize = 3;

pub(super) const AFTER_HELP: &str = "\
PATH is the torrent's file or directory, by whatever name, or the directory
that it is in. It is only read: nothing in it is ever written, made or removed.
Every hash is checked first. With --no-check that is put off: each piece is
then hashed before it is first sent.

RATE is a number with a unit, for a second: 500KB, 2MiB. TIME is one, too: 90s,
2min, 1h. BOOL is true or false, and true if left out.

Examples:
  torrentfs seed film.torrent ~/Videos/film.mkv
  torrentfs seed a.torrent /srv/a b.torrent /srv/b
  torrentfs seed --create album -a http://tracker.example.org/announce
  torrentfs seed --seed-ratio 2 --upload-limit 1MiB film.torrent ~/Videos";

pub(super) const USAGE: &str = "torrentfs seed [OPTIONS] <TORRENT> <PATH> [<TORRENT> <PATH>]...
       torrentfs seed [OPTIONS] --create <PATH>";

/// `torrentfs seed`.
#[derive(Args, Clone, Debug)]
pub struct SeedArgs {
    /// A .torrent file (or URL, magnet link, info hash) and where its data is; or several such pairs
    #[arg(value_names = ["TORRENT", "PATH"], num_args = 2.., required_unless_present = "create")]
    pairs: Vec<OsString>,

    /// Make a torrent of this file or directory first, as `torrentfs create` does, and seed it
    #[arg(long, value_name = "PATH", conflicts_with = "pairs", help_heading = "Create")]
    create: Option<PathBuf>,

    /// A tracker's announce URL, or several of a tier, separated by commas; again: the next tier
    #[arg(short = 'a', long = "tracker", value_name = "URL[,URL]", value_parser = create::tier, requires = "create")]
    #[arg(help_heading = "Create")]
    trackers: Vec<create::Tier>,

    /// Where the torrent is written, or the directory for it [default: NAME.torrent]
    #[arg(short, long, value_name = "FILE", requires = "create", help_heading = "Create")]
    output: Option<PathBuf>,

    /// Replace a torrent file that is there already
    #[arg(short, long, requires = "create", help_heading = "Create")]
    force: bool,

    /// Do not hash everything first; each piece is hashed before it is first sent
    #[arg(long)]
    no_check: bool,

    /// If not all of it is there, seed what is
    #[arg(long)]
    partial: bool,

    /// Give each piece away once and let the others spread it, until they have all of it: for the first seeder of a
    /// torrent, if its upload is slow (BEP 16)
    #[arg(long)]
    super_seed: bool,

    /// Where nodes of the DHT and metadata are kept [default: torrentfs in the user's cache directory]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    #[command(flatten)]
    network: NetworkFlags,
}

/// A torrent and where its data is.
struct Offer {
    /// As the user named it.
    named: OsString,
    source: Source,
    path: PathBuf,
    check: bool,
}

/// Seeds until it is enough.
pub(super) fn run(args: SeedArgs, verbosity: Verbosity, quiet: bool) -> Result<(), Failure> {
    log::to_stderr(verbosity);
    if !args.pairs.len().is_multiple_of(2) {
        return Err(Failure::new(Exit::Usage, "each TORRENT needs the PATH of its data behind it"));
    }
    // The parser does not see that: what `create` needs it lets go where `create` would be refused.
    if args.create.is_none() && (!args.trackers.is_empty() || args.output.is_some() || args.force) {
        return Err(Failure::new(Exit::Usage, "--tracker, --output and --force are for a torrent made with --create"));
    }
    let read = |pair: &[OsString]| {
        let (torrent, path) = (&pair[0], &pair[1]);
        Ok(Offer {
            named: torrent.clone(),
            source: adding::single("seed", torrent)?,
            path: path.into(),
            check: !args.no_check,
        })
    };
    let mut offers = args.pairs.chunks_exact(2).map(read).collect::<Result<Vec<_>, Failure>>()?;
    let network = NetworkArgs::from(args.network.clone());
    if !network.upload {
        return Err(Failure::new(Exit::Usage, "to seed and to give nothing (--no-upload) cannot both be"));
    }
    if let Some(path) = &args.create {
        let create = CreateArgs::plain(path, &args.trackers, args.output.as_deref(), args.force);
        let source = Source::Torrent(Box::new(create::make(&create, quiet)?));
        // It was hashed just now; each piece is hashed again before it is sent.
        offers.push(Offer { named: path.into(), source, path: path.clone(), check: false });
    }
    let runtime = service::runtime()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let engine = Engine::start(&network, args.cache_dir.as_deref())?;
        let mut giving = Giving::new(network.seed, quiet);
        let outcome = tokio::select! {
            outcome = seed(&engine, offers, &args, &network, &mut giving, quiet) => outcome,
            () = engine.interrupted(&mut signals) => Ok(()),
        };
        let given = giving.given();
        drop(giving);
        engine.stop().await;
        if outcome.is_ok() && !quiet {
            println!("{} given", ByteSize(given));
        }
        outcome
    });
    // A check that nobody waits for any more may still be at work.
    runtime.shutdown_background();
    outcome
}

async fn seed(
    engine: &Engine,
    offers: Vec<Offer>,
    args: &SeedArgs,
    network: &NetworkArgs,
    giving: &mut Giving,
    quiet: bool,
) -> Result<(), Failure> {
    for Offer { named, source, path, check } in offers {
        let (metainfo, found) = adding::resolve("seed", source, &named, engine.resolver(network), quiet).await?;
        let layout = metainfo.layout.clone();
        let root = tokio::task::spawn_blocking(move || locate(&layout, &path)).await;
        let root = root.map_err(|error| Failure::new(Exit::Failure, error))??;
        let checking = Arc::new(Progress::start(&format!("checking {}", metainfo.name), 0, quiet));
        let options = TorrentOptions {
            place: Place::Seed(root.clone()),
            whole: !args.partial,
            peers: [network.peers.clone(), found].concat(),
            super_seed: args.super_seed,
            verify: check,
            progress: Some(checking.of_checks()),
            ..TorrentOptions::default()
        };
        let (metainfo, layout) = (metainfo.clone(), metainfo.layout);
        let added = engine.add(metainfo, options).await;
        drop(checking);
        let torrent = added.map_err(|error| match error {
            SessionError::Incomplete(have) => incomplete(&layout, &root, &have),
            error => refused(error),
        })?;
        let have = torrent.store().have();
        if have.is_clear() {
            return Err(Failure::new(Exit::Failure, format!("{} has nothing of the torrent", root.display())));
        }
        if !quiet {
            let part = format!("{} of {} pieces of ", have.count_ones(..), have.len());
            let (part, root) = (if have.is_full() { "" } else { &part }, root.display());
            println!("seeding {part}{root}, info hash {}", torrent.metainfo().info_hash);
        }
        giving.add(torrent);
    }
    giving.until_enough().await;
    Ok(())
}

/// Where a file of the torrent is, if `root` stands for the torrent's first component.
fn below(root: &Path, file: &File) -> PathBuf {
    let rest: PathBuf = file.path.iter().skip(1).collect();
    if rest.as_os_str().is_empty() { root.to_owned() } else { root.join(rest) }
}

/// The torrent's file or directory: PATH itself, or what has the torrent's name in it. The one of which there is more.
fn locate(layout: &Layout, path: &Path) -> Result<PathBuf, Failure> {
    let failure = |error: io::Error| Failure::new(Exit::Resource, format!("cannot use {}: {error}", path.display()));
    let path = fs::canonicalize(path).map_err(failure)?;
    let with_bytes = |file: &&File| file.kind != FileKind::Pad && file.len > 0;
    let there = |root: &Path| {
        let files = layout.files().iter().filter(with_bytes).take(LOOKED_AT);
        files
            .filter(|file| below(root, file).metadata().is_ok_and(|about| about.is_file() && about.len() >= file.len))
            .count()
    };
    let name = layout.files().first().and_then(|file| file.path.first());
    let Some(inside) = name.map(|name| path.join(name)) else { return Ok(path) };
    // A directory cannot stand for a single file.
    let is_file = layout.files().iter().all(|file| file.path.len() == 1);
    Ok(if there(&inside) > there(&path) || is_file && path.is_dir() { inside } else { path })
}

/// Says what is missing.
fn incomplete(layout: &Layout, root: &Path, have: &FixedBitSet) -> Failure {
    let lengths = layout.lengths();
    let mut faults = Vec::new();
    for file in layout.files().iter().filter(|file| file.kind != FileKind::Pad && file.len > 0) {
        let pieces = lengths.pieces_in(&file.range());
        let (of, bad) =
            pieces.fold((0, 0), |(of, bad), piece| (of + 1, bad + u32::from(!have.contains(piece.index()))));
        if bad > 0 {
            let path = below(root, file);
            let why = match path.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => "is not there".to_owned(),
                Err(error) => error.to_string(),
                Ok(about) if about.len() < file.len => {
                    format!("has {} of {} bytes", about.len(), file.len)
                }
                Ok(_) => format!("has {bad} of {of} pieces that do not match"),
            };
            faults.push(format!("{} {why}", path.display()));
        }
    }
    let more = faults.len().saturating_sub(NAMED);
    faults.truncate(NAMED);
    let more = if more > 0 { format!("; and {more} files more") } else { String::new() };
    let missing = have.len() - have.count_ones(..);
    let message = format!(
        "{missing} of {} pieces are missing: {}{more}; with --partial the rest is seeded",
        have.len(),
        faults.join("; ")
    );
    Failure::new(Exit::Failure, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::Lengths;

    fn layout(files: &[(&str, u64)]) -> Layout {
        let mut offset = 0;
        let files: Vec<File> = files
            .iter()
            .map(|(path, len)| {
                let kind = FileKind::Regular { executable: false };
                let path = path.split('/').map(str::to_owned).collect();
                let file = File { path, offset, len: *len, kind };
                offset += len;
                file
            })
            .collect();
        Layout::new(Lengths::new(offset, 16).unwrap(), files)
    }

    #[test]
    fn the_data_is_found_by_its_own_name_by_another_and_in_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for path in ["mine/t/a", "mine/t/b", "other/a", "other/b", "nested/t/t/a", "nested/t/a", "nested/t/b"] {
            fs::create_dir_all(base.join(path).parent().unwrap()).unwrap();
            fs::write(base.join(path), [0; 20]).unwrap();
        }
        let many = layout(&[("t/a", 20), ("t/b", 20)]);
        let found = |layout: &Layout, path: &str| locate(layout, &base.join(path)).unwrap();
        for (path, root) in [
            ("mine/t", "mine/t"),
            ("mine", "mine/t"),
            ("other", "other"),
            ("nested/t", "nested/t"),
            ("nested", "nested/t"),
        ] {
            assert_eq!(found(&many, path), base.join(root), "{path}");
        }
        let single = layout(&[("a", 20)]);
        assert_eq!(found(&single, "other/b"), base.join("other/b"), "by another name");
        assert_eq!(found(&single, "other"), base.join("other/a"));
        assert_eq!(found(&single, "mine"), base.join("mine/a"), "where it should be");
        assert!(locate(&single, &base.join("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }

    #[test]
    fn what_is_missing_is_named_up_to_a_few_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), [0; 32]).unwrap();
        fs::write(dir.path().join("b"), [0; 5]).unwrap();
        let layout = layout(&[("t/a", 32), ("t/b", 32), ("t/c", 32), ("t/d", 32)]);
        let mut have = FixedBitSet::with_capacity(8);
        have.insert(1);
        let said = incomplete(&layout, dir.path(), &have).to_string();
        assert!(said.starts_with("7 of 8 pieces are missing: "), "{said}");
        for part in ["a has 1 of 2 pieces that do not match", "b has 5 of 32 bytes", "c is not there", "1 files more"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
