//! `torrentfs mount`

use std::fs::File;
use std::path::Path;

use super::args::{Exit, MountArgs};
use super::log::{self, Verbosity};
use super::service::{self, Service};
use super::{Failure, adding};
use crate::fs::daemon::{self, Side};
use crate::library::Source;

/// The daemon's log, within the cache directory; begun anew with each mount.
const LOG: &str = "torrentfs.log";

/// Mounts; in the background, returns once the mount answers.
pub(super) fn run(args: MountArgs, verbosity: Verbosity) -> Result<(), Failure> {
    let sources = adding::read(&args)?;
    if args.foreground {
        log::to_stderr(verbosity);
        let cache = service::open_cache(&args)?;
        return service::runtime()?.block_on(async {
            let service = Service::start(&args, sources, cache, &|| true).await?;
            eprintln!("{}; Ctrl-C unmounts", mounted_at(service.mounted.path()));
            served_at(&service).iter().for_each(|line| eprintln!("{line}"));
            service.ended().await?;
            service.stop().await
        });
    }
    let fork = daemon::fork();
    match fork.map_err(|error| Failure::new(Exit::Resource, format!("cannot go to the background: {error}")))? {
        Side::Parent(waiter) => match waiter.wait() {
            Ok(Ok(message)) => {
                println!("{message}");
                Ok(())
            }
            Ok(Err(said)) => Err(unpack(&said)),
            Err(error) => Err(Failure::new(Exit::Failure, format!("the background process cannot be heard: {error}"))),
        },
        Side::Child(notifier) => match serve(&args, sources, verbosity, notifier) {
            Ok(()) => Ok(()),
            // Whoever started this has the message, or is gone; it is in the log, too.
            Err(failure) => std::process::exit(failure.exit as i32),
        },
    }
}

/// The daemon's life.
fn serve(
    args: &MountArgs,
    sources: Vec<Source>,
    verbosity: Verbosity,
    notifier: daemon::Notifier,
) -> Result<(), Failure> {
    let dir = service::cache_dir(args.cache_dir.as_deref());
    let started = dir.and_then(|dir| {
        let cache = service::open_cache(args)?;
        // Only now: the cache's lock says that no other daemon writes there.
        let log = dir.join(LOG);
        let file = File::create(&log)
            .map_err(|error| Failure::new(Exit::Resource, format!("cannot write {}: {error}", log.display())))?;
        log::to_file(verbosity, file);
        let runtime = service::runtime()?;
        let service = runtime.block_on(Service::start(args, sources, cache, &|| notifier.is_awaited()))?;
        Ok((runtime, service, log))
    });
    let (runtime, service, log) = match started {
        Ok(started) => started,
        Err(failure) => {
            let _ = notifier.failed(&format!("{} {failure}", failure.exit as u8));
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
    const CODES: [Exit; 5] = [Exit::Failure, Exit::Usage, Exit::Torrent, Exit::Mountpoint, Exit::Resource];
    let (exit, message) = said
        .split_once(' ')
        .and_then(|(code, message)| {
            let code: u8 = code.parse().ok()?;
            CODES.into_iter().find(|exit| *exit as u8 == code).map(|exit| (exit, message))
        })
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
