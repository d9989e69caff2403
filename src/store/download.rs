//! Downloads to a directory of the user's: files that already exist, and files without content.
//!
//! No file of the user's is overwritten unless asked for. An existing file is used for the torrent only if one of its
//! pieces matches the torrent's hash, or if the state file says that we created it. If no piece of it can be hashed
//! because another file is missing, it is compared with the data as that arrives. Any other existing file is an error
//! before the first byte is written. Only names below the torrent's own name are touched.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::{StoreError, io_error};
use super::place::{Access, open_or_create_dir};
use super::stamps::Stamp;
use super::state::Saved;
use super::substitute::{in_download, is_refused, shown};
use super::torrent::Torrent;
use crate::metainfo::{self, FileIndex, FileKind, PieceIndex};
use crate::sys::file as sys;
use crate::util::lock;

/// Reasons in [`StoreError::Foreign`] and [`StoreError::InTheWay`].
const NOT_A_FILE: &str = "is not a regular file";
const NOT_A_DIRECTORY: &str = "is not a directory";
const TOO_LONG: &str = "is longer than the torrent's file of that name";
const NO_MATCH: &str = "is not the torrent's file: none of its pieces matches";

/// Checks that no parent directory of `file` within `dir` is something else. `seen` holds the directories already
/// checked.
fn check_parents(dir: &Path, file: &Path, seen: &mut HashSet<PathBuf>) -> Result<(), StoreError> {
    let mut parents: Vec<&Path> = file.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
    parents.reverse();
    for parent in parents {
        if !seen.insert(parent.to_owned()) {
            continue;
        }
        let path = dir.join(parent);
        match path.symlink_metadata() {
            Ok(about) if about.is_dir() => {}
            Ok(_) => return Err(StoreError::InTheWay { path, why: NOT_A_DIRECTORY }),
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_refused(&error, false) => {}
            Err(error) => return Err(io_error("examine", &path)(error)),
        }
    }
    Ok(())
}

/// Checks the types and lengths of existing files with the torrent's names. Returns whether any of them has content.
pub(super) fn find_existing(torrent: &Torrent, dir: &Path, overwrite: bool) -> Result<bool, StoreError> {
    let (mut seen, mut has_content) = (HashSet::new(), false);
    for (index, file) in torrent.files.stored() {
        let located = torrent.files.locate(index);
        check_parents(dir, &located.relative_path(), &mut seen)?;
        let path = torrent.files.root.path(&located);
        match path.symlink_metadata() {
            Ok(about) if !about.is_file() => return Err(StoreError::InTheWay { path, why: NOT_A_FILE }),
            Ok(about) if about.len() > file.len && !overwrite => {
                return Err(StoreError::Foreign { path, why: TOO_LONG });
            }
            Ok(about) => has_content |= about.len() > 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_refused(&error, false) => {}
            Err(error) => return Err(io_error("examine", &path)(error)),
        }
    }
    Ok(has_content)
}

/// Checks that we may write to each existing file. Called after all existing pieces were hashed.
pub(super) fn claim_files(torrent: &Torrent, saved: Option<&Saved>, overwrite: bool) -> Result<(), StoreError> {
    for (index, file) in torrent.files.stored() {
        let (stamp, path) = (torrent.files.stamp(index), torrent.files.path(index));
        if stamp.size == 0 {
            continue;
        }
        let pieces = || torrent.files.layout.pieces_of(index);
        // All existing pieces were hashed, so those that are present match.
        let matches = pieces().any(|piece| torrent.pieces.word(piece).is_present());
        let made_by_us = match saved {
            None => false,
            Some(saved) if saved.closed => saved.stamps.get(index.index()) == Some(&stamp) && stamp != Stamp::default(),
            // Without a clean close the stamps prove nothing. A file without recorded pieces may be one that we had
            // just created.
            Some(saved) => !pieces().any(|piece| saved.have.contains(piece.index())),
        };
        if matches || made_by_us || overwrite {
            let complete = stamp.size == file.len && pieces().all(|piece| torrent.pieces.word(piece).is_present());
            torrent.files.claim(index, complete).map_err(io_error("write to", &path))?;
            continue;
        }
        if stamp.size == file.len && pieces().all(|piece| needs_missing_file(torrent, piece, index)) {
            lock(&torrent.files.undecided).insert(index);
            continue;
        }
        let (opened, _) = torrent.files.open(index, Access::Read).map_err(io_error("open", &path))?;
        if has_content(&opened).map_err(io_error("read", &path))? {
            return Err(StoreError::Foreign { path, why: NO_MATCH });
        }
    }
    Ok(())
}

/// Returns whether a file holds anything but zeros and holes, which other programs leave where they have only reserved the
/// space.
fn has_content(opened: &File) -> io::Result<bool> {
    let mut buffer = vec![0; 128 << 10];
    let mut at = 0;
    // `next_data` moves the file position, but nothing else uses this handle.
    while let Some(data) = sys::next_data(opened, at)? {
        let read = opened.read_at(&mut buffer, data)?;
        if buffer[..read].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        if read == 0 {
            break;
        }
        at = data + read as u64;
    }
    Ok(false)
}

/// Returns whether a piece cannot be hashed because a file other than this one is incomplete.
fn needs_missing_file(torrent: &Torrent, piece: PieceIndex, file: FileIndex) -> bool {
    let mut others = torrent.files.of_piece(piece).filter(|other| *other != file);
    others.any(|other| torrent.files.is_short(other))
}

/// The parts of a torrent without content: empty files, links and executable bits.
pub struct ExtraFiles<'a> {
    /// The download directory.
    pub dir: &'a Path,
    /// The torrent's files.
    pub files: &'a [metainfo::File],
    /// Whether to replace files that are not the torrent's.
    pub overwrite: bool,
}

impl ExtraFiles<'_> {
    /// Checks that [`Self::create`] would find nothing in its place that it must not replace.
    pub fn check(&self) -> Result<(), StoreError> {
        let mut seen = HashSet::new();
        self.each(|file, path, _| {
            check_parents(self.dir, &file.relative_path(), &mut seen)?;
            self.exists(file, path).map(drop)
        })
    }

    /// Creates everything. Stops at the first failure.
    pub fn create(&self) -> Result<(), StoreError> {
        self.each(|file, path, relative| {
            let failed = |action| io_error(action, path);
            if self.exists(file, path)? {
                return Ok(());
            }
            let (dir, name) = self.open_parent(relative).map_err(failed("create the directory of"))?;
            match &file.kind {
                FileKind::Symlink { target } => {
                    match sys::remove_at(dir.as_fd(), name) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
                        _ => {}
                    }
                    sys::make_link_at(dir.as_fd(), name, OsStr::new(target)).map_err(failed("create link"))
                }
                _ => {
                    let opened = sys::open_file_at(dir.as_fd(), name, Some(0o666)).map_err(failed("create"))?;
                    if file.len == 0 {
                        opened.set_len(0).map_err(failed("empty"))?;
                    }
                    if file.kind == (FileKind::Regular { executable: true }) {
                        // Some filesystems have no executable bit.
                        let _ = sys::make_executable(&opened);
                    }
                    Ok(())
                }
            }
        })
    }

    fn each(
        &self,
        mut with: impl FnMut(&metainfo::File, &Path, &Path) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let concerned = |file: &&metainfo::File| match file.kind {
            FileKind::Pad => false,
            FileKind::Symlink { .. } => true,
            FileKind::Regular { executable } => executable || file.len == 0,
        };
        let others = OnceCell::new();
        for (index, file) in (0..).map(FileIndex).zip(self.files).filter(|(_, file)| concerned(file)) {
            let mut at = |relative: &Path| with(file, &self.dir.join(relative), relative);
            match at(&file.relative_path()) {
                Err(StoreError::Io { source, .. }) if is_refused(&source, false) => {
                    let Some(path) = others.get_or_init(|| in_download(self.files)).get(&index) else {
                        return Err(io_error("create", &self.dir.join(file.relative_path()))(source));
                    };
                    at(&path.iter().collect::<PathBuf>())?;
                    if !file.is_stored() {
                        let (from, to) = (shown(&file.path), shown(path));
                        tracing::warn!("{from} is saved as {to}, because the filesystem refuses the name: {source}");
                    }
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// Returns whether it exists already. Fails if something that must not be replaced has its name.
    fn exists(&self, file: &metainfo::File, path: &Path) -> Result<bool, StoreError> {
        let about = match path.symlink_metadata() {
            Ok(about) => about,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(io_error("examine", path)(error)),
        };
        let in_the_way = |why| StoreError::InTheWay { path: path.to_owned(), why };
        let foreign = |why| {
            let error = StoreError::Foreign { path: path.to_owned(), why };
            if self.overwrite { Ok(false) } else { Err(error) }
        };
        match &file.kind {
            FileKind::Symlink { .. } if about.is_dir() => Err(in_the_way("is a directory")),
            FileKind::Symlink { target } => {
                let same = about.is_symlink() && fs::read_link(path).is_ok_and(|there| there == Path::new(target));
                if same { Ok(true) } else { foreign("is not the torrent's link of that name") }
            }
            _ if !about.is_file() => Err(in_the_way(NOT_A_FILE)),
            _ if file.len == 0 && about.len() > 0 => foreign(TOO_LONG),
            FileKind::Regular { executable } => Ok(!executable || about.mode() & 0o111 != 0),
            FileKind::Pad => Ok(true),
        }
    }

    fn open_parent<'a>(&self, relative: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = relative.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut dir = OwnedFd::from(File::open(self.dir)?);
        for part in relative.parent().into_iter().flat_map(Path::components) {
            dir = open_or_create_dir(dir.as_fd(), part.as_os_str(), Some(0o777))?;
        }
        Ok((dir, name))
    }
}

/// Returns the bytes that the torrent's files still need and the bytes that are free on the filesystem of `dir`, if
/// there are too few. Blocks already allocated to the files count as present.
pub fn space_missing(dir: &Path, files: &[metainfo::File]) -> io::Result<Option<(u64, u64)>> {
    let allocated = |file: &metainfo::File| {
        let about = dir.join(file.relative_path()).symlink_metadata();
        about.ok().filter(|about| about.is_file()).map_or(0, |about| about.blocks().saturating_mul(512))
    };
    let with_bytes = files.iter().filter(|file| matches!(file.kind, FileKind::Regular { .. }));
    let needed = with_bytes.map(|file| file.len.saturating_sub(allocated(file))).fold(0, u64::saturating_add);
    let free = sys::available_bytes(&File::open(dir)?)?;
    Ok((needed > free).then_some((needed, free)))
}
