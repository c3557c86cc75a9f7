//! Keys that sign versions, and signatures over the parts of a package that are signed: the manifest,
//! `install.sh`, the list of checksums.
//!
//! A file of signatures (`manifest.sig`) has one line for each: `KEYID BASE64`. A key's id is the beginning
//! of the SHA-256 of its 32 public bytes, so one key cannot stand in under another's name. The three signed
//! files cannot be taken for each other: each begins as the others may not (a manifest with its format's
//! name, the script with `#!`, the list with a hash).

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use super::{MANIFEST_BYTES_MAX, Manifest, ManifestError, SIGNATURES_BYTES_MAX, SIGNATURES_MAX};
use crate::digest::{hex, sha256};

const KEY_ID_BYTES: usize = 8;
const SIGNATURE_BYTES: usize = 64;
const PEM_LINE_CHARS: usize = 64;

/// Why a text is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not `KEYID:BASE64`.
    #[error("not a public key: it should be KEYID:BASE64, as keygen prints it")]
    Public,
    /// The id is another key's.
    #[error("the id {named} is not that of the key beside it, which is {actual}")]
    OtherId {
        /// The id in the text.
        named: String,
        /// The key's own.
        actual: KeyId,
    },
    /// Not an Ed25519 key in PKCS#8.
    #[error("not a private key: it should be a PEM file with an Ed25519 key (PKCS#8)")]
    Private,
    /// The system's randomness failed.
    #[error("no key could be made: the system gives no randomness")]
    Randomness,
}

/// Why a manifest is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The signatures are not in the one form.
    #[error("the signatures of the manifest cannot be read")]
    Signatures,
    /// None of the signatures is by a key that is trusted here.
    #[error("the manifest is signed with {0}, which is not trusted here")]
    UnknownKey(KeyId),
    /// Changed after it was signed.
    #[error("the manifest does not match its signature by {0}: it was changed after it was signed")]
    Wrong(KeyId),
    /// Signed, and still not a manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Why a signed file is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The signatures are not in the one form.
    #[error("its signatures cannot be read")]
    Unreadable,
    /// None of the signatures is by a key that is trusted here.
    #[error("it is signed with {0}, which is not trusted here")]
    UnknownKey(KeyId),
    /// Changed after it was signed.
    #[error("it does not match its signature by {0}: it was changed after it was signed")]
    Wrong(KeyId),
}

impl From<SignatureError> for VerifyError {
    fn from(error: SignatureError) -> Self {
        match error {
            SignatureError::Unreadable => Self::Signatures,
            SignatureError::UnknownKey(key) => Self::UnknownKey(key),
            SignatureError::Wrong(key) => Self::Wrong(key),
        }
    }
}

/// Short name of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// A key that versions are verified with. Written `KEYID:BASE64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// From its 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&sha256(&self.0)[..KEY_ID_BYTES]);
        KeyId(id)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id(), STANDARD.encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (named, key) = text.split_once(':').ok_or(KeyError::Public)?;
        let bytes = STANDARD.decode(key).map_err(|_| KeyError::Public)?;
        let key = Self(bytes.try_into().map_err(|_| KeyError::Public)?);
        if key.id().to_string() == named {
            Ok(key)
        } else {
            Err(KeyError::OtherId {
                named: named.chars().take(2 * KEY_ID_BYTES).collect(),
                actual: key.id(),
            })
        }
    }
}

/// A key that signs versions.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        Ed25519KeyPair::generate()
            .map(Self)
            .map_err(|_| KeyError::Randomness)
    }

    /// From a PEM file (PKCS#8), as [`Self::to_pem`] and `openssl genpkey -algorithm ed25519` write it.
    ///
    /// # Errors
    /// When it is not one.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::Private)?;
        Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map(Self)
            .map_err(|_| KeyError::Private)
    }

    /// As a PEM file, which OpenSSL reads too.
    ///
    /// # Errors
    /// When the key cannot be written, which no key made here is known to do.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let der = self.0.to_pkcs8v1().map_err(|_| KeyError::Private)?;
        let text = STANDARD.encode(der.as_ref());
        let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(PEM_LINE_CHARS));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        Ok(pem)
    }

    /// What it is verified with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    /// The line for a file of signatures over exactly these bytes.
    #[must_use]
    pub fn sign(&self, content: &[u8]) -> String {
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(self.0.sign(content).as_ref());
        format!("{}\n", written(self.public().id(), &signature))
    }
}

/// A manifest whose signature is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The manifest.
    pub manifest: Manifest,
    /// The key that vouches for it.
    pub key: KeyId,
}

/// The keys whose versions are believed. Any one of them is enough: while a key is being replaced,
/// versions carry the signatures of the old and the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKeys(Vec<PublicKey>);

impl TrustedKeys {
    /// These keys.
    #[must_use]
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self(keys)
    }

    /// The manifest, if one of these keys signed exactly these bytes. Nothing is read of a manifest
    /// before.
    ///
    /// # Errors
    /// When it is not to be believed.
    pub fn verify(&self, manifest: &[u8], signatures: &[u8]) -> Result<Verified, VerifyError> {
        if manifest.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong.into());
        }
        let key = self.signer(manifest, signatures)?;
        Ok(Verified {
            manifest: Manifest::parse(manifest)?,
            key,
        })
    }

    /// Which of these keys signed exactly these bytes.
    ///
    /// # Errors
    /// When none did.
    pub fn signer(&self, content: &[u8], signatures: &[u8]) -> Result<KeyId, SignatureError> {
        let mut refused = None;
        for (id, signature) in read_signatures(signatures)? {
            let Some(key) = self.0.iter().find(|key| key.id() == id) else {
                refused.get_or_insert(SignatureError::UnknownKey(id));
                continue;
            };
            let good = UnparsedPublicKey::new(&ED25519, &key.0).verify(content, &signature);
            if good.is_ok() {
                return Ok(id);
            }
            refused = Some(SignatureError::Wrong(id));
        }
        Err(refused.unwrap_or(SignatureError::Unreadable))
    }
}

fn read_signatures(bytes: &[u8]) -> Result<Vec<(KeyId, [u8; SIGNATURE_BYTES])>, SignatureError> {
    let text = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| text.len() <= SIGNATURES_BYTES_MAX)
        .and_then(|text| text.strip_suffix('\n'))
        .ok_or(SignatureError::Unreadable)?;
    let signatures: Vec<_> = text
        .split('\n')
        .map(signature_line)
        .collect::<Option<_>>()
        .ok_or(SignatureError::Unreadable)?;
    if signatures.len() > SIGNATURES_MAX {
        return Err(SignatureError::Unreadable);
    }
    Ok(signatures)
}

fn signature_line(line: &str) -> Option<(KeyId, [u8; SIGNATURE_BYTES])> {
    let (id, signature) = line.split_once(' ')?;
    let id = KeyId(u64::from_str_radix(id, 16).ok()?.to_be_bytes());
    let signature = STANDARD.decode(signature).ok()?.try_into().ok()?;
    // What it would be written as is what was read: no capitals, no sign, no missing digits.
    (written(id, &signature) == line).then_some((id, signature))
}

fn written(id: KeyId, signature: &[u8; SIGNATURE_BYTES]) -> String {
    format!("{id} {}", STANDARD.encode(signature))
}
