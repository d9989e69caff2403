//! From a path to the files of a torrent to be made.
//!
//! The order is that of the bytes of the whole path below the root, `/` among them: `a-b`, `a/b`, `a0`. It depends on
//! neither the filesystem nor the language, and mktorrent has the same.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::found::{Found, Stamp, kind, open};
use crate::metainfo::{FileKind, MAX_FILES, NewFile, link_target};

/// How deep directories may nest; far more than a torrent may.
const MAX_DEPTH: usize = 128;

/// What is taken.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// What begins with a dot, too.
    pub hidden: bool,
    /// What is left out.
    pub ignore: Ignore,
    /// What links lead to, in place of the links.
    pub dereference: bool,
    /// Whether a file's owner may run it is kept.
    pub executable: bool,
    /// Device and inode of a file that is left out: the torrent's own, where it lies in the tree.
    pub except: Option<(u64, u64)>,
}

/// Patterns of what is left out. One without a `/` is of names, at any depth; another is of paths below the root.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    names: GlobSet,
    paths: GlobSet,
    directory_names: GlobSet,
    directory_paths: GlobSet,
}

/// What was not taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Files and directories that begin with a dot.
    pub hidden: usize,
    /// Those that a pattern names.
    pub ignored: usize,
    /// Directories with nothing in them: a torrent has no place for them.
    pub empty: usize,
}

/// Why no torrent can be made of a path. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A torrent's names are UTF-8.
    #[error("the name of {0:?} is not UTF-8: rename it, or leave it out with --ignore")]
    NotUtf8(PathBuf),
    /// Neither file nor directory nor link.
    #[error("{path} is a {kind}, which a torrent cannot hold: leave it out with --ignore")]
    Special {
        /// What.
        path: PathBuf,
        /// Which kind.
        kind: &'static str,
    },
    /// A link that a torrent cannot keep.
    #[error(
        "the link {path} leads {how}, which a torrent cannot hold: leave it out with --ignore, or take what it leads to \
         with --dereference"
    )]
    Link {
        /// Which.
        path: PathBuf,
        /// Where to.
        how: &'static str,
    },
    /// A link to a directory that holds the link.
    #[error("{0} leads in a circle: leave it out with --ignore")]
    Circle(PathBuf),
    /// Directories nest too deep.
    #[error("{0} is too deep for a torrent")]
    TooDeep(PathBuf),
    /// More than a torrent may have.
    #[error("there are more than {MAX_FILES} files, which is more than a torrent may have")]
    TooMany,
}

impl Ignore {
    /// Of patterns as a shell has them: `*`, `?`, `[a-z]`, `{a,b}`, and `**` across directories. A `/` at the end is of
    /// directories alone.
    ///
    /// # Errors
    /// In words, if one is no pattern.
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
            let glob = glob.map_err(|error| format!("{pattern:?} is no pattern: {}", error.kind()))?;
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

    fn has(&self, name: &OsStr, below: &Path, is_dir: bool) -> bool {
        self.names.is_match(name)
            || self.paths.is_match(below)
            || (is_dir && (self.directory_names.is_match(name) || self.directory_paths.is_match(below)))
    }
}

/// The files of a torrent of `root`, in the torrent's order; each was opened once, so all can be read. A path that is
/// no directory is a torrent of one file.
pub fn walk(root: &Path, options: &Walk) -> Result<(Vec<Found>, LeftOut), WalkError> {
    let about = fs::metadata(root).map_err(|source| WalkError::Io { path: root.into(), source })?;
    let mut walker = Walker { root, options, files: Vec::new(), left_out: LeftOut::default(), above: Vec::new() };
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
    /// Device and inode of each directory that is being walked.
    above: Vec<(u64, u64)>,
}

impl Walker<'_> {
    fn directory(&mut self, path: PathBuf, below: &Path, about: &Metadata) -> Result<(), WalkError> {
        let place = (about.dev(), about.ino());
        if self.above.contains(&place) {
            return Err(WalkError::Circle(path));
        }
        if self.above.len() == MAX_DEPTH {
            return Err(WalkError::TooDeep(path));
        }
        self.above.push(place);
        let failed = |source| WalkError::Io { path: path.clone(), source };
        let mut is_empty = true;
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            is_empty = false;
            self.entry(entry.path(), &below.join(entry.file_name()), &entry.file_name())?;
        }
        self.left_out.empty += usize::from(is_empty);
        self.above.pop();
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, below: &Path, name: &OsStr) -> Result<(), WalkError> {
        if !self.options.hidden && name.as_bytes().first() == Some(&b'.') {
            self.left_out.hidden += 1;
            return Ok(());
        }
        let look = if self.options.dereference { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let is_dir = look.as_ref().is_ok_and(Metadata::is_dir);
        if self.options.ignore.has(name, below, is_dir) {
            self.left_out.ignored += 1;
            return Ok(());
        }
        let about = look.map_err(|source| WalkError::Io { path: path.clone(), source })?;
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
        if let Some(kind) = kind(about) {
            return Err(WalkError::Special { path, kind });
        }
        // What cannot be read is better told now than after an hour.
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
        // `..` behind another link is elsewhere than it reads.
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

    /// A directory with these files; a name that ends in `/` is a directory.
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
    fn files_are_in_the_order_of_the_bytes_of_their_paths() {
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
    fn what_is_left_out_is_counted() {
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
        assert_eq!(fault(&dir, &follow), "T/d/up leads in a circle: leave it out with --ignore");
    }

    #[test]
    fn what_a_torrent_cannot_hold_is_told() {
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
    fn who_may_run_it_is_kept_if_wanted() {
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
