//! Where versions lie, as `install.sh` lays them out: `PREFIX/versions/V/fairlead-agent`, the link `current` to
//! the one that is started, the link `supervisor` to the one that the system's service starts.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use fairlead_daemon::files;
use fairlead_identity::package::Version;

use crate::handoff::decide::Versions;

/// The program in the folder of a version.
pub const PROGRAM: &str = "fairlead-agent";

/// Where programs are.
#[derive(Debug, Clone)]
pub struct Layout {
    /// This very program.
    own: PathBuf,
    /// The folder with the folder of versions; absent: this program lies somewhere else.
    prefix: Option<PathBuf>,
}

impl Layout {
    /// As the path of this program tells it.
    ///
    /// # Errors
    /// When that is not known.
    pub fn of_this_program() -> io::Result<Self> {
        Ok(Self::of(std::env::current_exe()?))
    }

    fn of(own: PathBuf) -> Self {
        let folder = own.parent().and_then(Path::parent);
        let prefix = folder
            .filter(|folder| folder.file_name().is_some_and(|name| name == "versions"))
            .and_then(Path::parent)
            .map(Path::to_owned);
        Self { own, prefix }
    }

    /// The folder that holds `versions`, `current` and `supervisor`.
    #[must_use]
    pub fn prefix(&self) -> Option<&Path> {
        self.prefix.as_deref()
    }

    /// The version of this very program, by its folder; empty where there is none.
    #[must_use]
    pub fn own_version(&self) -> String {
        let folder = self.own.parent().and_then(Path::file_name);
        match (&self.prefix, folder) {
            (Some(_), Some(folder)) => folder.to_string_lossy().into_owned(),
            _ => String::new(),
        }
    }

    /// The folder of a version.
    #[must_use]
    pub fn folder(&self, version: &str) -> Option<PathBuf> {
        // A version is no path: nothing else is ever put behind the folder's name.
        version.parse::<Version>().ok()?;
        Some(self.prefix.as_ref()?.join("versions").join(version))
    }

    /// The program of a version.
    #[must_use]
    pub fn program(&self, version: &str) -> PathBuf {
        match self.folder(version) {
            Some(folder) => folder.join(PROGRAM),
            None => self.own.clone(),
        }
    }

    /// The version that a link of that name leads to.
    #[must_use]
    pub fn linked(&self, link: &str) -> Option<String> {
        let target = std::fs::read_link(self.prefix.as_ref()?.join(link)).ok()?;
        let name = target.file_name()?.to_string_lossy().into_owned();
        self.folder(&name).map(|_| name)
    }

    /// Makes a link of that name lead to a version, whole and on disk.
    ///
    /// # Errors
    /// When it cannot be made; the old one is there then.
    pub fn link(&self, link: &str, version: &str) -> io::Result<()> {
        let Some(prefix) = &self.prefix else {
            return Ok(());
        };
        if self.linked(link).as_deref() == Some(version) {
            return Ok(());
        }
        let beside = prefix.join(format!(".{link}.new"));
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(Path::new("versions").join(version), &beside)?;
        let path = prefix.join(link);
        std::fs::rename(&beside, &path)?;
        files::sync_parent(&path)
    }

    /// Which version is to be started, and what is known of it. Where somebody else (the installer) has
    /// moved the link, what was known is over.
    #[must_use]
    pub fn versions(&self, state_dir: &Path) -> Versions {
        let current = self.linked("current").unwrap_or_else(|| self.own_version());
        let kept = match files::read_if_there(&versions_path(state_dir)) {
            Ok(Some(bytes)) => serde_json::from_slice::<Versions>(&bytes).ok(),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "what is known of versions cannot be read");
                None
            }
        };
        match kept {
            Some(kept) if kept.current == current => kept,
            _ => Versions {
                current,
                ..Versions::default()
            },
        }
    }

    /// Keeps what is known, and moves the link.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn keep(&self, state_dir: &Path, versions: &Versions) -> io::Result<()> {
        if self.prefix.is_none() {
            return Ok(());
        }
        let text = serde_json::to_vec(versions)?;
        let path = versions_path(state_dir);
        if files::read_if_there(&path)?.as_deref() != Some(&text[..]) {
            files::replace(&path, &text)?;
        }
        if !versions.current.is_empty() {
            self.link("current", &versions.current)?;
        }
        Ok(())
    }
}

fn versions_path(state_dir: &Path) -> PathBuf {
    state_dir.join("versions")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_versions_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let folder = dir.path().join("versions/1.2.3");
        std::fs::create_dir_all(&folder).unwrap();
        let layout = Layout::of(folder.join(PROGRAM));
        assert_eq!(layout.own_version(), "1.2.3");
        assert_eq!(
            layout.versions(&state).current,
            "1.2.3",
            "there is no link yet"
        );
        let versions = Versions {
            current: "1.3.0".to_owned(),
            previous: Some("1.2.3".to_owned()),
            tries_left: Some(3),
            ..Versions::default()
        };
        layout.keep(&state, &versions).unwrap();
        assert_eq!(layout.versions(&state), versions);
        assert_eq!(
            std::fs::read_link(dir.path().join("current")).unwrap(),
            Path::new("versions/1.3.0")
        );
        layout.link("current", "1.2.3").unwrap();
        assert_eq!(
            layout.versions(&state).tries_left,
            None,
            "somebody else has moved it"
        );
        assert_eq!(layout.folder("../../etc"), None);
        assert_eq!(layout.program("../x"), folder.join(PROGRAM));
    }

    #[test]
    fn a_program_that_lies_elsewhere_has_no_versions() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(dir.path().join("target/debug/fairlead-agent"));
        assert_eq!(layout.prefix(), None);
        assert_eq!(layout.versions(dir.path()), Versions::default());
        layout.keep(dir.path(), &Versions::default()).unwrap();
    }
}
