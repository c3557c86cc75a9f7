//! Whether a chain of certificates is to be believed, and as what.
//!
//! A chain is leaf, intermediate and (optionally, ignored) root. It is believed when webpki accepts
//! it for the usage asked for at the time given, the leaf carries exactly one URI of ours, the
//! intermediate's URI is the one that may certify it, and both are of the root's domain. TLS session
//! resumption skips the TLS library's verifier, so servers call [`Root::identify`] on every
//! connection.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::digest::{hex, sha256};
use crate::roles::Role;

/// What a leaf is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The accepting side of a connection.
    Server,
    /// The dialling side.
    Client,
    /// Signing commands (the code-signing purpose, which no TLS leaf has).
    CommandSigning,
}

/// DER of the OID 1.3.6.1.5.5.7.3.3 (code signing) without tag and length.
const EKU_CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];
const EKU_SERVER: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const EKU_CLIENT: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

impl Usage {
    /// For the path. Intermediates carry no purposes, so here absence means "any"; that the leaf
    /// itself carries the purpose is checked by [`Usage::is_in`].
    fn eku(self) -> KeyUsage {
        KeyUsage::required_if_present(match self {
            Self::Server => EKU_SERVER,
            Self::Client => EKU_CLIENT,
            Self::CommandSigning => EKU_CODE_SIGNING,
        })
    }

    /// Whether the leaf carries the purpose: a certificate without purposes has none.
    fn is_in(self, leaf: &X509Certificate<'_>) -> bool {
        leaf.extended_key_usage()
            .ok()
            .flatten()
            .is_some_and(|purposes| match self {
                Self::Server => purposes.value.server_auth,
                Self::Client => purposes.value.client_auth,
                Self::CommandSigning => purposes.value.code_signing,
            })
    }
}

/// Why a chain is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not even a leaf and an intermediate.
    #[error("the chain must be leaf and intermediate")]
    Incomplete,
    /// The library cannot read it.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// Signature, usage or time are wrong.
    #[error("the chain is not valid: {0}")]
    Invalid(String),
    /// The leaf is meant for something else.
    #[error("the certificate is not meant for this use")]
    WrongUse,
    /// The leaf has expired this many seconds ago.
    #[error("the certificate expired {0} s ago")]
    Expired(u64),
    /// The leaf becomes valid in so many seconds.
    #[error("the certificate is not valid for another {0} s")]
    NotYet(u64),
    /// The leaf does not say who it is in our words, or says more than one thing.
    #[error("the certificate carries no identity of ours")]
    NoIdentity,
    /// The intermediate may not say what the leaf says.
    #[error("{leaf} was certified by {issuer}, which may not")]
    WrongIssuer {
        /// What the leaf says.
        leaf: String,
        /// What the intermediate says.
        issuer: String,
    },
    /// Another installation's.
    #[error("the certificate is of another installation")]
    Foreign,
    /// No certificate of the chain is the root that was named.
    #[error("the server's CA is {found}, the token names {expected}")]
    OtherRoot {
        /// SHA-256 of the root that the token names.
        expected: String,
        /// SHA-256 of the last certificate that the server showed.
        found: String,
    },
}

/// Who a peer is, as its verified leaf says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its role.
    pub role: Role,
    /// Its certificate's serial number, hex.
    pub serial: String,
    /// Its certificate's end, seconds since 1970.
    pub not_after_s: i64,
    /// SHA-256 of its public key (the SubjectPublicKeyInfo).
    pub key_hash: [u8; 32],
}

/// The root of an installation: the one thing that everything else is believed from.
#[derive(Clone)]
pub struct Root {
    anchor: TrustAnchor<'static>,
    certificate: CertificateDer<'static>,
    domain: String,
}

impl Root {
    /// The root in this certificate.
    ///
    /// # Errors
    /// When it cannot be read or is no root of ours.
    pub fn from_der(certificate: CertificateDer<'static>) -> Result<Self, ChainError> {
        let anchor = webpki::anchor_from_trusted_cert(&certificate)
            .map_err(|error| ChainError::Unreadable(error.to_string()))?
            .to_owned();
        let (domain, role) = role_in(&certificate)?;
        if role != Role::Root {
            return Err(ChainError::NoIdentity);
        }
        Ok(Self {
            anchor,
            certificate,
            domain,
        })
    }

    /// The root among the certificates that a server showed, known by its hash from a join token.
    ///
    /// # Errors
    /// When none of them has that hash.
    pub fn by_hash(shown: &[CertificateDer<'_>], hash: &[u8; 32]) -> Result<Self, ChainError> {
        let found = shown
            .iter()
            .find(|certificate| &sha256(certificate) == hash);
        match found {
            Some(certificate) => Self::from_der(certificate.clone().into_owned()),
            None => Err(ChainError::OtherRoot {
                expected: hex(hash),
                found: shown
                    .last()
                    .map_or_else(String::new, |last| hex(&sha256(last))),
            }),
        }
    }

    /// The root's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the root's certificate: what join tokens carry.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    /// The installation's domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Who the chain's leaf is.
    ///
    /// # Errors
    /// When the chain is not to be believed for that usage at that time.
    pub fn identify(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<Identity, ChainError> {
        self.identify_with_grace(chain, usage, now, Duration::ZERO)
            .map(|(identity, _)| identity)
    }

    /// The same, but a leaf that expired less than `grace` ago is believed; the flag says that it
    /// has.
    ///
    /// # Errors
    /// When the chain is not to be believed for that usage at that time.
    pub fn identify_with_grace(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
        grace: Duration,
    ) -> Result<(Identity, bool), ChainError> {
        let [leaf, intermediate, ..] = chain else {
            return Err(ChainError::Incomplete);
        };
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|error| ChainError::Unreadable(error.to_string()))?;
        let not_after_s = parsed.validity().not_after.timestamp();
        let past_s = now
            .as_secs()
            .saturating_sub(u64::try_from(not_after_s).unwrap_or(0));
        let not_before_s = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
        if not_before_s > now.as_secs() {
            return Err(ChainError::NotYet(not_before_s - now.as_secs()));
        }
        let expired = past_s > 0;
        let judged_at = if expired {
            if past_s > grace.as_secs() {
                return Err(ChainError::Expired(past_s));
            }
            UnixTime::since_unix_epoch(Duration::from_secs(
                u64::try_from(not_after_s).unwrap_or(0).saturating_sub(1),
            ))
        } else {
            now
        };
        self.check_path(leaf, intermediate, usage, judged_at)?;
        if !usage.is_in(&parsed) {
            return Err(ChainError::WrongUse);
        }
        let identity = Identity {
            role: self.check_roles(leaf, intermediate)?,
            serial: hex(parsed.raw_serial()),
            not_after_s,
            key_hash: sha256(parsed.public_key().raw),
        };
        Ok((identity, expired))
    }

    fn check_path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediate: &CertificateDer<'_>,
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), ChainError> {
        let end_entity = EndEntityCert::try_from(leaf)
            .map_err(|error| ChainError::Unreadable(error.to_string()))?;
        let path = end_entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                std::slice::from_ref(&self.anchor),
                std::slice::from_ref(intermediate),
                now,
                usage.eku(),
                None,
                None,
            )
            .map_err(|error| {
                ChainError::Invalid(match error {
                    // Roots of two installations have one name, so that it comes to the signature.
                    webpki::Error::UnknownIssuer
                    | webpki::Error::InvalidSignatureForPublicKey => {
                        "it is not signed by this installation's CA: is that another installation, or one \
                         made anew because its data was lost?"
                            .to_owned()
                    }
                    other => other.to_string(),
                })
            })?;
        // A path that goes round the intermediate would make its URI meaningless.
        if path.intermediate_certificates().count() == 1 {
            Ok(())
        } else {
            Err(ChainError::Incomplete)
        }
    }

    fn check_roles(
        &self,
        leaf: &CertificateDer<'_>,
        intermediate: &CertificateDer<'_>,
    ) -> Result<Role, ChainError> {
        let (leaf_domain, role) = role_in(leaf)?;
        let (issuer_domain, issuer) = role_in(intermediate)?;
        if leaf_domain != self.domain || issuer_domain != self.domain {
            return Err(ChainError::Foreign);
        }
        if role.certified_by().as_ref() == Some(&issuer) {
            Ok(role)
        } else {
            Err(ChainError::WrongIssuer {
                leaf: role.to_string(),
                issuer: issuer.to_string(),
            })
        }
    }
}

/// Domain and role in a certificate, which must carry exactly one URI.
fn role_in(certificate: &CertificateDer<'_>) -> Result<(String, Role), ChainError> {
    let (rest, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| ChainError::Unreadable(error.to_string()))?;
    if !rest.is_empty() {
        return Err(ChainError::Unreadable(
            "bytes after the certificate".to_owned(),
        ));
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| ChainError::Unreadable(error.to_string()))?
        .ok_or(ChainError::NoIdentity)?;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Role::parse(uri).ok_or(ChainError::NoIdentity),
        _ => Err(ChainError::NoIdentity),
    }
}

/// SHA-256 of the public key (SubjectPublicKeyInfo) and the raw key bits of a certificate.
///
/// # Errors
/// When the certificate cannot be read.
pub fn public_key(certificate: &CertificateDer<'_>) -> Result<([u8; 32], Vec<u8>), ChainError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| ChainError::Unreadable(error.to_string()))?;
    let key = parsed.public_key();
    Ok((sha256(key.raw), key.subject_public_key.data.to_vec()))
}
