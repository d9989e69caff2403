//! `torrentfs mount`

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use super::failure::{Exit, Failure};
use super::flags::{MountFlags, Options};
use super::log::Verbosity;
use super::mount_args::MountArgs;
use super::{serve, sources};
use crate::fs::Attacher;

const DESCRIPTION: &str = "\
Every file of the torrents appears below MOUNTPOINT at once. A program that
reads a file waits only for the pieces it needs: these are fetched before all
others. The rest is fetched in the background as far as the cache has room, and
is uploaded to other peers for as long as the mount exists. With --on-demand,
only what is read is fetched, and a little ahead of it.

The command returns when the mount answers, and a process in the background
serves it. `torrentfs unmount`, umount(8), `fusermount3 -u` and SIGTERM end it.
If mounting fails, nothing stays mounted.";

const SECTIONS: &str = "\
Torrents:
  A magnet link or info hash needs metadata from peers first. The command waits
  for it and shows the progress. The metadata stays in the cache, so the next
  mount of the same link is instant.

  Put magnet links in quotes: to a shell, '&' ends a command.

  For a directory, every .torrent file in it is mounted, and every .magnet file
  (text that contains a magnet link or an info hash); changes are picked up
  within a second. Removing the file removes the torrent from the mount; open
  files stay readable until they are closed. Subdirectories are ignored.

  A single-file torrent appears as that file, any other torrent as a directory.
  Torrents of the same name all get the first eight digits of their info hash:
  film [c12fe1c0].mkv. A torrent that is named twice is mounted once. All
  torrents share the cache, the port, the rate limits and 500 connections. They
  announce ten times a second at most, after the first twenty; a torrent that is
  read does not wait. If one SOURCE is invalid, nothing is mounted.

  In the background, --active-downloads torrents are fetched at a time: first
  those with files of high priority, then those that are read, then the oldest
  (by the time of their file in a directory, else by the time when they were
  added). The others are queued.
  Reads and uploads of a queued torrent do not wait. A torrent without peers, or
  whose peers send nothing for a minute, does not hold up the others.

  inotify reports no torrents that come and go, because FUSE has no message for
  that. File managers show them when they list the directory again (F5). The
  modification time of MOUNTPOINT tells programs that poll it.

Reads:
  A read that receives no data for --read-timeout fails with an I/O error. A
  program that waits can be killed. With O_DIRECT this does not work if the
  mount's process cannot see the program: in another container, or with /proc
  mounted with hidepid.

  File sizes are always the full sizes, also in du, whether or not the data has
  been fetched. Extended attributes of every file and of the mountpoint show the
  progress: user.torrentfs.progress (in percent), user.torrentfs.pieces and
  user.torrentfs.infohash.

Passthrough:
  The kernel reads a file that is complete and verified from the cache itself,
  as fast as any other file there, and keeps its bytes in memory once instead
  of twice. It needs Linux 6.9 and a mount by root (`torrentfs mount` as root,
  mount(8), fstab; not the systemd service), and a cache on an ordinary local
  filesystem. Elsewhere this program answers every read. A file that was opened
  before it was complete stays as it is until its last user closes it.
  `torrentfs status` shows which open files have it.

  While a file is open in this way, its pieces are not evicted. Its reads are
  not checked: if another program changes the file in the cache, who has it open
  may read the changed bytes until the change is noticed, usually for a second
  or two. From then on such reads fail with an I/O error, and whoever opens the
  file anew gets the right bytes. What is mapped into memory cannot be taken
  back, and after a lazy unmount or a kill nobody watches the file any more.
  --no-passthrough avoids all this.

Cache:
  The cache keeps pieces in --cache-dir, up to --cache-size, and evicts the
  least recently used first; a piece that an open file needs now is never
  evicted. CACHE_DIR/INFO_HASH/data holds the files as the torrent lays them
  out; one whose name the filesystem refuses is in the directory renamed there.
  After a clean end the next mount uses the pieces at once; after a crash
  each one is hashed again before it is used.

  A directory given with --cache-dir belongs to this mount alone, and must not
  be in use. The default directory, or one from the configuration, is shared:
  the first mount gets the directory itself, and every other mount its own
  directory in it, mounts/NAME, named after its mountpoint. Each may use
  --cache-size.

  --memory bounds the pieces in memory. Pieces being fetched may use 32MiB even
  if --memory is less. The kernel caches what is read, so more memory helps
  only if many torrents are read at a time. In addition the program needs about
  15 MiB, for each torrent 30 KiB and 20 bytes a piece, and up to 128 KiB for
  each fast peer.

Network:
  Peers come from trackers, the DHT, the local network and other peers; those
  of a private torrent come only from its trackers. Web seeds are used like
  peers. Connections use TCP and uTP, encrypted if the peer supports it. The
  router is asked to forward the port (UPnP, NAT-PMP, PCP); if neither side can
  be reached, a third peer helps to connect (hole punching).

  --bind and --proxy leave no way around: all traffic goes there, or nowhere.
  A socks5:// proxy carries TCP only, so there is no DHT, no uTP, no UDP tracker
  and no incoming connection. An http:// proxy carries trackers and web seeds,
  but no peers.

  --blocklist reads PeerGuardian, eMule and CIDR lists. SIGHUP reloads the file,
  except in the foreground of a terminal, where it ends the mount.

  A torrent cannot attack the local network: at addresses that are not global,
  a tracker URL must end in announce..., a web seed must have no query, and no
  redirect from outside leads there.

HTTP:
  --http serves a web page at /, the mounted files below /files/, metrics for
  Prometheus at /metrics, and an API that /openapi.json describes. Every user
  of this machine can use a localhost address. Any other address needs
  --http-token: a program sends it as \"Authorization: Bearer TOKEN\", a browser
  as the password of any user. A token on the command line is visible to ps, so
  prefer a file. There is no TLS. Name the server by its address or as
  localhost; other host names are refused. It sends 64 files at a time, 32 of
  them to one address.

  The same API is served without a token on a Unix socket that only this user
  and root can access, in /run/torrentfs (root), $XDG_RUNTIME_DIR/torrentfs or
  ~/.cache/torrentfs/run.

Mount options (-o, separated by commas; \\, is a comma within a value):
  allow_other    let other users access the mount; for users other than root it
                 needs the line user_allow_other in /etc/fuse.conf
  uid=N, gid=N   owner and group of the files, by number
  umask=OCTAL    permission bits to remove
  noexec, exec   forbid or allow running files
  ro             accepted: every mount is read-only
  FLAG=VALUE     any long option above, without the dashes, such as
                 on_demand or read_timeout=5min

Values:
  SIZE  bytes with a unit: 512MiB, 20GiB, 500MB
  RATE  bytes per second with a unit: 500KB, 2MiB
  TIME  a number with a unit: 90s, 2min, 1h
  BOOL  true or false. The option alone means true; --on-demand=false overrides
        the configuration (see `torrentfs help config`).

Log:
  A mount in the background writes torrentfs.log in its cache directory, and
  starts it anew. In the foreground the log goes to standard error, under
  systemd to the journal. TORRENTFS_LOG sets filters by module, such as
  TORRENTFS_LOG=warn,torrentfs::discovery=debug. Each place in the code logs at
  most 50 lines a minute, debug lines excepted. URLs are logged without user
  names, passwords, queries and passkeys.

Examples:
  torrentfs mount film.torrent /mnt/film
  torrentfs mount --foreground film.torrent /mnt/film
  torrentfs mount c12fe1c06bba254a9dc9f519b335aa7c1367a88a /mnt/film
  torrentfs mount --on-demand \\
      'magnet:?xt=urn:btih:c12fe1c06bba254a9dc9f519b335aa7c1367a88a' /mnt/film
  torrentfs mount https://example.org/film.torrent /mnt/film
  torrentfs mount a.torrent b.torrent ~/torrents /mnt/all
  torrentfs mount --on-demand --cache-size 5GiB linux.torrent ~/iso
  torrentfs mount -o allow_other,cache_size=5GiB film.torrent /mnt/film
  torrentfs mount --bind wg0 --download-limit 2MiB film.torrent /mnt/film
  torrentfs mount --peer 192.168.1.5:51413 --no-dht film.torrent /mnt/film
  torrentfs mount --http 127.0.0.1:8080 film.torrent /mnt/film
  torrentfs mount --http 192.168.1.5:8080 --http-token ~/.torrentfs-token \\
      film.torrent /mnt/film";

const USAGE: &str = "torrentfs mount [OPTIONS] <SOURCE>... <MOUNTPOINT>";

/// The common layout, with the arguments written out: clap knows them as one, [`Places`].
pub(super) const TEMPLATE: &str = "\
{about-with-newline}
{before-help}{usage-heading} {usage}

\u{1b}[1;4mArguments:\u{1b}[0m
  <SOURCE>...   .torrent or .magnet file, its http(s) URL, magnet link, info
                hash, or a directory of such files
  <MOUNTPOINT>  Existing directory

{all-args}{after-help}";

/// The id of the argument that holds all sources and the mountpoint.
const PLACES: &str = "places";
const SOURCE_HELP: &str =
    ".torrent or .magnet file, its http(s) URL, magnet link, info hash, or a directory of such files";
const MOUNTPOINT_HELP: &str = "Existing directory";

/// Adapts the command for its manual page, where sources and mountpoint are two arguments.
pub(super) fn for_manual(command: clap::Command) -> clap::Command {
    let mountpoint = Arg::new("MOUNTPOINT").required(true).help(MOUNTPOINT_HELP);
    command.mut_arg(PLACES, |places| places.hide(false)).arg(mountpoint)
}

// The arguments as given; `MountArgs` has the configuration and the defaults filled in.
/// Mount torrents as a read-only filesystem
#[derive(Args, Clone, Debug)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS)]
#[command(args_override_self = true, override_usage = USAGE)]
pub(super) struct MountCommand {
    #[command(flatten)]
    places: Places,

    #[command(flatten)]
    flags: MountFlags,

    /// Mount options, as in mount(8) and fstab(5); see below
    #[arg(short = 'o', value_name = "OPTIONS", action = ArgAction::Append, value_parser = Options::from_str)]
    options: Vec<Options>,
}

/// SOURCE... MOUNTPOINT. For clap they are one argument, because with two it would require the sources in one run, without
/// flags in between.
#[derive(Clone, Debug)]
struct Places {
    sources: Vec<OsString>,
    mountpoint: PathBuf,
}

impl Args for Places {
    fn augment_args(command: clap::Command) -> clap::Command {
        // Hidden, because the template lists the two arguments that it stands for.
        let places = Arg::new(PLACES).value_name("SOURCE").num_args(1..).required(true).help(SOURCE_HELP).hide(true);
        command.arg(places.value_parser(clap::value_parser!(OsString)).action(ArgAction::Append))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Places {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut all: Vec<OsString> = matches.get_many(PLACES).into_iter().flatten().cloned().collect();
        match all.pop() {
            Some(mountpoint) if !all.is_empty() => Ok(Self { sources: all, mountpoint: mountpoint.into() }),
            _ => {
                let missing = "the following required arguments were not provided:\n  <MOUNTPOINT>";
                let mut command = clap::Command::new("mount").override_usage(USAGE);
                Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, missing).format(&mut command))
            }
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl MountCommand {
    /// Merges the layers: flags override `-o`, a later `-o` overrides an earlier one, and all override `configured`.
    pub(super) fn over(self, mut configured: Options) -> MountArgs {
        // Only mount(8) chooses the user who serves.
        configured.mount.setuid = None;
        let given = self.options.into_iter().fold(Options::default(), |earlier, later| later.over(earlier));
        let given = Options { flags: self.flags.over(given.flags), ..given };
        MountArgs::new(self.places.sources, self.places.mountpoint, given, configured)
    }
}

/// Mounts. In the background, returns when the mount answers.
pub(super) fn run(args: MountArgs, verbosity: Verbosity) -> Result<(), Failure> {
    if args.options.setuid.is_some() {
        return Err(Failure::new(Exit::Usage, "option setuid is only for `mount -t torrentfs`"));
    }
    let sources = sources::read(&args, sources::open(&args)?)?;
    if args.foreground {
        return serve::in_foreground(&args, sources, verbosity, Attacher::ThisProcess);
    }
    let message = serve::in_background(&args, sources, verbosity)?;
    if !verbosity.is_quiet() {
        println!("{message}");
    }
    Ok(())
}
