//! Archives that depend on their content only: owner root, one time for all, the order as given.

use std::io::{self, Write};

use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

/// What lies at a path of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A folder.
    Folder,
    /// A file with its mode.
    File(u32, Vec<u8>),
    /// A symbolic link with its target.
    Link(String),
}

/// Longest path in an archive: no extension of the format is needed.
const PATH_BYTES_MAX: usize = 100;

/// A tar archive.
///
/// # Errors
/// When a path is too long.
pub fn tar<'a>(
    entries: impl IntoIterator<Item = (&'a str, &'a Entry)>,
    mtime_s: u64,
) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, entry) in entries {
        let mut header = Header::new_gnu();
        put(&mut header.as_old_mut().name, path)?;
        header.set_mtime(mtime_s);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_size(0);
        let content: &[u8] = match entry {
            Entry::Folder => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(0o755);
                &[]
            }
            Entry::File(mode, content) => {
                header.set_entry_type(EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                content
            }
            Entry::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                put(&mut header.as_old_mut().linkname, target)?;
                &[]
            }
        };
        header.set_cksum();
        builder.append(&header, content)?;
    }
    builder.into_inner()
}

/// Written as given: the tar crate would leave out the `./` that Debian's tools expect.
fn put(field: &mut [u8; PATH_BYTES_MAX], text: &str) -> io::Result<()> {
    field
        .get_mut(..text.len())
        .ok_or_else(|| io::Error::other(format!("the path {text} is too long for a tar archive")))?
        .copy_from_slice(text.as_bytes());
    Ok(())
}

/// The same, compressed.
///
/// # Errors
/// None that memory could cause; the signature is the compressor's.
pub fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// An ar archive, as a Debian package is one.
#[must_use]
pub fn ar(members: &[(&str, &[u8])], mtime_s: u64) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, content) in members {
        let head = format!(
            "{name:<16}{mtime_s:<12}{:<6}{:<6}{:<8}{:<10}`\n",
            0,
            0,
            100_644,
            content.len()
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(content);
        if content.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}
