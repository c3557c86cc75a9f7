//! The file in which a server keeps its terminals over its own orderly restart: written once, read once by the next
//! process. What is not there any more the hosts end by themselves.

use std::io;
use std::path::{Path, PathBuf};

use fairlead_daemon::files;
use fairlead_protocol::{FrozenTerminals, Message};

/// The file, in the data directory.
const FILE: &str = "terminals.frozen";
/// It is never larger.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// Where it is kept.
#[derive(Debug, Clone)]
pub struct Frozen(PathBuf);

impl Frozen {
    /// In that data directory.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self(data_dir.join(FILE))
    }

    /// Keeps what goes on in the next process.
    pub async fn keep(&self, left: FrozenTerminals) {
        let (path, count) = (self.0.clone(), left.terminals.len());
        let written = move || files::replace(&path, &left.encode_to_vec());
        match tokio::task::spawn_blocking(written).await {
            Ok(Ok(())) => tracing::info!(count, "terminals go on in the next process"),
            Ok(Err(error)) => {
                tracing::error!(count, %error, "terminals cannot be kept over the restart, and end");
            }
            Err(error) => tracing::error!(count, %error, "terminals were not kept"),
        }
    }

    /// What the process before has kept, once: it is no good for another process after this one.
    pub async fn take(&self) -> Option<FrozenTerminals> {
        let path = self.0.clone();
        let taken = tokio::task::spawn_blocking(move || take(&path)).await;
        taken
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .unwrap_or_else(|error| {
                tracing::error!(%error, "terminals of the process before cannot be read, and end");
                None
            })
    }
}

fn take(path: &Path) -> io::Result<Option<FrozenTerminals>> {
    let content = files::take(path, FILE_BYTES_MAX)?;
    let frozen = content.map(|content| FrozenTerminals::decode(&content[..]));
    frozen.transpose().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_taken_once_and_what_is_garbled_never_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(take(&path).unwrap().is_none());
        let kept = FrozenTerminals {
            at_us: 7,
            ..FrozenTerminals::default()
        };
        files::replace(&path, &kept.encode_to_vec()).unwrap();
        assert_eq!(take(&path).unwrap(), Some(kept));
        assert!(take(&path).unwrap().is_none());
        std::fs::write(&path, b"\xff\xff").unwrap();
        assert!(take(&path).is_err());
        assert!(take(&path).unwrap().is_none());
    }
}
