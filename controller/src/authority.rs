//! The installation's certificates: root, intermediates, the controller's own, the command key.
//!
//! Made at the first start, kept in the data directory (keys 0600), read at every other. Certificates of
//! the controller itself are made anew at each start, because their names come from the configuration. The
//! command key's is kept until half its life is over, and then made anew, also while running.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fairlead_daemon::clock::Clock;
use fairlead_daemon::files;
use fairlead_identity::authority::{Authority, AuthorityError, LeafUse, PrivateKey, RequestedKey};
use fairlead_identity::chain::{ChainError, Usage, public_key};
use fairlead_identity::roles::Role;
use fairlead_identity::signing::Signer;
use fairlead_identity::tls::Credentials;
use fairlead_identity::{Root, random};
use fairlead_protocol::CommandKeys;
use rustls::pki_types::{CertificateDer, UnixTime};

/// Life of servers' certificates: until they renew by themselves, an access server is given a new one
/// by joining again.
const SERVER_LIFE: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
/// Life of https certificates; browsers refuse longer ones.
const WEB_LIFE: Duration = Duration::from_secs(397 * 24 * 3600);
/// Life of the command key's certificate; renewed when half of it is over, so that every host has half a
/// year to hear of the next.
const COMMAND_KEY_LIFE: Duration = Duration::from_secs(397 * 24 * 3600);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be used.
    #[error("cannot use {path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// A certificate cannot be made.
    #[error(transparent)]
    Make(#[from] AuthorityError),
    /// What was made cannot be used.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// Everything that certifies.
pub struct CertificateAuthority {
    /// The root, as everybody else knows it.
    pub root: Root,
    /// For access servers.
    pub own: Credentials,
    /// For https.
    pub web: Credentials,
    issuer: Authority,
    web_key_hash: [u8; 32],
    servers: Authority,
    web_ca: Authority,
    command_keys: Authority,
    command_key: PrivateKey,
    signer: RwLock<Arc<Signer>>,
    dir: PathBuf,
    clock: Clock,
}

/// What a region's access server gets.
pub struct RegionCertificates {
    /// Its own.
    pub server: Vec<CertificateDer<'static>>,
    /// Its CA for agents.
    pub agents_ca: Vec<CertificateDer<'static>>,
    /// For https.
    pub web: Vec<CertificateDer<'static>>,
}

impl CertificateAuthority {
    /// Reads the installation's, or makes a new installation.
    ///
    /// # Errors
    /// When files cannot be used or certificates cannot be made.
    pub fn open(
        dir: &Path,
        domain: &str,
        web_names: &[String],
        clock: Clock,
    ) -> Result<Self, CaError> {
        files::private_dir(dir).map_err(|error| file_error(dir, &error))?;
        let now_s = clock.now_s();
        let issuer = authority(dir, "root", domain, || Authority::new_root(domain, now_s))?;
        let domain = Root::from_der(first(issuer.chain())?)?.domain().to_owned();
        let under = |name: &str, role: Role| {
            authority(dir, name, &domain, || issuer.new_intermediate(&role, now_s))
        };
        let servers = under("servers-ca", Role::ServersCa)?;
        let web_ca = under("web-ca", Role::WebCa)?;
        let command_keys = under("command-keys-ca", Role::CommandKeysCa)?;
        let own_key = key(dir, "controller", PrivateKey::generate)?;
        let web_key = key(dir, "web", PrivateKey::generate)?;
        let command_key = key(dir, "command-key", PrivateKey::generate_ed25519)?;
        let own = servers.certify_own(
            &own_key,
            &Role::Controller,
            LeafUse::Server,
            &[],
            (now_s, SERVER_LIFE),
        )?;
        let web_role = Role::Web {
            name: "controller".to_owned(),
        };
        let web = web_ca.certify_own(
            &web_key,
            &web_role,
            LeafUse::Server,
            web_names,
            (now_s, WEB_LIFE),
        )?;
        let root = issuer
            .chain()
            .last()
            .cloned()
            .ok_or(ChainError::Incomplete)?;
        write_pem(&dir.join("ca.pem"), &root)?;
        let root = Root::from_der(root)?;
        let signing = signing_chain(dir, &root, &command_keys, &command_key, now_s)?;
        Ok(Self {
            root,
            signer: RwLock::new(Arc::new(Signer::new(&command_key.to_der(), &signing)?)),
            own: Credentials {
                chain: own.chain,
                key: own_key.for_tls(),
            },
            web: Credentials {
                chain: web.chain,
                key: web_key.for_tls(),
            },
            issuer,
            web_key_hash: web_key.public_hash(),
            servers,
            web_ca,
            command_keys,
            command_key,
            dir: dir.to_owned(),
            clock,
        })
    }

    /// What `curl --pinnedpubkey` takes for the https certificate of our own CA. The key stays when the
    /// certificate is made anew.
    #[must_use]
    pub fn web_pin(&self) -> String {
        format!("sha256//{}", STANDARD.encode(self.web_key_hash))
    }

    /// Signs commands.
    #[must_use]
    pub fn signer(&self) -> Arc<Signer> {
        let signer = self.signer.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&signer)
    }

    /// What hosts are told of who may sign.
    #[must_use]
    pub fn command_keys(&self) -> CommandKeys {
        CommandKeys {
            chains: vec![self.signer().chain()],
        }
    }

    /// Makes the command key's next certificate when half the life of the present one is over; whether
    /// that was so. Hosts have to be told then.
    ///
    /// # Errors
    /// When it cannot be made or kept; the present one stays in use.
    pub fn renew_command_key(&self) -> Result<bool, CaError> {
        let now_s = self.clock.now_s();
        let before = self.signer().chain();
        let chain = signing_chain(
            &self.dir,
            &self.root,
            &self.command_keys,
            &self.command_key,
            now_s,
        )?;
        let signer = Signer::new(&self.command_key.to_der(), &chain)?;
        if signer.chain() == before {
            return Ok(false);
        }
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(signer);
        Ok(true)
    }

    /// Certifies a region's access server and its CA.
    ///
    /// # Errors
    /// When a request is not valid.
    pub fn certify_region(
        &self,
        region: &str,
        server: &str,
        requests: [&[u8]; 3],
        web_names: &[String],
    ) -> Result<RegionCertificates, AuthorityError> {
        let [server_csr, agents_ca_csr, web_csr] = requests;
        let now_s = self.clock.now_s();
        let region = region.to_owned();
        let role = Role::AccessServer {
            region: region.clone(),
            name: server.to_owned(),
        };
        let server_leaf = self.servers.certify(
            &RequestedKey::from_request(server_csr)?,
            &role,
            LeafUse::Both,
            &[],
            (now_s, SERVER_LIFE),
        )?;
        let agents_ca = self.issuer.certify_intermediate(
            &RequestedKey::from_request(agents_ca_csr)?,
            &Role::AgentsCa {
                region: region.clone(),
            },
            now_s,
        )?;
        let web = self.web_ca.certify(
            &RequestedKey::from_request(web_csr)?,
            &Role::Web { name: region },
            LeafUse::Server,
            web_names,
            (now_s, WEB_LIFE),
        )?;
        Ok(RegionCertificates {
            server: server_leaf.chain,
            agents_ca,
            web: web.chain,
        })
    }
}

/// The command key's certificate: the kept one, or the next when half of that one's life is over.
fn signing_chain(
    dir: &Path,
    root: &Root,
    command_keys: &Authority,
    command_key: &PrivateKey,
    now_s: i64,
) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let path = chain_path(dir, "command-key");
    let kept = files::read_if_there(&path).map_err(|error| file_error(&path, &error))?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s.unsigned_abs()));
    // One that cannot be read, or is another key's, is as good as none: the next takes its place.
    let kept = kept.as_deref().and_then(unpack).and_then(|chain| {
        let identity = root.identify(&chain, Usage::CommandSigning, now).ok()?;
        let (hash, _) = public_key(chain.first()?).ok()?;
        (hash == command_key.public_hash()).then_some((chain, identity.not_after_s - now_s))
    });
    let half = i64::try_from(COMMAND_KEY_LIFE.as_secs() / 2).unwrap_or(i64::MAX);
    if let Some((chain, left_s)) = &kept
        && *left_s > half
    {
        return Ok(chain.clone());
    }
    let life = (now_s, COMMAND_KEY_LIFE);
    let use_ = LeafUse::CommandSigning;
    let leaf = command_keys.certify_own(command_key, &Role::CommandKey, use_, &[], life)?;
    match (files::replace(&path, &pack(&leaf.chain)), kept) {
        (Ok(()), _) => Ok(leaf.chain),
        (Err(error), Some((chain, _))) => {
            // A full disk: there is half a year to make room.
            tracing::warn!(%error, "the command key's next certificate could not be kept");
            Ok(chain)
        }
        (Err(error), None) => Err(file_error(&path, &error)),
    }
}

fn file_error(path: &Path, error: &dyn std::fmt::Display) -> CaError {
    CaError::File {
        path: path.display().to_string(),
        reason: error.to_string(),
    }
}

fn first(chain: &[CertificateDer<'static>]) -> Result<CertificateDer<'static>, CaError> {
    Ok(chain.first().cloned().ok_or(ChainError::Incomplete)?)
}

/// An authority in two files: key, and certificate chain (each certificate with its length before
/// it). The chain is written last, so a crash in between only makes it anew.
fn authority(
    dir: &Path,
    name: &str,
    domain: &str,
    make: impl FnOnce() -> Result<Authority, AuthorityError>,
) -> Result<Authority, CaError> {
    let (key_path, chain_path) = (dir.join(format!("{name}.key")), chain_path(dir, name));
    let chain = files::read_if_there(&chain_path).map_err(|e| file_error(&chain_path, &e))?;
    if let Some(bytes) = chain {
        let key = std::fs::read(&key_path).map_err(|error| file_error(&key_path, &error))?;
        let chain = unpack(&bytes).ok_or_else(|| file_error(&chain_path, &"it is damaged"))?;
        return Ok(Authority::from_parts(&key, chain, domain)?);
    }
    let made = make()?;
    files::replace(&key_path, &made.key_der()).map_err(|error| file_error(&key_path, &error))?;
    files::replace(&chain_path, &pack(made.chain()))
        .map_err(|error| file_error(&chain_path, &error))?;
    Ok(made)
}

fn chain_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.chain"))
}

fn pack(chain: &[CertificateDer<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for certificate in chain {
        bytes.extend(
            u32::try_from(certificate.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        bytes.extend_from_slice(certificate);
    }
    bytes
}

fn unpack(mut bytes: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut chain = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (certificate, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        chain.push(CertificateDer::from(certificate.to_vec()));
        bytes = rest;
    }
    Some(chain)
}

fn key(
    dir: &Path,
    name: &str,
    make: impl FnOnce() -> Result<PrivateKey, AuthorityError>,
) -> Result<PrivateKey, CaError> {
    let path = dir.join(format!("{name}.key"));
    if let Some(der) = files::read_if_there(&path).map_err(|error| file_error(&path, &error))? {
        return Ok(PrivateKey::from_der(&der)?);
    }
    let key = make()?;
    files::replace(&path, &key.to_der()).map_err(|error| file_error(&path, &error))?;
    Ok(key)
}

/// The root for people's tools, in PEM.
fn write_pem(path: &Path, certificate: &CertificateDer<'_>) -> Result<(), CaError> {
    let text = STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    // Not touched when it is right already: a full disk must not keep the controller down.
    if files::read_if_there(path).is_ok_and(|kept| kept.is_some_and(|kept| kept == pem.as_bytes()))
    {
        return Ok(());
    }
    files::replace(path, pem.as_bytes()).map_err(|error| file_error(path, &error))
}

/// An id for a new host.
#[must_use]
pub fn new_host_id() -> fairlead_protocol::HostId {
    fairlead_protocol::HostId::from_bytes(random::bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, clock: &Clock) -> CertificateAuthority {
        CertificateAuthority::open(dir, "example.internal", &[], clock.clone()).unwrap()
    }

    #[test]
    fn the_command_keys_certificate_is_kept_until_half_its_life_and_then_renewed_while_running() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(1_800_000_000 * 1_000_000);
        let first = open(dir.path(), &clock);
        let chain = first.signer().chain();
        assert!(!first.renew_command_key().unwrap());
        drop(first);
        let again = open(dir.path(), &clock);
        assert_eq!(again.signer().chain(), chain, "a restart changes nothing");

        let half_us = i64::try_from(COMMAND_KEY_LIFE.as_micros() / 2).unwrap();
        clock.advance_us(half_us + 1_000_000);
        assert!(again.renew_command_key().unwrap());
        assert_ne!(again.signer().chain(), chain);
        assert!(!again.renew_command_key().unwrap(), "once");
        // It is good where the one before is not any more.
        let later = UnixTime::since_unix_epoch(
            Duration::from_secs(1_800_000_000) + COMMAND_KEY_LIFE * 5 / 4,
        );
        let good = |chain: &fairlead_protocol::Chain| {
            let certificates: Vec<_> = chain
                .certificates
                .iter()
                .map(|c| CertificateDer::from(c.to_vec()))
                .collect();
            again
                .root
                .identify(&certificates, Usage::CommandSigning, later)
                .is_ok()
        };
        assert!(!good(&chain));
        assert!(good(&again.signer().chain()));
    }

    #[test]
    fn a_start_on_a_disk_that_takes_nothing_rewrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::manual(1_800_000_000 * 1_000_000);
        drop(open(dir.path(), &clock));
        let when = |name: &str| {
            std::fs::metadata(dir.path().join(name))
                .unwrap()
                .modified()
                .unwrap()
        };
        let before: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                (when(&name), name)
            })
            .collect();
        drop(open(dir.path(), &clock));
        for (modified, name) in before {
            assert_eq!(when(&name), modified, "{name}");
        }
    }
}
