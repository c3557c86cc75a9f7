//! What an agent says, message by message: all of it about its own host only, whatever it claims.

use std::sync::Arc;

use bytes::BytesMut;
use fairlead_protocol::{
    CancelRefused, CommandId, CommandResult, EventAck, HostId, HostInventory, HostMetrics,
    HostPresence, LinkDown, LinkUp, Message, Numbered, Own, ProbeAnswer, Progress, Proven,
    RegionResult, ResultAck, ResultPart, Stage, Stamp, State, StreamId, StreamRefused, Unsupported,
    codes, events, limits, link_down, link_up, numbered, uplink_up,
};
use fairlead_store::commands::CommandRow;
use fairlead_store::exchange::CENTRE;
use fairlead_store::{Enqueued, StoreError, Tx};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::presence;
use super::allowance::{EVENT, RESULT};
use super::{Agent, Link};
use crate::doors;
use crate::region::Region;
use crate::router::ToHost;

/// Bodies of results that are being received on one link, together.
const BODIES_BYTES_MAX: usize = 2 * limits::RESULT_BODY_BYTES_MAX;
/// Results whose parts are being received on one link; an honest agent sends one after the other.
const BODIES_MAX: usize = 64;
/// Entries of any list in a message. An id alone has 64 characters, so no more of them fit.
const LIST_MAX: usize = 256;
/// Results with more of a body take the ordinary way only.
const BODY_AHEAD_BYTES_MAX: usize = 4096;
/// Whether it holds a list that is far longer than any that makes sense: an entry of nothing costs its
/// sender two bytes, and whoever keeps it some hundred.
fn is_swollen(kind: &link_up::Kind) -> bool {
    use link_up::Kind as K;
    let length = match kind {
        K::Inventory(part) => part.upserts.len().max(part.removed.len()),
        K::Metrics(part) => part.containers.len(),
        K::Progress(progress) => progress.stamps.len(),
        K::Result(result) => result.stamps.len(),
        _ => 0,
    };
    length > LIST_MAX
}

impl Link {
    pub(super) async fn on_message(
        &mut self,
        socket: &mut Agent,
        message: LinkUp,
    ) -> Result<(), String> {
        if !self.region.registry.knows(self.host, self.connection) {
            return Err("a newer connection of this host took over".to_owned());
        }
        let owns = self.region.registry.holds(self.host, self.connection);
        use link_up::Kind as K;
        if message.kind.as_ref().is_some_and(is_swollen) {
            return Err("a list longer than a message may have".to_owned());
        }
        let host = self.host.to_wire();
        match message.kind {
            Some(K::Progress(progress)) => self.progress(progress),
            Some(K::ResultPart(part)) => return self.result_part(&part),
            Some(K::Result(result)) => return self.result(result).await,
            // Pictures are the owner's to send; one that was on the way at a hand-over is of no use.
            Some(K::Inventory(_) | K::Metrics(_)) if !owns => {}
            Some(K::Inventory(part)) => {
                if !self.region.fleet.inventory(self.host, &part) {
                    return Err("more containers than a host may have".to_owned());
                }
                let inventory = HostInventory {
                    host,
                    part: Some(part),
                };
                self.region.tell(uplink_up::Kind::Inventory(inventory));
            }
            Some(K::Metrics(part)) => {
                self.region.fleet.metrics(self.host, &part);
                self.region.tell(uplink_up::Kind::Metrics(HostMetrics {
                    host,
                    part: Some(part),
                }));
            }
            Some(K::Event(event)) if events::is_servers(&event.action) => {
                // Held, online, enrolled: what servers say of a host is no host's to say.
                return Err(format!(
                    "an event that only servers report: {}",
                    event.action
                ));
            }
            Some(K::Event(event)) => {
                if !self.may_cost_disk(EVENT, event.encoded_len()) {
                    // Without an acknowledgement the agent keeps it and says it again.
                    return Ok(());
                }
                let seq = event.seq;
                let recording = self.region.enqueue_event(self.host, event).await;
                let recording = recording.map_err(|error| error.to_string())?;
                self.acknowledge(recording, move |()| {
                    Some(link_down::Kind::EventAck(EventAck { seq }))
                });
            }
            Some(K::Renew(_)) if !self.allowance.may_renew(Instant::now()) => {
                return Err("renewals without end".to_owned());
            }
            Some(K::Renew(request)) => {
                let kind = match doors::renewed(&self.region, self.host, &request).await {
                    Ok(reply) => link_down::Kind::Renewed(reply),
                    Err((code, message)) => {
                        return Err(format!("renewal refused: {message} ({code})"));
                    }
                };
                return answer(socket, kind).await;
            }
            Some(K::ChallengeAnswer(said)) => {
                let asked = self.challenges.iter();
                if let Some(at) = asked.map(|(nonce, _)| nonce).position(|n| *n == said.nonce) {
                    let (_, answered) = self.challenges.swap_remove(at);
                    let _ = answered.send(());
                }
            }
            Some(K::ProbeAnswer(answer)) => return self.probe_answered(socket, &answer).await,
            Some(K::Own(own)) => return self.own(socket, own).await,
            Some(K::Versions(versions)) => {
                if self.region.registry.holds(self.host, self.connection) {
                    self.region.note_versions(self.host, versions);
                }
            }
            Some(K::StreamRefused(refused)) => self.stream_refused(refused),
            Some(K::CancelRefused(refused)) => self.cancel_refused(&refused),
            Some(K::Unsupported(unsupported)) => {
                tracing::warn!(host = %self.host, kind = unsupported.kind, "agent lacks a kind");
            }
            Some(K::Hello(_) | K::Enrol(_) | K::Leave(_) | K::Clone(_)) => {
                return Err("a greeting out of turn".to_owned());
            }
            None => {
                return answer(socket, link_down::Kind::Unsupported(Unsupported::default())).await;
            }
        }
        Ok(())
    }

    async fn probe_answered(
        &mut self,
        socket: &mut Agent,
        said: &ProbeAnswer,
    ) -> Result<(), String> {
        if self.probe.take_if(|nonce| *nonce == said.nonce).is_none() {
            return Ok(());
        }
        if said.error.is_empty() {
            return answer(socket, link_down::Kind::Proven(Proven {})).await;
        }
        tracing::warn!(host = %self.host, error = said.error, "an instance beside cannot take over");
        Ok(())
    }

    /// The supervisor has made this instance the owner: all that has no final state comes here, in order,
    /// before anything that is asked for later.
    async fn own(&mut self, socket: &mut Agent, own: Own) -> Result<(), String> {
        let epoch = own.epoch;
        let (region, host) = (Arc::clone(&self.region), self.host);
        let known = region.ledger.look(|tx| tx.host(host));
        let known = known.map_err(|error| error.to_string())?;
        if known.is_some_and(|row| epoch < row.epoch) {
            return Err("it claims the host with an epoch that is over".to_owned());
        }
        let again = epoch == self.entry.epoch && region.registry.holds(host, self.connection);
        if again {
            // An instance beside it is gone, and with it what it was to say. Nothing was given to another.
            let sent = self.send_open_commands(socket).await;
            return sent.map_err(|error| error.to_string());
        }
        if !region.registry.own(host, self.connection, epoch) {
            tracing::warn!(%host, epoch, "an older grant of ownership was passed over");
            return Ok(());
        }
        tracing::info!(%host, epoch, connection = self.connection, "the host is owned by this link");
        self.entry.epoch = epoch;
        self.suspect_since_us = None;
        let now_us = region.clock.now_us();
        let facts = own.facts.unwrap_or_default();
        let kept = facts.encode_to_vec();
        let presence = HostPresence {
            // It was not away in between.
            since_us: region.fleet.online_since_us(host).unwrap_or(now_us),
            ..presence(
                host,
                epoch,
                self.entry.instance,
                Some(facts),
                socket,
                now_us,
            )
        };
        region.note_presence(host, presence);
        let open = open_behind_all(&region, host, move |tx| {
            tx.host_seen(host, now_us, epoch, &kept)
        });
        let open = open.await.map_err(|error| error.to_string())?;
        self.send_commands(socket, open)
            .await
            .map_err(|error| error.to_string())
    }

    /// Events and results cost disk here and at the centre, so a host that floods has to wait: without
    /// an acknowledgement it keeps them and says them again.
    fn may_cost_disk(&mut self, counts: u32, bytes: usize) -> bool {
        let may = self.allowance.may_record(counts, bytes, Instant::now());
        if !may {
            self.note_slowed();
        }
        may
    }

    fn progress(&self, progress: Progress) {
        let newest = self.region.under_way.progress(self.host, progress);
        self.region.tell(uplink_up::Kind::Progress(newest));
    }

    fn stream_refused(&self, refused: StreamRefused) {
        let asked = StreamId::from_wire(&refused.id)
            .is_ok_and(|id| self.region.streams.refused(id, self.host));
        if asked {
            self.region.tell(uplink_up::Kind::StreamRefused(refused));
        } else {
            tracing::warn!(host = %self.host, "refused a stream that it was not asked for");
        }
    }

    fn cancel_refused(&self, refused: &CancelRefused) {
        tracing::info!(host = %self.host, reason = refused.reason, "a command was not withdrawn");
    }

    fn result_part(&mut self, part: &ResultPart) -> Result<(), String> {
        let id = CommandId::from_wire(&part.command).map_err(|error| error.to_string())?;
        let held: usize = self.bodies.values().map(BytesMut::len).sum();
        let one_more = !self.bodies.contains_key(&id) && self.bodies.len() >= BODIES_MAX;
        if one_more || held + part.data.len() > BODIES_BYTES_MAX {
            return Err("more of results than a host may have under way".to_owned());
        }
        let body = self.bodies.entry(id).or_default();
        if part.offset == 0 {
            body.clear();
        }
        if body.len() != part.offset as usize {
            return Err("parts of a result out of order".to_owned());
        }
        body.extend_from_slice(&part.data);
        Ok(())
    }

    /// A final state: in the ledger and in the outbox, then acknowledged.
    async fn result(&mut self, mut result: CommandResult) -> Result<(), String> {
        let id = CommandId::from_wire(&result.command).map_err(|error| error.to_string())?;
        if !State::try_from(result.state).is_ok_and(State::is_final) {
            return Err("a result without a final state".to_owned());
        }
        if let Some(body) = self.bodies.remove(&id) {
            result.body = body.freeze();
        }
        if result.body.len() != result.body_length as usize {
            // Parts of it were dropped on the way: the agent sends it again.
            return Ok(());
        }
        if !self.may_cost_disk(RESULT, result.encoded_len()) {
            return Ok(());
        }
        let host = self.host;
        let stored_us = self.region.under_way.ended(id, host);
        let now_us = self.region.clock.now_us();
        self.send_ahead(id, &result, stored_us, now_us);
        let recording = self
            .region
            .ledger
            .enqueue(move |tx| record(tx, host, id, result, stored_us, now_us))
            .await
            .map_err(|error| error.to_string())?;
        let (connection, to_host) = (self.connection, self.entry.to_host.clone());
        self.acknowledge(recording, move |known| match known {
            Known::Recorded => {
                let ack = ResultAck {
                    command: id.to_wire(),
                    connection,
                };
                Some(link_down::Kind::ResultAck(ack))
            }
            Known::Another => {
                let message = "a result of another host's command".to_owned();
                let end = ToHost::End {
                    code: codes::PROTOCOL_VIOLATION,
                    message,
                };
                let _ = to_host.push(end);
                None
            }
        });
        Ok(())
    }

    /// Tells the centre at once, side by side with the ledger's sync. The original, with its number,
    /// follows from the outbox; the agent keeps the result until the ledger has it.
    fn send_ahead(
        &self,
        id: CommandId,
        result: &CommandResult,
        stored_us: Option<i64>,
        now_us: i64,
    ) {
        if result.body.len() > BODY_AHEAD_BYTES_MAX {
            return;
        }
        // A very fast one may be here before its command is committed; it takes the ordinary way.
        let Ok(Some(row)) = self.region.ledger.look(|tx| tx.command(id)) else {
            return;
        };
        if row.host != self.host || row.finished_us != 0 {
            return;
        }
        let mut result = result.clone();
        complete(&mut result, row.stamps, stored_us, now_us);
        let report = RegionResult {
            host: self.host.to_wire(),
            result: Some(result),
        };
        self.region.tell_if_room(uplink_up::Kind::Report(Numbered {
            seq: 0,
            kind: Some(numbered::Kind::Result(report)),
        }));
    }

    /// Answers once the ledger has synced, without holding the link up meanwhile. An answer that finds
    /// no room is no loss: the agent says it again.
    fn acknowledge<T: Send + 'static>(
        &self,
        recording: Enqueued<T>,
        answer: impl FnOnce(T) -> Option<link_down::Kind> + Send + 'static,
    ) {
        let (region, host) = (Arc::clone(&self.region), self.host);
        let to_host = self.entry.to_host.clone();
        // Ends with the sync.
        tokio::spawn(async move {
            match recording.outcome().await {
                Ok(recorded) => {
                    region.outbox_grew.notify_one();
                    if let Some(kind) = answer(recorded) {
                        let answer = Box::new(LinkDown { kind: Some(kind) });
                        let _ = to_host.push(ToHost::Send(answer));
                    }
                }
                Err(error) => {
                    tracing::error!(%host, %error, "the ledger did not take what an agent said");
                }
            }
        });
    }
}

fn record(
    tx: &Tx<'_>,
    host: HostId,
    id: CommandId,
    mut result: CommandResult,
    stored_us: Option<i64>,
    now_us: i64,
) -> Result<Known, StoreError> {
    let Some(row) = tx.command(id)? else {
        // The ledger was restored from before this command: the centre may know it.
        let report = RegionResult {
            host: host.to_wire(),
            result: Some(result),
        };
        tx.send_later(CENTRE, numbered::Kind::Result(report))?;
        return Ok(Known::Recorded);
    };
    if row.host != host {
        return Ok(Known::Another);
    }
    complete(&mut result, row.stamps, stored_us, now_us);
    if tx.finish_command(id, &result, now_us)? {
        let report = RegionResult {
            host: host.to_wire(),
            result: Some(result),
        };
        tx.send_later(CENTRE, numbered::Kind::Result(report))?;
    }
    Ok(Known::Recorded)
}

/// Puts the region's stations into the result's timeline.
fn complete(
    result: &mut CommandResult,
    before: Vec<Stamp>,
    stored_us: Option<i64>,
    received_us: i64,
) {
    let stored = stored_us.map(|at_us| Stamp::at(Stage::RegionStored, at_us));
    let reported = std::mem::take(&mut result.stamps);
    result.stamps = before.into_iter().chain(stored).chain(reported).collect();
    result
        .stamps
        .push(Stamp::at(Stage::RegionResultReceived, received_us));
}

/// All without a final state, as the writer sees it behind every write that was asked for before: what the link
/// before was given while its sync was under way is in it. Commands wait meanwhile, so no sync is waited for
/// unless it has to be.
async fn open_behind_all(
    region: &Region,
    host: HostId,
    note: impl FnOnce(&Tx<'_>) -> Result<(), StoreError> + Send + 'static,
) -> Result<Vec<CommandRow>, StoreError> {
    let (answer, open) = oneshot::channel();
    let written = region.ledger.enqueue(move |tx| {
        note(tx)?;
        let open = tx.open_commands(host)?;
        let queued = open.iter().filter(|row| row.state == State::Queued);
        let unsent: Vec<CommandId> = queued.map(|row| row.id).collect();
        for id in &unsent {
            tx.command_sent(*id)?;
        }
        // Nobody is left to hear it when the link has ended.
        let _ = answer.send((open, unsent.is_empty()));
        Ok(())
    });
    let written = written.await?;
    match open.await {
        Ok((open, true)) => Ok(open),
        // From here on only the agent knows what becomes of them: that has to be on disk first.
        Ok((open, false)) => written.outcome().await.map(|()| open),
        Err(_) => written.outcome().await.and(Err(StoreError::Closed)),
    }
}

enum Known {
    Recorded,
    Another,
}

async fn answer(socket: &mut Agent, kind: link_down::Kind) -> Result<(), String> {
    socket
        .send(&LinkDown { kind: Some(kind) })
        .await
        .map_err(|error| error.to_string())
}
