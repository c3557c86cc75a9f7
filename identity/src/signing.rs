//! Signatures of commands.
//!
//! Signed are the bytes as sent. The key is an X.509 leaf under the installation's root with the
//! role `command-key`, so the host itself can tell a real key from one that a relay made up, and a
//! new key needs no ceremony: a new certificate is enough.

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use fairlead_protocol::{
    Chain, CloneGrant, Command, CommandKeys, HostId, Message, SignedCloneGrant, SignedCommand,
    limits,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::chain::{ChainError, Root, Usage, public_key};
use crate::roles::Role;

/// What is signed of a grant begins so. No encoded message begins with these bytes, so a grant is no
/// command, and no command a grant.
const GRANT_WORDS: &[u8] = b"fairlead clone grant\0";
/// Bytes of a key's id: the beginning of the SHA-256 of its public key.
const KEY_ID_BYTES: usize = 16;

/// Why a command is not to be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No key of that id is known to belong to the installation.
    #[error("signed by a key that is not known here")]
    UnknownKey,
    /// The key's certificate is not valid now.
    #[error("the signing key is not valid now: {0}")]
    KeyNotValid(ChainError),
    /// The signature does not fit the bytes.
    #[error("the signature does not fit the command")]
    Wrong,
    /// The bytes are not a command, or too many.
    #[error("the command cannot be read")]
    Unreadable,
    /// It is meant for another host.
    #[error("the command is meant for another host")]
    OtherHost,
    /// It is about another tenant's things.
    #[error("the command is another tenant's")]
    OtherTenant,
}

/// Signs commands.
pub struct Signer {
    pair: Ed25519KeyPair,
    key_id: [u8; KEY_ID_BYTES],
    chain: Chain,
}

impl Signer {
    /// A signer from its PKCS#8 key and its certificate chain (leaf first).
    ///
    /// # Errors
    /// When key or certificate cannot be used.
    pub fn new(key_der: &[u8], chain: &[CertificateDer<'_>]) -> Result<Self, ChainError> {
        let pair = Ed25519KeyPair::from_pkcs8(key_der)
            .map_err(|error| ChainError::Unreadable(error.to_string()))?;
        let leaf = chain.first().ok_or(ChainError::Incomplete)?;
        let (hash, _) = public_key(leaf)?;
        // The root is known to whoever verifies; it is not sent again.
        let certificates = chain
            .iter()
            .take(2)
            .map(|c| bytes::Bytes::copy_from_slice(c))
            .collect();
        Ok(Self {
            pair,
            key_id: key_id(&hash),
            chain: Chain { certificates },
        })
    }

    /// The command, signed.
    #[must_use]
    pub fn sign(&self, command: &Command) -> SignedCommand {
        let bytes = command.encode_to_vec();
        let signature = self.pair.sign(&bytes);
        SignedCommand {
            command: bytes.into(),
            key_id: bytes::Bytes::copy_from_slice(&self.key_id),
            signature: bytes::Bytes::copy_from_slice(signature.as_ref()),
        }
    }

    /// A signature over these bytes behind words that say what they are, so that nothing that was signed
    /// as one thing is ever taken for another (no command begins with such words).
    pub(crate) fn sign_as(&self, words: &[u8], bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(&[words, bytes].concat()).as_ref().to_vec()
    }

    /// Whether it signed these bytes behind these words.
    pub(crate) fn signed_as(&self, words: &[u8], bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.pair.public_key().as_ref())
            .verify(&[words, bytes].concat(), signature)
            .is_ok()
    }

    /// The id of its key.
    pub(crate) fn key_id(&self) -> [u8; KEY_ID_BYTES] {
        self.key_id
    }

    /// The grant, signed.
    #[must_use]
    pub fn sign_grant(&self, grant: &CloneGrant) -> SignedCloneGrant {
        let bytes = grant.encode_to_vec();
        let signature = self.sign_as(GRANT_WORDS, &bytes);
        SignedCloneGrant {
            grant: bytes.into(),
            key_id: bytes::Bytes::copy_from_slice(&self.key_id),
            signature: signature.into(),
        }
    }

    /// The certificate chain to make known to hosts.
    #[must_use]
    pub fn chain(&self) -> Chain {
        self.chain.clone()
    }
}

fn key_id(public_hash: &[u8; 32]) -> [u8; KEY_ID_BYTES] {
    let mut id = [0; KEY_ID_BYTES];
    id.copy_from_slice(&public_hash[..KEY_ID_BYTES]);
    id
}

/// The keys that are believed to sign for the installation.
pub struct Keys {
    root: Root,
    known: HashMap<[u8; KEY_ID_BYTES], KnownKey>,
}

/// The keys whose commands a host carries out.
pub struct Verifier {
    keys: Keys,
    host: HostId,
    tenant: String,
}

struct KnownKey {
    public: Vec<u8>,
    /// End of its certificate, seconds since 1970. The chain was verified when the key was learnt.
    not_after_s: i64,
}

/// How many command keys a host remembers: enough for rotation and regions' delegated keys. Beyond, the
/// one that ends first makes room.
const KEYS_MAX: usize = 16;
/// How far the clocks of those who certify, tell the time and verify may be apart.
const TOLERANCE: Duration = Duration::from_secs(3600);

impl Keys {
    /// No key is known yet; those are learnt that this root vouches for.
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self {
            root,
            known: HashMap::new(),
        }
    }

    /// Learns keys; those that are not the installation's are refused, the reason is returned. `now` is
    /// the servers' time, not this machine's, which may be wrong.
    pub fn learn(&mut self, keys: &CommandKeys, now: UnixTime) -> Vec<ChainError> {
        keys.chains
            .iter()
            .filter_map(|chain| self.learn_one(chain, now).err())
            .collect()
    }

    fn learn_one(&mut self, chain: &Chain, now: UnixTime) -> Result<(), ChainError> {
        let chain: Vec<_> = chain
            .certificates
            .iter()
            .map(|c| CertificateDer::from(c.to_vec()))
            .collect();
        let latest = UnixTime::since_unix_epoch(
            Duration::from_secs(now.as_secs()).saturating_add(TOLERANCE),
        );
        let usage = Usage::CommandSigning;
        let (identity, _) = self
            .root
            .identify_with_grace(&chain, usage, latest, 2 * TOLERANCE)?;
        if identity.role != Role::CommandKey {
            return Err(ChainError::NoIdentity);
        }
        let leaf = chain.first().ok_or(ChainError::Incomplete)?;
        let (hash, public) = public_key(leaf)?;
        let id = key_id(&hash);
        let not_after_s = identity.not_after_s;
        self.known.insert(
            id,
            KnownKey {
                public,
                not_after_s,
            },
        );
        if self.known.len() > KEYS_MAX {
            let ends_first = self.known.iter().min_by_key(|(_, key)| key.not_after_s);
            if let Some(id) = ends_first.map(|(id, _)| *id) {
                self.known.remove(&id);
            }
        }
        Ok(())
    }

    /// Whether one of these keys signed these bytes. `now` is the servers' time.
    pub(crate) fn check(
        &self,
        key_id: &[u8],
        said: &[u8],
        signature: &[u8],
        now: UnixTime,
    ) -> Result<(), SignatureError> {
        let id: [u8; KEY_ID_BYTES] = key_id.try_into().map_err(|_| SignatureError::UnknownKey)?;
        let key = self.known.get(&id).ok_or(SignatureError::UnknownKey)?;
        let past_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - key.not_after_s;
        if past_s > i64::try_from(TOLERANCE.as_secs()).unwrap_or(0) {
            return Err(SignatureError::KeyNotValid(ChainError::Expired(
                past_s.unsigned_abs(),
            )));
        }
        UnparsedPublicKey::new(&ED25519, &key.public)
            .verify(said, signature)
            .map_err(|_| SignatureError::Wrong)
    }
}

impl Verifier {
    /// A verifier for a host and its tenant, which believes in that root and knows no key yet. A host
    /// that was never told its tenant takes any.
    #[must_use]
    pub fn new(root: Root, host: HostId, tenant: &str) -> Self {
        Self {
            keys: Keys::new(root),
            host,
            tenant: tenant.to_owned(),
        }
    }

    /// Learns keys, as [`Keys::learn`].
    pub fn learn(&mut self, keys: &CommandKeys, now: UnixTime) -> Vec<ChainError> {
        self.keys.learn(keys, now)
    }

    /// The command inside, when it is the installation's and meant for this host. `now` is the servers'
    /// time.
    ///
    /// # Errors
    /// When it is not to be carried out.
    pub fn verify(&self, signed: &SignedCommand, now: UnixTime) -> Result<Command, SignatureError> {
        if signed.command.len() > limits::COMMAND_BYTES_MAX {
            return Err(SignatureError::Unreadable);
        }
        self.keys
            .check(&signed.key_id, &signed.command, &signed.signature, now)?;
        let command =
            Command::decode(&signed.command[..]).map_err(|_| SignatureError::Unreadable)?;
        if command.host[..] != self.host.as_bytes()[..] {
            return Err(SignatureError::OtherHost);
        }
        if self.tenant.is_empty() || command.tenant == self.tenant {
            Ok(command)
        } else {
            Err(SignatureError::OtherTenant)
        }
    }

    /// The grant inside, when it is the installation's and about this host. `now` is the servers' time.
    ///
    /// # Errors
    /// When it is not to be believed.
    pub fn verify_grant(
        &self,
        signed: &SignedCloneGrant,
        now: UnixTime,
    ) -> Result<CloneGrant, SignatureError> {
        if signed.grant.len() > limits::COMMAND_BYTES_MAX {
            return Err(SignatureError::Unreadable);
        }
        let said = [GRANT_WORDS, &signed.grant[..]].concat();
        self.keys
            .check(&signed.key_id, &said, &signed.signature, now)?;
        let grant =
            CloneGrant::decode(&signed.grant[..]).map_err(|_| SignatureError::Unreadable)?;
        if grant.of[..] == self.host.as_bytes()[..] {
            Ok(grant)
        } else {
            Err(SignatureError::OtherHost)
        }
    }
}
