//! Serving a mount from start to end, in the foreground or as a daemon.

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
use crate::sys::file::create_anew;

/// Log file of a daemon, in its cache directory. Each mount starts it anew.
const LOG_FILE: &str = "torrentfs.log";

/// Serves a mount in the foreground, until a signal arrives or somebody unmounts.
pub(super) fn in_foreground(
    args: &MountArgs,
    sources: Vec<Source>,
    verbosity: Verbosity,
    attacher: Attacher,
) -> Result<(), Failure> {
    log::in_foreground(verbosity, args.log_format)?;
    let cache = service::open_cache(args)?;
    runtime()?.block_on(async {
        let service = Service::start(args, sources, cache, attacher, verbosity.is_quiet(), &|| true).await?;
        let mounted = mounted_at(service.mounted.path());
        let hint = if std::io::stdin().is_terminal() { "; Ctrl-C unmounts" } else { "" };
        if !verbosity.is_quiet() {
            eprintln!("{mounted}{hint}");
            served_at(&service).iter().for_each(|line| eprintln!("{line}"));
        }
        notify_ready();
        notify_manager(&[NotifyState::Status(&mounted)]);
        let ended = service.ended().await;
        notify_manager(&[NotifyState::Stopping]);
        ended.and(service.stop().await)
    })
}

/// Notifies the service manager, if there is one, that the mount is ready.
pub(super) fn notify_ready() {
    notify_manager(&[NotifyState::Ready]);
}

fn notify_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot notify the service manager: {error}");
    }
}

/// Serves a mount in a background process. Returns when the mount answers, with a message for the user.
pub(super) fn in_background(args: &MountArgs, sources: Vec<Source>, verbosity: Verbosity) -> Result<String, Failure> {
    match fork()? {
        Side::Parent(waiter) => wait_for(waiter),
        Side::Child(notifier) => match in_child(args, sources, verbosity, notifier, Attacher::ThisProcess) {
            Ok(()) => std::process::exit(Exit::Success as i32),
            // The parent has received the message, and the log has it, too.
            Err(failure) => std::process::exit(failure.exit as i32),
        },
    }
}

/// Forks the background process.
pub(super) fn fork() -> Result<Side, Failure> {
    daemon::fork_daemon().map_err(|error| Failure::new(Exit::Resource, format!("cannot go to the background: {error}")))
}

/// Waits in the parent until the background process has mounted or failed.
pub(super) fn wait_for(waiter: daemon::Waiter) -> Result<String, Failure> {
    match waiter.wait() {
        Ok(Ok(message)) => Ok(message),
        Ok(Err(report)) => Err(decode(&report)),
        Err(error) => Err(Failure::new(Exit::Failure, format!("lost contact with the background process: {error}"))),
    }
}

/// Reports a failure to the parent, which receives it in [`wait_for`].
pub(super) fn report(notifier: daemon::Notifier, failure: &Failure) {
    // An error is ignored: the parent may be gone.
    let _ = notifier.failed(&format!("{} {failure}", failure.exit as u8));
}

/// Serves a mount in the background process, and reports to the parent when it answers or has failed.
pub(super) fn in_child(
    args: &MountArgs,
    sources: Vec<Source>,
    verbosity: Verbosity,
    notifier: daemon::Notifier,
    attacher: Attacher,
) -> Result<(), Failure> {
    let started = service::open_cache(args).and_then(|cache| {
        // The lock of the cache ensures that no other daemon writes this file.
        let log = cache.dir().join(LOG_FILE);
        let file = create_anew(&log)
            .map_err(|error| Failure::new(Exit::Resource, format!("cannot write {}: {error}", log.display())))?;
        log::to_file(verbosity, args.log_format, file)?;
        let runtime = runtime()?;
        let (quiet, is_wanted) = (verbosity.is_quiet(), || notifier.is_awaited());
        let starting = Service::start(args, sources, cache, attacher, quiet, &is_wanted);
        match runtime.block_on(starting) {
            Ok(service) => Ok((runtime, service, log)),
            Err(failure) => {
                // Do not wait for checks that are still hashing.
                runtime.shutdown_background();
                Err(failure)
            }
        }
    });
    let (runtime, service, log) = match started {
        Ok(started) => started,
        Err(failure) => {
            report(notifier, &failure);
            return Err(failure);
        }
    };
    let path = service.mounted.path().to_owned();
    let message =
        format!("{}\nend it with: torrentfs unmount {}\nlog: {}", mounted_at(&path), quoted(&path), log.display());
    let message = served_at(&service).map_or(message.clone(), |line| format!("{message}\n{line}"));
    let ready = notifier.ready(&message);
    let ended = runtime.block_on(async {
        // If the parent is gone, nobody wants this mount any more.
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

/// Returns a path in quotes if a shell needs them.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%:,".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Decodes a failure from its form in the pipe: exit code, space, message.
fn decode(report: &str) -> Failure {
    let (exit, message) = report
        .split_once(' ')
        .and_then(|(code, message)| Some((Exit::from_code(code.parse().ok()?)?, message)))
        .unwrap_or((Exit::Failure, report));
    Failure::new(exit, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_pass_through_the_pipe() {
        let failure = decode("4 cannot mount");
        assert_eq!((failure.exit, failure.to_string().as_str()), (Exit::Mountpoint, "cannot mount"));
        let failure = decode("the daemon was killed by signal 9 before it was ready");
        assert_eq!(failure.exit, Exit::Failure);
        assert!(failure.to_string().starts_with("the daemon was killed"));
    }

    #[test]
    fn paths_are_quoted_when_a_shell_needs_it() {
        assert_eq!(quoted(Path::new("/mnt/t")), "/mnt/t");
        assert_eq!(quoted(Path::new("/mnt/it's me")), r"'/mnt/it'\''s me'");
    }
}
