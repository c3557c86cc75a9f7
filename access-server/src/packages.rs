//! The region's shelf of packages: what its agents were told to become, got from the controller once and kept by
//! the manifest's hash, so that a region that is cut off goes on serving what it has.
//!
//! A file is on the shelf under its name when it is whole and is what its manifest says (the manifest: what its
//! hash says); what is still coming lies beside it. Whether a version is to be believed the hosts decide.
//! Touches its folder and the controller's door for packages; never ledger or registry.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use fairlead_daemon::files;
use fairlead_identity::Role;
use fairlead_identity::digest::{self, hex};
use fairlead_identity::package::{
    FileEntry, MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, SIGNATURES_BYTES_MAX, SIGNATURES_NAME,
};
use fairlead_link::dial::Dialler;
use fairlead_link::package::{self, FetchError, Wanted};
use fairlead_link::socket::StreamSocket;
use fairlead_protocol::codes;
use tokio::fs::OpenOptions;
use tokio::sync::{Mutex, Semaphore};

use crate::region::Refusal;

/// The folder, below the access server's data.
pub const DIR: &str = "packages";
/// What the shelf may hold; beyond it the packages that were asked for longest ago go.
const BYTES_MAX: u64 = 2 << 30;
/// Hosts that are served at a time; more are told to come back.
const PLACES_MAX: usize = 64;
/// How often the controller is asked again without anything having come.
const IN_VAIN_MAX: u32 = 3;
/// Programs that agents may ask for.
const PROGRAM_PREFIX: &str = "fairlead-agent-";

/// The shelf.
pub struct Shelf {
    dir: PathBuf,
    dialler: Dialler,
    controller: String,
    bytes_max: u64,
    places: Semaphore,
    /// One file at a time comes from the controller; who wants the same waits for it.
    fetching: Mutex<()>,
}

/// What a file must be.
enum Must {
    Hash([u8; 32], u64),
    AtMost(u64),
}

impl Shelf {
    /// The shelf in that folder, filled from that controller.
    #[must_use]
    pub fn new(dir: PathBuf, dialler: Dialler, controller: String) -> Arc<Self> {
        Arc::new(Self {
            dir,
            dialler,
            controller,
            bytes_max: BYTES_MAX,
            places: Semaphore::new(PLACES_MAX),
            fetching: Mutex::new(()),
        })
    }

    /// Serves one host's question.
    pub async fn serve(&self, mut socket: StreamSocket) {
        let Some(wanted) = package::asked(&mut socket).await else {
            return;
        };
        let Ok(_place) = self.places.try_acquire() else {
            let message = "more hosts fetch packages than this region serves at a time";
            return package::refuse(&mut socket, codes::BUSY, message).await;
        };
        let served = async {
            let path = self.have(&wanted).await?;
            let file = tokio::fs::File::open(&path).await;
            let file = file.map_err(|error| unreadable(&path, &error))?;
            let about = file.metadata().await;
            let size = about.map_err(|error| unreadable(&path, &error))?.len();
            Ok::<_, Refusal>((file, size))
        };
        match served.await {
            Ok((file, size)) => {
                let given = package::give(&mut socket, file, size, wanted.offset).await;
                if let Err(error) = given {
                    // The host comes back and goes on from where it was.
                    tracing::debug!(%error, file = wanted.file, "a host left while it fetched a package");
                }
            }
            Err((code, message)) => {
                tracing::warn!(
                    code,
                    message,
                    file = wanted.file,
                    "a package could not be served"
                );
                package::refuse(&mut socket, code, &message).await;
            }
        }
    }

    /// The file's path, once it is here whole.
    async fn have(&self, wanted: &Wanted) -> Result<PathBuf, Refusal> {
        let folder = self.dir.join(hex(&wanted.manifest));
        let manifest = folder.join(MANIFEST_NAME);
        if manifest.is_file() && may_be_named(&wanted.file) {
            let path = folder.join(&wanted.file);
            if path.is_file() {
                touch(&manifest);
                return Ok(path);
            }
        }
        let _one = self.fetching.lock().await;
        if !manifest.is_file() {
            let must = Must::Hash(wanted.manifest, MANIFEST_BYTES_MAX as u64);
            self.bring(wanted, MANIFEST_NAME, &must).await?;
        }
        touch(&manifest);
        let must = match wanted.file.as_str() {
            MANIFEST_NAME => return Ok(manifest),
            SIGNATURES_NAME => Must::AtMost(SIGNATURES_BYTES_MAX as u64),
            _ => {
                let entry = entry_of(&manifest, &wanted.file)?;
                Must::Hash(entry.sha256, entry.size)
            }
        };
        let path = folder.join(&wanted.file);
        if !path.is_file() {
            self.bring(wanted, &wanted.file, &must).await?;
        }
        Ok(path)
    }

    /// Gets a file from the controller, going on where an earlier attempt broke off.
    async fn bring(&self, wanted: &Wanted, name: &str, must: &Must) -> Result<(), Refusal> {
        let folder = self.dir.join(hex(&wanted.manifest));
        let kept = |error: &io::Error| {
            let why = format!("this region cannot keep packages: {error}");
            (codes::PACKAGE_UNAVAILABLE, why)
        };
        for dir in [&self.dir, &folder] {
            files::private_dir(dir).map_err(|error| kept(&error))?;
        }
        let max = match must {
            Must::Hash(_, size) | Must::AtMost(size) => *size,
        };
        make_room(&self.dir, &folder, max, self.bytes_max).map_err(|error| kept(&error))?;
        let (path, part) = (folder.join(name), folder.join(format!("{name}.part")));
        let mut in_vain = 0;
        loop {
            let file = open_part(&part);
            let mut file = file.await.map_err(|error| kept(&error))?;
            let offset = file.metadata().await.map_or(0, |about| about.len());
            let ask = Wanted {
                manifest: wanted.manifest,
                file: name.to_owned(),
                offset,
            };
            let fetched = self.ask_controller(&ask, max, &mut file).await;
            let came = file.metadata().await.map_or(0, |about| about.len()) > offset;
            match fetched {
                Ok(_) => {
                    file.sync_all().await.map_err(|error| kept(&error))?;
                    break;
                }
                Err(FetchError::Refused { code, message }) if !passes(&code) => {
                    return Err((codes::known(&code), message));
                }
                Err(FetchError::TooLarge { .. }) => {
                    let _ = std::fs::remove_file(&part);
                    return Err(another(name));
                }
                Err(error) => {
                    if matches!(error, FetchError::BrokeOff) && !came {
                        // It does not fit what is there now.
                        let _ = std::fs::remove_file(&part);
                    }
                    in_vain = if came { 0 } else { in_vain + 1 };
                    if in_vain > IN_VAIN_MAX {
                        let why = format!(
                            "this region does not have {name} yet, and cannot get it from the controller: {error}"
                        );
                        return Err((codes::PACKAGE_UNAVAILABLE, why));
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                }
            }
        }
        if let Must::Hash(hash, size) = must {
            let (measured, found) = digest(part.clone()).await.map_err(|error| kept(&error))?;
            if found != *hash || (name != MANIFEST_NAME && measured != *size) {
                let _ = std::fs::remove_file(&part);
                return Err(another(name));
            }
        }
        std::fs::rename(&part, &path)
            .and_then(|()| files::sync_parent(&path))
            .map_err(|error| kept(&error))?;
        tracing::info!(file = name, package = %folder.display(), "a package's file is on the shelf");
        Ok(())
    }

    async fn ask_controller(
        &self,
        ask: &Wanted,
        max: u64,
        to: &mut tokio::fs::File,
    ) -> Result<u64, FetchError> {
        let server = Role::Controller.to_string();
        let mut socket = self
            .dialler
            .package(&self.controller, &server)
            .await
            .map_err(|error| FetchError::Refused {
                code: codes::PACKAGE_UNAVAILABLE.to_owned(),
                message: error.to_string(),
            })?;
        package::fetch(&mut socket, ask, max, to).await
    }
}

async fn open_part(part: &Path) -> io::Result<tokio::fs::File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).open(part).await
}

/// Whether it may be otherwise soon.
fn passes(code: &str) -> bool {
    [codes::BUSY, codes::PACKAGE_UNAVAILABLE].contains(&code)
}

fn another(name: &str) -> Refusal {
    let why = format!("what the controller has as {name} is not what the manifest names");
    (codes::PACKAGE_REFUSED, why)
}

fn unreadable(path: &Path, error: &io::Error) -> Refusal {
    let why = format!("{} cannot be read: {error}", path.display());
    (codes::PACKAGE_UNAVAILABLE, why)
}

fn may_be_named(name: &str) -> bool {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    [MANIFEST_NAME, SIGNATURES_NAME].contains(&name) || (name.starts_with(PROGRAM_PREFIX) && plain)
}

/// What the manifest says of a program.
fn entry_of(manifest: &Path, name: &str) -> Result<FileEntry, Refusal> {
    let bytes = std::fs::read(manifest).map_err(|error| unreadable(manifest, &error))?;
    let no = || {
        let why = format!("the package has no agent called {name:?}");
        (codes::PACKAGE_NOT_FOUND, why)
    };
    let manifest = Manifest::parse(&bytes).map_err(|_| another(MANIFEST_NAME))?;
    if !may_be_named(name) {
        return Err(no());
    }
    manifest.file(name).cloned().map_err(|_| no())
}

/// It is in use: it stays longest.
fn touch(manifest: &Path) {
    // What is not noted goes sooner, and comes again when it is asked for.
    let _ = std::fs::File::options()
        .append(true)
        .open(manifest)
        .and_then(|file| file.set_modified(SystemTime::now()));
}

async fn digest(path: PathBuf) -> io::Result<(u64, [u8; 32])> {
    let read = tokio::task::spawn_blocking(move || digest::of_file(&path));
    read.await.map_err(io::Error::other)?
}

/// Removes the packages that were asked for longest ago until so many bytes more may come.
fn make_room(dir: &Path, keep: &Path, coming: u64, max: u64) -> io::Result<()> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let mut bytes = 0;
        for file in std::fs::read_dir(&path)? {
            bytes += file?.metadata()?.len();
        }
        let used = std::fs::metadata(path.join(MANIFEST_NAME)).and_then(|about| about.modified());
        folders.push((used.unwrap_or(SystemTime::UNIX_EPOCH), path, bytes));
    }
    folders.sort();
    let mut total: u64 = folders.iter().map(|(_, _, bytes)| bytes).sum();
    for (_, path, bytes) in folders {
        if total.saturating_add(coming) <= max {
            break;
        }
        if path != keep {
            std::fs::remove_dir_all(&path)?;
            total -= bytes;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fairlead_identity::digest::sha256;

    use super::*;

    #[test]
    fn what_was_asked_for_longest_ago_makes_room_and_what_is_coming_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str, age_s: u64| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("fairlead-agent-linux-x86_64"), [0; 100]).unwrap();
            std::fs::write(path.join(MANIFEST_NAME), "").unwrap();
            let at = SystemTime::now() - std::time::Duration::from_secs(age_s);
            let file = std::fs::File::options()
                .append(true)
                .open(path.join(MANIFEST_NAME));
            file.unwrap().set_modified(at).unwrap();
            path
        };
        let (coming, old, new) = (folder("a", 900), folder("b", 500), folder("c", 10));
        make_room(dir.path(), &coming, 50, 350).unwrap();
        assert!(old.exists() && new.exists(), "there was room");
        touch(&old.join(MANIFEST_NAME));
        make_room(dir.path(), &coming, 60, 350).unwrap();
        assert!(coming.exists() && old.exists() && !new.exists());
    }

    #[test]
    fn s18_only_programs_of_the_manifest_can_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |seconds| fairlead_identity::package::Timestamp::from_seconds(seconds).unwrap();
        let file = |name: &str| FileEntry {
            name: name.to_owned(),
            size: 3,
            sha256: sha256(b"abc"),
        };
        let manifest = Manifest::new(
            "1.2.3".parse().unwrap(),
            at(1),
            at(2),
            "1.0.0".parse().unwrap(),
            vec![
                file("fairlead-agent-linux-x86_64"),
                file("fairlead-linux-x86_64"),
            ],
        )
        .unwrap();
        let path = dir.path().join(MANIFEST_NAME);
        std::fs::write(&path, manifest.to_string()).unwrap();
        assert!(entry_of(&path, "fairlead-agent-linux-x86_64").is_ok());
        for name in [
            "fairlead-agent-linux-aarch64",
            "fairlead-linux-x86_64",
            "../manifest",
            "fairlead-agent-/../../ledger.db",
            "",
        ] {
            let (code, _) = entry_of(&path, name).unwrap_err();
            assert_eq!(code, codes::PACKAGE_NOT_FOUND, "{name}");
            assert!(!may_be_named(name) || name.ends_with("aarch64"), "{name}");
        }
    }
}
