//! A mount of the system's: root mounts, and a user without privileges serves.
//!
//! Three processes come of it: this one, which ends once the mount answers; the [`keeper`]; and the server, which gives
//! up its rights before it reads a byte that others wrote, the torrent's own included.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process;

use super::cache_dir::{CacheDir, name_of};
use super::failure::{Exit, Failure};
use super::log::Verbosity;
use super::mount_args::MountArgs;
use super::{serve, sources};
use crate::fs::daemon::{self, Account, Notifier, Side};
use crate::fs::keeper::{self, Keeper, KeeperClient};
use crate::fs::{Attacher, MountOptions};
use crate::library::OpenedSource;
use crate::web::server_dir;

/// Who serves unless somebody is named.
const USER: &str = "torrentfs";
/// Where each mount has its cache, unless another directory is named or configured.
const CACHES: &str = "/var/cache/torrentfs";
/// What the kernel takes as a mount's source, less its NUL.
const MAX_SOURCE: usize = 4095;

/// Mounts; returns once the mount answers, with what to tell. Must come before any thread is started.
pub(super) fn mount(
    mut args: MountArgs,
    sources: Vec<OpenedSource>,
    namespace: Option<File>,
    verbosity: Verbosity,
) -> Result<String, Failure> {
    let account = server(args.options.setuid.as_deref())?;
    let cache = cache_dir(&args)?;
    args.cache_dir = CacheDir::Exactly(cache.clone());
    if let Some(blocklist) = &mut args.network.blocklist {
        *blocklist = absolute(blocklist)?;
    }
    for_everybody(&mut args);
    let user = account.as_ref().map(|account| (account.user, account.group));
    let options = MountOptions { user, ..options(&args) };
    let notifier = match serve::fork()? {
        Side::Parent(waiter) => return serve::hear(waiter),
        Side::Child(notifier) => notifier,
    };
    let code = match keeper::split() {
        Ok(keeper::Role::Keeper(keeper)) => {
            // It believes nothing that others wrote, so it does not hold it either.
            drop(sources);
            keep(keeper, namespace, &args.mountpoint, options, notifier)
        }
        Ok(keeper::Role::Server(keeper)) => {
            serve(&args, sources, &cache, account.as_ref(), keeper, verbosity, notifier)
        }
        Err(error) => {
            let failure = Failure::new(Exit::Resource, format!("cannot go to the background: {error}"));
            serve::tell(notifier, &failure);
            failure.exit as u8
        }
    };
    process::exit(code.into())
}

/// It is the system's mount, and who serves it owns nothing in it.
fn for_everybody(args: &mut MountArgs) {
    args.options.allow_other = Some(true);
    args.options.uid.get_or_insert(0);
    args.options.gid.get_or_insert(0);
}

fn options(args: &MountArgs) -> MountOptions {
    // One, and no more: mount(8) passes no others.
    let source = args.sources.first().map(OsString::as_os_str).unwrap_or_default();
    MountOptions { fsname: fsname(source), ..args.options.to_fs() }
}

/// Serves in the foreground, in a service's sandbox, out of which no mount would be seen: so the service manager is told
/// when there is something to show, and its next step is [`attach_for`].
pub(super) fn serve_service(mut args: MountArgs, verbosity: Verbosity) -> Result<(), Failure> {
    for_everybody(&mut args);
    args.foreground = true;
    // Elsewhere its sandbox would not let it write: this goes before what is configured.
    let dirs = std::env::var_os("CACHE_DIRECTORY");
    let dir = dirs.and_then(|dirs| std::env::split_paths(&dirs).next());
    if let (CacheDir::Shared(_), Some(dir)) = (&args.cache_dir, dir) {
        args.cache_dir = CacheDir::Exactly(dir);
    }
    let sources = sources::read(&args, sources::open(&args)?)?;
    serve::in_foreground(&args, sources, verbosity, Attacher::External(Box::new(serve::say_ready)))
}

/// Attaches the mount of a process that runs [`serve_service`].
pub(super) fn attach_for(pid: u32, args: &MountArgs) -> Result<(), Failure> {
    let mut args = args.clone();
    for_everybody(&mut args);
    let attached = keeper::attach_for(pid, &args.mountpoint, options(&args));
    attached.map_err(|error| Failure::new(Exit::Mountpoint, error))
}

/// The keeper's life.
fn keep(keeper: Keeper, namespace: Option<File>, mountpoint: &Path, options: MountOptions, notifier: Notifier) -> u8 {
    let entered = namespace.map_or(Ok(()), |namespace| daemon::enter_mount_namespace(namespace.as_fd()));
    let entered = entered.map_err(|error| Failure::new(Exit::Resource, format!("cannot enter the namespace: {error}")));
    let begun = entered
        .and_then(|()| keeper.prepare(mountpoint, options).map_err(|error| Failure::new(Exit::Mountpoint, error)));
    match begun {
        Ok(keeping) => {
            // From now on it is the server's to say how it goes.
            drop(notifier);
            keeping.run()
        }
        Err(failure) => {
            serve::tell(notifier, &failure);
            failure.exit as u8
        }
    }
}

/// The server's life.
fn serve(
    args: &MountArgs,
    sources: Vec<OpenedSource>,
    cache: &Path,
    account: Option<&Account>,
    keeper: KeeperClient,
    verbosity: Verbosity,
    notifier: Notifier,
) -> u8 {
    if keeper.wait().is_err() {
        // Somebody else has said why.
        return Exit::Mountpoint as u8;
    }
    let resource = |what: String| move |error| Failure::new(Exit::Resource, format!("cannot {what}: {error}"));
    let sources = make_dir(cache, account)
        .map_err(resource(format!("make the cache {}", cache.display())))
        .and_then(|()| {
            // Without it `torrentfs status` does not find the mount, which is no reason not to have it.
            if let Some(account) = account {
                let _ = make_dir(&server_dir(account.user), Some(account));
            }
            // The directory of who mounts may be one that others cannot reach.
            let left = std::env::set_current_dir("/");
            let dropped = left.and_then(|()| account.map_or(Ok(()), daemon::become_user));
            dropped.map_err(resource("give up the rights of root".to_owned()))
        })
        // From here on there is nothing to be had from this process.
        .and_then(|()| sources::read(args, sources));
    let ended = match sources {
        Ok(sources) => serve::serve(args, sources, verbosity, notifier, Attacher::Keeper(keeper)),
        Err(failure) => {
            serve::tell(notifier, &failure);
            Err(failure)
        }
    };
    ended.map_or_else(|failure| failure.exit as u8, |()| 0)
}

/// Who is to serve; `None`: this user, as nobody better was found. A named one must be there.
fn server(name: Option<&str>) -> Result<Option<Account>, Failure> {
    let account = |name: &str| {
        daemon::account(name)
            .map_err(|error| Failure::new(Exit::Resource, format!("cannot look up user {name}: {error}")))
    };
    match name {
        Some(name) => match account(name)? {
            Some(account) => Ok(Some(account).filter(|account| account.user != 0)),
            None => Err(Failure::new(Exit::Usage, format!("option setuid: there is no user {name:?}"))),
        },
        None => {
            let account = account(USER)?;
            if account.is_none() {
                eprintln!(
                    "mount.torrentfs: there is no user {USER}, so root itself talks to the network; setuid=USER names another"
                );
            }
            Ok(account)
        }
    }
}

/// Who serves leaves the working directory.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot use {}: {error}", path.display())))
}

fn cache_dir(args: &MountArgs) -> Result<PathBuf, Failure> {
    match &args.cache_dir {
        CacheDir::Exactly(dir) => absolute(dir),
        // Each in its own, whether or not others are there: who serves may differ from one to the next.
        CacheDir::Shared(base) => {
            let base = absolute(base.as_deref().unwrap_or(Path::new(CACHES)))?;
            Ok(base.join(name_of(&absolute(&args.mountpoint)?)))
        }
    }
}

/// Makes a directory for one user alone. What is there already stays as it is, whoever made it.
fn make_dir(dir: &Path, owner: Option<&Account>) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    let Some(owner) = owner else { return Ok(()) };
    // Not by its path, which may have come to mean something else.
    let made = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY).open(dir)?;
    fchown(made, Some(owner.user), Some(owner.group))
}

/// The source as the kernel's list of mounts has it, which everybody may read.
pub(super) fn fsname(source: &OsStr) -> String {
    let shown = sources::shown(source);
    let shown = if shown.len() > MAX_SOURCE { shown.split('&').next().unwrap_or_default().to_owned() } else { shown };
    let plain: String = shown.chars().map(|c| if c == '\0' { '_' } else { c }).collect();
    if plain.is_empty() || plain.len() > MAX_SOURCE { "torrentfs".to_owned() } else { plain }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_directory_is_made_for_its_user_and_one_that_is_there_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let nobody = daemon::account("nobody").unwrap().filter(|_| daemon::is_root());
        let dir = base.path().join("a/b");
        make_dir(&dir, nobody.as_ref()).unwrap();
        let about = fs::metadata(&dir).unwrap();
        assert_eq!(about.mode() & 0o777, 0o700);
        assert!(nobody.is_none_or(|nobody| about.uid() == nobody.user));
        assert_eq!(fs::metadata(base.path().join("a")).unwrap().uid(), fs::metadata(base.path()).unwrap().uid());

        let (victim, link) = (base.path().join("victim"), base.path().join("link"));
        fs::create_dir(&victim).unwrap();
        symlink(&victim, &link).unwrap();
        let before = fs::metadata(&victim).unwrap();
        make_dir(&link, daemon::account("nobody").unwrap().as_ref()).unwrap();
        let after = fs::metadata(&victim).unwrap();
        assert_eq!((before.uid(), before.mode()), (after.uid(), after.mode()));
    }

    #[test]
    fn the_list_of_mounts_has_the_source_without_secrets() {
        assert_eq!(fsname("/srv/my film.torrent".as_ref()), "/srv/my film.torrent");
        let link = "magnet:?xt=urn:btih:c12fe1c06bba254a9dc9f519b335aa7c1367a88a";
        assert_eq!(fsname(format!("{link}&dn=x").as_ref()), format!("{link}&dn=x"));
        assert_eq!(fsname(format!("{link}&dn={}", "x".repeat(5000)).as_ref()), link);
        assert_eq!(fsname("https://t/?passkey=0123".as_ref()), "https://t/?***");
        assert_eq!(fsname("".as_ref()), "torrentfs");
    }
}
