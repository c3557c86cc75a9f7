//! The first admin: a one-time secret, written to a file at the first start, claimed exactly once.
//!
//! Only its hash is kept. The window is 15 minutes; a restart before the claim makes a new secret.
//! Once there is an admin token, the door opens only when somebody who may write to the data directory
//! asks for it there ([`wish`]): all tokens were lost.

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

pub mod wish;

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
        let now_us = self.clock.now_us();
        let opening = Opening::new(base_url, now_us);
        let kept = opening.kept(For::First);
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
        self.write_link(&opening)?;
        Ok(Some(opening))
    }

    fn write_link(&self, opening: &Opening) -> Result<(), SetupError> {
        files::replace(&self.link_file, format!("{}\n", opening.link).as_bytes()).map_err(
            |source| SetupError::Link {
                path: self.link_file.clone(),
                source,
            },
        )
    }

    /// Tells whoever started the controller. The link itself is not said: a log is read by others and kept,
    /// and the command line of a process is shown to everybody on its machine. `own_ca`: https is certified by
    /// the installation's own CA.
    pub fn say(&self, own_ca: bool) {
        let line = self.line(own_ca);
        eprintln!("first admin (one use, 15 min), on this machine: {line}");
    }

    fn line(&self, own_ca: bool) -> String {
        line(&self.link_file, own_ca)
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
                let is_good = kept.is_some_and(|(hash, until_us, whom)| {
                    let is_open = whom == For::Another || !has_admin;
                    hash == presented && now_us < until_us && is_open
                });
                let claimed = is_good && tx.take_meta(META_KEY)? && tx.insert_api_token(&insert)?;
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
                "ask that admin for a token; are all tokens lost: as root on the controller's machine \
                 `fairlead-controller new-admin` writes a new link. Did the link just now make somebody an \
                 admin who is none of you: stop the controller, move its data directory away, install anew",
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

/// Whom a secret lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// The first admin, while there is none.
    First,
    /// One more.
    Another,
}

impl Opening {
    fn new(base_url: &str, now_us: i64) -> Self {
        let secret = CommandId::from_bytes(random::bytes()).to_string();
        Self {
            link: format!("{}/setup/{secret}", base_url.trim_end_matches('/')),
            secret,
            until_us: now_us + WINDOW_US,
        }
    }

    /// What the store keeps of it: hash of the secret, end of the window, and one byte more when it is
    /// for another admin.
    fn kept(&self, whom: For) -> Vec<u8> {
        let hash = sha256(self.secret.as_bytes());
        let another: &[u8] = if whom == For::Another { &[1] } else { &[] };
        [&hash[..], &self.until_us.to_be_bytes()[..], another].concat()
    }
}

fn decode(kept: &[u8]) -> Option<([u8; 32], i64, For)> {
    let (hash, rest) = kept.split_first_chunk::<32>()?;
    let (until, rest) = rest.split_first_chunk::<8>()?;
    let whom = match rest {
        [] => For::First,
        [1] => For::Another,
        _ => return None,
    };
    Some((*hash, i64::from_be_bytes(*until), whom))
}

/// What a person types who may read the link.
fn line(link_file: &Path, own_ca: bool) -> String {
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
    let mut line = format!("fairlead login --setup-link {}", quoted(link_file));
    if own_ca {
        let ca = link_file.with_file_name("ca.pem");
        line.push_str(&format!(" --ca {}", quoted(&ca)));
    }
    line
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    pub(super) fn world() -> (tempfile::TempDir, Clock, Arc<Setup>) {
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
            late.message.contains("has an admin already") && late.hint.contains("new-admin"),
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
