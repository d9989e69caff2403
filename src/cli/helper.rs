//! `mount.torrentfs`: called as mount(8) calls its helpers, with its exit codes.
//!
//! For root it mounts for the whole system (see [`system_mount`]); for another user it is `torrentfs mount` by other words.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser};

use super::failure::{Exit, Failure};
use super::flags::Options;
use super::log::Verbosity;
use super::mount_args::MountArgs;
use super::settings::Settings;
use super::{serve, sources, system_mount};
use crate::fs::{daemon, mountinfo};
use crate::sys::process::tune_allocator;

const AFTER_HELP: &str = "\
Examples:
  mount -t torrentfs /srv/film.torrent /mnt/film
  mount -t torrentfs -o cache_size=5GiB,setuid=tv 'magnet:?xt=urn:btih:...' /mnt/film

In /etc/fstab (a space in a name is written \\040):
  /srv/film.torrent  /mnt/film  torrentfs  noauto,user,on_demand  0 0
  magnet:?xt=...     /mnt/talk  torrentfs  nofail,_netdev,x-systemd.automount  0 0

Options are those of `torrentfs mount -o`, which `torrentfs mount --help` lists. When root mounts, also:
  setuid=USER    who is to serve the mount, without any privilege
                 [default: torrentfs, if there is such a user]
and then all users may read, as uid=, gid= and umask= say (default: root's, for
everybody); the cache is a directory named after the mount point, in the
cache_dir of /etc/torrentfs/torrentfs.toml [default: /var/cache/torrentfs], or
exactly where -o cache_dir=DIR says.

Exit codes: 0 mounted; 1 wrong usage; 2 system error; 32 mounting failed.";

/// Wrong usage, or no permission.
const USAGE: u8 = 1;
/// Out of processes, of memory, and the like.
const SYSTEM: u8 = 2;
/// Any failure of the mount itself.
const FAILED: u8 = 32;

/// Mount a torrent, as mount(8) does it: `mount -t torrentfs`
#[derive(Parser, Debug)]
#[command(name = "mount.torrentfs", version, after_help = AFTER_HELP, max_term_width = 110)]
struct HelperArgs {
    /// A .torrent file, its http(s) URL, a magnet link, an info hash, or a directory of torrents
    #[arg(value_name = "SOURCE")]
    source: OsString,

    /// An existing directory
    #[arg(value_name = "DIRECTORY")]
    mountpoint: PathBuf,

    /// Pass over options that are not known
    #[arg(short)]
    sloppy: bool,

    /// Do everything but mount
    #[arg(short)]
    fake: bool,

    /// Nothing is written to /etc/mtab, as ever
    #[arg(short)]
    no_mtab: bool,

    /// Say what was done
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,

    /// Mount in another mount namespace
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,

    /// torrentfs, or fuse.torrentfs, which is the same
    #[arg(short = 't', value_name = "TYPE", value_parser = ["torrentfs", "fuse.torrentfs"])]
    fstype: Option<String>,

    /// Serve in the foreground, and be attached by `--attach`: for the unit torrentfs@.service
    #[arg(long, hide = true, conflicts_with_all = ["attach", "fake", "namespace"])]
    serve: bool,

    /// Attach for a process that was started with `--serve`: for the same
    #[arg(long, hide = true, value_name = "PID", conflicts_with_all = ["fake", "namespace"])]
    attach: Option<u32>,

    /// Options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS", action = ArgAction::Append)]
    options: Vec<String>,
}

/// The definition of its command line.
pub(super) fn command() -> clap::Command {
    HelperArgs::command()
}

/// Runs the helper; what it returns is the exit status.
pub fn run() -> ExitCode {
    tune_allocator();
    let args = match HelperArgs::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nobody to tell if this fails.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    // Somebody's pipe or lock must not stay open for as long as the mount is there. Kernels before 5.9 cannot.
    let _ = daemon::close_inherited();
    match perform(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, failure)) => {
            eprintln!("mount.torrentfs: {failure}");
            ExitCode::from(code)
        }
    }
}

fn perform(args: HelperArgs) -> Result<(), (u8, Failure)> {
    let HelperArgs { source, mountpoint, sloppy, fake, verbose, namespace, serve, attach, .. } = args;
    let usage = |message: String| (USAGE, Failure::new(Exit::Usage, message));
    let failed = |failure: Failure| {
        let code = if failure.exit == Exit::Usage { USAGE } else { FAILED };
        (code, failure)
    };
    let mut given = Options::default();
    for options in &args.options {
        given = Options::read(options, sloppy).map_err(usage)?.over(given);
    }
    if given.flags.foreground == Some(true) {
        return Err(usage("option foreground: mount(8) waits for the command to end; use `torrentfs mount`".into()));
    }
    let configured = Settings::of_system().and_then(|settings| settings.options()).map_err(failed)?;
    let args = MountArgs { foreground: false, ..MountArgs::new(vec![source], mountpoint, given, configured) };
    let system = |what: String| move |error| (SYSTEM, Failure::new(Exit::Resource, format!("{what}: {error}")));
    if let Some(pid) = attach {
        return system_mount::attach_for(pid, &args).map_err(failed);
    }
    if serve {
        return system_mount::serve_service(args, Verbosity::new(verbose, false)).map_err(failed);
    }
    // Before anything else: the source is named as seen from here.
    let opened = sources::open(&args).map_err(failed)?;
    let namespace = match &namespace {
        Some(path) => Some(File::open(path).map_err(system(format!("cannot open {}", path.display())))?),
        None => None,
    };
    if fake {
        let about = fs::metadata(&args.mountpoint);
        let about = about.map_err(|error| failed(cannot_mount(&args.mountpoint, &error)))?;
        return if about.is_dir() {
            Ok(())
        } else {
            Err(failed(cannot_mount(&args.mountpoint, &"it is not a directory")))
        };
    }
    let verbosity = Verbosity::new(verbose, false);
    let said = if daemon::is_root() {
        if is_there_already(&args) {
            return Ok(());
        }
        system_mount::mount(args, opened, namespace, verbosity)
    } else if namespace.is_some() || args.options.setuid.is_some() {
        return Err(usage("another namespace or another user (setuid) is for root only".into()));
    } else {
        sources::read(&args, opened).and_then(|sources| serve::in_background(&args, sources, verbosity))
    };
    let said = said.map_err(failed)?;
    if verbose > 0 {
        println!("{said}");
    }
    Ok(())
}

fn cannot_mount(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Mountpoint, format!("cannot mount on {}: {why}", path.display()))
}

/// `mount -a` passes over what is mounted already: it compares the sources. Where the kernel's list has a masked one that
/// comparison fails, and is ours to make.
fn is_there_already(args: &MountArgs) -> bool {
    let Some(given) = args.sources.first() else { return false };
    let (shown, named) = (sources::shown(given), system_mount::fsname(given));
    let Ok(path) = std::path::absolute(&args.mountpoint) else { return false };
    let there = || mountinfo::mount_at(&path).ok().flatten().is_some_and(|mount| mount.source == named);
    (given != shown.as_str() || given != named.as_str()) && there()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        HelperArgs::command().debug_assert();
    }

    #[test]
    fn it_is_called_as_mount_calls_it() {
        let line = [
            "mount.torrentfs",
            "/a b.torrent",
            "/mnt",
            "-sfnv",
            "-N",
            "/proc/1/ns/mnt",
            "-o",
            "rw",
            "-t",
            "fuse.torrentfs",
        ];
        let args = HelperArgs::try_parse_from(line).unwrap();
        assert!(args.sloppy && args.fake && args.no_mtab && args.verbose == 1);
        assert_eq!((args.source.as_os_str(), args.options), ("/a b.torrent".as_ref(), vec!["rw".to_owned()]));
        assert!(HelperArgs::try_parse_from(["mount.torrentfs", "a", "/mnt", "-t", "ext4"]).is_err());
    }

    #[test]
    fn usage_has_its_own_code() {
        let perform = |line: &str| {
            let args = HelperArgs::try_parse_from(line.split(' ')).unwrap();
            perform(args).map_err(|(code, failure)| (code, failure.to_string()))
        };
        let (code, words) = perform("m /nowhere /mnt -o rw,frob=1").unwrap_err();
        assert_eq!((code, words.contains("frob")), (USAGE, true), "{words}");
        let (code, words) = perform("m /nowhere /mnt -o foreground").unwrap_err();
        assert_eq!((code, words.contains("foreground")), (USAGE, true), "{words}");
        let (code, words) = perform("m /nowhere /mnt -s -o frob").unwrap_err();
        assert_eq!((code, words.contains("No such file")), (FAILED, true), "{words}");
        let hash = "0123456789012345678901234567890123456789";
        assert_eq!(perform(&format!("m {hash} / -f -o rw,user,x-y")), Ok(()));
        assert_eq!(perform(&format!("m {hash} /nowhere -f")).unwrap_err().0, FAILED);
        assert_eq!(perform(&format!("m {hash} / -N /nowhere")).unwrap_err().0, SYSTEM);
    }
}
