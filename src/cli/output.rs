//! What a command gives: text and bytes on standard output, files on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::failure::{Exit, Failure};

/// The name that stands for standard input and output.
pub(super) const STANDARD: &str = "-";

/// Begins what is emphasised on a terminal; [`PLAIN`] ends it.
pub(super) const BOLD: &str = "\x1b[1m";
/// Begins what is wrong.
pub(super) const RED: &str = "\x1b[31m";
/// Begins what is well.
pub(super) const GREEN: &str = "\x1b[32m";
/// Begins what is neither.
pub(super) const YELLOW: &str = "\x1b[33m";
/// Ends each of the others.
pub(super) const PLAIN: &str = "\x1b[0m";

/// Writes text to standard output; colours only where a terminal shows them. That nobody reads it any more, as behind
/// `| head`, is no fault.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    written(anstream::stdout().lock().write_all(text.as_bytes()))
}

/// Writes bytes to standard output.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(bytes).and_then(|()| out.flush()))
}

fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(Exit::Failure, format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// Writes text to standard error. Nobody may be listening any more.
pub(super) fn tell(text: &str) {
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// A value as JSON, on a line of its own.
pub(super) fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value);
    text.map(|text| text + "\n").map_err(|error| Failure::new(Exit::Failure, format!("cannot write JSON: {error}")))
}

/// Whether a file may take the place of one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replace {
    Never,
    /// Keeps its permissions.
    Always,
}

/// A file to be written in one step: first beside its place, then moved there. So it is there as a whole or not at all,
/// and what was there before stays until then.
pub(super) struct Planned {
    path: PathBuf,
    replace: Replace,
}

impl Planned {
    /// Looks whether it could be written, before the work is done that it is for.
    pub(super) fn plan(path: &Path, replace: Replace) -> Result<Self, Failure> {
        // What a link leads to is replaced, not the link.
        let path = match fs::canonicalize(path) {
            Ok(real) if replace == Replace::Always => real,
            _ => path.to_owned(),
        };
        let file = Self { path, replace };
        if fs::symlink_metadata(&file.path).is_ok() {
            match replace {
                Replace::Never => return Err(file.is_there()),
                Replace::Always if file.path.is_file() => {}
                Replace::Always => return Err(file.failed(io::Error::other("it is not a regular file"))),
            }
        }
        let (temporary, _) = file.temporary().map_err(|error| file.failed(error))?;
        fs::remove_file(temporary).map_err(|error| file.failed(error))?;
        Ok(file)
    }

    /// Writes it.
    pub(super) fn write(self, bytes: &[u8]) -> Result<(), Failure> {
        let (temporary, mut file) = self.temporary().map_err(|error| self.failed(error))?;
        let written = file.write_all(bytes).and_then(|()| {
            if let Ok(before) = fs::metadata(&self.path) {
                // Only root may give files away; what others cannot keep is theirs from now on.
                let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
                file.set_permissions(before.permissions())?;
            }
            file.sync_all()
        });
        let moved = written.and_then(|()| match self.replace {
            Replace::Always => fs::rename(&temporary, &self.path),
            Replace::Never => move_beside(&temporary, &self.path),
        });
        if moved.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        moved.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.is_there(),
            _ => self.failed(error),
        })
    }

    /// A new file in the same directory.
    fn temporary(&self) -> io::Result<(PathBuf, File)> {
        let name = format!(".torrentfs-{}-{:08x}.part", std::process::id(), rand::random::<u32>());
        let dir = self.path.parent().unwrap_or(Path::new("")).join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&dir)?;
        Ok((dir, file))
    }

    fn is_there(&self) -> Failure {
        let shown = self.path.display();
        Failure::new(Exit::Failure, format!("cannot write {shown}: it is there already; --force replaces it"))
    }

    fn failed(&self, error: io::Error) -> Failure {
        Failure::new(Exit::Failure, format!("cannot write {}: {error}", self.path.display()))
    }
}

/// Moves a file to where none is: a link fails where one is, a rename does not.
fn move_beside(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // Not every filesystem has links.
        Err(_) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        Err(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn write(path: &Path, replace: Replace, text: &str) -> Result<(), String> {
        let planned = Planned::plan(path, replace).map_err(|failure| failure.to_string())?;
        planned.write(text.as_bytes()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_file_is_replaced_only_when_asked_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, Replace::Never, "one").unwrap();
        assert!(write(&path, Replace::Never, "two").unwrap_err().contains("there already"));
        // It came between the look and the writing.
        let planned = Planned::plan(&dir.path().join("b"), Replace::Never).unwrap();
        fs::write(dir.path().join("b"), "theirs").unwrap();
        assert!(planned.write(b"ours").unwrap_err().to_string().contains("there already"));
        assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"theirs");

        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        symlink("a", dir.path().join("link")).unwrap();
        write(&dir.path().join("link"), Replace::Always, "three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(dir.path().join("link")).unwrap().is_symlink());
        for nowhere in ["no/such/dir", "."] {
            assert!(write(&dir.path().join(nowhere), Replace::Always, "").is_err());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left behind");
    }
}
