//! Serving a mount from start to end, in the foreground or as a daemon.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;

use sd_notify::NotifyState;

use super::failure::{Exit, Failure};
use super::log::{self, Verbosity};
use super::mount_args::MountArgs;
use super::runtime::runtime;
use super::service::{self, Service};
use crate::fs::Attacher;
use crate::fs::daemon::{self, Side};
use crate::library::Source;

/// The daemon's log, within the cache directory; begun anew with each mount.
const LOG: &str = "torrentfs.log";

/// Until a signal comes, or somebody unmounts.
pub(super) fn in_foreground(
    args: &MountArgs,
    sources: Vec<Source>,
    verbosity: Verbosity,
    by: Attacher,
) -> Result<(), Failure> {
    log::in_foreground(verbosity, args.log_format)?;
    let cache = service::open_cache(args)?;
    runtime()?.block_on(async {
        let service = Service::start(args, sources, cache, by, verbosity.is_quiet(), &|| true).await?;
        let mounted = mounted_at(service.mounted.path());
        let how_to_end = if std::io::stdin().is_terminal() { "; Ctrl-C unmounts" } else { "" };
        eprintln!("{mounted}{how_to_end}");
        served_at(&service).iter().for_each(|line| eprintln!("{line}"));
        say_ready();
        say_to_manager(&[NotifyState::Status(&mounted)]);
        let ended = service.ended().await;
        say_to_manager(&[NotifyState::Stopping]);
        ended.and(service.stop().await)
    })
}

/// Tells the service manager, where there is one, that the start is over.
pub(super) fn say_ready() {
    say_to_manager(&[NotifyState::Ready]);
}

fn say_to_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("the service manager cannot be told: {error}");
    }
}

/// Returns once the mount answers, with what to tell the user.
pub(super) fn in_background(args: &MountArgs, sources: Vec<Source>, verbosity: Verbosity) -> Result<String, Failure> {
    match fork()? {
        Side::Parent(waiter) => hear(waiter),
        Side::Child(notifier) => match serve(args, sources, verbosity, notifier, Attacher::ThisProcess) {
            Ok(()) => std::process::exit(Exit::Success as i32),
            // Whoever started this has the message, or is gone; it is in the log, too.
            Err(failure) => std::process::exit(failure.exit as i32),
        },
    }
}

pub(super) fn fork() -> Result<Side, Failure> {
    daemon::fork_daemon().map_err(|error| Failure::new(Exit::Resource, format!("cannot go to the background: {error}")))
}

/// The daemon's word.
pub(super) fn hear(waiter: daemon::Waiter) -> Result<String, Failure> {
    match waiter.wait() {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(said)) => Err(unpack(&said)),
        Err(error) => Err(Failure::new(Exit::Failure, format!("the background process cannot be heard: {error}"))),
    }
}

/// Tells of a failure, for [`hear`].
pub(super) fn tell(notifier: daemon::Notifier, failure: &Failure) {
    // Nobody may be listening any more.
    let _ = notifier.failed(&format!("{} {failure}", failure.exit as u8));
}

/// The daemon's life.
pub(super) fn serve(
    args: &MountArgs,
    sources: Vec<Source>,
    verbosity: Verbosity,
    notifier: daemon::Notifier,
    by: Attacher,
) -> Result<(), Failure> {
    let started = service::open_cache(args).and_then(|cache| {
        // The cache's lock says that no other daemon writes there.
        let log = cache.dir().join(LOG);
        let file = File::create(&log)
            .map_err(|error| Failure::new(Exit::Resource, format!("cannot write {}: {error}", log.display())))?;
        log::of_daemon(verbosity, args.log_format, file)?;
        let runtime = runtime()?;
        let (quiet, wanted) = (verbosity.is_quiet(), || notifier.is_awaited());
        let starting = Service::start(args, sources, cache, by, quiet, &wanted);
        match runtime.block_on(starting) {
            Ok(service) => Ok((runtime, service, log)),
            Err(failure) => {
                // A check that nobody waits for any more may still be at work.
                runtime.shutdown_background();
                Err(failure)
            }
        }
    });
    let (runtime, service, log) = match started {
        Ok(started) => started,
        Err(failure) => {
            tell(notifier, &failure);
            return Err(failure);
        }
    };
    let path = service.mounted.path().to_owned();
    let message =
        format!("{}\nend it with: torrentfs unmount {}\nlog: {}", mounted_at(&path), quoted(&path), log.display());
    let message = served_at(&service).map_or(message.clone(), |line| format!("{message}\n{line}"));
    let ready = notifier.ready(&message);
    let ended = runtime.block_on(async {
        // Nobody waits for this mount any more: then it must not stay.
        if ready.is_ok() {
            service.ended().await?;
        }
        service.stop().await
    });
    ended.inspect_err(|failure| tracing::error!("{failure}"))
}

fn mounted_at(path: &Path) -> String {
    format!("mounted at {}", path.display())
}

fn served_at(service: &Service) -> Option<String> {
    service.control.http().map(|addr| format!("status and files: http://{addr}/"))
}

/// As a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%:,".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A failure as it came through the pipe: the code, a space, the message.
fn unpack(said: &str) -> Failure {
    let (exit, message) = said
        .split_once(' ')
        .and_then(|(code, message)| Some((Exit::from_code(code.parse().ok()?)?, message)))
        .unwrap_or((Exit::Failure, said));
    Failure::new(exit, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_pass_the_pipe() {
        let failure = unpack("4 cannot mount");
        assert_eq!((failure.exit, failure.to_string().as_str()), (Exit::Mountpoint, "cannot mount"));
        let failure = unpack("the daemon was killed by signal 9 before it was ready");
        assert_eq!(failure.exit, Exit::Failure);
        assert!(failure.to_string().starts_with("the daemon was killed"));
    }

    #[test]
    fn paths_are_quoted_when_a_shell_needs_it() {
        assert_eq!(quoted(Path::new("/mnt/t")), "/mnt/t");
        assert_eq!(quoted(Path::new("/mnt/it's me")), r"'/mnt/it'\''s me'");
    }
}
