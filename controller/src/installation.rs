//! Opens what a data directory holds: an installation, that is its CA and its store, which belong together.
//! An empty directory becomes a new installation, which no host and no access server of another one
//! believes. So nothing is made where one is known to be missing: a disk that is not mounted, or was lost.

use std::path::Path;

use fairlead_daemon::clock::Clock;
use fairlead_identity::digest::hex;
use fairlead_protocol::codes;
use fairlead_store::{Store, StoreError};

use crate::authority::{CaError, CertificateAuthority};
use crate::config::Config;

/// The store, below the data directory.
const STORE_FILE: &str = "controller.db";
/// Made at the first start, before the store is.
const ROOT_FILE: &str = "root.chain";
/// Whose store it is: the SHA-256 of the root certificate.
const META_KEY: &str = "installation";

/// Why it was not opened.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// The CA cannot be used.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing is there, and something should be.
    #[error(
        "there is no installation in {dir}, and that of the CA {expected} belongs there: its disk is not \
         mounted, or lost. Mount it, or put the backup back, and start again. Nothing was made; for a new \
         installation, which no host of the old one believes, take FAIRLEAD_CA_SHA256 out of the settings ({})",
        codes::INSTALLATION_MISSING
    )]
    Missing {
        /// The data directory.
        dir: String,
        /// Its CA.
        expected: String,
    },
    /// Another one is there.
    #[error(
        "{dir} holds the installation of the CA {found}, and that of {expected} belongs there: is another disk \
         mounted, or a wrong backup? If this one is meant, set FAIRLEAD_CA_SHA256 to it ({})",
        codes::INSTALLATION_MISSING
    )]
    Another {
        /// The data directory.
        dir: String,
        /// The CA that is there.
        found: String,
        /// The one that should be.
        expected: String,
    },
    /// Half of it is there.
    #[error(
        "{dir} has a database, and the CA that belongs to it is gone (root.key, root.chain): put both back \
         from the backup. Nothing was made: a new CA would be believed by no host ({})",
        codes::INSTALLATION_MISSING
    )]
    NoRoot {
        /// The data directory.
        dir: String,
    },
    /// The halves are of two installations.
    #[error(
        "the database in {dir} belongs to the installation of the CA {of}, and the keys there to that of \
         {found}: put back the ones that belong together ({})",
        codes::INSTALLATION_MISSING
    )]
    Mixed {
        /// The data directory.
        dir: String,
        /// The database's CA.
        of: String,
        /// The keys'.
        found: String,
    },
}

/// An installation, opened.
pub struct Opened {
    /// Its CA.
    pub authority: CertificateAuthority,
    /// Its store.
    pub store: Store,
    /// Whether it was made just now.
    pub is_new: bool,
}

impl Opened {
    /// Whoever had one there before is to know it.
    pub fn warn_if_new(&self, dir: &Path) {
        if self.is_new {
            tracing::warn!(
                dir = %dir.display(),
                "a new installation is made here, with a CA of its own; was there one before, stop this and \
                 mount its disk or put its backup back"
            );
        }
    }
}

/// Opens the installation in the data directory, or makes one where none is expected.
///
/// # Errors
/// When it is another one than is expected, is not whole, or cannot be used.
pub async fn open(config: &Config, clock: Clock) -> Result<Opened, InstallationError> {
    let store_path = config.data_dir.join(STORE_FILE);
    let is_new = look(config, &store_path)?;
    let authority =
        CertificateAuthority::open(&config.data_dir, &config.domain, &config.web_names, clock)?;
    let dir = || config.data_dir.display().to_string();
    let found = hex(&authority.root.hash());
    if let Some(expected) = config
        .ca_sha256
        .as_ref()
        .filter(|expected| **expected != found)
    {
        return Err(InstallationError::Another {
            dir: dir(),
            found,
            expected: expected.clone(),
        });
    }
    let store = Store::open(&store_path)?;
    let hash = authority.root.hash();
    match store.read(|tx| tx.meta(META_KEY)).await? {
        Some(of) if of != hash => {
            return Err(InstallationError::Mixed {
                dir: dir(),
                of: hex(&of),
                found,
            });
        }
        Some(_) => {}
        None => {
            let noted = store.write(move |tx| tx.set_meta(META_KEY, &hash)).await;
            if let Err(error) = noted {
                // A full disk is no reason not to start: what only reads works.
                tracing::warn!(%error, "whose database this is could not be noted in it");
            }
        }
    }
    Ok(Opened {
        authority,
        store,
        is_new,
    })
}

/// Before anything is made; whether an installation will be.
fn look(config: &Config, store_path: &Path) -> Result<bool, InstallationError> {
    let dir = config.data_dir.display().to_string();
    let (has_root, has_store) = (
        config.data_dir.join(ROOT_FILE).exists(),
        store_path.exists(),
    );
    match (has_root, has_store, &config.ca_sha256) {
        (false, true, _) => Err(InstallationError::NoRoot { dir }),
        (false, false, Some(expected)) => Err(InstallationError::Missing {
            dir,
            expected: expected.clone(),
        }),
        (false, false, None) => Ok(true),
        (true, false, _) => {
            tracing::error!(
                dir,
                "the CA is here and its database is not: hosts, tokens and history are not known; was there \
                 one before, stop this and put its backup back"
            );
            Ok(false)
        }
        (true, true, _) => Ok(false),
    }
}

/// The SHA-256 of a root certificate, as `setup` prints it.
///
/// # Errors
/// When it is none.
pub fn ca_sha256(text: &str) -> Result<String, String> {
    let text = text.trim().to_ascii_lowercase();
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text)
    } else {
        Err(
            "64 hexadecimal digits are expected, as `fairlead-controller setup` prints them"
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::tests::preparation;

    async fn opened(config: &Config) -> Result<String, String> {
        let there = config.data_dir.join(ROOT_FILE).exists();
        let opened = open(config, Clock::system())
            .await
            .map_err(|error| error.to_string())?;
        assert_eq!(opened.is_new, !there);
        Ok(hex(&opened.authority.root.hash()))
    }

    fn files(dir: &Path) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }

    #[tokio::test]
    async fn an_empty_directory_is_no_new_installation_where_one_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = preparation(dir.path()).config;
        let first = opened(&config).await.unwrap();
        config.ca_sha256 = Some(first.clone());
        assert_eq!(opened(&config).await.unwrap(), first);

        // The disk is not mounted.
        config.data_dir = dir.path().join("empty");
        std::fs::create_dir(&config.data_dir).unwrap();
        let said = opened(&config).await.unwrap_err();
        for wanted in ["installation_missing", "not mounted", &first] {
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        assert!(files(&config.data_dir).is_empty(), "nothing was made");

        // Another one is.
        config.ca_sha256 = None;
        let other = opened(&config).await.unwrap();
        assert_ne!(other, first);
        config.ca_sha256 = Some(first.clone());
        let said = opened(&config).await.unwrap_err();
        assert!(said.contains(&first) && said.contains(&other), "{said}");
    }

    #[tokio::test]
    async fn halves_of_an_installation_make_no_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = preparation(dir.path()).config;
        let first = opened(&config).await.unwrap();
        let (root, kept) = (config.data_dir.join(ROOT_FILE), dir.path().join("root"));
        std::fs::rename(&root, &kept).unwrap();
        let before = files(&config.data_dir);
        let said = opened(&config).await.unwrap_err();
        assert!(said.contains("put both back"), "{said}");
        assert_eq!(files(&config.data_dir), before);
        std::fs::rename(&kept, &root).unwrap();
        assert_eq!(opened(&config).await.unwrap(), first);

        // Somebody else's database.
        let mut other = config.clone();
        other.data_dir = dir.path().join("other");
        let second = opened(&other).await.unwrap();
        let parts = [STORE_FILE, "controller.db-wal", "controller.db-shm"];
        for part in parts {
            let _ = std::fs::remove_file(other.data_dir.join(part));
        }
        for part in &parts[..2] {
            let _ = std::fs::copy(config.data_dir.join(part), other.data_dir.join(part));
        }
        let said = opened(&other).await.unwrap_err();
        assert!(said.contains(&first) && said.contains(&second), "{said}");

        // The keys alone are the same installation still.
        for part in parts {
            let _ = std::fs::remove_file(other.data_dir.join(part));
        }
        assert_eq!(opened(&other).await.unwrap(), second);
    }

    #[test]
    fn a_fingerprint_is_64_digits() {
        let good = "A".repeat(64);
        assert_eq!(ca_sha256(&good).unwrap(), "a".repeat(64));
        for bad in ["", "abc", &"g".repeat(64)] {
            assert!(ca_sha256(bad).is_err(), "{bad}");
        }
    }
}
