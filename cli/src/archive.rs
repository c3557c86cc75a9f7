//! Tar archives of `fairlead cp`: built from local files, and unpacked without trusting a byte of
//! them. An archive from a container can name any path and any kind of file; what is written here
//! stays below the destination and is a file, a folder or a link within it.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Builder, EntryType, Header};

pub(crate) mod unpack;
#[cfg(test)]
mod tests;

/// A tar archive on this machine's disk.
pub(crate) struct Packed {
    /// Its bytes, from the beginning.
    pub(crate) file: fs::File,
    /// How many.
    pub(crate) size: u64,
    /// SHA-256 of them, hex.
    pub(crate) sha256: String,
    /// What was left out, in words.
    pub(crate) left_out: Vec<String>,
}

/// Writes through, counting and hashing.
struct Measured {
    file: fs::File,
    size: u64,
    digest: aws_lc_rs::digest::Context,
}

impl Measured {
    fn new() -> io::Result<Self> {
        let digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        Ok(Self {
            file: tempfile::tempfile()?,
            size: 0,
            digest,
        })
    }

    fn finish(mut self, left_out: Vec<String>) -> io::Result<Packed> {
        self.file.flush()?;
        self.file.rewind()?;
        let sha256 = self
            .digest
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Packed {
            file: self.file,
            size: self.size,
            sha256,
            left_out,
        })
    }
}

impl Write for Measured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Keeps an archive that is there already (from standard input), to measure it.
pub(crate) fn keep(mut reader: impl Read) -> io::Result<Packed> {
    let mut measured = Measured::new()?;
    io::copy(&mut reader, &mut measured)?;
    measured.finish(Vec::new())
}

/// An archive of a local path, whose top is called `name`; an empty name packs a folder's contents.
pub(crate) fn pack(source: &Path, name: &str) -> io::Result<Packed> {
    let mut builder = Builder::new(Measured::new()?);
    let mut left_out = Vec::new();
    let meta = if name.is_empty() {
        fs::metadata(source)?
    } else {
        fs::symlink_metadata(source)?
    };
    if name.is_empty() {
        for (path, name) in children(source)? {
            add(&mut builder, &path, &PathBuf::from(name), &mut left_out)?;
        }
    } else if meta.is_dir() || meta.is_file() || meta.is_symlink() {
        add(&mut builder, source, Path::new(name), &mut left_out)?;
    } else {
        return Err(io::Error::other(
            "it is neither a file nor a folder nor a link",
        ));
    }
    builder.into_inner()?.finish(left_out)
}

/// A folder's entries, by name, so that the same folder gives the same archive.
fn children(folder: &Path) -> io::Result<Vec<(PathBuf, std::ffi::OsString)>> {
    let mut entries = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| (entry.path(), entry.file_name())))
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

fn add(
    builder: &mut Builder<Measured>,
    source: &Path,
    name: &Path,
    left_out: &mut Vec<String>,
) -> io::Result<()> {
    let at = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", source.display()));
    let meta = fs::symlink_metadata(source).map_err(at)?;
    // Mode and time only: the owner here means nothing there, so it becomes root, as with docker.
    let mut header = Header::new_gnu();
    header.set_metadata(&meta);
    header.set_uid(0);
    header.set_gid(0);
    if meta.is_symlink() {
        header.set_size(0);
        header.set_entry_type(EntryType::Symlink);
        let to = fs::read_link(source).map_err(at)?;
        builder.append_link(&mut header, name, to).map_err(at)
    } else if meta.is_dir() {
        header.set_size(0);
        builder
            .append_data(&mut header, name, io::empty())
            .map_err(at)?;
        for (path, child) in children(source).map_err(at)? {
            add(builder, &path, &name.join(child), left_out)?;
        }
        Ok(())
    } else if meta.is_file() {
        let file = fs::File::open(source).map_err(at)?;
        let mut exact = Exact {
            file,
            left: meta.len(),
        };
        builder
            .append_data(&mut header, name, &mut exact)
            .map_err(at)
    } else {
        left_out.push(format!(
            "{}: neither a file nor a folder nor a link",
            source.display()
        ));
        Ok(())
    }
}

/// Reads exactly the size that the header names: a file that grows is cut, one that shrinks is an
/// error, so that the archive is whole in any case.
struct Exact {
    file: fs::File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let wanted = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.file.read(&mut buffer[..wanted])?;
        if length == 0 {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        self.left -= length as u64;
        Ok(length)
    }
}

/// What the first entry of an archive is, from its first block; `None` when that is no tar header.
pub(crate) fn first_entry(block: &[u8]) -> Option<EntryType> {
    let header = Header::from_byte_slice(block.get(..512)?);
    header.cksum().ok()?;
    Some(header.entry_type())
}

/// The plain parts of a path in an archive; `None` when it leads anywhere but down.
fn plain_parts(path: &Path) -> Option<Vec<&std::ffi::OsStr>> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts)
}
