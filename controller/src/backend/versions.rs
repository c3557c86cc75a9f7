//! Versions of the agent that hosts can be upgraded to: what is here, and what is pushed.

use std::collections::HashMap;
use std::io;

use bytes::Bytes;
use fairlead_api::types::{AgentVersion, Permission, PushedFile, time};
use fairlead_api::{ApiError, Caller};
use fairlead_identity::digest::hex;
use fairlead_identity::package::{Manifest, Version};
use futures_util::stream::BoxStream;

use super::access::out_of_scope;
use super::{ControllerBackend, Note};
use crate::packages::pushed::PushError;

/// What the programs of agents are called, before their target.
const PROGRAM_PREFIX: &str = "fairlead-agent-";

impl ControllerBackend {
    pub(super) async fn list_versions(
        &self,
        caller: &Caller,
    ) -> Result<Vec<AgentVersion>, ApiError> {
        let mut running: HashMap<String, u64> = HashMap::new();
        for row in self.visible_hosts(caller).await? {
            if let Some(facts) = self.parts.fleet.host(&row).facts {
                *running.entry(facts.agent_version).or_default() += 1;
            }
        }
        let packages = std::sync::Arc::clone(&self.parts.packages);
        let found = tokio::task::spawn_blocking(move || {
            let names = packages.versions().into_iter();
            names
                .filter_map(|name| {
                    let (manifest, hash) = packages.manifest(&name)?;
                    Some((manifest, hash, packages.signers(&name)))
                })
                .collect::<Vec<_>>()
        });
        let mut found = found.await.unwrap_or_default();
        found.sort_by(|(a, ..), (b, ..)| b.version().cmp(a.version()));
        let shown = found.into_iter().map(|(manifest, hash, signed_by)| {
            let version = manifest.version().to_string();
            AgentVersion {
                targets: targets(&manifest),
                signed_by,
                released_at: time(manifest.released().seconds().saturating_mul(1_000_000)),
                expires_at: time(manifest.expires().seconds().saturating_mul(1_000_000)),
                min_from: manifest.min_from().to_string(),
                manifest: hex(&hash),
                hosts: running.get(&version).copied().unwrap_or_default(),
                version,
            }
        });
        Ok(shown.collect())
    }

    pub(super) async fn take_version(
        &self,
        caller: &Caller,
        version: &str,
        file: &str,
        body: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<PushedFile, ApiError> {
        caller.require(Permission::Admin)?;
        if !caller.sees_everything() {
            return Err(out_of_scope("what all hosts run"));
        }
        let packages = &self.parts.packages;
        let taken = packages
            .take(&self.parts.trusted, version, file, body)
            .await;
        let pushed = taken.map_err(|error| {
            let refused = ApiError::new(error.code(), error.to_string());
            match error {
                PushError::NoKeys => refused.hint(
                    "start the controller with --trust KEYID:BASE64 (FAIRLEAD_PACKAGE_KEYS), the key that \
                     signs your packages",
                ),
                PushError::Disk(_) => refused
                    .hint("make room on the disk of the controller's data directory"),
                PushError::TooMany => refused.retry_after(30),
                _ => refused,
            }
        })?;
        if pushed.listed {
            let version: String = version
                .parse::<Version>()
                .map_or_else(|_| version.to_owned(), |version| version.to_string());
            let note = Note::ok("agent.push", format!("version {version}"));
            self.audited(caller, note).await?;
        }
        Ok(PushedFile {
            listed: pushed.listed,
            wanted: pushed.wanted,
        })
    }
}

fn targets(manifest: &Manifest) -> Vec<String> {
    let names = manifest.files().iter();
    names
        .filter_map(|file| file.name.strip_prefix(PROGRAM_PREFIX))
        .map(str::to_owned)
        .collect()
}
