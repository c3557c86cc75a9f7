//! The https certificate from two files (of a public CA, of an ACME client), taken up anew when they
//! change: whatever renews them need not know of the server.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs;
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
    let provider = aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(chain, private, &provider);
    certified
        .map(Arc::new)
        .map_err(|reason| WebCertificateError::Mismatch {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            reason,
        })
}
