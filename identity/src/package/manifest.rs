//! The manifest's text, and what it allows.
//!
//! ```text
//! fairlead-manifest 1
//! version 0.2.0
//! released 2026-11-21T00:00:00Z
//! expires 2027-11-21T00:00:00Z
//! min-from 0.1.0
//! file fairlead-agent-linux-x86_64 5812340 <sha256 in lower-case hex>
//! ```
//! One `file` line for each file, sorted by name; single spaces, LF at the end of each line, nothing
//! else.

use std::fmt;

use super::{FILE_BYTES_MAX, FILES_MAX, MANIFEST_BYTES_MAX, OWN_NAMES, Timestamp, Version};
use crate::digest::{hex, unhex32};

const HEAD: &str = "fairlead-manifest 1";
const HEAD_WORD: &str = "fairlead-manifest ";
const NAME_CHARS_MAX: usize = 128;

/// Why something is not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than any manifest is.
    #[error("the manifest is longer than {MANIFEST_BYTES_MAX} bytes")]
    TooLong,
    /// Not UTF-8, or its last line has no end.
    #[error("the manifest is damaged or incomplete")]
    Damaged,
    /// Of a format that came later.
    #[error("the manifest has a format that is not known here; a newer program reads it")]
    Format,
    /// A line that should not be there, or not like this.
    #[error("line {line} of the manifest should be {expected}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What it should have been.
        expected: &'static str,
    },
    /// A file's name that could lead elsewhere, or stands for a part of the package itself.
    #[error("no file of a package can be called {0:?}")]
    Name(String),
    /// A name comes twice.
    #[error("the file {0} is named twice")]
    Twice(String),
    /// Names are sorted, so that there is one manifest for one content.
    #[error("the file {0} is out of order")]
    Order(String),
    /// More than a package has, or none.
    #[error("a package has 1 to {FILES_MAX} files")]
    FileCount,
    /// Larger than any file of a package.
    #[error("the file {0} is larger than {FILE_BYTES_MAX} bytes")]
    FileSize(String),
    /// It would have expired before it was made, or could only follow on itself.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// Why a version may not be used here and now, although its manifest is genuine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Old manifests are not for ever: whoever can only replay cannot keep a host on an old version.
    #[error("the manifest of {version} expired on {expires}")]
    Expired {
        /// Whose manifest.
        version: Version,
        /// When.
        expires: Timestamp,
    },
    /// Another version was asked for.
    #[error("version {asked} was asked for, and this is the manifest of {version}")]
    OtherVersion {
        /// What was asked for.
        asked: Version,
        /// What came.
        version: Version,
    },
    /// A version in between was left out.
    #[error("version {version} can follow on {min_from} or later, and {current} is here")]
    TooFarBehind {
        /// Whose manifest.
        version: Version,
        /// The lowest version to come from.
        min_from: Version,
        /// The version that is here.
        current: Version,
    },
    /// A downgrade.
    #[error("version {version} is older than {floor}")]
    Older {
        /// Whose manifest.
        version: Version,
        /// The lowest version that may still be used.
        floor: Version,
    },
    /// The version has no such file (for instance, none for this kind of processor).
    #[error("version {version} has no {name}")]
    NoSuchFile {
        /// Whose manifest.
        version: Version,
        /// What was looked for.
        name: String,
    },
}

/// Why the bytes of a file are not those that the manifest names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileRefused {
    /// Cut short, or longer.
    #[error("{name} has {actual} bytes instead of {expected}")]
    Size {
        /// Which file.
        name: String,
        /// Its size by the manifest.
        expected: u64,
        /// Its size.
        actual: u64,
    },
    /// Other content.
    #[error("{name} is not the file that the manifest names")]
    Content {
        /// Which file.
        name: String,
    },
}

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name, without any folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

impl FileEntry {
    /// Whether what was received is this file.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, size: u64, sha256: &[u8; 32]) -> Result<(), FileRefused> {
        if size != self.size {
            return Err(FileRefused::Size {
                name: self.name.clone(),
                expected: self.size,
                actual: size,
            });
        }
        if *sha256 == self.sha256 {
            Ok(())
        } else {
            Err(FileRefused::Content {
                name: self.name.clone(),
            })
        }
    }
}

/// What a version consists of. Whoever has one knows that it can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    version: Version,
    released: Timestamp,
    expires: Timestamp,
    min_from: Version,
    files: Vec<FileEntry>,
}

impl Manifest {
    /// A manifest of these files, which are sorted by name.
    ///
    /// # Errors
    /// When it could not be read again.
    pub fn new(
        version: Version,
        released: Timestamp,
        expires: Timestamp,
        min_from: Version,
        mut files: Vec<FileEntry>,
    ) -> Result<Self, ManifestError> {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            version,
            released,
            expires,
            min_from,
            files,
        }
        .checked()
    }

    /// Reads a manifest. Only what [`Display`](fmt::Display) writes can be read.
    ///
    /// # Errors
    /// When it is not a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ManifestError::Damaged)?;
        let text = text.strip_suffix('\n').ok_or(ManifestError::Damaged)?;
        let mut lines = Lines {
            lines: text.split('\n'),
            line: 0,
        };
        let head = lines.next(HEAD)?;
        if head != HEAD {
            return Err(match head.strip_prefix(HEAD_WORD) {
                Some(format) if format.bytes().all(|b| b.is_ascii_digit()) => ManifestError::Format,
                _ => lines.wrong(HEAD),
            });
        }
        let version = lines.field("version ", "`version VERSION`")?;
        let released = lines.field("released ", "`released TIME`")?;
        let expires = lines.field("expires ", "`expires TIME`")?;
        let min_from = lines.field("min-from ", "`min-from VERSION`")?;
        let mut files = Vec::new();
        while let Some(line) = lines.following() {
            if files.len() == FILES_MAX {
                return Err(ManifestError::FileCount);
            }
            files.push(file_line(line).ok_or_else(|| lines.wrong("`file NAME SIZE SHA256`"))?);
        }
        Self {
            version,
            released,
            expires,
            min_from,
            files,
        }
        .checked()
    }

    fn checked(self) -> Result<Self, ManifestError> {
        if self.expires <= self.released {
            return Err(ManifestError::Contradiction(
                "the manifest would have expired when it was made",
            ));
        }
        if self.min_from > self.version {
            return Err(ManifestError::Contradiction(
                "the version could follow on later versions only",
            ));
        }
        if self.files.is_empty() || self.files.len() > FILES_MAX {
            return Err(ManifestError::FileCount);
        }
        for file in &self.files {
            if !is_file_name(&file.name) {
                return Err(ManifestError::Name(file.name.clone()));
            }
            if file.size > FILE_BYTES_MAX {
                return Err(ManifestError::FileSize(file.name.clone()));
            }
        }
        for pair in self.files.windows(2) {
            let [before, after] = pair else { continue };
            if before.name == after.name {
                return Err(ManifestError::Twice(after.name.clone()));
            }
            if before.name > after.name {
                return Err(ManifestError::Order(after.name.clone()));
            }
        }
        Ok(self)
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// When it was made.
    #[must_use]
    pub fn released(&self) -> Timestamp {
        self.released
    }

    /// From when on it is not used any more.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    /// The lowest version that an agent may come from.
    #[must_use]
    pub fn min_from(&self) -> &Version {
        &self.min_from
    }

    /// Its files, sorted by name.
    #[must_use]
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// The file of that name.
    ///
    /// # Errors
    /// When the version has none.
    pub fn file(&self, name: &str) -> Result<&FileEntry, Refusal> {
        self.files
            .iter()
            .find(|file| file.name == name)
            .ok_or_else(|| Refusal::NoSuchFile {
                version: self.version.clone(),
                name: name.to_owned(),
            })
    }

    /// Whether it may still be used.
    ///
    /// # Errors
    /// When it has expired.
    pub fn check_not_expired(&self, now: Timestamp) -> Result<(), Refusal> {
        if now < self.expires {
            Ok(())
        } else {
            Err(Refusal::Expired {
                version: self.version.clone(),
                expires: self.expires,
            })
        }
    }

    /// Whether it is that of the version that was asked for.
    ///
    /// # Errors
    /// When it is another's.
    pub fn check_version(&self, asked: &Version) -> Result<(), Refusal> {
        if *asked == self.version {
            Ok(())
        } else {
            Err(Refusal::OtherVersion {
                asked: asked.clone(),
                version: self.version.clone(),
            })
        }
    }

    /// Whether it may follow on the version that is here.
    ///
    /// # Errors
    /// When a version in between would be left out.
    pub fn check_from(&self, current: &Version) -> Result<(), Refusal> {
        if *current >= self.min_from {
            Ok(())
        } else {
            Err(Refusal::TooFarBehind {
                version: self.version.clone(),
                min_from: self.min_from.clone(),
                current: current.clone(),
            })
        }
    }

    /// Whether it is at least that version. The floor is kept **for each key** (the highest version
    /// accepted with it): with one for all, a stolen key could block every later version.
    ///
    /// # Errors
    /// When it is older.
    pub fn check_not_below(&self, floor: &Version) -> Result<(), Refusal> {
        if self.version >= *floor {
            Ok(())
        } else {
            Err(Refusal::Older {
                version: self.version.clone(),
                floor: floor.clone(),
            })
        }
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}")?;
        writeln!(f, "version {}", self.version)?;
        writeln!(f, "released {}", self.released)?;
        writeln!(f, "expires {}", self.expires)?;
        writeln!(f, "min-from {}", self.min_from)?;
        for file in &self.files {
            writeln!(f, "file {} {} {}", file.name, file.size, hex(&file.sha256))?;
        }
        Ok(())
    }
}

struct Lines<'a> {
    lines: std::str::Split<'a, char>,
    line: usize,
}

impl<'a> Lines<'a> {
    fn following(&mut self) -> Option<&'a str> {
        self.line += 1;
        self.lines.next()
    }

    fn next(&mut self, expected: &'static str) -> Result<&'a str, ManifestError> {
        self.following().ok_or(ManifestError::Line {
            line: self.line,
            expected,
        })
    }

    fn wrong(&self, expected: &'static str) -> ManifestError {
        ManifestError::Line {
            line: self.line,
            expected,
        }
    }

    fn field<T: std::str::FromStr>(
        &mut self,
        word: &str,
        expected: &'static str,
    ) -> Result<T, ManifestError> {
        self.next(expected)?
            .strip_prefix(word)
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| self.wrong(expected))
    }
}

fn file_line(line: &str) -> Option<FileEntry> {
    let mut words = line.strip_prefix("file ")?.split(' ');
    let name = words.next()?.to_owned();
    let size_text = words.next()?;
    let sha256 = words.next()?;
    if words.next().is_some() || sha256.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let size: u64 = size_text.parse().ok()?;
    // No sign, no leading zeros.
    if size.to_string() != size_text {
        return None;
    }
    Some(FileEntry {
        name,
        size,
        sha256: unhex32(sha256)?,
    })
}

/// Letters that mean nothing to a shell, a file system or a URL; nothing hidden, nothing like an
/// option, and not one of the files that the package itself consists of.
fn is_file_name(name: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b))
        && !name.starts_with(['.', '-'])
        && !OWN_NAMES.contains(&name)
}
