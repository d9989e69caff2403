//! `mount.torrentfs`: a helper of mount(8), with its command line and exit codes.
//!
//! For root it mounts for the whole system (see [`system_mount`]). For another user it does the same as `torrentfs mount`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser};

use super::failure::{Exit, Failure};
use super::flags::{HELP_TEMPLATE, Options};
use super::log::Verbosity;
use super::mount_args::MountArgs;
use super::settings::Settings;
use super::{end_mounts, serve, sources, system_mount};
use crate::fs::{daemon, mountinfo};
use crate::sys::process::{ignore_file_size_signal, tune_allocator};

const DESCRIPTION: &str = "\
mount(8) runs this program for `mount -t torrentfs`, and for lines of /etc/fstab
whose type is torrentfs. It returns when the mount answers.";

const SECTIONS: &str = "\
Options of -o:
  All options of `torrentfs mount`, which `torrentfs help mount` lists, such as
  allow_other, umask=027, cache_size=5GiB or on_demand. When root mounts, also:

  setuid=USER  user who serves the mount, without any privilege [default:
               torrentfs, or else root without capabilities]

Mounts of the system:
  When root mounts, the process that talks to the network runs as an
  unprivileged user, and may make only the system calls it needs: it can run
  no program. A small process of root remains to unmount when that process
  ends, even if it is killed, and to let the kernel read complete files itself
  (see Passthrough in `torrentfs help mount`). A .torrent file may be readable
  by root alone; the file of blocklist=FILE must be readable by the user.

  All users can read the files, which belong to root unless uid=, gid= or umask=
  say otherwise. The cache is a directory named after the mountpoint, in the
  cache_dir of /etc/torrentfs/torrentfs.toml [default: /var/cache/torrentfs], or
  exactly cache_dir=DIR. The list of mounts shows the source without passkeys.

  Other users mount through fusermount3, as `torrentfs mount` does.

  An NFS server can export a mount. As it is on no disk, its line in
  /etc/exports needs an fsid: /mnt/film *(ro,fsid=1)

/etc/fstab:
  /srv/film.torrent  /mnt/film  torrentfs  noauto,user,on_demand  0 0
  magnet:?xt=...  /mnt/talk  torrentfs  nofail,_netdev,x-systemd.automount  0 0

  Write a space in a name as \\040.

systemd:
  The service torrentfs@NAME runs in a sandbox that can write only its cache.
  /etc/torrentfs/NAME.env sets what it mounts:

  SOURCE=/srv/film.torrent
  MOUNTPOINT=/mnt/film
  OPTIONS=cache_size=5GiB,on_demand

  SOURCE must be readable by the user torrentfs, and not be in /tmp. `systemctl
  reload` reloads the blocklist. /usr/share/doc/torrentfs/examples has .mount
  and .automount units.

Exit codes:
  0   mounted
  1   wrong usage, or not permitted
  2   system error
  32  mounting failed

Examples:
  mount -t torrentfs /srv/film.torrent /mnt/film
  mount -t torrentfs -o cache_size=5GiB,setuid=tv /srv/film.torrent /mnt/film
  mount -t torrentfs -o download_limit=2MiB /srv/torrents /mnt/all
  umount /mnt/film";

/// The only argument with which the scripts of the package end every mount of this program, before it is removed.
const END_ALL: &str = "--end-all";

/// Exit code of mount(8): wrong usage, or not permitted.
const USAGE: u8 = 1;
/// Exit code of mount(8): system error, such as out of memory.
const SYSTEM: u8 = 2;
/// Exit code of mount(8): mounting failed.
const FAILED: u8 = 32;

/// Mount torrents for mount(8) and /etc/fstab
#[derive(Parser, Debug)]
#[command(name = "mount.torrentfs", version, before_help = DESCRIPTION, after_help = SECTIONS)]
#[command(help_template = HELP_TEMPLATE, max_term_width = 110)]
struct HelperArgs {
    /// .torrent file, its http(s) URL, magnet link, info hash, or a directory of .torrent files
    #[arg(value_name = "SOURCE")]
    source: OsString,

    /// Existing directory
    #[arg(value_name = "DIRECTORY")]
    mountpoint: PathBuf,

    /// Ignore unknown options
    #[arg(short)]
    sloppy: bool,

    /// Check everything, but do not mount
    #[arg(short)]
    fake: bool,

    /// Accepted: /etc/mtab is never written
    #[arg(short)]
    no_mtab: bool,

    /// Print the result
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,

    /// Mount in another mount namespace
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,

    /// Type of the filesystem
    #[arg(short = 't', value_name = "TYPE", value_parser = ["torrentfs", "fuse.torrentfs"])]
    fstype: Option<String>,

    /// Serve in the foreground until `--attach` attaches the mount; for the unit torrentfs@.service
    #[arg(long, hide = true, conflicts_with_all = ["attach", "fake", "namespace"])]
    serve: bool,

    /// Attach the mount of a process that runs with `--serve`; for the unit torrentfs@.service
    #[arg(long, hide = true, value_name = "PID", conflicts_with_all = ["fake", "namespace"])]
    attach: Option<u32>,

    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS", action = ArgAction::Append)]
    options: Vec<String>,
}

/// Returns the definition of the command line.
pub(super) fn definition() -> clap::Command {
    HelperArgs::command()
}

/// Runs `mount.torrentfs` with the arguments of this process, and returns its exit status.
pub fn run() -> ExitCode {
    tune_allocator();
    ignore_file_size_signal();
    if std::env::args_os().skip(1).eq([END_ALL]) {
        return report(end_mounts::run().map_err(|failure| (SYSTEM, failure)));
    }
    let args = match HelperArgs::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // If standard error is closed, there is no place left to report it.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    // The mount must not keep pipes and locks of its caller open. This fails on kernels before 5.9, which is harmless.
    let _ = daemon::close_inherited();
    report(perform(args))
}

/// Prints a failure, and returns the exit status.
fn report(outcome: Result<(), (u8, Failure)>) -> ExitCode {
    match outcome {
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
        given = Options::parse(options, sloppy).map_err(usage)?.over(given);
    }
    if given.flags.foreground == Some(true) {
        return Err(usage(
            "option foreground: mount(8) waits until the command ends; use `torrentfs mount --foreground`".into(),
        ));
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
    // Open the source first: its path is relative to this directory and mount namespace.
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
    let message = if daemon::is_root() {
        if is_mounted_already(&args) {
            return Ok(());
        }
        system_mount::mount(args, opened, namespace, verbosity)
    } else if namespace.is_some() || args.options.setuid.is_some() {
        return Err(usage("only root can use -N and the option setuid".into()));
    } else {
        sources::read(&args, opened).and_then(|sources| serve::in_background(&args, sources, verbosity))
    };
    let message = message.map_err(failed)?;
    if verbose > 0 {
        println!("{message}");
    }
    Ok(())
}

fn cannot_mount(path: &Path, reason: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Mountpoint, format!("cannot mount on {}: {reason}", path.display()))
}

/// Returns whether the source is already mounted here. `mount -a` skips such mounts by comparing sources, but that fails if
/// the kernel's list has a masked source.
fn is_mounted_already(args: &MountArgs) -> bool {
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
    fn the_definition_is_valid() {
        HelperArgs::command().debug_assert();
    }

    #[test]
    fn the_command_line_of_mount_is_parsed() {
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
    fn wrong_usage_has_its_own_code() {
        let perform = |line: &str| {
            let args = HelperArgs::try_parse_from(line.split(' ')).unwrap();
            perform(args).map_err(|(code, failure)| (code, failure.to_string()))
        };
        let (code, message) = perform("m /nowhere /mnt -o rw,frob=1").unwrap_err();
        assert_eq!((code, message.contains("frob")), (USAGE, true), "{message}");
        let (code, message) = perform("m /nowhere /mnt -o foreground").unwrap_err();
        assert_eq!((code, message.contains("foreground")), (USAGE, true), "{message}");
        let (code, message) = perform("m /nowhere /mnt -s -o frob").unwrap_err();
        assert_eq!((code, message.contains("No such file")), (FAILED, true), "{message}");
        let hash = "0123456789012345678901234567890123456789";
        assert_eq!(perform(&format!("m {hash} / -f -o rw,user,x-y")), Ok(()));
        assert_eq!(perform(&format!("m {hash} /nowhere -f")).unwrap_err().0, FAILED);
        assert_eq!(perform(&format!("m {hash} / -N /nowhere")).unwrap_err().0, SYSTEM);
    }
}
