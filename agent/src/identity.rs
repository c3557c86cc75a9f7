//! Who this host is, on its own disk: certificate chain and key in one file that changes atomically,
//! and the next key, which is on disk before a renewal is asked for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use fairlead_daemon::files;
use fairlead_identity::authority::PrivateKey;
use fairlead_identity::tls::{self, Credentials, Expected, Trust};
use fairlead_identity::{Identity as Certified, Root, chain::Usage};
use fairlead_link::dial::Dialler;
use fairlead_link::proxy::Proxy;
use fairlead_protocol::{EnrolReply, HostId, HostIdentity, Message, version};
use rustls::pki_types::{CertificateDer, UnixTime};

/// Why the identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("cannot use {path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// In the system's words.
        reason: String,
    },
    /// What is in it makes no sense.
    #[error(
        "{path} does not hold an identity that can be used ({reason}): restore it, or enrol this \
         machine again with a new join token after moving it away"
    )]
    Damaged {
        /// Which.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// The files.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    dir: PathBuf,
}

/// The identity, ready for use.
#[derive(Clone)]
pub struct Identity {
    /// What enrolment (or the last renewal) gave.
    pub enrolment: EnrolReply,
    /// The host.
    pub host: HostId,
    /// The installation's root.
    pub root: Root,
    key_der: Vec<u8>,
    /// Kept: it remembers TLS sessions, and a resumed one costs half of a new one, at both ends.
    dialler: Arc<OnceLock<Dialler>>,
}

impl IdentityFiles {
    /// The files in a state directory.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    fn identity_path(&self) -> PathBuf {
        self.dir.join("identity")
    }

    fn next_key_path(&self) -> PathBuf {
        self.dir.join("next.key")
    }

    fn failed(path: &Path, error: &io::Error) -> IdentityError {
        IdentityError::File {
            path: path.display().to_string(),
            reason: error.to_string(),
        }
    }

    /// The identity, if the host has one.
    ///
    /// # Errors
    /// When it is there but cannot be used.
    pub fn load(&self) -> Result<Option<Identity>, IdentityError> {
        let path = self.identity_path();
        let read = files::read_if_there(&path).map_err(|error| Self::failed(&path, &error))?;
        let Some(bytes) = read else { return Ok(None) };
        let damaged = |reason: String| IdentityError::Damaged {
            path: path.display().to_string(),
            reason,
        };
        let stored =
            HostIdentity::decode(&bytes[..]).map_err(|error| damaged(error.to_string()))?;
        let enrolment = stored
            .enrolment
            .ok_or_else(|| damaged("no enrolment".to_owned()))?;
        Identity::new(enrolment, stored.key_der.to_vec())
            .map(Some)
            .map_err(damaged)
    }

    /// Keeps an identity; the next key becomes the present one.
    ///
    /// # Errors
    /// When it cannot be written; the old one stays then.
    pub fn save(&self, identity: &Identity) -> Result<(), IdentityError> {
        let stored = HostIdentity {
            enrolment: Some(identity.enrolment.clone()),
            key_der: identity.key_der.clone().into(),
        };
        let path = self.identity_path();
        files::replace(&path, &stored.encode_to_vec())
            .map_err(|error| Self::failed(&path, &error))?;
        // A next key that stays behind is used for the next renewal, which does no harm.
        let _ = std::fs::remove_file(self.next_key_path());
        Ok(())
    }

    /// The key for the next certificate: made once, on disk before anybody is asked to certify it,
    /// so that an answer that was lost can be asked for again.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn next_key(&self) -> Result<PrivateKey, IdentityError> {
        let path = self.next_key_path();
        let read = files::read_if_there(&path).map_err(|error| Self::failed(&path, &error))?;
        if let Some(key) = read.and_then(|der| PrivateKey::from_der(&der).ok()) {
            return Ok(key);
        }
        let key = PrivateKey::generate().map_err(|error| IdentityError::Damaged {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        files::replace(&path, &key.to_der()).map_err(|error| Self::failed(&path, &error))?;
        Ok(key)
    }
}

impl Identity {
    /// An identity from what enrolment gave and the key that was certified.
    ///
    /// # Errors
    /// When they do not fit together.
    pub fn new(enrolment: EnrolReply, key_der: Vec<u8>) -> Result<Self, String> {
        let host = HostId::from_wire(&enrolment.host).map_err(|error| error.to_string())?;
        let last = enrolment.certificates.last().ok_or("no certificates")?;
        let root = Root::from_der(CertificateDer::from(last.to_vec()))
            .map_err(|error| error.to_string())?;
        PrivateKey::from_der(&key_der).map_err(|error| error.to_string())?;
        Ok(Self {
            enrolment,
            host,
            root,
            key_der,
            dialler: Arc::default(),
        })
    }

    /// The same host with a new certificate for a new key.
    ///
    /// # Errors
    /// When the new certificate is not this host's, or is not for that key.
    pub fn renewed(
        &self,
        certificates: Vec<bytes::Bytes>,
        counter: u64,
        key: &PrivateKey,
    ) -> Result<Self, String> {
        let mut enrolment = self.enrolment.clone();
        enrolment.certificates = certificates;
        enrolment.certificate_counter = counter;
        self.with_the_same_root(enrolment, key)
    }

    /// Another host of the same region and root, from what a server gave this machine because it is a copy.
    ///
    /// # Errors
    /// When the certificate is not that host's, or is not for that key.
    pub fn of_its_own(&self, enrolment: EnrolReply, key: &PrivateKey) -> Result<Self, String> {
        let own = self.with_the_same_root(enrolment, key)?;
        if own.host == self.host || own.enrolment.region != self.enrolment.region {
            return Err("it is not another host of this region".to_owned());
        }
        Ok(own)
    }

    fn with_the_same_root(&self, enrolment: EnrolReply, key: &PrivateKey) -> Result<Self, String> {
        let next = Self::new(enrolment, key.to_der())?;
        let certified = next.certified().map_err(|error| error.to_string())?;
        if next.root.hash() != self.root.hash() {
            return Err("the new certificate has another root".to_owned());
        }
        if certified.role != next.role() || certified.key_hash != key.public_hash() {
            return Err(format!("the new certificate is for {}", certified.role));
        }
        Ok(next)
    }

    fn role(&self) -> fairlead_identity::Role {
        fairlead_identity::Role::Agent {
            region: self.enrolment.region.clone(),
            host: self.host,
        }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.enrolment
            .certificates
            .iter()
            .map(|c| CertificateDer::from(c.to_vec()))
            .collect()
    }

    fn certified(&self) -> Result<Certified, fairlead_identity::chain::ChainError> {
        // Judged with a long grace: an expired certificate still opens the renew door.
        self.root
            .identify_with_grace(
                &self.chain(),
                Usage::Client,
                UnixTime::now(),
                fairlead_protocol::limits::RENEW_GRACE,
            )
            .map(|(certified, _)| certified)
    }

    /// End of the certificate, seconds since 1970; 0 when it cannot be read.
    #[must_use]
    pub fn not_after_s(&self) -> i64 {
        self.certified()
            .map_or(0, |certified| certified.not_after_s)
    }

    /// Dials access servers of this host's region, as this host, through the proxy where there is one.
    ///
    /// # Errors
    /// When key and certificate do not fit together.
    pub fn dialler(&self, proxy: Option<Proxy>) -> Result<Dialler, rustls::Error> {
        if let Some(known) = self.dialler.get() {
            return Ok(known.clone().through(proxy));
        }
        let key = PrivateKey::from_der(&self.key_der)
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        // Without the root, which every server knows: it would be sent with each handshake, and kept with each
        // connection there.
        let mut chain = self.chain();
        chain.truncate(2);
        let credentials = Credentials {
            chain,
            key: key.for_tls(),
        };
        let expected = Expected::AccessServer(self.enrolment.region.clone());
        let config = tls::client(Trust::Root(self.root.clone()), expected, Some(credentials))?;
        let dialler = Dialler::new(config, Some(self.root.clone()), version::sni::AGENTS);
        Ok(self.dialler.get_or_init(|| dialler).clone().through(proxy))
    }
}
