//! Another admin, when all tokens were lost (`fairlead-controller new-admin`): a file in the data directory,
//! which only the controller's user and root can make, asks the controller for a setup link. It looks for
//! the file while it runs and when it starts, so it need not be stopped.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fairlead_identity::digest::sha256;
use fairlead_store::DEFAULT_TENANT;
use fairlead_store::audit::AuditEntry;

use super::{For, LINK_FILE, META_KEY, Opening, Setup, SetupError, line};

/// Somebody on this machine asks for another admin.
const FILE: &str = "new-admin";
/// A controller that runs looks every two seconds.
const GRANTED_WITHIN: Duration = Duration::from_secs(10);

/// Why a wish was not granted.
#[derive(Debug, thiserror::Error)]
pub enum WishError {
    /// There is no installation.
    #[error("there is no installation in {0}: --data-dir names the controller's data directory")]
    None(PathBuf),
    /// It cannot be said there.
    #[error("cannot use {path}: {reason}; run this as root, or as the controller's user")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Nobody took it.
    #[error(
        "the controller of {0} does not run, or did not answer within {within} s: it writes the link when it \
         starts (systemctl start fairlead-controller)", within = GRANTED_WITHIN.as_secs()
    )]
    NotTaken(PathBuf),
}

/// Asks the controller whose data lies there for a link that makes another admin, and waits for it; the
/// line that uses it.
///
/// # Errors
/// When it cannot be asked, or no controller takes it; it does when it starts then.
pub fn wish(data_dir: &Path) -> Result<String, WishError> {
    match data_dir.join("controller.db").try_exists() {
        Ok(true) => {}
        Ok(false) => return Err(WishError::None(data_dir.to_owned())),
        Err(error) => {
            let (path, reason) = (data_dir.to_owned(), error.to_string());
            return Err(WishError::File { path, reason });
        }
    }
    let path = data_dir.join(FILE);
    // Never through a link that somebody has laid there.
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    if let Err(error) = made
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        let reason = error.to_string();
        return Err(WishError::File { path, reason });
    }
    let asked = Instant::now();
    while path.exists() {
        if asked.elapsed() > GRANTED_WITHIN {
            return Err(WishError::NotTaken(data_dir.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(line(&data_dir.join(LINK_FILE), true))
}

impl Setup {
    /// Opens the door for another admin, where somebody asked for that on this machine; whether one did.
    ///
    /// # Errors
    /// When store or link file cannot be written; the wish stays then.
    pub async fn look_for_wish(&self, base_url: &str) -> Result<bool, SetupError> {
        let wish = self.link_file.with_file_name(FILE);
        // Its owner is whoever asked: only the controller's user and root can make a file there.
        let Ok(about) = std::fs::symlink_metadata(&wish) else {
            return Ok(false);
        };
        let now_us = self.clock.now_us();
        let opening = Opening::new(base_url, now_us);
        let kept = opening.kept(For::Another);
        let entry = AuditEntry {
            at_us: now_us,
            tenant: DEFAULT_TENANT.to_owned(),
            actor: "setup".to_owned(),
            source: String::new(),
            action: "setup.open".to_owned(),
            object: "another admin".to_owned(),
            outcome: "ok".to_owned(),
            detail: format!(
                "asked for on the controller's machine by uid {}",
                about.uid()
            ),
        };
        self.store
            .write(move |tx| {
                tx.set_meta(META_KEY, &kept)?;
                tx.append_audit(&entry, sha256)
            })
            .await?;
        self.write_link(&opening)?;
        tracing::warn!(
            uid = about.uid(),
            "a setup link for another admin was asked for on this machine, and written"
        );
        // Last: whoever asked waits for this.
        std::fs::remove_file(&wish).map_err(|source| SetupError::Link { path: wish, source })?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ADMIN;
    use super::super::tests::world;
    use super::*;

    #[tokio::test]
    async fn another_admin_is_made_only_when_somebody_asks_on_the_machine() {
        let (dir, _clock, setup) = world();
        let first = setup.open("https://c").await.unwrap().unwrap();
        setup.claim(&first.secret, "me", "").await.unwrap();
        assert!(!setup.look_for_wish("https://c").await.unwrap());

        std::fs::write(dir.path().join("controller.db"), "").unwrap();
        let data = dir.path().to_owned();
        let asking = tokio::task::spawn_blocking(move || wish(&data));
        let granted = async {
            while !setup.look_for_wish("https://c").await.unwrap() {
                tokio::task::yield_now().await;
            }
        };
        granted.await;
        let said = asking.await.unwrap().unwrap();
        assert!(
            said.contains("--setup-link") && said.contains("--ca"),
            "{said}"
        );
        let link = std::fs::read_to_string(dir.path().join(LINK_FILE)).unwrap();
        let secret = link.trim().rsplit('/').next().unwrap();
        assert!(setup.claim(&first.secret, "me", "").await.is_err());
        let (_, row) = setup.claim(secret, "again", "").await.unwrap();
        assert_eq!(
            (&row.name[..], &row.permissions[..]),
            ("again", &[ADMIN.to_owned()][..])
        );
        // Once.
        let twice = setup.claim(secret, "again", "").await.err().unwrap();
        assert!(twice.hint.contains("new-admin"), "{}", twice.hint);
        assert!(!dir.path().join(LINK_FILE).exists());
        assert!(!setup.look_for_wish("https://c").await.unwrap());

        // And a restart ends what is open.
        std::fs::write(dir.path().join(FILE), "").unwrap();
        assert!(setup.look_for_wish("https://c").await.unwrap());
        assert!(setup.open("https://c").await.unwrap().is_none());
        assert!(!dir.path().join(LINK_FILE).exists());
        let actions = setup
            .store
            .read(|tx| {
                tx.audit(&fairlead_store::audit::AuditFilter {
                    tenant: DEFAULT_TENANT.to_owned(),
                    limit: 10,
                    ..Default::default()
                })
            })
            .await
            .unwrap();
        let opened: Vec<_> = actions
            .iter()
            .filter(|row| row.entry.action == "setup.open")
            .collect();
        assert_eq!(opened.len(), 2);
        assert!(opened[0].entry.detail.contains("by uid"));
    }

    #[test]
    fn without_an_installation_nobody_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(wish(dir.path()), Err(WishError::None(_))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
