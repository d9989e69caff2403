//! `torrentfs seed`: the user's own files to others, as they lie.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytesize::ByteSize;
use clap::Args;
use fixedbitset::FixedBitSet;

use super::engine::Engine;
use super::failure::{Exit, Failure};
use super::flags::values::{Tier, tier};
use super::flags::{NetworkArgs, NetworkFlags};
use super::log::{self, Verbosity};
use super::make_torrent::{self, Recipe};
use super::progress::Progress;
use super::runtime::{Signals, runtime};
use super::seeding::Seeding;
use super::sources;
use super::text::count;
use crate::library::Source;
use crate::metainfo::{File, FileKind, Layout, PieceIndex};
use crate::session::{SessionError, TorrentOptions};
use crate::store::Place;

/// Files looked at to tell where the data is.
const LOOKED_AT: usize = 1000;
/// Files named of those that are not whole.
const NAMED: usize = 3;

const AFTER_HELP: &str = "\
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

const USAGE: &str = "torrentfs seed [OPTIONS] <TORRENT> <PATH> [<TORRENT> <PATH>]...
       torrentfs seed [OPTIONS] --create <PATH>";

/// Give others what you have: your own files, as they lie
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP, args_override_self = true, override_usage = USAGE)]
#[command(mut_arg("no_upload", |arg| arg.hide(true)))]
pub(super) struct SeedArgs {
    /// A .torrent file (or URL, magnet link, info hash) and where its data is; or several such pairs
    #[arg(value_names = ["TORRENT", "PATH"], num_args = 2.., required_unless_present = "create")]
    pairs: Vec<OsString>,

    /// Make a torrent of this file or directory first, as `torrentfs create` does, and seed it
    #[arg(long, value_name = "PATH", conflicts_with = "pairs", help_heading = "Create")]
    create: Option<PathBuf>,

    /// A tracker's announce URL, or several of a tier, separated by commas; again: the next tier
    #[arg(short = 'a', long = "tracker", value_name = "URL[,URL]", value_parser = tier, requires = "create")]
    #[arg(help_heading = "Create")]
    trackers: Vec<Tier>,

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
            source: sources::single("seed", torrent)?,
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
        let recipe = Recipe {
            path: path.clone(),
            output: args.output.clone(),
            force: args.force,
            trackers: args.trackers.clone(),
            ..Recipe::default()
        };
        let source = Source::Torrent(Box::new(make_torrent::make(&recipe, quiet)?));
        // It was hashed just now; each piece is hashed again before it is sent.
        offers.push(Offer { named: path.into(), source, path: path.clone(), check: false });
    }
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let engine = Engine::start(&network, args.cache_dir.as_deref())?;
        let mut seeding = Seeding::new(network.seed, quiet);
        let outcome = tokio::select! {
            outcome = seed(&engine, offers, &args, &network, &mut seeding, quiet) => outcome,
            () = engine.interrupted(&mut signals) => Ok(()),
        };
        let given = seeding.given();
        drop(seeding);
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
    seeding: &mut Seeding,
    quiet: bool,
) -> Result<(), Failure> {
    for Offer { named, source, path, check } in offers {
        let (metainfo, found) = sources::resolve("seed", source, &named, engine.resolver(network), quiet).await?;
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
            error => error.into(),
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
        seeding.add(torrent);
    }
    seeding.until_enough().await;
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

/// Says what is missing, and what is there and not the torrent's.
fn incomplete(layout: &Layout, root: &Path, have: &FixedBitSet) -> Failure {
    let lengths = layout.lengths();
    let files = || layout.files().iter().filter(|file| file.kind != FileKind::Pad && file.len > 0);
    let looked: Vec<Result<u64, io::Error>> = files().map(|file| readable(&below(root, file))).collect();
    let mut missing = FixedBitSet::with_capacity(have.len());
    for (file, there) in files().zip(&looked) {
        let range = file.range();
        let there = *there.as_ref().unwrap_or(&0);
        if there < file.len {
            missing.extend(lengths.pieces_in(&(range.start + there..range.end)).map(PieceIndex::index));
        }
    }
    missing.difference_with(have);
    let is_bad = |piece: &PieceIndex| !have.contains(piece.index()) && !missing.contains(piece.index());
    let mut faults = Vec::new();
    for (file, there) in files().zip(&looked) {
        let bad = lengths.pieces_in(&file.range()).filter(is_bad).count();
        let why = match there {
            Err(error) if error.kind() == io::ErrorKind::NotFound => "is not there".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
            Ok(there) if *there < file.len && bad == 0 => format!("has {there} of {} bytes", file.len),
            Ok(there) if *there < file.len => {
                format!("has {there} of {} bytes, {} of them bad", file.len, count(bad, "piece"))
            }
            Ok(_) if bad > 0 => format!("has {bad} of {} pieces bad", lengths.pieces_in(&file.range()).count()),
            // What is wrong with its pieces, if anything, is another file's.
            Ok(_) => continue,
        };
        faults.push(format!("{} {why}", below(root, file).display()));
    }
    let more = faults.len().saturating_sub(NAMED);
    faults.truncate(NAMED);
    let more = if more == 0 { String::new() } else { format!("; and {} more", count(more, "file")) };
    let (of, missing) = (have.len(), missing.count_ones(..));
    let bad = of - have.count_ones(..) - missing;
    let are = |count: usize| if count == 1 { "is" } else { "are" };
    let what = match (missing, bad) {
        (_, 0) => format!("{missing} of {of} pieces {} missing", are(missing)),
        (0, _) => format!("{bad} of {of} pieces {} bad", are(bad)),
        _ => format!("of {of} pieces {missing} {} missing and {bad} {} bad", are(missing), are(bad)),
    };
    Failure::new(Exit::Failure, format!("{what}: {}{more}; with --partial the rest is seeded", faults.join("; ")))
}

/// How many bytes of a file there are to be read.
fn readable(path: &Path) -> io::Result<u64> {
    let about = path.metadata()?;
    // What is no file may keep who opens it waiting.
    if !about.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    fs::File::open(path).map(|_| about.len())
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

    /// What [`incomplete`] says, if these pieces are there and right.
    fn said(layout: &Layout, root: &Path, good: &[usize]) -> String {
        let mut have = FixedBitSet::with_capacity(layout.lengths().pieces() as usize);
        have.extend(good.iter().copied());
        incomplete(layout, root, &have).to_string().replace(&format!("{}/", root.display()), "")
    }

    #[test]
    fn what_is_missing_and_what_is_bad_is_named_up_to_a_few_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), [0; 32]).unwrap();
        fs::write(dir.path().join("b"), [0; 5]).unwrap();
        let many = layout(&[("t/a", 32), ("t/b", 32), ("t/c", 32), ("t/d", 32)]);
        assert_eq!(
            said(&many, dir.path(), &[1]),
            "of 8 pieces 6 are missing and 1 is bad: a has 1 of 2 pieces bad; b has 5 of 32 bytes; c is not there; \
             and 1 file more; with --partial the rest is seeded"
        );
        fs::write(dir.path().join("b"), [0; 31]).unwrap();
        let two = layout(&[("t/a", 32), ("t/b", 32)]);
        let rest = "with --partial the rest is seeded";
        assert_eq!(
            said(&two, dir.path(), &[0, 1, 2]),
            format!("1 of 4 pieces is missing: b has 31 of 32 bytes; {rest}")
        );
        assert_eq!(
            said(&two, dir.path(), &[0, 1]),
            format!("of 4 pieces 1 is missing and 1 is bad: b has 31 of 32 bytes, 1 piece of them bad; {rest}")
        );
        fs::write(dir.path().join("b"), [0; 32]).unwrap();
        assert_eq!(
            said(&two, dir.path(), &[0]),
            format!("3 of 4 pieces are bad: a has 1 of 2 pieces bad; b has 2 of 2 pieces bad; {rest}")
        );
    }

    /// A piece that lies in two files is not bad for the one that is not there.
    #[test]
    fn a_piece_of_a_file_that_is_not_there_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), [0; 20]).unwrap();
        fs::create_dir(dir.path().join("c")).unwrap();
        let layout = layout(&[("t/a", 20), ("t/b", 20), ("t/c", 24)]);
        assert_eq!(
            said(&layout, dir.path(), &[0]),
            "3 of 4 pieces are missing: b is not there; c cannot be read: it is not a file; with --partial the rest \
             is seeded"
        );
    }
}
