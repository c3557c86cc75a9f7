//! The installation's certificates: root, intermediates, the controller's own, the command key.
//!
//! Made at the first start, kept in the data directory (keys 0600), read at every other. Certificates of
//! the controller itself are made anew at each start, because their names come from the configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fairlead_daemon::clock::Clock;
use fairlead_daemon::files;
use fairlead_identity::authority::{Authority, AuthorityError, LeafUse, PrivateKey, RequestedKey};
use fairlead_identity::chain::ChainError;
use fairlead_identity::roles::Role;
use fairlead_identity::signing::Signer;
use fairlead_identity::tls::Credentials;
use fairlead_identity::{Root, random};
use rustls::pki_types::CertificateDer;

/// Life of servers' certificates: until they renew by themselves, an access server is given a new one
/// by joining again.
const SERVER_LIFE: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
/// Life of https certificates; browsers refuse longer ones.
const WEB_LIFE: Duration = Duration::from_secs(397 * 24 * 3600);
/// Life of the command key's certificate; made anew at each start.
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
    /// Signs commands.
    pub signer: Signer,
    /// For access servers.
    pub own: Credentials,
    /// For https.
    pub web: Credentials,
    issuer: Authority,
    servers: Authority,
    web_ca: Authority,
    web_key_hash: [u8; 32],
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
        let signing = command_keys.certify_own(
            &command_key,
            &Role::CommandKey,
            LeafUse::CommandSigning,
            &[],
            (now_s, COMMAND_KEY_LIFE),
        )?;
        let root = issuer
            .chain()
            .last()
            .cloned()
            .ok_or(ChainError::Incomplete)?;
        write_pem(&dir.join("ca.pem"), &root)?;
        Ok(Self {
            root: Root::from_der(root)?,
            signer: Signer::new(&command_key.to_der(), &signing.chain)?,
            own: Credentials {
                chain: own.chain,
                key: own_key.for_tls(),
            },
            web: Credentials {
                chain: web.chain,
                key: web_key.for_tls(),
            },
            issuer,
            servers,
            web_ca,
            web_key_hash: web_key.public_hash(),
            clock,
        })
    }

    /// What `curl --pinnedpubkey` takes for the https certificate of our own CA. The key stays when the
    /// certificate is made anew.
    #[must_use]
    pub fn web_pin(&self) -> String {
        format!("sha256//{}", STANDARD.encode(self.web_key_hash))
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
    files::replace(path, pem.as_bytes()).map_err(|error| file_error(path, &error))
}

/// An id for a new host.
#[must_use]
pub fn new_host_id() -> fairlead_protocol::HostId {
    fairlead_protocol::HostId::from_bytes(random::bytes())
}
