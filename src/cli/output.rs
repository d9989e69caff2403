//! Output of commands: text and bytes on standard output and standard error, and files that are written atomically.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::failure::{Exit, Failure};

/// File name that means standard input or output.
pub(super) const STANDARD: &str = "-";

/// Starts bold text; [`PLAIN`] ends it.
pub(super) const BOLD: &str = "\x1b[1m";
/// Starts the colour of errors.
pub(super) const RED: &str = "\x1b[31m";
/// Starts the colour of success.
pub(super) const GREEN: &str = "\x1b[32m";
/// Starts the colour of warnings.
pub(super) const YELLOW: &str = "\x1b[33m";
/// Ends bold text and colours.
pub(super) const PLAIN: &str = "\x1b[0m";

/// Writes text to standard output, without the colours if it is not a terminal. A closed pipe, as behind `| head`, is not an
/// error.
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

/// Writes text to standard error. An error is ignored: there is no place left to report it.
pub(super) fn print_error(text: &str) {
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// Returns a value as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value);
    text.map(|text| text + "\n").map_err(|error| Failure::new(Exit::Failure, format!("cannot write JSON: {error}")))
}

/// Whether an existing file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replace {
    Never,
    /// The new file gets the permissions of the old one.
    Always,
}

/// A file that is written atomically: first under a temporary name in the same directory, then renamed. At any time the path
/// has the old file or the complete new one.
pub(super) struct AtomicFile {
    path: PathBuf,
    replace: Replace,
}

impl AtomicFile {
    /// Checks that the file can be written, so that an error comes before the work that produces its content.
    pub(super) fn plan(path: &Path, replace: Replace) -> Result<Self, Failure> {
        // Replace the target of a symbolic link, not the link.
        let path = match fs::canonicalize(path) {
            Ok(real) if replace == Replace::Always => real,
            _ => path.to_owned(),
        };
        let file = Self { path, replace };
        if fs::symlink_metadata(&file.path).is_ok() {
            match replace {
                Replace::Never => return Err(file.exists()),
                Replace::Always if file.path.is_file() => {}
                Replace::Always => return Err(file.failed(io::Error::other("it is not a regular file"))),
            }
        }
        let (temporary, _) = file.temporary().map_err(|error| file.failed(error))?;
        fs::remove_file(temporary).map_err(|error| file.failed(error))?;
        Ok(file)
    }

    /// Writes the content, and moves the file to its path.
    pub(super) fn write(self, bytes: &[u8]) -> Result<(), Failure> {
        let (temporary, mut file) = self.temporary().map_err(|error| self.failed(error))?;
        let written = file.write_all(bytes).and_then(|()| {
            if let Ok(before) = fs::metadata(&self.path) {
                // Fails for users other than root, who then own the new file.
                let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
                file.set_permissions(before.permissions())?;
            }
            file.sync_all()
        });
        let moved = written.and_then(|()| match self.replace {
            Replace::Always => fs::rename(&temporary, &self.path),
            Replace::Never => rename_new(&temporary, &self.path),
        });
        if moved.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        moved.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.exists(),
            _ => self.failed(error),
        })
    }

    /// Creates a file in the same directory.
    fn temporary(&self) -> io::Result<(PathBuf, File)> {
        let name = format!(".torrentfs-{}-{:08x}.part", std::process::id(), rand::random::<u32>());
        let dir = self.path.parent().unwrap_or(Path::new("")).join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&dir)?;
        Ok((dir, file))
    }

    fn exists(&self) -> Failure {
        let shown = self.path.display();
        Failure::new(Exit::Failure, format!("cannot write {shown}: it exists already; use --force to overwrite it"))
    }

    fn failed(&self, error: io::Error) -> Failure {
        Failure::new(Exit::Failure, format!("cannot write {}: {error}", self.path.display()))
    }
}

/// Renames a file to a path that must not exist. rename(2) would replace an existing file, link(2) fails.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // The filesystem has no hard links.
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
        let planned = AtomicFile::plan(path, replace).map_err(|failure| failure.to_string())?;
        planned.write(text.as_bytes()).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_file_is_replaced_only_if_asked_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, Replace::Never, "one").unwrap();
        assert!(write(&path, Replace::Never, "two").unwrap_err().contains("exists already"));
        // The file appears between the check and the write.
        let planned = AtomicFile::plan(&dir.path().join("b"), Replace::Never).unwrap();
        fs::write(dir.path().join("b"), "theirs").unwrap();
        assert!(planned.write(b"ours").unwrap_err().to_string().contains("exists already"));
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
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no temporary file is left");
    }
}
