//! Preparing an installation before its controller runs for the first time: CA, store, the first region,
//! the tokens that its access server and the first host join with, and the packages that came along. The
//! installer calls it; without it the same is done by hand, with `fairlead region add` and `fairlead join-token create`.

use std::path::{Path, PathBuf};

use clap::Args;
use fairlead_daemon::clock::Clock;
use fairlead_daemon::files;
use fairlead_identity::digest::{hex, sha256};
use fairlead_identity::token::{JoinToken, secret_hash};
use fairlead_store::audit::AuditEntry;
use fairlead_store::tokens::{JoinTokenRow, PURPOSE_ACCESS_SERVER, PURPOSE_HOST};
use fairlead_store::{DEFAULT_TENANT, StoreError, Tx};

use crate::config::Config;
use crate::installation::{self, InstallationError, Opened};
use crate::packages::shipped::{self, ShippedError};
use crate::packages::{self, Packages};

/// How long the tokens work.
const TOKEN_LIFE_US: i64 = 3600 * 1_000_000;
/// Who made them, as the audit log names it.
const ACTOR: &str = "setup";

/// What is to be prepared.
#[derive(Debug, Clone, Args)]
pub struct Preparation {
    /// As for `run`.
    #[command(flatten)]
    pub config: Config,
    /// The first region.
    #[arg(long, default_value = "local")]
    pub region: String,
    /// Where the join token of its access server is written (0600); nothing is written when that
    /// server has joined already.
    #[arg(long)]
    pub region_token_file: PathBuf,
    /// Where a join token for one host is written (0600, works for an hour).
    #[arg(long)]
    pub host_token_file: Option<PathBuf>,
}

/// Why it could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The installation is not there, not whole, or another one.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Packages for the hosts cannot be put in place.
    #[error(transparent)]
    Packages(#[from] ShippedError),
    /// A token cannot be written.
    #[error("cannot write {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What was prepared, for whoever goes on.
#[derive(Debug)]
pub struct Provisioned {
    /// SHA-256 of the root certificate, in hexadecimal digits.
    pub ca_sha256: String,
    /// What `curl --pinnedpubkey` takes for the https certificate.
    pub pin: String,
    /// Whether the region's access server has still to join.
    pub region_waits: bool,
    /// The version that machines get from this controller; `None` while there is no package.
    pub packages: Option<String>,
}

/// Prepares; again it changes nothing but makes new tokens.
///
/// # Errors
/// When the data directory is in use (its controller runs), or cannot be written.
pub async fn provision(preparation: &Preparation) -> Result<Provisioned, ProvisionError> {
    let Preparation { config, region, .. } = preparation;
    let clock = Clock::system();
    let Opened {
        authority, store, ..
    } = installation::open(config, clock.clone()).await?;
    let (name, now_us) = (region.clone(), clock.now_us());
    let ca_hash = authority.root.hash();
    let with_host = preparation.host_token_file.is_some();
    let (server, host) = store
        .write(move |tx| {
            tx.insert_region(&name, DEFAULT_TENANT, now_us)?;
            let joined = tx
                .region(&name)?
                .is_some_and(|row| !row.access_server.is_empty());
            let make = |purpose| token(tx, ca_hash, purpose, &name, now_us);
            let server = if joined {
                None
            } else {
                Some(make(PURPOSE_ACCESS_SERVER)?)
            };
            let host = if with_host {
                Some(make(PURPOSE_HOST)?)
            } else {
                None
            };
            Ok((server, host))
        })
        .await?;
    if let Some(token) = &server {
        write_secret(&preparation.region_token_file, token)?;
    }
    if let (Some(path), Some(token)) = (&preparation.host_token_file, &host) {
        write_secret(path, token)?;
    }
    let packages = config.data_dir.join(packages::DIR);
    if let Some(from) = &config.packages_from {
        shipped::put_in_place(from, &packages)?;
    }
    Ok(Provisioned {
        ca_sha256: hex(&ca_hash),
        pin: authority.web_pin(),
        region_waits: server.is_some(),
        packages: Packages::new(&packages, move || now_us).stable(),
    })
}

fn token(
    tx: &Tx<'_>,
    ca_hash: [u8; 32],
    purpose: &str,
    region: &str,
    now_us: i64,
) -> Result<JoinToken, StoreError> {
    let token = JoinToken::generate(ca_hash);
    tx.insert_join_token(&JoinTokenRow {
        id: token.id.clone(),
        tenant: DEFAULT_TENANT.to_owned(),
        purpose: purpose.to_owned(),
        region: region.to_owned(),
        secret_hash: secret_hash(&token.secret),
        uses_max: 1,
        created_by: ACTOR.to_owned(),
        created_us: now_us,
        expires_us: now_us.saturating_add(TOKEN_LIFE_US),
        ..JoinTokenRow::default()
    })?;
    let entry = AuditEntry {
        at_us: now_us,
        tenant: DEFAULT_TENANT.to_owned(),
        actor: ACTOR.to_owned(),
        source: String::new(),
        action: "join-token.create".to_owned(),
        object: format!("token {}", token.id),
        outcome: "ok".to_owned(),
        detail: format!("{purpose} of region {region}, made when the installation was prepared"),
    };
    tx.append_audit(&entry, sha256)?;
    Ok(token)
}

fn write_secret(path: &Path, token: &JoinToken) -> Result<(), ProvisionError> {
    files::replace(path, format!("{token}\n").as_bytes()).map_err(|source| ProvisionError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use fairlead_store::Store;
    use std::os::unix::fs::PermissionsExt;

    pub(crate) fn preparation(dir: &Path) -> Preparation {
        Preparation {
            config: Config {
                data_dir: dir.join("data"),
                ca_sha256: None,
                listen: ([127, 0, 0, 1], 0).into(),
                uplink_listen: ([127, 0, 0, 1], 0).into(),
                uplink_address: "127.0.0.1:7401".to_owned(),
                public_url: "https://fleet.example.com".to_owned(),
                web_names: vec!["fleet.example.com".to_owned()],
                front_socket: None,
                web_certificate: None,
                web_key: None,
                browser_origins: Vec::new(),
                recordings_max: 1,
                packages_from: None,
                trust: Vec::new(),
                clones: crate::config::Clones::ReEnrol,
                acme: crate::config::AcmeConfig::default(),
                domain: "fairlead.internal".to_owned(),
            },
            region: "local".to_owned(),
            region_token_file: dir.join("region-token"),
            host_token_file: Some(dir.join("host-token")),
        }
    }

    #[tokio::test]
    async fn an_installation_is_prepared_and_again_with_new_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = preparation(dir.path());
        let first = provision(&wanted).await.unwrap();
        assert!(first.region_waits);
        assert!(first.pin.starts_with("sha256//"));
        assert_eq!(first.packages, None);
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let server: JoinToken = read(&wanted.region_token_file).parse().unwrap();
        let mode = std::fs::metadata(&wanted.region_token_file)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let host: JoinToken = read(wanted.host_token_file.as_ref().unwrap())
            .parse()
            .unwrap();
        assert_eq!(hex(&host.ca_hash), first.ca_sha256);

        let again = provision(&wanted).await.unwrap();
        assert_eq!(again.ca_sha256, first.ca_sha256, "the same installation");
        assert_eq!(again.pin, first.pin, "the key of https stays");
        let renewed: JoinToken = read(&wanted.region_token_file).parse().unwrap();
        assert_ne!(renewed.id, server.id);

        let store = Store::open(&wanted.config.data_dir.join("controller.db")).unwrap();
        let (tokens, audit) = store
            .read(|tx| {
                let tokens = tx.join_tokens(DEFAULT_TENANT, 10)?;
                let audit = tx.audit(&fairlead_store::audit::AuditFilter {
                    tenant: DEFAULT_TENANT.to_owned(),
                    limit: 10,
                    ..Default::default()
                })?;
                Ok((tokens, audit))
            })
            .await
            .unwrap();
        assert_eq!((tokens.len(), audit.len()), (4, 4));
    }
}
