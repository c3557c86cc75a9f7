//! Unpacks an archive that came from a container.
//!
//! Rules: a path that is absolute or contains `..` ends the whole thing; devices, and links that lead
//! out of the destination, are left out and named; nothing is written through a link; a file appears
//! whole or not at all; set-uid and the like are not taken over.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Entry, EntryType};

use super::plain_parts;

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// It was made to write elsewhere, or is no archive.
    #[error("the archive is not to be trusted: {0}")]
    Hostile(String),
    /// The destination does not fit what came.
    #[error("{0}")]
    Destination(String),
    /// This machine's disk.
    #[error("cannot write {path}: {error}")]
    Write {
        /// Where.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The archive could not be read to its end.
    #[error("the archive broke off: {0}")]
    Read(io::Error),
}

/// What unpacking did.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Files written.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// What was left out, in words.
    pub(crate) left_out: Vec<String>,
}

/// Where things go, decided at the first entry.
struct Place {
    /// Name of the archive's top, which is taken off each path; `None` for a folder's contents.
    top: Option<OsString>,
    /// What stands for the top here.
    base: PathBuf,
    /// Modes of folders, set when all is written: a read-only folder must take its files first.
    folders: Vec<(PathBuf, u32)>,
    done: Unpacked,
}

/// Unpacks `archive` to `destination`, as `docker cp` does: into it where it is a folder, under its
/// name where it is not there.
pub(crate) fn unpack(archive: impl Read, destination: &str) -> Result<Unpacked, UnpackError> {
    let mut archive = Archive::new(archive);
    let mut place: Option<Place> = None;
    for entry in archive.entries().map_err(UnpackError::Read)? {
        let mut entry = entry.map_err(UnpackError::Read)?;
        let path = entry.path().map_err(UnpackError::Read)?.into_owned();
        let Some(parts) = plain_parts(&path) else {
            return Err(UnpackError::Hostile(format!("it names {path:?}")));
        };
        let place = match &mut place {
            Some(place) => place,
            None => {
                let is_dir = entry.header().entry_type() == EntryType::Directory;
                place.insert(Place::new(
                    destination,
                    parts.first().map(OsString::from),
                    is_dir,
                )?)
            }
        };
        let below: PathBuf = match (&place.top, parts.split_first()) {
            (None, _) => parts.iter().collect(),
            (Some(top), Some((first, rest))) if *first == top => rest.iter().collect(),
            (Some(_), _) => {
                return Err(UnpackError::Hostile(format!(
                    "{path:?} is not below its top"
                )));
            }
        };
        place.take(&mut entry, &below)?;
    }
    let Some(place) = place else {
        return Err(UnpackError::Hostile("it is empty".to_owned()));
    };
    for (path, mode) in place.folders.iter().rev() {
        set_mode(path, *mode)?;
    }
    Ok(place.done)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> UnpackError + '_ {
    |error| UnpackError::Write {
        path: path.display().to_string(),
        error,
    }
}

fn special(path: &Path) -> UnpackError {
    UnpackError::Destination(format!(
        "{} is a device, a pipe or a socket: copies go into files and folders, and to standard output as -",
        path.display()
    ))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), UnpackError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed(path))
}

impl Place {
    fn new(destination: &str, top: Option<OsString>, is_dir: bool) -> Result<Self, UnpackError> {
        let path = Path::new(destination);
        let there = fs::metadata(path).ok();
        if there
            .as_ref()
            .is_some_and(|meta| !meta.is_dir() && !meta.is_file())
        {
            return Err(special(path));
        }
        let base = match (&top, there) {
            (Some(top), Some(meta)) if meta.is_dir() => path.join(top),
            (None, Some(meta)) if meta.is_dir() => path.to_owned(),
            (_, Some(_)) if is_dir => {
                return Err(UnpackError::Destination(format!(
                    "{destination} is a file, and a folder is to be copied"
                )));
            }
            (_, None) if destination.ends_with('/') && !is_dir => {
                return Err(UnpackError::Destination(format!(
                    "there is no folder {destination}"
                )));
            }
            // A link of the operator's own is followed; what it leads to is what is meant.
            (_, Some(_)) => fs::canonicalize(path).map_err(failed(path))?,
            (_, None) => path.to_owned(),
        };
        Ok(Self {
            top,
            base,
            folders: Vec::new(),
            done: Unpacked::default(),
        })
    }

    /// Writes one entry, `below` the base.
    fn take(&mut self, entry: &mut Entry<'_, impl Read>, below: &Path) -> Result<(), UnpackError> {
        let target = if below.as_os_str().is_empty() {
            self.base.clone()
        } else {
            self.base.join(below)
        };
        self.check_way(below)?;
        let mode = entry.header().mode().map_err(UnpackError::Read)? & 0o777;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, &target, mode)
            }
            EntryType::Directory => self.folder(target, mode),
            EntryType::Symlink => self.symlink(entry, &target, below),
            EntryType::Link => self.hard_link(entry, &target),
            EntryType::XGlobalHeader => Ok(()),
            other => {
                self.leave_out(
                    &target,
                    &format!("it is a device, a pipe or the like ({other:?})"),
                );
                Ok(())
            }
        }
    }

    fn leave_out(&mut self, target: &Path, why: &str) {
        self.done
            .left_out
            .push(format!("{}: {why}", target.display()));
    }

    /// Every folder on the way down from the base is a real one, not a link to elsewhere.
    fn check_way(&self, below: &Path) -> Result<(), UnpackError> {
        let mut way = self.base.clone();
        let mut parts = below.components().peekable();
        while let Some(part) = parts.next() {
            if fs::symlink_metadata(&way).is_ok_and(|meta| meta.is_symlink()) && way != self.base {
                return Err(UnpackError::Hostile(format!(
                    "it writes through {}",
                    way.display()
                )));
            }
            way.push(part);
            if parts.peek().is_none() {
                break;
            }
        }
        // The base itself may be a link that the operator made; one that the archive made is not
        // there yet when its first entry comes, and a link as top takes nothing below it.
        if below.components().next().is_some()
            && fs::symlink_metadata(&self.base).is_ok_and(|meta| meta.is_symlink())
            && self.top.is_some()
        {
            return Err(UnpackError::Hostile(format!(
                "it writes through {}",
                self.base.display()
            )));
        }
        Ok(())
    }

    fn file(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        target: &Path,
        mode: u32,
    ) -> Result<(), UnpackError> {
        match fs::symlink_metadata(target).map(|meta| meta.file_type()) {
            Ok(there) if there.is_dir() => {
                return Err(UnpackError::Destination(format!(
                    "{} is a folder, and a file is to be copied",
                    target.display()
                )));
            }
            Ok(there) if !there.is_file() && !there.is_symlink() => return Err(special(target)),
            _ => {}
        }
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // Beside it first, then renamed over it: whole or not at all, and never through a link.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed(target))?;
        let size = entry.size();
        let copied = io::copy(entry, file.as_file_mut()).map_err(UnpackError::Read)?;
        if copied != size {
            return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        file.persist(target).map_err(|e| failed(target)(e.error))?;
        set_mode(target, mode)?;
        self.done.files += 1;
        self.done.bytes += copied;
        Ok(())
    }

    fn folder(&mut self, target: PathBuf, mode: u32) -> Result<(), UnpackError> {
        match fs::symlink_metadata(&target) {
            Ok(meta) if meta.is_dir() => {}
            // The operator's own destination, reached by a link of theirs.
            Ok(_) if target == self.base && self.top.is_none() => {}
            Ok(_) => {
                return Err(UnpackError::Destination(format!(
                    "{} is not a folder, and a folder is to be copied",
                    target.display()
                )));
            }
            Err(_) => {
                fs::create_dir(&target).map_err(failed(&target))?;
                // Only what was made here gets the archive's mode; it stays the owner's to change.
                self.folders.push((target, mode | 0o700));
            }
        }
        Ok(())
    }

    fn symlink(
        &mut self,
        entry: &Entry<'_, impl Read>,
        target: &Path,
        below: &Path,
    ) -> Result<(), UnpackError> {
        let to = entry
            .link_name()
            .map_err(UnpackError::Read)?
            .unwrap_or_default()
            .into_owned();
        if !leads_inside(below, &to) {
            self.leave_out(
                target,
                &format!("a link to {}, outside of what is copied", to.display()),
            );
            return Ok(());
        }
        match fs::symlink_metadata(target) {
            Ok(meta) if meta.is_dir() => {
                self.leave_out(
                    target,
                    "a folder is there already, and a link was to be copied",
                );
                return Ok(());
            }
            Ok(_) => fs::remove_file(target).map_err(failed(target))?,
            Err(_) => {}
        }
        std::os::unix::fs::symlink(&to, target).map_err(failed(target))
    }

    fn hard_link(
        &mut self,
        entry: &Entry<'_, impl Read>,
        target: &Path,
    ) -> Result<(), UnpackError> {
        let to = entry
            .link_name()
            .map_err(UnpackError::Read)?
            .unwrap_or_default()
            .into_owned();
        let parts = plain_parts(&to)
            .ok_or_else(|| UnpackError::Hostile(format!("a link of it names {to:?}")))?;
        let below: PathBuf = match (&self.top, parts.split_first()) {
            (None, _) => parts.iter().collect(),
            (Some(top), Some((first, rest))) if *first == top => rest.iter().collect(),
            _ => {
                self.leave_out(
                    target,
                    &format!("a link to {}, which is not copied", to.display()),
                );
                return Ok(());
            }
        };
        self.check_way(&below)?;
        let from = self.base.join(below);
        if !fs::symlink_metadata(&from).is_ok_and(|meta| meta.is_file()) || from == target {
            self.leave_out(
                target,
                &format!("a link to {}, which is not there", to.display()),
            );
            return Ok(());
        }
        if fs::symlink_metadata(target).is_ok_and(|meta| !meta.is_dir()) {
            fs::remove_file(target).map_err(failed(target))?;
        }
        fs::hard_link(&from, target).map_err(failed(target))
    }
}

/// Whether a link at `below` stays within the destination: relative, up only at its beginning and no
/// further than the top. `..` after a name is refused, because the name may itself be a link.
fn leads_inside(below: &Path, to: &Path) -> bool {
    let mut depth = below.components().count().saturating_sub(1);
    let is_top = below.as_os_str().is_empty();
    let mut named = false;
    for part in to.components() {
        match part {
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::ParentDir if named || depth == 0 => return false,
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    !is_top && named
}
