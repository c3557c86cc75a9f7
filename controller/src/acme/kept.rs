//! What ACME keeps in the data directory, `acme/`: the account and its key, the certificate, and what was
//! tried. Each is one file, replaced whole, for its owner only. The certificate's key is `web.key`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use fairlead_daemon::files;
use instant_acme::AccountCredentials;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::AcmeError;
use super::schedule::Tries;

const DIR: &str = "acme";

/// An account at a CA.
#[derive(Serialize, Deserialize)]
pub(super) struct Account {
    /// Whose.
    pub(super) directory: String,
    /// As the CA knows them.
    pub(super) contacts: Vec<String>,
    /// Its address and key.
    pub(super) credentials: AccountCredentials,
}

/// A certificate as issued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Certificate {
    /// What was asked for.
    pub(super) wish: String,
    /// The name in it.
    pub(super) name: String,
    /// PEM, leaf first.
    pub(super) chain: String,
}

/// The files.
pub(super) struct Kept {
    dir: PathBuf,
    certificate: Mutex<Option<Certificate>>,
}

impl Kept {
    /// Those of this data directory.
    pub(super) fn open(data_dir: &Path) -> Result<Self, AcmeError> {
        let dir = data_dir.join(DIR);
        files::private_dir(&dir).map_err(|error| unreadable(&dir, &error))?;
        let certificate = read(&dir.join("certificate"))?;
        Ok(Self {
            dir,
            certificate: Mutex::new(certificate),
        })
    }

    /// The account at that CA, if there is one.
    pub(super) fn account(&self, directory: &str) -> Result<Option<Account>, AcmeError> {
        let kept: Option<Account> = read(&self.dir.join("account"))?;
        Ok(kept.filter(|account| account.directory == directory))
    }

    /// Keeps the account.
    pub(super) fn save_account(&self, account: &Account) -> io::Result<()> {
        self.write("account", account)
    }

    /// The certificate.
    pub(super) fn certificate(&self) -> Option<Certificate> {
        self.lock().clone()
    }

    /// Keeps the certificate; in memory also when the disk does not take it.
    pub(super) fn save_certificate(&self, certificate: &Certificate) -> io::Result<()> {
        *self.lock() = Some(certificate.clone());
        self.write("certificate", certificate)
    }

    /// What was tried. A file that cannot be read is as good as none: the CA has limits of its own.
    pub(super) fn tries(&self) -> Tries {
        read(&self.dir.join("tries"))
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Keeps what was tried.
    pub(super) fn save_tries(&self, tries: &Tries) -> io::Result<()> {
        self.write("tries", tries)
    }

    fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(value)?;
        files::replace(&self.dir.join(name), &text)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Certificate>> {
        self.certificate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, AcmeError> {
    files::read_if_there(path)
        .map_err(|error| unreadable(path, &error))?
        .map(|text| serde_json::from_slice(&text).map_err(|error| unreadable(path, &error)))
        .transpose()
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> AcmeError {
    AcmeError::Kept {
        path: path.display().to_string(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_kept_is_there_again_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        assert_eq!(kept.tries(), Tries::default());
        assert!(kept.certificate().is_none());
        let mut tries = Tries::default();
        tries.begin("a", 1_700_000_000, 0.5);
        kept.save_tries(&tries).unwrap();
        let certificate = Certificate {
            wish: "a".to_owned(),
            name: "fleet.example.com".to_owned(),
            chain: "PEM".to_owned(),
        };
        kept.save_certificate(&certificate).unwrap();

        let again = Kept::open(dir.path()).unwrap();
        assert_eq!(again.tries(), tries);
        assert_eq!(again.certificate(), Some(certificate));
        for name in ["tries", "certificate"] {
            let file = std::fs::metadata(dir.path().join("acme").join(name)).unwrap();
            assert_eq!(file.permissions().mode() & 0o777, 0o600, "{name}");
        }
        std::fs::write(dir.path().join("acme/tries"), "{").unwrap();
        assert_eq!(again.tries(), Tries::default());
        std::fs::write(dir.path().join("acme/certificate"), "{").unwrap();
        assert!(Kept::open(dir.path()).is_err());
    }
}
