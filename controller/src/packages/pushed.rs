//! Versions that are pushed over the API: file by file into a folder that nobody is served from, each checked as it
//! comes, and listed in one step when the last one is there.
//!
//! First come the signatures, then the manifest, which is looked at only when a trusted key has signed exactly it;
//! then the agents' programs that it names, each of its size and hash. Writes below the packages' folder only.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use fairlead_daemon::files;
use fairlead_identity::digest::{self, Sha256, sha256};
use fairlead_identity::package::{
    FileEntry, FileRefused, MANIFEST_BYTES_MAX, MANIFEST_NAME, PublicKey, Refusal,
    SIGNATURES_BYTES_MAX, SIGNATURES_NAME, Timestamp, TrustedKeys, Verified, VerifyError, Version,
};
use fairlead_protocol::codes;
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncWriteExt;

use super::Packages;

/// Folders of versions that are on their way begin so. None that begins with a dot is served or listed.
const INCOMING: &str = ".incoming.";
/// Versions that may be on their way.
const INCOMING_MAX: usize = 4;
/// One whose last file came so long ago makes room.
const INCOMING_FOR: Duration = Duration::from_secs(3600);
/// A sender that sends nothing for so long is left.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// Room that is left on the disk.
const ROOM_LEFT_BYTES: u64 = 256 << 20;
/// The programs that are wanted of a package.
const PROGRAM_PREFIX: &str = "fairlead-agent-";

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The path names no version.
    #[error("{0:?} is not a version, such as 1.4.0")]
    Version(String),
    /// No key is trusted here.
    #[error("this controller trusts no key, so it takes no packages")]
    NoKeys,
    /// The manifest is not to be believed.
    #[error("the package is not to be believed: {0}")]
    Signature(#[from] VerifyError),
    /// Genuine, and not this.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// A program is another than it should be.
    #[error("the package is damaged: {0}")]
    Content(#[from] FileRefused),
    /// Longer than such a file is.
    #[error("{0} is longer than such a file may be")]
    TooLong(String),
    /// Something has to come before.
    #[error("{0} comes first")]
    First(&'static str),
    /// The manifest names no such program.
    #[error("the package has no agent's program called {0:?}")]
    NoSuchFile(String),
    /// Another package of that version is here.
    #[error("another package of version {0} is here already; a version is never changed")]
    Another(Version),
    /// Too many at once.
    #[error("{INCOMING_MAX} versions are being pushed already")]
    TooMany,
    /// The sender broke off.
    #[error("the file broke off")]
    BrokeOff,
    /// The disk.
    #[error("the package cannot be kept: {0}")]
    Disk(#[from] io::Error),
}

impl PushError {
    /// The stable code of it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Version(_) | Self::TooLong(_) | Self::First(_) | Self::BrokeOff => {
                codes::INVALID_REQUEST
            }
            Self::NoKeys | Self::Signature(_) | Self::Refused(_) | Self::Content(_) => {
                codes::PACKAGE_REFUSED
            }
            Self::NoSuchFile(_) => codes::PACKAGE_NOT_FOUND,
            Self::Another(_) => codes::ALREADY_EXISTS,
            Self::TooMany => codes::BUSY,
            Self::Disk(_) => codes::STORAGE_UNAVAILABLE,
        }
    }
}

/// What is known of a version after a file of it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Whether it is listed from now on.
    pub listed: bool,
    /// Files that are still wanted.
    pub wanted: Vec<String>,
}

impl Packages {
    /// Takes one file of a version.
    ///
    /// # Errors
    /// When it is not to be believed, or cannot be kept.
    pub async fn take(
        &self,
        trusted: &[PublicKey],
        version: &str,
        name: &str,
        body: impl Stream<Item = Result<Bytes, io::Error>> + Unpin + Send,
    ) -> Result<Pushed, PushError> {
        let version: Version = version
            .parse()
            .map_err(|_| PushError::Version(version.chars().take(64).collect()))?;
        if trusted.is_empty() {
            return Err(PushError::NoKeys);
        }
        let _one = self.pushing.lock().await;
        let place = self.dir.join(version.to_string());
        let folder = self.dir.join(format!("{INCOMING}{version}"));
        if name == SIGNATURES_NAME {
            self.begin(&folder)?;
        } else if !folder.join(SIGNATURES_NAME).is_file() {
            return Err(PushError::First(SIGNATURES_NAME));
        }
        let coming = Coming {
            trusted,
            version: &version,
            folder: &folder,
            now_us: (self.now_us)(),
        };
        let taken = coming.take(name, body).await;
        let verified = match taken {
            Ok(None) => {
                return Ok(Pushed {
                    listed: false,
                    wanted: vec![MANIFEST_NAME.to_owned()],
                });
            }
            Ok(Some(verified)) => verified,
            Err(error) => {
                if matches!(error, PushError::Signature(_) | PushError::Refused(_)) {
                    let _ = std::fs::remove_dir_all(&folder);
                }
                return Err(error);
            }
        };
        if place.join(MANIFEST_NAME).is_file() {
            let here = sha256(&std::fs::read(place.join(MANIFEST_NAME))?);
            let came = sha256(&std::fs::read(folder.join(MANIFEST_NAME))?);
            std::fs::remove_dir_all(&folder)?;
            if here != came {
                return Err(PushError::Another(version));
            }
            return Ok(Pushed {
                listed: true,
                wanted: Vec::new(),
            });
        }
        let wanted: Vec<String> = agents(&verified)
            .filter(|entry| !folder.join(&entry.name).is_file())
            .map(|entry| entry.name.clone())
            .collect();
        let listed = wanted.is_empty();
        if listed {
            files::sync_parent(&folder.join(MANIFEST_NAME))?;
            std::fs::rename(&folder, &place)?;
            files::sync_parent(&place)?;
            tracing::info!(%version, key = %verified.key, "a version was pushed");
        }
        Ok(Pushed { listed, wanted })
    }

    /// Makes the folder, where there are not too many of its kind.
    fn begin(&self, folder: &Path) -> Result<(), PushError> {
        files::private_dir(&self.dir)?;
        let mut others = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if path == folder || !entry.file_name().to_string_lossy().starts_with(INCOMING) {
                continue;
            }
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age > INCOMING_FOR {
                std::fs::remove_dir_all(&path)?;
            } else {
                others += 1;
            }
        }
        if others >= INCOMING_MAX {
            return Err(PushError::TooMany);
        }
        Ok(files::private_dir(folder)?)
    }
}

fn agents(verified: &Verified) -> impl Iterator<Item = &FileEntry> {
    let files = verified.manifest.files().iter();
    files.filter(|entry| entry.name.starts_with(PROGRAM_PREFIX))
}

/// A version on its way.
struct Coming<'a> {
    trusted: &'a [PublicKey],
    version: &'a Version,
    folder: &'a Path,
    now_us: i64,
}

impl Coming<'_> {
    /// Takes a file; the manifest, as soon as it is there and good.
    async fn take(
        &self,
        name: &str,
        body: impl Stream<Item = Result<Bytes, io::Error>> + Unpin,
    ) -> Result<Option<Verified>, PushError> {
        match name {
            SIGNATURES_NAME => {
                // Other signatures make another manifest out of the one that is there.
                remove_if_there(&self.folder.join(MANIFEST_NAME))?;
                let any = |_, _: &_| Ok(());
                self.write(name, SIGNATURES_BYTES_MAX as u64, body, any)
                    .await?;
                Ok(None)
            }
            MANIFEST_NAME => {
                let any = |_, _: &_| Ok(());
                self.write(name, MANIFEST_BYTES_MAX as u64, body, any)
                    .await?;
                let verified = self.verified()?;
                self.remove_others(&verified).await?;
                Ok(Some(verified))
            }
            _ => {
                if !self.folder.join(MANIFEST_NAME).is_file() {
                    return Err(PushError::First(MANIFEST_NAME));
                }
                let verified = self.verified()?;
                let entry = agents(&verified).find(|entry| entry.name == name);
                let entry = entry
                    .ok_or_else(|| PushError::NoSuchFile(name.chars().take(64).collect()))?
                    .clone();
                self.check_room(entry.size)?;
                let check = |size, digest: &_| entry.check(size, digest);
                self.write(name, entry.size, body, check).await?;
                Ok(Some(verified))
            }
        }
    }

    fn verified(&self) -> Result<Verified, PushError> {
        let manifest = std::fs::read(self.folder.join(MANIFEST_NAME))?;
        let signatures = std::fs::read(self.folder.join(SIGNATURES_NAME))?;
        let trusted = TrustedKeys::new(self.trusted.to_vec());
        let verified = trusted.verify(&manifest, &signatures)?;
        verified.manifest.check_version(self.version)?;
        if let Some(now) = Timestamp::from_seconds(self.now_us / 1_000_000) {
            verified.manifest.check_not_expired(now)?;
        }
        if agents(&verified).next().is_none() {
            return Err(PushError::NoSuchFile(PROGRAM_PREFIX.to_owned()));
        }
        Ok(verified)
    }

    fn check_room(&self, coming: u64) -> Result<(), PushError> {
        let disk = rustix::fs::statvfs(self.folder).map_err(io::Error::from)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < coming.saturating_add(ROOM_LEFT_BYTES) {
            let why = format!("the disk has {free} bytes free, and {coming} come");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why).into());
        }
        Ok(())
    }

    /// Programs that came for another manifest of this version are no part of this one.
    async fn remove_others(&self, verified: &Verified) -> io::Result<()> {
        for entry in agents(verified) {
            let (path, entry) = (self.folder.join(&entry.name), entry.clone());
            let checked = tokio::task::spawn_blocking(move || {
                if !path.is_file() {
                    return Ok(());
                }
                let (size, digest) = digest::of_file(&path)?;
                match entry.check(size, &digest) {
                    Ok(()) => Ok(()),
                    Err(_) => remove_if_there(&path),
                }
            });
            checked.await.map_err(io::Error::other)??;
        }
        Ok(())
    }

    /// Takes a file; under its name there is only one that is good.
    async fn write(
        &self,
        name: &str,
        max: u64,
        mut body: impl Stream<Item = Result<Bytes, io::Error>> + Unpin,
        check: impl FnOnce(u64, &[u8; 32]) -> Result<(), FileRefused>,
    ) -> Result<(), PushError> {
        let path = self.folder.join(name);
        let part = PathBuf::from(format!("{}.part", path.display()));
        let mut file = tokio::fs::File::create(&part).await?;
        let (mut size, mut digest) = (0, Sha256::default());
        while let Some(piece) = tokio::time::timeout(STALLED_AFTER, body.next())
            .await
            .map_err(|_| PushError::BrokeOff)?
        {
            let piece = piece.map_err(|_| PushError::BrokeOff)?;
            size += piece.len() as u64;
            if size > max {
                let _ = std::fs::remove_file(&part);
                return Err(PushError::TooLong(name.to_owned()));
            }
            digest.update(&piece);
            file.write_all(&piece).await?;
        }
        file.flush().await?;
        file.sync_all().await?;
        if let Err(refused) = check(size, &digest.finish()) {
            remove_if_there(&part)?;
            return Err(refused.into());
        }
        Ok(std::fs::rename(&part, &path)?)
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use fairlead_identity::package::{Manifest, SigningKey};
    use futures_util::stream;

    use super::*;

    const AGENT: &str = "fairlead-agent-linux-x86_64";

    struct World {
        _dir: tempfile::TempDir,
        packages: std::sync::Arc<Packages>,
        key: SigningKey,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self {
                packages: Packages::new(&dir.path().join("packages"), || 5_000_000),
                _dir: dir,
                key: SigningKey::generate().unwrap(),
            }
        }

        fn manifest(version: &str, expires_s: i64) -> String {
            let at = |seconds| Timestamp::from_seconds(seconds).unwrap();
            let file = |name: &str| FileEntry {
                name: name.to_owned(),
                size: 3,
                sha256: sha256(b"abc"),
            };
            let files = vec![file(AGENT), file("fairlead-linux-x86_64")];
            let from = "0.1.0".parse().unwrap();
            Manifest::new(version.parse().unwrap(), at(1), at(expires_s), from, files)
                .unwrap()
                .to_string()
        }

        async fn push(&self, version: &str, name: &str, bytes: &[u8]) -> Result<Pushed, PushError> {
            let body = stream::iter([Ok(Bytes::copy_from_slice(bytes))]);
            let trusted = [self.key.public()];
            self.packages.take(&trusted, version, name, body).await
        }

        async fn push_signed(&self, version: &str, manifest: &str) -> Result<Pushed, PushError> {
            let signatures = self.key.sign(manifest.as_bytes());
            let pushed = self.push(version, SIGNATURES_NAME, signatures.as_bytes());
            pushed.await.unwrap();
            self.push(version, MANIFEST_NAME, manifest.as_bytes()).await
        }
    }

    #[tokio::test]
    async fn a_version_is_listed_when_its_last_file_has_come_and_not_before() {
        let world = World::new();
        let manifest = World::manifest("1.2.0", 9);
        let pushed = world.push_signed("1.2.0", &manifest).await.unwrap();
        assert_eq!(
            (pushed.listed, &pushed.wanted[..]),
            (false, &[AGENT.to_owned()][..])
        );
        assert!(world.packages.versions().is_empty());
        let damaged = world.push("1.2.0", AGENT, b"abd").await.unwrap_err();
        assert!(matches!(damaged, PushError::Content(_)), "{damaged}");
        let long = world.push("1.2.0", AGENT, b"abcd").await.unwrap_err();
        assert!(matches!(long, PushError::TooLong(_)), "{long}");
        let other = world.push("1.2.0", "fairlead-linux-x86_64", b"abc").await;
        assert!(matches!(other, Err(PushError::NoSuchFile(_))));
        let pushed = world.push("1.2.0", AGENT, b"abc").await.unwrap();
        assert!(pushed.listed);
        assert_eq!(world.packages.versions(), ["1.2.0"]);
        assert!(world.packages.manifest("1.2.0").is_some());
        let again = world.push_signed("1.2.0", &manifest).await.unwrap();
        assert!(again.listed, "it is here");
        let another = world
            .push_signed("1.2.0", &World::manifest("1.2.0", 10))
            .await;
        assert!(matches!(another, Err(PushError::Another(_))));
        assert_eq!(world.packages.versions(), ["1.2.0"]);
    }

    #[tokio::test]
    async fn programs_of_another_manifest_are_no_part_of_a_version() {
        let world = World::new();
        let two = |sha256| {
            let at = |seconds| Timestamp::from_seconds(seconds).unwrap();
            let file = |name: &str, sha256| FileEntry {
                name: name.to_owned(),
                size: 3,
                sha256,
            };
            let files = vec![
                file("fairlead-agent-linux-aarch64", super::sha256(b"arm")),
                file(AGENT, sha256),
            ];
            let (from, version) = ("0.1.0".parse().unwrap(), "1.2.0".parse().unwrap());
            let made = Manifest::new(version, at(1), at(9), from, files);
            made.unwrap().to_string()
        };
        let (first, second) = (two(sha256(b"abc")), two(sha256(b"xyz")));
        world.push_signed("1.2.0", &first).await.unwrap();
        world.push("1.2.0", AGENT, b"abc").await.unwrap();
        let arm = "fairlead-agent-linux-aarch64".to_owned();
        // Begun again it goes on where it was.
        let again = world.push_signed("1.2.0", &first).await.unwrap();
        assert_eq!(again.wanted, [&*arm]);
        let other = world.push_signed("1.2.0", &second).await.unwrap();
        assert_eq!(other.wanted, [&*arm, AGENT]);
        world.push("1.2.0", AGENT, b"xyz").await.unwrap();
        assert!(world.push("1.2.0", &arm, b"arm").await.unwrap().listed);
    }

    #[tokio::test]
    async fn s33_what_is_not_to_be_believed_is_not_kept() {
        let world = World::new();
        let first = world.push("1.2.0", MANIFEST_NAME, b"x").await.unwrap_err();
        assert!(matches!(first, PushError::First(_)), "{first}");
        for (version, manifest) in [
            ("1.2.0", World::manifest("1.3.0", 9)),
            ("1.2.0", World::manifest("1.2.0", 4)),
            (
                "1.2.0",
                World::manifest("1.2.0", 9).replace("min-from 0.1.0", "min-from 0.1.1 "),
            ),
        ] {
            let refused = world.push_signed(version, &manifest).await.unwrap_err();
            assert_eq!(refused.code(), codes::PACKAGE_REFUSED, "{refused}");
        }
        let elsewhere = World::new();
        let manifest = World::manifest("1.2.0", 9);
        let signatures = elsewhere.key.sign(manifest.as_bytes());
        let pushed = world.push("1.2.0", SIGNATURES_NAME, signatures.as_bytes());
        pushed.await.unwrap();
        let foreign = world
            .push("1.2.0", MANIFEST_NAME, manifest.as_bytes())
            .await;
        assert!(matches!(foreign, Err(PushError::Signature(_))));
        for version in ["../x", "1.2", ""] {
            let no = world
                .push(version, SIGNATURES_NAME, b"x")
                .await
                .unwrap_err();
            assert!(matches!(no, PushError::Version(_)), "{no}");
        }
        let body = stream::iter([Ok(Bytes::new())]);
        let nobody = world
            .packages
            .take(&[], "1.2.0", SIGNATURES_NAME, body)
            .await;
        assert!(matches!(nobody, Err(PushError::NoKeys)));
        assert!(world.packages.versions().is_empty());
    }
}
