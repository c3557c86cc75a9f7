//! Making certificates: the root, its intermediates, and leaves.
//!
//! Of a certificate request only the public key counts (and the proof that the asker holds its
//! private half); names, usages and times come from us.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use time::OffsetDateTime;

use crate::digest::sha256;
use crate::random;
use crate::roles::Role;

/// Certificates begin this long before they are made, for peers whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(3600);
/// Life of root and intermediates.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The request is not a certificate request, or its signature is wrong.
    #[error("the certificate request is not valid: {0}")]
    Request(String),
    /// A key cannot be read or used.
    #[error("the key cannot be used: {0}")]
    Key(String),
    /// The library failed.
    #[error("cannot make the certificate: {0}")]
    Make(String),
}

/// A private key (PKCS#8).
pub struct PrivateKey(pub(crate) KeyPair);

impl PrivateKey {
    /// A new P-256 key.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn generate() -> Result<Self, AuthorityError> {
        KeyPair::generate()
            .map(Self)
            .map_err(|error| AuthorityError::Key(error.to_string()))
    }

    /// A new Ed25519 key, for signing commands.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn generate_ed25519() -> Result<Self, AuthorityError> {
        KeyPair::generate_for(&rcgen::PKCS_ED25519)
            .map(Self)
            .map_err(|error| AuthorityError::Key(error.to_string()))
    }

    /// The key in these PKCS#8 bytes.
    ///
    /// # Errors
    /// When they hold no key that we can use.
    pub fn from_der(der: &[u8]) -> Result<Self, AuthorityError> {
        let der = PrivatePkcs8KeyDer::from(der.to_vec());
        KeyPair::try_from(&der)
            .map(Self)
            .map_err(|error| AuthorityError::Key(error.to_string()))
    }

    /// The PKCS#8 bytes, for a file that only its owner can read.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        self.0.serialize_der()
    }

    /// The key as the TLS library wants it.
    #[must_use]
    pub fn for_tls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.to_der()))
    }

    /// SHA-256 of its public half (the SubjectPublicKeyInfo).
    #[must_use]
    pub fn public_hash(&self) -> [u8; 32] {
        sha256(&self.0.subject_public_key_info())
    }

    /// A certificate request for this key. It names nobody: names are the authority's business.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn request(&self) -> Result<Vec<u8>, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .serialize_request(&self.0)
            .map(|request| request.der().to_vec())
            .map_err(|error| AuthorityError::Make(error.to_string()))
    }
}

/// The public key of a certificate request whose signature is good.
pub struct RequestedKey(SubjectPublicKeyInfo);

impl RequestedKey {
    /// Reads and checks a request.
    ///
    /// # Errors
    /// When it is not a request, or was not signed by the key it names.
    pub fn from_request(der: &[u8]) -> Result<Self, AuthorityError> {
        let der = CertificateSigningRequestDer::from(der.to_vec());
        CertificateSigningRequestParams::from_der(&der)
            .map_err(|error| AuthorityError::Request(error.to_string()))
            .and_then(|request| {
                SubjectPublicKeyInfo::from_der(&request.public_key.subject_public_key_info())
                    .map_err(|error| AuthorityError::Request(error.to_string()))
            })
            .map(Self)
    }

    /// SHA-256 of the key (SubjectPublicKeyInfo).
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.0.subject_public_key_info())
    }
}

/// A certificate authority: its own chain (itself first, root last) and its key.
pub struct Authority {
    key: PrivateKey,
    chain: Vec<CertificateDer<'static>>,
    domain: String,
}

/// What a leaf may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafUse {
    /// Dialling and accepting (access servers).
    Both,
    /// Accepting only (controller, web).
    Server,
    /// Dialling only (agents).
    Client,
    /// Signing commands.
    CommandSigning,
}

/// A new leaf.
pub struct Leaf {
    /// Leaf first, root last.
    pub chain: Vec<CertificateDer<'static>>,
    /// Hex.
    pub serial: String,
    /// Seconds since 1970.
    pub not_after_s: i64,
}

impl Authority {
    /// A new root for an installation.
    ///
    /// # Errors
    /// When the library cannot make it.
    pub fn new_root(domain: &str, now_s: i64) -> Result<Self, AuthorityError> {
        let key = PrivateKey::generate()?;
        let params = ca_params(&Role::Root, domain, now_s, None)?;
        let certificate = params
            .self_signed(&key.0)
            .map_err(|e| AuthorityError::Make(e.to_string()))?;
        Ok(Self {
            key,
            chain: vec![certificate.der().clone()],
            domain: domain.to_owned(),
        })
    }

    /// An authority from its parts (as they were stored).
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn from_parts(
        key_der: &[u8],
        chain: Vec<CertificateDer<'static>>,
        domain: &str,
    ) -> Result<Self, AuthorityError> {
        Ok(Self {
            key: PrivateKey::from_der(key_der)?,
            chain,
            domain: domain.to_owned(),
        })
    }

    /// A new intermediate under this root, with a key of its own.
    ///
    /// # Errors
    /// When the library cannot make it.
    pub fn new_intermediate(&self, role: &Role, now_s: i64) -> Result<Self, AuthorityError> {
        let key = PrivateKey::generate()?;
        let chain = self.certify_intermediate_key(&key.0, role, now_s)?;
        Ok(Self {
            key,
            chain,
            domain: self.domain.clone(),
        })
    }

    /// Certifies the key of a request as an intermediate (a region's CA for its agents).
    ///
    /// # Errors
    /// When the library cannot make it.
    pub fn certify_intermediate(
        &self,
        key: &RequestedKey,
        role: &Role,
        now_s: i64,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        self.certify_intermediate_key(&key.0, role, now_s)
    }

    fn certify_intermediate_key(
        &self,
        key: &impl PublicKeyData,
        role: &Role,
        now_s: i64,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let params = ca_params(role, &self.domain, now_s, Some(0))?;
        self.sign(&params, key)
    }

    /// Certifies the key of a request in a role, for so long. `names` are DNS names and addresses
    /// for https.
    ///
    /// # Errors
    /// When the library cannot make it.
    pub fn certify(
        &self,
        key: &RequestedKey,
        role: &Role,
        usage: LeafUse,
        names: &[String],
        times: (i64, Duration),
    ) -> Result<Leaf, AuthorityError> {
        self.certify_key(&key.0, role, usage, names, times)
    }

    /// The same for a key of our own.
    ///
    /// # Errors
    /// When the library cannot make it.
    pub fn certify_own(
        &self,
        key: &PrivateKey,
        role: &Role,
        usage: LeafUse,
        names: &[String],
        times: (i64, Duration),
    ) -> Result<Leaf, AuthorityError> {
        self.certify_key(&key.0, role, usage, names, times)
    }

    fn certify_key(
        &self,
        key: &impl PublicKeyData,
        role: &Role,
        usage: LeafUse,
        names: &[String],
        (now_s, life): (i64, Duration),
    ) -> Result<Leaf, AuthorityError> {
        let mut params = named_params(role, &self.domain, now_s, life)?;
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    SanType::DnsName(name.clone().try_into().map_err(|e: rcgen::Error| {
                        AuthorityError::Make(format!("name {name}: {e}"))
                    })?)
                }
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match usage {
            LeafUse::Both => {
                vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ]
            }
            LeafUse::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            LeafUse::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            LeafUse::CommandSigning => vec![ExtendedKeyUsagePurpose::CodeSigning],
        };
        let serial = serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let not_after_s = params.not_after.unix_timestamp();
        let chain = self.sign(&params, key)?;
        Ok(Leaf {
            chain,
            serial: crate::digest::hex(&serial),
            not_after_s,
        })
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let make = |error: rcgen::Error| AuthorityError::Make(error.to_string());
        let own = self
            .chain
            .first()
            .ok_or_else(|| AuthorityError::Make("no chain".to_owned()))?;
        let issuer = Issuer::from_ca_cert_der(own, &self.key.0).map_err(make)?;
        let certificate = params.signed_by(key, &issuer).map_err(make)?;
        let mut chain = Vec::with_capacity(self.chain.len() + 1);
        chain.push(certificate.der().clone());
        chain.extend(self.chain.iter().cloned());
        Ok(chain)
    }

    /// Its own chain: itself first, root last.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Its key, for a file that only its owner can read.
    #[must_use]
    pub fn key_der(&self) -> Vec<u8> {
        self.key.to_der()
    }
}

/// A positive serial of 128 random bits.
fn serial() -> [u8; 16] {
    let mut serial = random::bytes::<16>();
    // DER integers are signed and minimal: the first byte must be neither negative nor zero.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

fn ca_params(
    role: &Role,
    domain: &str,
    now_s: i64,
    path_length: Option<u8>,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = named_params(role, domain, now_s, CA_LIFE)?;
    params.is_ca = IsCa::Ca(path_length.map_or(
        BasicConstraints::Unconstrained,
        BasicConstraints::Constrained,
    ));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    Ok(params)
}

fn named_params(
    role: &Role,
    domain: &str,
    now_s: i64,
    life: Duration,
) -> Result<CertificateParams, AuthorityError> {
    let at = |seconds: i64| {
        OffsetDateTime::from_unix_timestamp(seconds)
            .map_err(|error| AuthorityError::Make(format!("time {seconds}: {error}")))
    };
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, format!("Fairlead {domain}"));
    params
        .distinguished_name
        .push(DnType::CommonName, role.to_string());
    let uri = role.uri(domain);
    params.subject_alt_names =
        vec![SanType::URI(uri.clone().try_into().map_err(
            |e: rcgen::Error| AuthorityError::Make(format!("name {uri}: {e}")),
        )?)];
    params.not_before = at(now_s.saturating_sub(seconds(BACKDATED)))?;
    params.not_after = at(now_s.saturating_add(seconds(life)))?;
    Ok(params)
}
