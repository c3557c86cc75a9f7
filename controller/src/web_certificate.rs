//! The https certificate from two files (of a public CA, of an ACME client), taken up anew when they
//! change: whatever renews them need not know of the controller.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use fairlead_identity::tls::{self, Credentials};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WebCertificateError {
    /// One of them cannot be read, or is not PEM of that kind.
    #[error("cannot use {path} for https: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// They do not belong together.
    #[error("{certificate} and {key} do not belong together: {reason}")]
    Mismatch {
        /// The chain.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        reason: rustls::Error,
    },
}

/// A certificate in files, and what was read of them last.
pub struct WebCertificate {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<(Arc<CertifiedKey>, [Option<SystemTime>; 2])>,
}

impl fmt::Debug for WebCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebCertificate({})", self.certificate.display())
    }
}

impl WebCertificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn open(certificate: &Path, key: &Path) -> Result<Arc<Self>, WebCertificateError> {
        let current = (read(certificate, key)?, changed([certificate, key]));
        Ok(Arc::new(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            current: RwLock::new(current),
        }))
    }

    /// The certificate itself, without its chain. Empty when there is none, which [`Self::open`] refuses.
    #[must_use]
    pub fn leaf(&self) -> CertificateDer<'static> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let first = current.0.cert.first().cloned();
        first.unwrap_or_else(|| CertificateDer::from(Vec::new()))
    }

    /// Reads the files again when they have changed. Files that cannot be used leave what is in use, and
    /// are looked at again with the next change.
    ///
    /// # Errors
    /// When they have changed and cannot be used.
    pub fn refresh(&self) -> Result<bool, WebCertificateError> {
        let now = changed([&self.certificate, &self.key]);
        if self
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            == now
        {
            return Ok(false);
        }
        let read = read(&self.certificate, &self.key);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.1 = now;
        current.0 = read?;
        Ok(true)
    }
}

impl ResolvesServerCert for WebCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current.0))
    }
}

fn changed(paths: [&Path; 2]) -> [Option<SystemTime>; 2] {
    paths.map(|path| {
        std::fs::metadata(path)
            .and_then(|file| file.modified())
            .ok()
    })
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, WebCertificateError> {
    let unusable = |path: &Path, reason: String| WebCertificateError::File {
        path: path.to_owned(),
        reason,
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "it holds no certificate".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, e.to_string()))?;
    let credentials = Credentials {
        chain,
        key: private,
    };
    tls::certified(credentials).map_err(|reason| WebCertificateError::Mismatch {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::CertificateAuthority;
    use fairlead_daemon::clock::Clock;

    /// A chain and its key, as an ACME client would leave them.
    fn files(dir: &Path, name: &str) -> [String; 2] {
        let ca = CertificateAuthority::open(
            &dir.join(name),
            "fairlead.internal",
            &["fleet.example.com".to_owned()],
            Clock::system(),
        )
        .unwrap();
        let pem = |kind: &str, der: &[u8]| {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
        };
        let chain = ca.web.chain.iter().map(|one| pem("CERTIFICATE", one));
        [chain.collect(), pem("PRIVATE KEY", ca.web.key.secret_der())]
    }

    #[test]
    fn changed_files_are_taken_up_and_damaged_ones_leave_what_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (files(dir.path(), "a"), files(dir.path(), "b"));
        let paths = [dir.path().join("chain.pem"), dir.path().join("key.pem")];
        let put = |content: [&str; 2], age_s: u64| {
            for (path, text) in paths.iter().zip(content) {
                std::fs::write(path, text).unwrap();
                let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age_s);
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(at).unwrap();
            }
        };
        put([&first[0], &first[1]], 1);
        let used = WebCertificate::open(&paths[0], &paths[1]).unwrap();
        assert!(!used.refresh().unwrap());
        let before = used.leaf();
        put([&second[0], &first[1]], 2);
        let error = used.refresh().unwrap_err();
        assert!(
            matches!(error, WebCertificateError::Mismatch { .. }),
            "{error}"
        );
        assert_eq!(used.leaf(), before);
        assert!(!used.refresh().unwrap(), "said once");
        put([&second[0], &second[1]], 3);
        assert!(used.refresh().unwrap());
        assert_ne!(used.leaf(), before);
        put(["nothing", &second[1]], 4);
        assert!(
            used.refresh()
                .unwrap_err()
                .to_string()
                .contains("chain.pem")
        );
    }
}
