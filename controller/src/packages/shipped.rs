//! Packages that came with the controller's own package of the system (`--packages-from`): copied into the
//! folder that is served, so that a version stays there when the next one replaces it at its origin.
//!
//! Writes below the controller's data only. What is copied proves itself to hosts by its signature; here
//! only its completeness matters, and a version appears in one step or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fairlead_daemon::files;
use fairlead_identity::package::{
    INSTALLER_NAME, INSTALLER_SIGNATURES_NAME, MANIFEST_NAME, Version,
};

/// The channel that machines without a wish of their own get.
const CHANNEL: &str = "channels/stable";

/// Why they could not be put in place.
#[derive(Debug, thiserror::Error)]
#[error("cannot put packages from {from} in place: {path}")]
pub struct ShippedError {
    from: PathBuf,
    path: PathBuf,
    source: io::Error,
}

/// Copies what is not there yet, and lets the channel point to the newest, unless it is at a newer one.
/// Returns the version that machines get now because of it; `None` where nothing changed.
///
/// # Errors
/// When a file cannot be read or written; what was served before is served still.
pub fn put_in_place(from: &Path, packages: &Path) -> Result<Option<Version>, ShippedError> {
    let at = |path: &Path| {
        let (from, path) = (from.to_owned(), path.to_owned());
        move |source| ShippedError { from, path, source }
    };
    let mut newest = None;
    for entry in fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        let Ok(version) = entry.file_name().to_string_lossy().parse::<Version>() else {
            continue;
        };
        let (origin, place) = (entry.path(), packages.join(version.to_string()));
        if !origin.join(MANIFEST_NAME).is_file() {
            continue;
        }
        if !place.join(MANIFEST_NAME).is_file() {
            copy(&origin, &place).map_err(at(&origin))?;
        }
        newest = newest.max(Some(version));
    }
    let Some(newest) = newest else {
        return Ok(None);
    };
    let channel = packages.join(CHANNEL);
    let there = fs::read_to_string(&channel)
        .ok()
        .and_then(|text| text.trim().parse::<Version>().ok());
    if there.as_ref() >= Some(&newest) {
        return Ok(None);
    }
    point_to(&newest, packages, &channel).map_err(at(&channel))?;
    Ok(Some(newest))
}

/// A folder of plain files, on disk under its name when it is whole.
fn copy(origin: &Path, place: &Path) -> io::Result<()> {
    let mut beside = place.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // Left by a start that was interrupted.
    match fs::remove_dir_all(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    files::private_dir(&beside)?;
    for entry in fs::read_dir(origin)? {
        let entry = entry?;
        let to = beside.join(entry.file_name());
        fs::copy(entry.path(), &to)?;
        fs::File::open(&to)?.sync_all()?;
    }
    files::sync_parent(&beside.join(MANIFEST_NAME))?;
    fs::rename(&beside, place)?;
    files::sync_parent(place)
}

/// The script first: until the channel follows, it installs the version that it was made for.
fn point_to(version: &Version, packages: &Path, channel: &Path) -> io::Result<()> {
    let folder = packages.join(version.to_string());
    for name in [INSTALLER_SIGNATURES_NAME, INSTALLER_NAME] {
        files::replace(&packages.join(name), &fs::read(folder.join(name))?)?;
    }
    if let Some(parent) = channel.parent() {
        files::private_dir(parent)?;
    }
    files::replace(channel, format!("{version}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("shipped")).unwrap();
            Self { dir }
        }

        fn shipped(&self) -> PathBuf {
            self.dir.path().join("shipped")
        }

        fn packages(&self) -> PathBuf {
            self.dir.path().join("data/packages")
        }

        /// What apt leaves there: one version, the last one's files are gone.
        fn ship(&self, version: &str) {
            fs::remove_dir_all(self.shipped()).unwrap();
            let folder = self.shipped().join(version);
            fs::create_dir_all(&folder).unwrap();
            for name in ["manifest", "manifest.sig", "install.sh", "install.sh.sig"] {
                fs::write(folder.join(name), format!("{name} of {version}\n")).unwrap();
            }
            fs::write(folder.join("fairlead-agent-linux-x86_64"), version).unwrap();
        }

        fn put(&self) -> Option<String> {
            let put = put_in_place(&self.shipped(), &self.packages()).unwrap();
            put.map(|version| version.to_string())
        }

        fn served(&self, name: &str) -> String {
            fs::read_to_string(self.packages().join(name)).unwrap_or_default()
        }
    }

    #[test]
    fn what_came_with_the_program_is_served_and_older_versions_stay() {
        let world = World::new();
        assert_eq!(world.put(), None, "an empty folder is no package");
        assert!(!world.packages().exists());
        world.ship("0.2.0");
        assert_eq!(world.put().as_deref(), Some("0.2.0"));
        assert_eq!(world.served("channels/stable"), "0.2.0\n");
        assert_eq!(world.served("install.sh"), "install.sh of 0.2.0\n");
        assert_eq!(world.served("install.sh.sig"), "install.sh.sig of 0.2.0\n");
        assert_eq!(world.served("0.2.0/fairlead-agent-linux-x86_64"), "0.2.0");
        assert_eq!(world.put(), None, "again nothing changes");

        world.ship("0.10.0");
        assert_eq!(world.put().as_deref(), Some("0.10.0"));
        assert_eq!(world.served("install.sh"), "install.sh of 0.10.0\n");
        assert_eq!(world.served("0.2.0/manifest"), "manifest of 0.2.0\n");

        // An administrator's newer one stays the one that machines get.
        world.ship("0.9.0");
        assert_eq!(world.put(), None);
        assert_eq!(world.served("channels/stable"), "0.10.0\n");
        assert_eq!(world.served("0.9.0/manifest"), "manifest of 0.9.0\n");
    }

    #[test]
    fn a_copy_that_was_interrupted_is_made_anew() {
        let world = World::new();
        world.ship("0.2.0");
        let part = world.packages().join("0.2.0.new");
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join("manifest"), "half").unwrap();
        fs::write(part.join("stranger"), "").unwrap();
        assert!(world.put().is_some());
        assert_eq!(world.served("0.2.0/manifest"), "manifest of 0.2.0\n");
        assert!(!part.exists());
        assert!(!world.packages().join("0.2.0/stranger").exists());
    }

    #[test]
    fn a_folder_that_is_not_there_is_said_by_name() {
        let world = World::new();
        fs::remove_dir(world.shipped()).unwrap();
        let error = put_in_place(&world.shipped(), &world.packages()).unwrap_err();
        assert!(error.to_string().contains("shipped"), "{error}");
    }
}
