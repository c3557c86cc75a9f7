//! The first admin: a one-time secret, printed at the first start, claimed exactly once.
//!
//! Only its hash is kept. The window is 15 minutes; a restart before the claim makes a new secret;
//! once there is an admin token, there is no way in here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairlead_api::ApiError;
use fairlead_daemon::clock::Clock;
use fairlead_daemon::files;
use fairlead_identity::digest::sha256;
use fairlead_identity::random;
use fairlead_identity::token::ApiToken;
use fairlead_protocol::{CommandId, codes};
use fairlead_store::audit::AuditEntry;
use fairlead_store::tokens::ApiTokenRow;
use fairlead_store::{DEFAULT_TENANT, Store, StoreError};

/// How long the secret works.
pub const WINDOW_US: i64 = 15 * 60 * 1_000_000;
/// Hash of the secret and end of the window.
const META_KEY: &str = "setup";
/// The link, for whoever can read the data directory.
const LINK_FILE: &str = "setup-link";
/// The permission that makes an admin.
const ADMIN: &str = "admin";

/// Why setup could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The store did not answer.
    #[error("cannot open setup")]
    Store(#[from] StoreError),
    /// The link file could not be written.
    #[error("cannot write {path}")]
    Link {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What is printed at the first start.
#[derive(Clone)]
pub struct Opening {
    /// The link; its last part is the secret.
    pub link: String,
    /// The secret alone.
    pub secret: String,
    /// Until when it works.
    pub until_us: i64,
}

/// The door for the first admin.
pub struct Setup {
    store: Store,
    clock: Clock,
    link_file: PathBuf,
}

impl Setup {
    /// The door of the installation whose data lies there.
    #[must_use]
    pub fn new(store: Store, clock: Clock, data_dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock,
            link_file: data_dir.join(LINK_FILE),
        })
    }

    /// Opens the door when there is no admin yet: a new secret replaces any earlier one. `None`
    /// when there is an admin.
    ///
    /// # Errors
    /// When store or link file cannot be written.
    pub async fn open(&self, base_url: &str) -> Result<Option<Opening>, SetupError> {
        let secret = CommandId::from_bytes(random::bytes()).to_string();
        let now_us = self.clock.now_us();
        let until_us = now_us + WINDOW_US;
        let kept = encode(&sha256(secret.as_bytes()), until_us);
        let opened = self
            .store
            .write(move |tx| {
                if tx.has_good_api_token(ADMIN, now_us)? {
                    tx.take_meta(META_KEY)?;
                    return Ok(false);
                }
                tx.set_meta(META_KEY, &kept)?;
                Ok(true)
            })
            .await?;
        if !opened {
            self.remove_link();
            return Ok(None);
        }
        let link = format!("{}/setup/{secret}", base_url.trim_end_matches('/'));
        files::replace(&self.link_file, format!("{link}\n").as_bytes()).map_err(|source| {
            SetupError::Link {
                path: self.link_file.clone(),
                source,
            }
        })?;
        Ok(Some(Opening {
            link,
            secret,
            until_us,
        }))
    }

    /// Tells whoever started the controller: the link to a terminal, and where it lies to anything else,
    /// which may be a log that others read and that keeps it.
    pub fn say(&self, opening: &Opening) {
        use std::io::IsTerminal;
        let words = if std::io::stderr().is_terminal() {
            format!("fairlead login {}", opening.link)
        } else {
            format!(
                "fairlead login \"$(cat {})\", on this machine",
                self.link_file.display()
            )
        };
        eprintln!("first admin (one use, 15 min): {words}");
    }

    /// Claims the installation: of several at once, one wins.
    ///
    /// # Errors
    /// `setup_closed` for a wrong or late secret and when there is an admin already.
    pub async fn claim(
        &self,
        secret: &str,
        name: &str,
        from: &str,
    ) -> Result<(ApiToken, ApiTokenRow), ApiError> {
        let token = ApiToken::generate();
        let now_us = self.clock.now_us();
        let presented = sha256(secret.as_bytes());
        let row = ApiTokenRow {
            id: token.id.clone(),
            tenant: DEFAULT_TENANT.to_owned(),
            name: if name.is_empty() {
                "admin".to_owned()
            } else {
                name.to_owned()
            },
            secret_hash: fairlead_identity::token::secret_hash(&token.secret),
            permissions: vec![ADMIN.to_owned()],
            scope: "{}".to_owned(),
            created_by: "setup".to_owned(),
            created_us: now_us,
            ..ApiTokenRow::default()
        };
        let insert = row.clone();
        let entry = AuditEntry {
            at_us: now_us,
            tenant: row.tenant.clone(),
            actor: "setup".to_owned(),
            source: from.to_owned(),
            action: "setup.claim".to_owned(),
            object: format!("{} (token {})", row.name, row.id),
            outcome: "ok".to_owned(),
            detail: String::new(),
        };
        // One transaction on the one writer: whoever takes the key first has it.
        let claimed = self
            .store
            .write(move |tx| {
                let kept = tx.meta(META_KEY)?.as_deref().and_then(decode);
                let is_good =
                    kept.is_some_and(|(hash, until_us)| hash == presented && now_us < until_us);
                let claimed = is_good
                    && !tx.has_good_api_token(ADMIN, now_us)?
                    && tx.take_meta(META_KEY)?
                    && tx.insert_api_token(&insert)?;
                if claimed {
                    tx.append_audit(&entry, sha256)?;
                }
                Ok(claimed)
            })
            .await
            .map_err(crate::backend::store_error)?;
        if !claimed {
            return Err(ApiError::new(
                codes::SETUP_CLOSED,
                "setup is closed: the secret is wrong, was used, or is older than 15 minutes",
            )
            .hint("restart the controller for a new link if nobody has claimed it yet"));
        }
        self.remove_link();
        Ok((token, row))
    }

    fn remove_link(&self) {
        if let Err(error) = std::fs::remove_file(&self.link_file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(error = %error, "the setup link, used up, could not be removed");
        }
    }
}

fn encode(hash: &[u8; 32], until_us: i64) -> Vec<u8> {
    [&hash[..], &until_us.to_be_bytes()[..]].concat()
}

fn decode(kept: &[u8]) -> Option<([u8; 32], i64)> {
    let (hash, until) = kept.split_first_chunk::<32>()?;
    Some((*hash, i64::from_be_bytes(until.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn world() -> (tempfile::TempDir, Clock, Arc<Setup>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        let clock = Clock::manual(1_000_000);
        let setup = Setup::new(store, clock.clone(), dir.path());
        (dir, clock, setup)
    }

    #[tokio::test]
    async fn s20_of_many_claims_at_once_one_wins_and_then_it_is_shut() {
        let (dir, _clock, setup) = world();
        let opening = setup.open("https://c:7400/").await.unwrap().unwrap();
        let file = dir.path().join(LINK_FILE);
        assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), opening.link);
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(setup.claim("wrong", "x", "").await.is_err());
        let mut claims = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (setup, secret) = (Arc::clone(&setup), opening.secret.clone());
            claims.spawn(async move { setup.claim(&secret, "me", "").await.is_ok() });
        }
        let won = claims
            .join_all()
            .await
            .into_iter()
            .filter(|won| *won)
            .count();
        assert_eq!(won, 1);
        assert!(!file.exists());
        assert!(
            setup.open("https://c:7400").await.unwrap().is_none(),
            "there is an admin"
        );
        assert!(setup.claim(&opening.secret, "me", "").await.is_err());
    }

    #[tokio::test]
    async fn s20_the_window_ends_and_a_restart_replaces_the_secret() {
        let (_dir, clock, setup) = world();
        let first = setup.open("https://c").await.unwrap().unwrap();
        let second = setup.open("https://c").await.unwrap().unwrap();
        assert!(setup.claim(&first.secret, "", "").await.is_err());
        clock.advance_us(WINDOW_US);
        let error = setup.claim(&second.secret, "", "").await.err().unwrap();
        assert_eq!(error.code, codes::SETUP_CLOSED);
        let third = setup.open("https://c").await.unwrap().unwrap();
        assert_eq!(
            setup.claim(&third.secret, "", "").await.unwrap().1.name,
            "admin"
        );
    }
}
