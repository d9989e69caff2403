//! Finding the files for a new torrent.
//!
//! Files are sorted by the bytes of their path below the root, `/` included: `a-b`, `a/b`, `a0`. The order depends on
//! neither the filesystem nor the locale, and mktorrent uses the same.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::found::{Found, Stamp, open, special_kind};
use crate::metainfo::{FileKind, MAX_FILES, NewFile, link_target};

/// Nesting limit of directories, to bound recursion; a path in a torrent has at most 64 components.
const MAX_DEPTH: usize = 128;

/// Which files to take, and how.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// Whether to take files and directories whose name starts with a dot.
    pub hidden: bool,
    /// Patterns of files and directories to leave out.
    pub ignore: Ignore,
    /// Whether to take the targets of links instead of the links.
    pub dereference: bool,
    /// Whether to record that a file's owner may execute it.
    pub executable: bool,
    /// Device and inode of a file to leave out: the `.torrent` file itself, if it is in the tree.
    pub except: Option<(u64, u64)>,
}

/// Patterns of files to leave out. A pattern without `/` matches names at any depth; others match paths below the root.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    names: GlobSet,
    paths: GlobSet,
    directory_names: GlobSet,
    directory_paths: GlobSet,
}

/// Counts of what was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Files and directories whose name starts with a dot.
    pub hidden: usize,
    /// Files and directories that match a pattern.
    pub ignored: usize,
    /// Directories in which there is nothing to take, which a torrent cannot contain.
    pub empty: usize,
}

/// Why no torrent can be created from a path. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// A file or directory cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A name is not UTF-8, as a torrent requires.
    #[error("the name of {0:?} is not UTF-8: rename it, or leave it out with --ignore")]
    NotUtf8(PathBuf),
    /// It is neither a file nor a directory nor a link.
    #[error("{path} is a {kind}, which a torrent cannot hold: leave it out with --ignore")]
    Special {
        /// Its path.
        path: PathBuf,
        /// The kind of thing that it is.
        kind: &'static str,
    },
    /// A torrent cannot represent the link.
    #[error(
        "the link {path} leads {how}, which a torrent cannot hold: leave it out with --ignore, or take its target instead \
         with --dereference"
    )]
    Link {
        /// The link.
        path: PathBuf,
        /// The direction, for the message.
        how: &'static str,
    },
    /// A link points to a directory that contains the link.
    #[error("{0} links to a directory that contains it: leave it out with --ignore")]
    Loop(PathBuf),
    /// Directories nest too deep.
    #[error("{0} is too deep for a torrent")]
    TooDeep(PathBuf),
    /// There are more than [`MAX_FILES`] files.
    #[error("there are more than {MAX_FILES} files, which is more than a torrent may have")]
    TooMany,
}

impl Ignore {
    /// Compiles shell patterns: `*`, `?`, `[a-z]`, `{a,b}`, and `**` across directories. A pattern with a `/` at its end
    /// matches only directories.
    ///
    /// # Errors
    /// If a pattern is invalid; the message names it.
    pub fn new(patterns: &[impl AsRef<str>]) -> Result<Self, String> {
        let mut sets = [const { Vec::new() }; 4];
        for pattern in patterns.iter().map(AsRef::as_ref) {
            let (bare, directory) = match pattern.strip_suffix('/') {
                Some(bare) => (bare, 2),
                None => (pattern, 0),
            };
            let whole = bare.contains('/');
            let bare = bare.strip_prefix("./").or_else(|| bare.strip_prefix('/')).unwrap_or(bare);
            let glob = GlobBuilder::new(bare).literal_separator(true).backslash_escape(true).build();
            let glob = glob.map_err(|error| format!("{pattern:?} is not a valid pattern: {}", error.kind()))?;
            sets[directory + usize::from(whole)].push(glob);
        }
        let [names, paths, directory_names, directory_paths] = sets.map(|globs| {
            let mut set = GlobSetBuilder::new();
            for glob in globs {
                set.add(glob);
            }
            set.build().map_err(|error| format!("the patterns are too many or too large: {}", error.kind()))
        });
        Ok(Self { names: names?, paths: paths?, directory_names: directory_names?, directory_paths: directory_paths? })
    }

    fn matches(&self, name: &OsStr, below: &Path, is_dir: bool) -> bool {
        self.names.is_match(name)
            || self.paths.is_match(below)
            || (is_dir && (self.directory_names.is_match(name) || self.directory_paths.is_match(below)))
    }
}

/// Returns the files for a torrent of `root`, in the torrent's order, and counts of what was left out. Opens each file once,
/// so that an unreadable one is found now. If `root` is not a directory, it is the torrent's single file.
pub fn walk(root: &Path, options: &Walk) -> Result<(Vec<Found>, LeftOut), WalkError> {
    let about = fs::metadata(root).map_err(|source| WalkError::Io { path: root.into(), source })?;
    let mut walker = Walker { root, options, files: Vec::new(), left_out: LeftOut::default(), parents: Vec::new() };
    if about.is_dir() {
        walker.directory(root.to_owned(), Path::new(""), &about)?;
    } else {
        walker.file(root.to_owned(), Vec::new(), &about)?;
    }
    let Walker { mut files, left_out, .. } = walker;
    files.sort_by_cached_key(|found| found.file.path.join("/"));
    Ok((files, left_out))
}

struct Walker<'a> {
    root: &'a Path,
    options: &'a Walk,
    files: Vec<Found>,
    left_out: LeftOut,
    /// Device and inode of the current directory and of those above it.
    parents: Vec<(u64, u64)>,
}

impl Walker<'_> {
    fn directory(&mut self, path: PathBuf, below: &Path, about: &Metadata) -> Result<(), WalkError> {
        let inode = (about.dev(), about.ino());
        if self.parents.contains(&inode) {
            return Err(WalkError::Loop(path));
        }
        if self.parents.len() == MAX_DEPTH {
            return Err(WalkError::TooDeep(path));
        }
        self.parents.push(inode);
        let failed = |source| WalkError::Io { path: path.clone(), source };
        let (files, empty) = (self.files.len(), self.left_out.empty);
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            self.entry(entry.path(), &below.join(entry.file_name()), &entry.file_name())?;
        }
        if self.files.len() == files {
            // It stands for the directories in it.
            self.left_out.empty = empty + 1;
        }
        self.parents.pop();
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, below: &Path, name: &OsStr) -> Result<(), WalkError> {
        if !self.options.hidden && name.as_bytes().first() == Some(&b'.') {
            self.left_out.hidden += 1;
            return Ok(());
        }
        let metadata = if self.options.dereference { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let is_dir = metadata.as_ref().is_ok_and(Metadata::is_dir);
        if self.options.ignore.matches(name, below, is_dir) {
            self.left_out.ignored += 1;
            return Ok(());
        }
        let about = metadata.map_err(|source| WalkError::Io { path: path.clone(), source })?;
        if self.options.except == Some((about.dev(), about.ino())) {
            return Ok(());
        }
        if is_dir {
            return self.directory(path, below, &about);
        }
        let parts = below.iter().map(|part| part.to_str().map(str::to_owned)).collect();
        let Some(parts) = parts else { return Err(WalkError::NotUtf8(path)) };
        if about.is_symlink() { self.link(path, parts, &about) } else { self.file(path, parts, &about) }
    }

    fn file(&mut self, path: PathBuf, parts: Vec<String>, about: &Metadata) -> Result<(), WalkError> {
        if let Some(kind) = special_kind(about) {
            return Err(WalkError::Special { path, kind });
        }
        // Report an unreadable file now, not after an hour of hashing.
        let opened = open(&path).and_then(|file| file.metadata());
        let about = opened.map_err(|source| WalkError::Io { path: path.clone(), source })?;
        let executable = self.options.executable && about.permissions().mode() & 0o100 != 0;
        self.push(Found {
            file: NewFile { path: parts, len: about.len(), kind: FileKind::Regular { executable } },
            stamp: Stamp::from(&about),
            path,
        })
    }

    fn link(&mut self, path: PathBuf, parts: Vec<String>, about: &Metadata) -> Result<(), WalkError> {
        let target = fs::read_link(&path).map_err(|source| WalkError::Io { path: path.clone(), source })?;
        let Some(target) = target.to_str().map(str::to_owned) else { return Err(WalkError::NotUtf8(path)) };
        let Some(from_root) = link_target(&parts, &target) else {
            return Err(WalkError::Link { path, how: "out of the tree" });
        };
        // After a component that is a link, `..` leads to another directory than the text suggests.
        let real = |path: &Path| fs::canonicalize(path).ok();
        if real(&path).is_some_and(|to| real(&self.root.join(from_root.iter().collect::<PathBuf>())) != Some(to)) {
            return Err(WalkError::Link { path, how: "back through another link" });
        }
        self.push(Found {
            file: NewFile { path: parts, len: 0, kind: FileKind::Symlink { target } },
            stamp: Stamp::from(about),
            path,
        })
    }

    fn push(&mut self, found: Found) -> Result<(), WalkError> {
        if self.files.len() == MAX_FILES {
            return Err(WalkError::TooMany);
        }
        self.files.push(found);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use tempfile::TempDir;

    /// A directory with these files; a name with `/` at its end is a directory.
    fn tree(names: &[&str]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            if name.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, name).unwrap();
            }
        }
        dir
    }

    fn names(dir: &TempDir, options: &Walk) -> Vec<String> {
        walk(dir.path(), options).unwrap().0.into_iter().map(|found| found.file.path.join("/")).collect()
    }

    fn fault(dir: &TempDir, options: &Walk) -> String {
        walk(dir.path(), options).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "T")
    }

    #[test]
    fn files_are_sorted_by_the_bytes_of_their_paths() {
        let dir = tree(&["b", "a/x", "a-b", "a0", "B", "\u{e9}", "a/b/c", "a/b.d", "none/"]);
        let (files, left_out) = walk(dir.path(), &Walk::default()).unwrap();
        let names: Vec<_> = files.iter().map(|found| found.file.path.join("/")).collect();
        assert_eq!(names, ["B", "a-b", "a/b.d", "a/b/c", "a/x", "a0", "b", "\u{e9}"]);
        assert_eq!(left_out, LeftOut { empty: 1, ..LeftOut::default() });
        assert_eq!((files[1].file.len, &files[1].path), (3, &dir.path().join("a-b")));
        let single = walk(&dir.path().join("a-b"), &Walk::default()).unwrap().0;
        assert_eq!((single.len(), single[0].file.path.len(), single[0].file.len), (1, 0, 3));
    }

    #[test]
    fn files_left_out_are_counted() {
        let dir = tree(&["a", ".b", ".c/d", "e.nfo", "s/e.nfo", "s/x/y", "x", "s/t/u/v"]);
        let with = |patterns: &[&str]| {
            let options = Walk { ignore: Ignore::new(patterns).unwrap(), ..Walk::default() };
            let left_out = walk(dir.path(), &options).unwrap().1;
            (names(&dir, &options).join(" "), left_out.ignored)
        };
        assert_eq!(walk(dir.path(), &Walk::default()).unwrap().1.hidden, 2);
        assert_eq!(
            names(&dir, &Walk { hidden: true, ..Walk::default() }).join(" "),
            ".b .c/d a e.nfo s/e.nfo s/t/u/v s/x/y x"
        );
        assert_eq!(with(&["*.nfo"]), ("a s/t/u/v s/x/y x".into(), 2));
        assert_eq!(with(&["/*.nfo"]), ("a s/e.nfo s/t/u/v s/x/y x".into(), 1));
        assert_eq!(with(&["x/"]), ("a e.nfo s/e.nfo s/t/u/v x".into(), 1));
        assert_eq!(with(&["x"]), ("a e.nfo s/e.nfo s/t/u/v".into(), 2));
        assert_eq!(with(&["s/*"]), ("a e.nfo x".into(), 3));
        assert_eq!(with(&["s/**/v", "{a,x}"]), ("e.nfo s/e.nfo".into(), 4));
        assert_eq!(with(&["./s/t/"]), ("a e.nfo s/e.nfo s/x/y x".into(), 1));
        assert!(Ignore::new(&["[a"]).unwrap_err().contains("[a"));
    }

    #[test]
    fn links_are_kept_or_followed() {
        let dir = tree(&["d/f", "g"]);
        let at = |name: &str| dir.path().join(name);
        symlink("../g", at("d/l")).unwrap();
        symlink("d", at("m")).unwrap();
        symlink("nowhere", at("n")).unwrap();
        let files = walk(dir.path(), &Walk::default()).unwrap().0;
        let kinds: Vec<_> = files.iter().map(|found| (found.file.path.join("/"), &found.file.kind)).collect();
        let link = |target: &str| FileKind::Symlink { target: target.into() };
        assert_eq!(kinds[1], ("d/l".into(), &link("../g")));
        assert_eq!(kinds[3..], [("m".into(), &link("d")), ("n".into(), &link("nowhere"))]);
        let follow = Walk { dereference: true, ..Walk::default() };
        assert!(fault(&dir, &follow).starts_with("cannot read T/n: No such file"));
        fs::remove_file(at("n")).unwrap();
        assert_eq!(names(&dir, &follow), ["d/f", "d/l", "g", "m/f", "m/l"]);

        for (target, how) in
            [("/etc", "out of the tree"), ("..", "out of the tree"), ("m/../g", "back through another link")]
        {
            fs::create_dir_all(at("e")).unwrap();
            symlink("e/e2", at("x")).unwrap();
            let _ = fs::remove_file(at("m"));
            fs::create_dir_all(at("e/e2")).unwrap();
            fs::write(at("e/g"), "other").unwrap();
            symlink("e/e2", at("m")).unwrap();
            symlink(target, at("l")).unwrap();
            assert!(fault(&dir, &Walk::default()).starts_with(&format!("the link T/l leads {how}")), "{target}");
            fs::remove_file(at("l")).unwrap();
            fs::remove_file(at("x")).unwrap();
        }
        symlink("..", at("d/up")).unwrap();
        assert_eq!(fault(&dir, &follow), "T/d/up links to a directory that contains it: leave it out with --ignore");
    }

    #[test]
    fn files_that_a_torrent_cannot_hold_are_errors() {
        let dir = tree(&["a"]);
        let _socket = UnixListener::bind(dir.path().join("s")).unwrap();
        assert_eq!(
            fault(&dir, &Walk::default()),
            "T/s is a socket, which a torrent cannot hold: leave it out with --ignore"
        );
        fs::remove_file(dir.path().join("s")).unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"n\xff")), "").unwrap();
        assert!(fault(&dir, &Walk::default()).contains(r#"n\xFF" is not UTF-8"#));
        let ignore = Ignore::new(&["n*"]).unwrap();
        assert_eq!(names(&dir, &Walk { ignore, ..Walk::default() }), ["a"]);
        let except = fs::metadata(dir.path().join("a")).map(|about| (about.dev(), about.ino())).unwrap();
        let ignore = Ignore::new(&["n*"]).unwrap();
        assert_eq!(names(&dir, &Walk { ignore, except: Some(except), ..Walk::default() }), [""; 0]);
    }

    #[test]
    fn the_executable_bit_is_recorded_on_request() {
        let dir = tree(&["a"]);
        for (mode, executable) in [(0o755, true), (0o744, true), (0o655, false)] {
            fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(mode)).unwrap();
            for wanted in [true, false] {
                let files = walk(dir.path(), &Walk { executable: wanted, ..Walk::default() }).unwrap().0;
                assert_eq!(files[0].file.kind, FileKind::Regular { executable: executable && wanted });
            }
        }
    }
}
