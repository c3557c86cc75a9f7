//! Acceptance: what comes over the link is verified, recognised if it has come before, and given its
//! place; or withdrawn before it begins.

use std::sync::Arc;

use fairlead_identity::signing::SignatureError;
use fairlead_protocol::command::Lane;
use fairlead_protocol::{
    CancelRefused, Command, CommandId, CommandResult, Message, SignedCommand, Stage, State, codes,
    limits, link_up,
};
use tokio::sync::oneshot;

use super::{ACCEPTED_MAX, Executor, Live, WITHDRAWN_EARLY_MAX, manner};
use crate::executor::job::has_effect;
use crate::executor::outcome::Outcome;
use crate::executor::surroundings::News;
use crate::executor::{stamp, unix};
use crate::journal::Phase;

impl Executor {
    pub(super) fn deliver(&mut self, signed: SignedCommand, epoch: u64) {
        if self.takes(&signed, epoch) {
            let now_us = self.parts.time.now_us();
            self.deliver_that_came(signed, now_us);
        }
    }

    /// Takes a command that came at that time.
    pub(in crate::executor) fn deliver_that_came(&mut self, signed: SignedCommand, at_us: i64) {
        let now_us = self.parts.time.now_us();
        let received = stamp(Stage::DeliveredToHost, at_us);
        let command = match self.parts.verifier.verify(&signed, unix(now_us)) {
            Ok(command) => command,
            Err(error) => return self.reject(&signed, &error),
        };
        let Ok(id) = CommandId::from_wire(&command.id) else {
            return self.reject(&signed, &SignatureError::Unreadable);
        };
        if let Some(ahead_s) = self.ahead(command.issued_at_us, now_us) {
            if !self.repeated(id) {
                tracing::error!(command = %id, ahead_s, "a command comes from ahead of our time; clocks differ");
                let message = format!(
                    "the controller's clock is {ahead_s} s ahead of those of this host and its region: set the \
                     clocks and ask again; nothing was done"
                );
                self.answer_unaccepted(id, Outcome::failed(codes::CLOCK_SKEW, message));
            }
            return;
        }
        if self.parts.time.at_least(command.issued_at_us) {
            (self.parts.floor)(command.issued_at_us);
        }
        if self.repeated(id) {
            return;
        }
        let Some(kind) = command.kind.clone() else {
            let outcome = Outcome::failed(codes::UNSUPPORTED, "this agent does not know that kind");
            return self.answer_unaccepted(id, outcome);
        };
        if self.lanes.len() >= ACCEPTED_MAX {
            let message = format!("{ACCEPTED_MAX} commands wait on this host already");
            return self.answer_unaccepted(id, Outcome::failed(codes::HOST_BUSY, message));
        }
        // The way out of it.
        let upgrades = matches!(kind, super::Kind::UpgradeAgent(_));
        if self.parts.safe && has_effect(&kind) && !upgrades {
            let message = "no version of the agent could be kept running on this host, so it changes \
                           nothing: install one that works (fairlead-agent upgrade, or install.sh)";
            return self.answer_unaccepted(id, Outcome::failed(codes::SAFE_MODE, message));
        }
        let lane = self.resolve(kind.lane());
        self.lanes.accept(id, lane.clone(), manner(&kind));
        let stream = (command.attach && kind.streams()).then(|| {
            let (slot, stream) = oneshot::channel();
            self.stream_slots.insert(id, slot);
            stream
        });
        let verified = stamp(Stage::Verified, self.parts.time.now_us());
        let live = Live {
            command,
            signed,
            stamps: vec![received, verified],
            lane,
            stream,
            unsettled: None,
            waiting_for: String::new(),
            begun: !has_effect(&kind),
            turn: Arc::default(),
        };
        self.live.insert(id, live);
        if let Some(by) = self.withdrawn_early.remove(&id) {
            let message = format!("withdrawn by {by}");
            let outcome = Outcome::ended(State::Cancelled, codes::WITHDRAWN, message);
            return self.end_before_it_began(id, outcome);
        }
        let early = std::mem::take(&mut self.early_streams);
        let (its_own, others): (Vec<_>, _) = early
            .into_iter()
            .partition(|(open, _)| open.command == id.to_wire());
        self.early_streams = others;
        for (open, _) in its_own {
            self.open_stream(open);
        }
    }

    /// How many seconds a command's time lies ahead of both the servers' time and our own clock, where that is
    /// too much. Its time would be our floor from then on, so that for as long no other command could begin.
    /// Where our own clock agrees with it, it is the region's that is behind.
    fn ahead(&self, issued_at_us: i64, now_us: i64) -> Option<i64> {
        let latest = now_us.max(self.parts.clock.now_us());
        let ahead_us = issued_at_us.saturating_sub(latest);
        (ahead_us > limits::CLOCKS_APART_MAX.as_micros() as i64).then_some(ahead_us / 1_000_000)
    }

    /// A container may be named by a prefix of its id; its lane is named by its name.
    pub(super) fn resolve(&self, lane: Lane) -> Lane {
        match lane {
            Lane::Container(text) => Lane::Container(self.parts.picture.name_of(&text)),
            other => other,
        }
    }

    /// Whether the id is known already; then what is known is said again.
    pub(super) fn repeated(&mut self, id: CommandId) -> bool {
        if let Some(Phase::Done { result, .. }) = self
            .parts
            .journal
            .entry(id)
            .map(|entry| entry.phase.clone())
        {
            self.send_result(&result);
            return true;
        }
        if let Some(result) = self.fleeting.get(id).cloned() {
            self.send_result(&result);
            return true;
        }
        if self.is_elsewhere(id) {
            // Who has it says how it is.
            return true;
        }
        if self.live.contains_key(&id) {
            self.send_progress(id, Some(stamp(Stage::Resent, self.parts.time.now_us())));
            return true;
        }
        false
    }

    /// Not from the installation's key, or not for this host: nothing is recorded under its id, so
    /// that the true command can still come.
    pub(super) fn reject(&mut self, signed: &SignedCommand, error: &SignatureError) {
        tracing::error!(%error, "a command was refused: somebody between us and the controller alters commands, or a key is unknown here");
        self.parts.owner_log.refused(&error.to_string());
        let claimed = Command::decode(&signed.command[..])
            .ok()
            .and_then(|command| CommandId::from_wire(&command.id).ok());
        if let Some(id) = claimed {
            let outcome = Outcome::failed(codes::SIGNATURE_REJECTED, error.to_string());
            self.transmit(&self.result_of(id, outcome));
        }
    }

    pub(super) fn answer_unaccepted(&mut self, id: CommandId, outcome: Outcome) {
        let result = self.result_of(id, outcome);
        self.fleeting.insert(id, result.clone());
        self.send_result(&result);
    }

    pub(super) fn result_of(&self, id: CommandId, outcome: Outcome) -> CommandResult {
        CommandResult {
            command: id.to_wire(),
            state: outcome.state.into(),
            code: outcome.code.to_owned(),
            message: outcome.message,
            ..CommandResult::default()
        }
    }

    pub(super) fn cancel(&mut self, id: CommandId, by: &str) {
        if !self.repeated(id) && !self.live.contains_key(&id) {
            // It has not come yet; when it does, it must not begin.
            if self.withdrawn_early.len() >= WITHDRAWN_EARLY_MAX {
                self.withdrawn_early.clear();
            }
            self.withdrawn_early.insert(id, by.to_owned());
            return;
        }
        if !self.lanes.holds(id) {
            return;
        }
        if self.lanes.is_running(id) {
            // It may have its lane and wait for the engine or the disk: its job looks at this.
            if !self
                .live
                .get(&id)
                .is_some_and(|live| live.turn.withdraw(by))
            {
                self.refuse_cancel(id);
            }
            return;
        }
        let outcome = Outcome::ended(
            State::Cancelled,
            codes::WITHDRAWN,
            format!("withdrawn by {by}"),
        );
        self.end_before_it_began(id, outcome);
    }

    pub(super) fn refuse_cancel(&mut self, id: CommandId) {
        let refused = CancelRefused {
            command: id.to_wire(),
            reason: "it has begun and cannot be withdrawn any more".to_owned(),
        };
        self.send(link_up::Kind::CancelRefused(refused));
    }

    /// Ends a command that waits for its lane. Its id must be remembered with that end before anybody
    /// hears of it, else a second delivery would carry it out after all.
    pub(super) fn end_before_it_began(&mut self, id: CommandId, outcome: Outcome) {
        self.lanes.finish(id);
        self.stream_slots.remove(&id);
        let Some(live) = self.live.get(&id) else {
            return;
        };
        let mut result = self.result_of(id, outcome);
        result.stamps.clone_from(&live.stamps);
        let not_after_us = live.command.not_after_us;
        let around = Arc::clone(&self.around);
        // Its owner is the entry in `live`: it always ends with `News::Ended`.
        tokio::spawn(async move {
            if let Err(error) = around
                .appender
                .result(id, result.clone(), not_after_us)
                .await
            {
                tracing::warn!(command = %id, %error, "the end of a command that never began is not on disk");
            }
            let _ = around.news.send(News::Ended { id, result }).await;
        });
    }
}
