//! Mounts of the system: root mounts, and an unprivileged user serves.
//!
//! There are three processes: this one, which exits when the mount answers; the [`keeper`], which stays root, unmounts at
//! the end, and registers complete files with the kernel; and the server, which drops its privileges and restricts its system calls before it reads any data from outside,
//! even the torrent.

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
use super::{serve, sources, syscalls};
use crate::fs::daemon::{self, Account, Notifier, Side};
use crate::fs::keeper::{self, Keeper, KeeperClient};
use crate::fs::{Attacher, MountOptions};
use crate::library::OpenedSource;
use crate::web::server_dir;

/// User who serves if no other is named.
const USER: &str = "torrentfs";
/// Directory of the caches, if no other is given or configured.
const CACHES: &str = "/var/cache/torrentfs";
/// Longest source of a mount in bytes: the kernel takes one page, with the terminating NUL.
const MAX_SOURCE: usize = 4095;

/// Mounts. Returns when the mount answers, with a message for the user. Must be called before any thread is started, because
/// it forks.
pub(super) fn mount(
    mut args: MountArgs,
    sources: Vec<OpenedSource>,
    namespace: Option<File>,
    verbosity: Verbosity,
) -> Result<String, Failure> {
    let account = server(args.options.setuid.as_deref())?;
    let cache = cache_dir(&args)?;
    args.cache_dir = CacheDir::Exclusive(cache.clone());
    if let Some(blocklist) = &mut args.network.blocklist {
        *blocklist = absolute(blocklist)?;
    }
    give_to_all_users(&mut args);
    let user = account.as_ref().map(|account| (account.user, account.group));
    let options = MountOptions { user, ..options(&args) };
    let notifier = match serve::fork()? {
        Side::Parent(waiter) => return serve::wait_for(waiter),
        Side::Child(notifier) => notifier,
    };
    let code = match keeper::split() {
        Ok(keeper::Role::Keeper(keeper)) => {
            // The keeper needs no data from outside.
            drop(sources);
            keep(keeper, namespace, &args.mountpoint, options, notifier)
        }
        Ok(keeper::Role::Server(keeper)) => {
            serve(&args, sources, &cache, account.as_ref(), keeper, verbosity, notifier)
        }
        Err(error) => {
            let failure = Failure::new(Exit::Resource, format!("cannot go to the background: {error}"));
            serve::report(notifier, &failure);
            failure.exit as u8
        }
    };
    process::exit(code.into())
}

/// Lets all users access the mount, and gives the files to root instead of the user who serves.
fn give_to_all_users(args: &mut MountArgs) {
    args.options.allow_other = Some(true);
    args.options.uid.get_or_insert(0);
    args.options.gid.get_or_insert(0);
}

fn options(args: &MountArgs) -> MountOptions {
    // mount(8) passes exactly one source.
    let source = args.sources.first().map(OsString::as_os_str).unwrap_or_default();
    MountOptions { fsname: fsname(source), ..args.to_fs() }
}

/// Serves in the foreground, in the sandbox of a systemd service. A mount made there would be invisible outside, so the
/// service manager is notified when the filesystem is ready, and then runs [`attach_for`] outside the sandbox.
pub(super) fn serve_service(mut args: MountArgs, verbosity: Verbosity) -> Result<(), Failure> {
    give_to_all_users(&mut args);
    args.foreground = true;
    // Overrides the configuration, because the sandbox allows no writes elsewhere.
    let dirs = std::env::var_os("CACHE_DIRECTORY");
    let dir = dirs.and_then(|dirs| std::env::split_paths(&dirs).next());
    if let (CacheDir::Shared(_), Some(dir)) = (&args.cache_dir, dir) {
        args.cache_dir = CacheDir::Exclusive(dir);
    }
    restrict()?;
    let sources = sources::read(&args, sources::open(&args)?)?;
    serve::in_foreground(&args, sources, verbosity, Attacher::External(Box::new(serve::notify_ready)))
}

/// Attaches the filesystem of a process that runs [`serve_service`].
pub(super) fn attach_for(pid: u32, args: &MountArgs) -> Result<(), Failure> {
    let mut args = args.clone();
    give_to_all_users(&mut args);
    let attached = keeper::attach_for(pid, &args.mountpoint, options(&args));
    attached.map_err(|error| Failure::new(Exit::Mountpoint, error))
}

/// Runs the keeper, and returns its exit code.
fn keep(keeper: Keeper, namespace: Option<File>, mountpoint: &Path, options: MountOptions, notifier: Notifier) -> u8 {
    let entered = namespace.map_or(Ok(()), |namespace| daemon::enter_mount_namespace(namespace.as_fd()));
    let entered = entered.map_err(|error| Failure::new(Exit::Resource, format!("cannot enter the namespace: {error}")));
    let begun = entered
        .and_then(|()| keeper.prepare(mountpoint, options).map_err(|error| Failure::new(Exit::Mountpoint, error)));
    match begun {
        Ok(keeping) => {
            // From now on the server reports to the parent.
            drop(notifier);
            keeping.run()
        }
        Err(failure) => {
            serve::report(notifier, &failure);
            failure.exit as u8
        }
    }
}

/// Runs the server, and returns its exit code.
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
        // The keeper has reported the reason.
        return Exit::Mountpoint as u8;
    }
    let resource = |task: String| move |error| Failure::new(Exit::Resource, format!("cannot {task}: {error}"));
    let sources = make_dir(cache, account)
        .map_err(resource(format!("create the cache {}", cache.display())))
        .and_then(|()| {
            // An error is ignored: without this directory, only `torrentfs status` cannot find the mount.
            if let Some(account) = account {
                let _ = make_dir(&server_dir(account.user), Some(account));
            }
            // The working directory of root may be inaccessible to the user.
            let left = std::env::set_current_dir("/");
            let dropped = left.and_then(|()| account.map_or_else(daemon::drop_capabilities, daemon::become_user));
            dropped.map_err(resource("drop the privileges of root".to_owned()))
        })
        .and_then(|()| restrict())
        // From here on this process has no privileges to abuse.
        .and_then(|()| sources::read(args, sources));
    let ended = match sources {
        Ok(sources) => serve::in_child(args, sources, verbosity, notifier, Attacher::Keeper(keeper)),
        Err(failure) => {
            serve::report(notifier, &failure);
            Err(failure)
        }
    };
    ended.map_or_else(|failure| failure.exit as u8, |()| 0)
}

/// Restricts the system calls of this process to those that a server needs.
fn restrict() -> Result<(), Failure> {
    syscalls::restrict()
        .map_err(|error| Failure::new(Exit::Resource, format!("cannot restrict the system calls: {error}")))
}

/// Returns the account that serves; `None`: root itself, because the default user does not exist. A named user must exist.
fn server(name: Option<&str>) -> Result<Option<Account>, Failure> {
    let account = |name: &str| {
        daemon::account(name)
            .map_err(|error| Failure::new(Exit::Resource, format!("cannot look up user {name}: {error}")))
    };
    match name {
        Some(name) => match account(name)? {
            Some(account) => Ok(Some(account).filter(|account| account.user != 0)),
            None => Err(Failure::new(Exit::Usage, format!("option setuid: user {name:?} does not exist"))),
        },
        None => {
            let account = account(USER)?;
            if account.is_none() {
                eprintln!(
                    "mount.torrentfs: user {USER} does not exist, so root itself serves the mount, without capabilities; set another user with setuid=USER"
                );
            }
            Ok(account)
        }
    }
}

/// Returns an absolute path, because the server leaves the working directory.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot use {}: {error}", path.display())))
}

fn cache_dir(args: &MountArgs) -> Result<PathBuf, Failure> {
    match &args.cache_dir {
        CacheDir::Exclusive(dir) => absolute(dir),
        // Every mount gets its own directory, because mounts may be served by different users.
        CacheDir::Shared(base) => {
            let base = absolute(base.as_deref().unwrap_or(Path::new(CACHES)))?;
            Ok(base.join(name_of(&absolute(&args.mountpoint)?)))
        }
    }
}

/// Creates a directory that only one user can access. An existing one is left unchanged.
fn make_dir(dir: &Path, owner: Option<&Account>) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    let Some(owner) = owner else { return Ok(()) };
    // Change the owner by descriptor: another process may have replaced the path.
    let made = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY).open(dir)?;
    fchown(made, Some(owner.user), Some(owner.group))
}

/// Returns the source for the kernel's list of mounts, which all users can read: without secrets, and not too long.
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
    fn a_new_directory_belongs_to_its_user_and_an_existing_one_is_unchanged() {
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
    fn the_list_of_mounts_shows_the_source_without_secrets() {
        assert_eq!(fsname("/srv/my film.torrent".as_ref()), "/srv/my film.torrent");
        let link = "magnet:?xt=urn:btih:c12fe1c06bba254a9dc9f519b335aa7c1367a88a";
        assert_eq!(fsname(format!("{link}&dn=x").as_ref()), format!("{link}&dn=x"));
        assert_eq!(fsname(format!("{link}&dn={}", "x".repeat(5000)).as_ref()), link);
        assert_eq!(fsname("https://t/?passkey=0123".as_ref()), "https://t/?***");
        assert_eq!(fsname("".as_ref()), "torrentfs");
    }
}
