//! Moves rollouts on, every second: what `rollouts::decide` says is kept, then asked for.

use std::collections::HashMap;
use std::time::Duration;

use fairlead_api::ApiError;
use fairlead_identity::digest::{sha256, unhex32};
use fairlead_protocol::command::Kind;
use fairlead_protocol::{CommandId, HostId, State, UpgradeAgent, codes};
use fairlead_store::StoreError;
use fairlead_store::audit::AuditEntry;
use fairlead_store::commands::CommandRow;
use fairlead_store::rollouts::RolloutRow;

use super::{SECOND_US, command_id, read, written};
use crate::backend::dispatch::NewCommand;
use crate::backend::{ControllerBackend, cut};
use crate::rollouts::decide::{Answer, Member, Phase, Rollout, Step, View};

/// A host that has not begun within this is asked again when it is there.
const DEADLINE: Duration = Duration::from_secs(10 * 60);
/// Rollouts that have ended are forgotten after this.
const KEPT_US: i64 = 90 * 24 * 3600 * SECOND_US;

impl ControllerBackend {
    /// Moves all rollouts on.
    ///
    /// # Errors
    /// When the store cannot be read or written; the next round goes on.
    pub async fn drive_rollouts(&self) -> Result<(), StoreError> {
        let store = &self.parts.store;
        if store.look(|tx| tx.rollouts(true, 1))?.is_empty() {
            return Ok(());
        }
        let _one = self.steering.lock().await;
        for row in store.look(|tx| tx.rollouts(true, u32::MAX))? {
            self.drive(row).await?;
        }
        Ok(())
    }

    async fn drive(&self, mut row: RolloutRow) -> Result<(), StoreError> {
        let Ok(mut rollout) = read(&row) else {
            tracing::error!(rollout = row.id, "a rollout cannot be read; it is closed");
            row.open = false;
            return self.parts.store.write(move |tx| tx.set_rollout(&row)).await;
        };
        let now_us = self.now_us();
        let before = rollout.clone();
        let good = self.parts.store.look(|tx| tx.api_token(&row.token_id))?;
        let good = good.is_some_and(|token| token.is_good(now_us));
        if !good && rollout.pause(now_us) {
            rollout.phase = Phase::Halted {
                why: "the API token that asked for it has ended".to_owned(),
            };
        }
        let views = self.views(&row.id, &rollout).await?;
        let asked = rollout.tick(now_us, |member| {
            views.get(&member.host).cloned().unwrap_or_default()
        });
        self.keep(&mut row, &before, &rollout).await?;
        let before = rollout.clone();
        for index in asked {
            if let Err(error) = self.ask(&row, &rollout, index).await {
                let passes = [codes::STORAGE_UNAVAILABLE, codes::BUSY, codes::INTERNAL];
                if passes.contains(&error.code) {
                    tracing::warn!(rollout = row.id, %error, "a host is asked again later");
                } else {
                    rollout.refused(now_us, index, error.message);
                }
            }
        }
        self.keep(&mut row, &before, &rollout).await
    }

    async fn keep(
        &self,
        row: &mut RolloutRow,
        before: &Rollout,
        rollout: &Rollout,
    ) -> Result<(), StoreError> {
        if before == rollout {
            return Ok(());
        }
        if before.phase != rollout.phase {
            let state = rollout.phase.name();
            tracing::info!(
                rollout = row.id,
                version = rollout.version,
                state,
                "a rollout moved on"
            );
        }
        row.open = !rollout.phase.is_final();
        let Ok(payload) = written(rollout) else {
            return Ok(());
        };
        row.payload = payload;
        let (kept, forget_us) = (row.clone(), self.now_us() - KEPT_US);
        let store = &self.parts.store;
        store
            .write(move |tx| {
                tx.set_rollout(&kept)?;
                tx.forget_rollouts(forget_us)
            })
            .await
    }

    /// What is known of the hosts that are not through with it. There may be thousands: they are read beside the runtime.
    async fn views(
        &self,
        id: &str,
        rollout: &Rollout,
    ) -> Result<HashMap<String, View>, StoreError> {
        let looked_at = |member: &&Member| !matches!(member.step, Step::Failed | Step::Missed);
        let members = rollout.members.iter().filter(looked_at);
        let wanted: Vec<(HostId, Option<CommandId>)> = members
            .filter_map(|member| {
                let command = (member.attempt != 0).then(|| command_id(id, member));
                Some((member.host.parse().ok()?, command))
            })
            .collect();
        let rows = self.parts.store.read(move |tx| {
            let rows = wanted.into_iter().map(|(host, command)| {
                let command = command.map(|command| tx.command(command));
                Ok((tx.host(host)?, command.transpose()?.flatten()))
            });
            rows.collect::<Result<Vec<_>, StoreError>>()
        });
        let mut views = HashMap::new();
        for (row, command) in rows.await? {
            let Some(row) = row.filter(|row| row.revoked_us == 0) else {
                continue;
            };
            let Some(host) = row.id else { continue };
            let (state, since_us, _) = self.parts.fleet.host_state(&row);
            let versions = self.parts.fleet.versions(&row).unwrap_or_default();
            let view = View {
                exists: true,
                online: state == "online",
                // Before this process began nobody was heard of.
                since_us: since_us.max(self.began_us),
                version: versions.started,
                returned: versions.last_return.map(|last| (last.from, last.why)),
                command: command.as_ref().map(answer),
            };
            views.insert(host.to_string(), view);
        }
        Ok(views)
    }

    async fn ask(&self, row: &RolloutRow, rollout: &Rollout, index: usize) -> Result<(), ApiError> {
        let gone = || ApiError::new(codes::HOST_NOT_FOUND, "it is no host any more");
        let member = rollout.members.get(index).ok_or_else(gone)?;
        let id: HostId = member.host.parse().map_err(|_| gone())?;
        let host = self.look(|tx| tx.host(id))?.ok_or_else(gone)?;
        let manifest = unhex32(&rollout.manifest).unwrap_or_default();
        let now_us = self.now_us();
        let kind = Kind::UpgradeAgent(UpgradeAgent {
            version: rollout.version.clone(),
            manifest: manifest.to_vec().into(),
            allow_older: rollout.allow_older,
        });
        let command = command_id(&row.id, member);
        let audit = AuditEntry {
            at_us: now_us,
            tenant: row.tenant.clone(),
            actor: cut(&row.asked_by),
            source: String::new(),
            action: format!("command.{}", kind.name()),
            object: cut(&format!("{}/{}", host.name, rollout.version)),
            outcome: "ok".to_owned(),
            detail: format!("command {command}; rollout {}", row.id),
        };
        let new = NewCommand {
            id: command,
            audit,
            host,
            kind,
            issuer: row.asked_by.clone(),
            token_id: row.token_id.clone(),
            deadline: DEADLINE,
            timeout_ms: 0,
            precondition: None,
            attach: false,
            request_hash: sha256(format!("rollout {}", row.id).as_bytes()),
            accepted_us: now_us,
        };
        self.parts.dispatch.submit(new).await.map(|_| ())
    }
}

/// What a command's row says of an asking.
fn answer(row: &CommandRow) -> Answer {
    match row.state {
        State::Succeeded => Answer::Done(row.finished_us),
        State::Expired => Answer::Late,
        state if state.is_final() => {
            let code = if row.code.is_empty() {
                state.name()
            } else {
                &row.code
            };
            Answer::Failed(format!("{} ({code})", row.message))
        }
        _ => Answer::Open,
    }
}
