//! Reading and writing files, with the path in the error.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file or folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {path}: {source}", path = path.display())]
pub struct FileError {
    verb: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

impl FileError {
    fn at(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self {
            verb,
            path: path.to_owned(),
            source,
        }
    }
}

/// The content of a file.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(FileError::at("read", path))
}

/// The content of a text file.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(FileError::at("read", path))
}

/// The names in a folder, sorted.
///
/// # Errors
/// When it cannot be read.
pub fn names(path: &Path) -> Result<Vec<String>, FileError> {
    let mut names = fs::read_dir(path)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .map_err(FileError::at("read", path))?;
    names.sort();
    Ok(names)
}

/// Whether something is there that is not a plain file.
#[must_use]
pub fn is_plain(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Makes a file that was not there, on disk when this returns.
///
/// # Errors
/// When it is there, or cannot be written.
pub fn create(path: &Path, mode: u32, content: &[u8]) -> Result<(), FileError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .map_err(FileError::at("write", path))
}

/// Replaces a file at once or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> Result<(), FileError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // Left by a run that was interrupted.
    let _ = fs::remove_file(&beside);
    create(&beside, mode, content)?;
    rename(&beside, path)
}

/// Moves a file or folder into place.
///
/// # Errors
/// When it cannot be moved.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to)
        .and_then(|()| match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        })
        .map_err(FileError::at("write", to))
}

/// Makes a folder and those above it.
///
/// # Errors
/// When it cannot be made.
pub fn make_dir(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::at("make", path))
}

/// Removes a folder of this program's own, if it is there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_dir(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::at("remove", path)(error))
        }
        _ => Ok(()),
    }
}
