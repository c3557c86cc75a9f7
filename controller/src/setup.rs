//! The first admin: a one-time secret, written to a file at the first start, claimed exactly once.
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

    /// Tells whoever started the controller. The link itself is not said: a log is read by others and kept,
    /// and the command line of a process is shown to everybody on its machine. `own_ca`: https is certified by
    /// the installation's own CA.
    pub fn say(&self, own_ca: bool) {
        let line = self.line(own_ca);
        eprintln!("first admin (one use, 15 min), on this machine: {line}");
    }

    fn line(&self, own_ca: bool) -> String {
        let quoted = |path: &Path| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            let text = path.display().to_string();
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
            if text.chars().all(is_plain) {
                text
            } else {
                format!("'{}'", text.replace('\'', r"'\''"))
            }
        };
        let mut line = format!("fairlead login --setup-link {}", quoted(&self.link_file));
        if own_ca {
            let ca = self.link_file.with_file_name("ca.pem");
            line.push_str(&format!(" --ca {}", quoted(&ca)));
        }
        line
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
        let (claimed, has_admin) = self
            .store
            .write(move |tx| {
                let has_admin = tx.has_good_api_token(ADMIN, now_us)?;
                let kept = tx.meta(META_KEY)?.as_deref().and_then(decode);
                let is_good =
                    kept.is_some_and(|(hash, until_us)| hash == presented && now_us < until_us);
                let claimed = is_good
                    && !has_admin
                    && tx.take_meta(META_KEY)?
                    && tx.insert_api_token(&insert)?;
                if claimed {
                    tx.append_audit(&entry, sha256)?;
                }
                Ok((claimed, has_admin))
            })
            .await
            .map_err(crate::backend::store_error)?;
        if !claimed && has_admin {
            return Err(ApiError::new(
                codes::SETUP_CLOSED,
                "setup is closed: this installation has an admin already",
            )
            .hint(
                "ask that admin for a token; if it is none of you, somebody else used the link: on the \
                 controller's machine stop it, move its data directory away, and install anew",
            ));
        }
        if !claimed {
            return Err(ApiError::new(
                codes::SETUP_CLOSED,
                "setup is closed: the secret is wrong, or older than 15 minutes",
            )
            .hint("restart the controller: nobody has claimed it yet, so it writes a new link"));
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
        let late = setup.claim(&opening.secret, "me", "").await.err().unwrap();
        assert_eq!(late.code, codes::SETUP_CLOSED);
        assert!(
            late.message.contains("has an admin already") && !late.hint.contains("new link"),
            "{} {}",
            late.message,
            late.hint
        );
    }

    #[test]
    fn s20_the_line_names_files_and_no_secret() {
        let store = Store::open(&tempfile::tempdir().unwrap().path().join("s.db")).unwrap();
        let line = |dir: &str, own_ca| {
            Setup::new(store.clone(), Clock::manual(1), Path::new(dir)).line(own_ca)
        };
        assert_eq!(
            line("/var/lib/fairlead-controller", true),
            "fairlead login --setup-link /var/lib/fairlead-controller/setup-link \
             --ca /var/lib/fairlead-controller/ca.pem"
        );
        assert_eq!(
            line("/srv/its data", false),
            "fairlead login --setup-link '/srv/its data/setup-link'"
        );
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
        assert!(error.hint.contains("new link"), "{}", error.hint);
        let third = setup.open("https://c").await.unwrap().unwrap();
        assert_eq!(
            setup.claim(&third.secret, "", "").await.unwrap().1.name,
            "admin"
        );
    }
}
