//! A region's keys and certificates, as an access server keeps them in its data directory, and simulated
//! hosts for it: certificates signed with the region's own CA key, rows in ledger and store.
//!
//! This is the short cut of the bench, and only possible with the keys of a test installation: enrolment
//! one by one would be measured at one host per join token. The certificates are those that a region gives.

use std::path::Path;

use fairlead_daemon::files;
use fairlead_identity::Root;
use fairlead_identity::authority::{Authority, LeafUse, PrivateKey};
use fairlead_identity::roles::Role;
use fairlead_identity::tls::Credentials;
use fairlead_protocol::{
    EnrolReply, HostId, HostIdentity, Message, RegionEnrolReply, RenewReply, limits,
};
use fairlead_store::hosts::HostRow;
use fairlead_store::{DEFAULT_TENANT, Store};
use rustls_pki_types::CertificateDer;

/// Rows in one write.
const ROWS_AT_ONCE: usize = 1000;
const SECONDS: i64 = 1_000_000;

/// What an access server has joined with.
pub struct Installation {
    /// The installation's root.
    pub root: Root,
    /// The region.
    pub region: String,
    /// The access server's role.
    pub role: Role,
    /// Its certificate and key.
    pub server: Credentials,
    /// The region's CA.
    pub agents_ca: Authority,
}

fn now_s() -> i64 {
    fairlead_daemon::clock::Clock::system().now_s()
}

fn bytes_of(chain: &[CertificateDer<'static>]) -> Vec<bytes::Bytes> {
    chain
        .iter()
        .map(|certificate| bytes::Bytes::copy_from_slice(certificate))
        .collect()
}

fn chain_of(certificates: &[bytes::Bytes]) -> Vec<CertificateDer<'static>> {
    certificates
        .iter()
        .map(|certificate| CertificateDer::from(certificate.to_vec()))
        .collect()
}

impl Installation {
    /// Makes a root, a region and its access server, and writes them as an access server keeps them.
    ///
    /// # Panics
    /// When that fails.
    pub fn make(dir: &Path, region: &str) {
        let now_s = now_s();
        let root = Authority::new_root("bench.internal", now_s).expect("a root");
        let servers = root
            .new_intermediate(&Role::ServersCa, now_s)
            .expect("an intermediate");
        let role = Role::AgentsCa {
            region: region.to_owned(),
        };
        let agents = root
            .new_intermediate(&role, now_s)
            .expect("an intermediate");
        let key = PrivateKey::generate().expect("a key");
        let role = Role::AccessServer {
            region: region.to_owned(),
            name: "a1".to_owned(),
        };
        let times = (now_s, limits::RENEW_GRACE);
        let leaf = servers
            .certify_own(&key, &role, LeafUse::Both, &[], times)
            .expect("a certificate");
        let reply = RegionEnrolReply {
            region: region.to_owned(),
            server_certificates: bytes_of(&leaf.chain),
            agents_ca_certificates: bytes_of(agents.chain()),
            ..RegionEnrolReply::default()
        };
        files::private_dir(dir).expect("a directory");
        for (name, content) in [
            ("certificates", reply.encode_to_vec()),
            ("server.key", key.to_der()),
            ("agents-ca.key", agents.key_der()),
        ] {
            files::replace(&dir.join(name), &content).expect("a file");
        }
    }

    /// Reads what an access server (or [`Self::make`]) has written.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn load(dir: &Path) -> Self {
        let read = |name: &str| std::fs::read(dir.join(name)).expect("the region's files");
        let reply = RegionEnrolReply::decode(&read("certificates")[..]).expect("a reply");
        let chain = chain_of(&reply.server_certificates);
        let root = Root::from_der(chain.last().cloned().expect("a chain")).expect("a root");
        let key = PrivateKey::from_der(&read("server.key")).expect("a key");
        let agents_ca = Authority::from_parts(
            &read("agents-ca.key"),
            chain_of(&reply.agents_ca_certificates),
            root.domain(),
        )
        .expect("a CA");
        let now = rustls_pki_types::UnixTime::now();
        let own = root
            .identify(&chain, fairlead_identity::chain::Usage::Server, now)
            .expect("a certificate of this installation");
        Self {
            root,
            region: reply.region,
            role: own.role,
            server: Credentials {
                chain,
                key: key.for_tls(),
            },
            agents_ca,
        }
    }

    /// New hosts of this region, each with a key and a certificate of its own.
    ///
    /// # Panics
    /// When a certificate cannot be made.
    #[must_use]
    pub fn hosts(&self, count: usize, addresses: &[String]) -> Vec<HostIdentity> {
        let one = |index: usize| {
            let host = HostId::from_bytes(fairlead_identity::random::bytes());
            let key = PrivateKey::generate().expect("a key");
            let role = Role::Agent {
                region: self.region.clone(),
                host,
            };
            let times = (now_s(), limits::AGENT_CERTIFICATE_LIFE);
            let leaf = self
                .agents_ca
                .certify_own(&key, &role, LeafUse::Client, &[], times)
                .expect("a certificate");
            HostIdentity {
                enrolment: Some(EnrolReply {
                    host: host.to_wire(),
                    name: format!("{}-{index:05}", self.region),
                    tenant: DEFAULT_TENANT.to_owned(),
                    region: self.region.clone(),
                    certificates: bytes_of(&leaf.chain),
                    certificate_counter: 1,
                    addresses: addresses.to_vec(),
                    clone_grant: None,
                    command_keys: None,
                }),
                key_der: key.to_der().into(),
            }
        };
        (0..count).map(one).collect()
    }
}

/// Keeps hosts in a file, for the processes that will be them.
///
/// # Panics
/// When it cannot be written.
pub fn save(path: &Path, hosts: &[HostIdentity]) {
    let mut content = Vec::new();
    for host in hosts {
        host.encode_length_delimited(&mut content)
            .expect("a vector grows");
    }
    files::replace(path, &content).expect("a file");
}

/// Some of the hosts in a file.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn load(path: &Path, first: usize, count: usize) -> Vec<HostIdentity> {
    let content = std::fs::read(path).expect("the file of hosts");
    let mut rest = &content[..];
    let mut hosts = Vec::new();
    while !rest.is_empty() {
        hosts.push(HostIdentity::decode_length_delimited(&mut rest).expect("a host"));
    }
    hosts.into_iter().skip(first).take(count).collect()
}

/// Writes hosts into a ledger or a controller's store, as if they had enrolled. Its owner must not run.
///
/// # Panics
/// When it cannot be written.
pub async fn enter(database: &Path, hosts: &[HostIdentity]) {
    let store = Store::open(database).expect("the store");
    for chunk in hosts.chunks(ROWS_AT_ONCE) {
        let chunk = chunk.to_vec();
        store
            .write(move |tx| {
                for host in &chunk {
                    let Some(enrolment) = &host.enrolment else {
                        continue;
                    };
                    let id = HostId::from_wire(&enrolment.host).expect("an id");
                    let key = PrivateKey::from_der(&host.key_der).expect("a key");
                    let now_us = now_s() * SECONDS;
                    let row = HostRow {
                        name: enrolment.name.clone(),
                        tenant: enrolment.tenant.clone(),
                        region: enrolment.region.clone(),
                        key_hash: key.public_hash().to_vec(),
                        enrolled_us: now_us,
                        ..HostRow::default()
                    };
                    tx.insert_host(id, &row)?;
                    let answer = RenewReply {
                        certificates: enrolment.certificates.clone(),
                        counter: 1,
                    };
                    let life_s = limits::AGENT_CERTIFICATE_LIFE.as_secs();
                    let end_us = now_us + i64::try_from(life_s).unwrap_or(0) * SECONDS;
                    tx.host_certified(id, 1, &key.public_hash(), &answer.encode_to_vec(), end_us)?;
                }
                Ok(())
            })
            .await
            .expect("the rows are written");
    }
}
