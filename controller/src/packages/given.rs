//! Packages as access servers get them for their regions, and versions as commands name them: by the manifest's
//! hash. Reads below the packages' folder only.

use std::path::PathBuf;
use std::sync::Arc;

use fairlead_identity::digest::sha256;
use fairlead_identity::package::{
    MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, SIGNATURES_MAX, SIGNATURES_NAME,
};
use fairlead_link::package::{self, Wanted};
use fairlead_link::socket::StreamSocket;
use fairlead_protocol::codes;

use super::{Packages, is_name};

impl Packages {
    /// The manifest of a version that is here, with its hash.
    #[must_use]
    pub fn manifest(&self, version: &str) -> Option<(Manifest, [u8; 32])> {
        if !is_name(version) {
            return None;
        }
        let path = self.dir.join(version).join(MANIFEST_NAME);
        let about = std::fs::metadata(&path).ok()?;
        if about.len() > MANIFEST_BYTES_MAX as u64 {
            return None;
        }
        let bytes = std::fs::read(&path).ok()?;
        let manifest = Manifest::parse(&bytes).ok()?;
        (manifest.version().to_string() == version).then(|| (manifest, sha256(&bytes)))
    }

    /// Ids of the keys that signed it, as it says.
    #[must_use]
    pub fn signers(&self, version: &str) -> Vec<String> {
        let path = self.dir.join(version).join(SIGNATURES_NAME);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let ids = text.lines().filter_map(|line| line.split_once(' '));
        ids.map(|(id, _)| id.to_owned())
            .filter(|id| is_name(id))
            .take(SIGNATURES_MAX)
            .collect()
    }

    fn file_of(&self, wanted: &Wanted) -> Option<PathBuf> {
        if !is_name(&wanted.file) {
            return None;
        }
        let version = self.versions().into_iter().find(|version| {
            let found = self.manifest(version);
            found.is_some_and(|(_, hash)| hash == wanted.manifest)
        })?;
        let path = self.dir.join(version).join(&wanted.file);
        path.is_file().then_some(path)
    }

    /// Gives an access server the file that it asks for.
    pub async fn give(self: Arc<Self>, mut socket: StreamSocket, region: &str) {
        let Some(wanted) = package::asked(&mut socket).await else {
            return;
        };
        let Ok(_place) = Arc::clone(&self.places).try_acquire_owned() else {
            let message = "too many downloads at once";
            return package::refuse(&mut socket, codes::BUSY, message).await;
        };
        let (offset, file) = (wanted.offset, wanted.file.clone());
        let packages = Arc::clone(&self);
        let found = tokio::task::spawn_blocking(move || packages.file_of(&wanted));
        let Ok(Some(path)) = found.await else {
            let message = "the controller has no package of that hash with such a file";
            return package::refuse(&mut socket, codes::PACKAGE_NOT_FOUND, message).await;
        };
        let opened = async {
            let file = tokio::fs::File::open(&path).await?;
            let size = file.metadata().await?.len();
            Ok::<_, std::io::Error>((file, size))
        };
        match opened.await {
            Ok((open, size)) => {
                if let Err(error) = package::give(&mut socket, open, size, offset).await {
                    tracing::debug!(region, file, %error, "a region left while it fetched a package");
                }
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a package cannot be read");
                let message = "the controller cannot read the package now";
                package::refuse(&mut socket, codes::PACKAGE_UNAVAILABLE, message).await;
            }
        }
    }
}
