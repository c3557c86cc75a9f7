//! One agent's link: hello, admission, then messages both ways until it ends.
//!
//! The loop writes to the ledger but never waits for the agent or the controller. Its arms by rank:
//! shutdown, what is to be sent, what is heard, the heartbeat. A broken or hostile agent loses its own
//! connection and costs nobody else anything: every message is bounded, every answer is about its own
//! host only.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_link::backoff::random_share;
use fairlead_link::socket::{Heard, Socket, SocketError};
use fairlead_protocol::{
    CancelRefused, Challenge, CommandId, CommandProgress, CommandResult, Deliver, EventAck, HostId,
    HostInventory, HostMetrics, HostPresence, LinkDown, LinkUp, Message, Progress, Reconnect,
    RegionResult, ResultAck, ResultPart, SignedCommand, Stage, Stamp, State, StreamRefused,
    Unsupported, codes, limits, link_down, link_up, numbered, uplink_up,
};
use fairlead_store::exchange::CENTRE;
use fairlead_store::{Enqueued, StoreError, Tx};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::doors;
use crate::region::{Region, unavailable};
use crate::registry::Entry;
use crate::router::ToHost;

mod admission;

type Agent = Socket<LinkDown, LinkUp>;

/// Bodies of results that are being received on one link, together.
const BODIES_BYTES_MAX: usize = 2 * limits::RESULT_BODY_BYTES_MAX;
/// Events that are recorded of one host within [`EVENTS_WINDOW`]; a restart makes six.
const EVENTS_PER_WINDOW_MAX: u32 = 1000;
/// See [`EVENTS_PER_WINDOW_MAX`].
const EVENTS_WINDOW: Duration = Duration::from_secs(10);
/// On shutdown, agents come back after this, spread over the second figure.
const DRAIN_AFTER_MS: u32 = 200;
/// See [`DRAIN_AFTER_MS`].
const DRAIN_SPREAD_MS: u32 = 2000;

/// Serves one agent from its hello to its end.
pub async fn run(
    mut socket: Agent,
    host: HostId,
    serial: String,
    region: Arc<Region>,
    shutdown: Shutdown,
) {
    let hello = match socket.hear_message(limits::HELLO_TIMEOUT).await {
        Ok(LinkUp {
            kind: Some(link_up::Kind::Hello(hello)),
        }) => hello,
        Ok(_) => {
            let message = "the first message must be hello".to_owned();
            return doors::refuse(&mut socket, (codes::PROTOCOL_VIOLATION, message), 0).await;
        }
        Err(error) => return tracing::debug!(%host, %error, "left before hello"),
    };
    let (link, queue) = match Link::admit(&mut socket, host, serial, hello, region).await {
        Ok(admitted) => admitted,
        Err((refusal, retry_after_ms)) => {
            tracing::warn!(%host, code = refusal.0, reason = refusal.1, "link refused");
            return doors::refuse(&mut socket, refusal, retry_after_ms).await;
        }
    };
    link.serve(socket, queue, shutdown).await;
}

struct Link {
    region: Arc<Region>,
    host: HostId,
    connection: u64,
    presence: HostPresence,
    interval: Duration,
    heard: Instant,
    beat_at: Instant,
    bodies: HashMap<CommandId, BytesMut>,
    challenge: Option<(u64, oneshot::Sender<()>)>,
    entry: Entry,
    events: u32,
    events_since: Instant,
}

impl Link {
    async fn serve(
        mut self,
        mut socket: Agent,
        mut queue: mpsc::Receiver<ToHost>,
        shutdown: Shutdown,
    ) {
        tracing::info!(host = %self.host, epoch = self.presence.epoch, "link up");
        self.region.note_presence(self.host, self.presence.clone());
        let region = Arc::clone(&self.region);
        region
            .record(
                self.host,
                "host.online",
                format!("epoch {}", self.presence.epoch),
            )
            .await;
        let reason = self.until_end(&mut socket, &mut queue, &shutdown).await;
        self.ended(&reason).await;
    }

    async fn until_end(
        &mut self,
        socket: &mut Agent,
        queue: &mut mpsc::Receiver<ToHost>,
        shutdown: &Shutdown,
    ) -> String {
        if let Err(error) = self.send_open_commands(socket).await {
            return error.to_string();
        }
        loop {
            let done = tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    let wish = Reconnect {
                        after_ms: DRAIN_AFTER_MS,
                        spread_ms: DRAIN_SPREAD_MS,
                        reason: "the access server is restarted".to_owned(),
                    };
                    let wish = LinkDown { kind: Some(link_down::Kind::Reconnect(wish)) };
                    let _ = socket.send(&wish).await;
                    socket.close().await;
                    return "the access server was shut down".to_owned();
                }
                Some(order) = queue.recv() => self.on_order(socket, order).await,
                heard = socket.hear() => match heard {
                    Ok(Heard::Life) => {
                        self.heard();
                        Ok(())
                    }
                    Ok(Heard::Message(message)) => {
                        self.heard();
                        self.on_message(socket, message).await
                    }
                    Err(error) => Err(error.to_string()),
                },
                () = tokio::time::sleep_until(self.beat_at) => self.beat(socket).await,
            };
            if let Err(reason) = done {
                return reason;
            }
            if self.entry.lagging.swap(false, Ordering::SeqCst)
                && let Err(error) = self.send_open_commands(socket).await
            {
                return error.to_string();
            }
        }
    }

    fn heard(&mut self) {
        self.heard = Instant::now();
        if self.presence.state != "online" {
            self.presence.state = "online".to_owned();
            self.presence.reason.clear();
            self.region.note_presence(self.host, self.presence.clone());
        }
    }

    /// The next beat comes whatever flows meanwhile: it also finds out that nothing is heard.
    fn beaten(&mut self) {
        let jitter = self.interval.mul_f64(random_share() * 0.2);
        self.beat_at = Instant::now() + self.interval - jitter;
    }

    /// Everything without a final state, in order: the agent knows what it has had before.
    async fn send_open_commands(&mut self, socket: &mut Agent) -> Result<(), SocketError> {
        let host = self.host;
        let open = match self
            .region
            .ledger
            .read(move |tx| tx.open_commands(Some(host)))
            .await
        {
            Ok(open) => open,
            Err(error) => {
                unavailable(&error);
                return Err(SocketError::Broken("the ledger cannot be read".to_owned()));
            }
        };
        // From here on only the agent knows what becomes of them: that has to be on disk first.
        let unsent: Vec<CommandId> = open
            .iter()
            .filter(|row| row.state == State::Queued)
            .map(|row| row.id)
            .collect();
        if !unsent.is_empty() {
            let marked = self
                .region
                .ledger
                .write(move |tx| unsent.into_iter().try_for_each(|id| tx.command_sent(id)))
                .await;
            if let Err(error) = marked {
                unavailable(&error);
                return Err(SocketError::Broken(
                    "the ledger cannot be written".to_owned(),
                ));
            }
        }
        for row in open {
            let Ok(command) = SignedCommand::decode(&row.signed[..]) else {
                continue;
            };
            // The withdrawal first: an agent that has not had the command must not begin it.
            if !row.cancel_by.is_empty() {
                let cancel = fairlead_protocol::Cancel {
                    command: row.id.to_wire(),
                    by: row.cancel_by.clone(),
                };
                socket
                    .send(&LinkDown {
                        kind: Some(link_down::Kind::Cancel(cancel)),
                    })
                    .await?;
            }
            let deliver = Deliver {
                command: Some(command),
                epoch: self.entry.epoch,
                region_received_us: 0,
            };
            socket
                .send(&LinkDown {
                    kind: Some(link_down::Kind::Deliver(deliver)),
                })
                .await?;
        }
        Ok(())
    }

    async fn on_order(&mut self, socket: &mut Agent, order: ToHost) -> Result<(), String> {
        match order {
            ToHost::Send(message) => socket
                .send(&message)
                .await
                .map_err(|error| error.to_string()),
            ToHost::Challenge { nonce, answered } => {
                self.challenge = Some((nonce, answered));
                let challenge = link_down::Kind::Challenge(Challenge { nonce });
                socket
                    .send(&LinkDown {
                        kind: Some(challenge),
                    })
                    .await
                    .map_err(|error| error.to_string())
            }
            ToHost::End { code, message } => {
                doors::refuse(socket, (code, message.clone()), 0).await;
                Err(message)
            }
        }
    }

    async fn beat(&mut self, socket: &mut Agent) -> Result<(), String> {
        let silent = self.heard.elapsed();
        if silent > self.interval * limits::PINGS_MISSED_OFFLINE {
            return Err(format!("silent for {} s", silent.as_secs()));
        }
        if silent > self.interval * limits::PINGS_MISSED_SUSPECT && self.presence.state == "online"
        {
            self.presence.state = "suspect".to_owned();
            self.presence.reason = "heartbeats are missing".to_owned();
            self.region.note_presence(self.host, self.presence.clone());
        }
        self.beaten();
        socket.ping().await.map_err(|error| error.to_string())
    }

    async fn ended(self, reason: &str) {
        if !self.region.registry.remove(self.host, self.connection) {
            return tracing::info!(host = %self.host, reason, "an old link ended");
        }
        tracing::warn!(host = %self.host, reason, "link lost");
        let now_us = self.region.clock.now_us();
        let presence = HostPresence {
            state: "offline".to_owned(),
            since_us: now_us,
            reason: reason.to_owned(),
            ..self.presence
        };
        self.region.note_presence(self.host, presence);
        self.region
            .record(self.host, "host.offline", reason.to_owned())
            .await;
    }

    // === what agents say

    async fn on_message(&mut self, socket: &mut Agent, message: LinkUp) -> Result<(), String> {
        use link_up::Kind as K;
        let host = self.host.to_wire();
        match message.kind {
            Some(K::Progress(progress)) => self.progress(progress).await,
            Some(K::ResultPart(part)) => return self.result_part(&part),
            Some(K::Result(result)) => return self.result(result).await,
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
            Some(K::Event(event)) => {
                if !self.may_record_event() {
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
                if let Some((nonce, answered)) = self.challenge.take()
                    && nonce == said.nonce
                {
                    let _ = answered.send(());
                }
            }
            Some(K::StreamRefused(refused)) => self.stream_refused(refused),
            Some(K::CancelRefused(refused)) => self.cancel_refused(&refused),
            Some(K::Unsupported(unsupported)) => {
                tracing::warn!(host = %self.host, kind = unsupported.kind, "agent lacks a kind");
            }
            Some(K::Hello(_) | K::Enrol(_)) => return Err("a greeting out of turn".to_owned()),
            None => {
                return answer(socket, link_down::Kind::Unsupported(Unsupported::default())).await;
            }
        }
        Ok(())
    }

    /// Events cost disk here and at the centre, so a host that floods has to wait.
    fn may_record_event(&mut self) -> bool {
        if self.events_since.elapsed() >= EVENTS_WINDOW {
            self.events_since = Instant::now();
            self.events = 0;
        }
        self.events += 1;
        self.events <= EVENTS_PER_WINDOW_MAX
    }

    async fn progress(&self, progress: Progress) {
        let said = CommandProgress {
            host: self.host.to_wire(),
            progress: Some(progress),
        };
        self.region.tell(uplink_up::Kind::Progress(said));
    }

    fn stream_refused(&self, refused: StreamRefused) {
        if let Ok(id) = fairlead_protocol::StreamId::from_wire(&refused.id) {
            self.region.streams.forget(id);
        }
        self.region.tell(uplink_up::Kind::StreamRefused(refused));
    }

    fn cancel_refused(&self, refused: &CancelRefused) {
        tracing::info!(host = %self.host, reason = refused.reason, "a command was not withdrawn");
    }

    fn result_part(&mut self, part: &ResultPart) -> Result<(), String> {
        let id = CommandId::from_wire(&part.command).map_err(|error| error.to_string())?;
        let held: usize = self.bodies.values().map(BytesMut::len).sum();
        if held + part.data.len() > BODIES_BYTES_MAX {
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
        let host = self.host;
        let stored_us = self.region.take_stored(id);
        let now_us = self.region.clock.now_us();
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
            // Its order is still on its way into the ledger, or the ledger was restored from before
            // it: the agent keeps the result and says it again.
            Known::Never => None,
            Known::Another => {
                let message = "a result of another host's command".to_owned();
                let end = ToHost::End {
                    code: codes::PROTOCOL_VIOLATION,
                    message,
                };
                let _ = to_host.try_send(end);
                None
            }
        });
        Ok(())
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
                        let _ = to_host.try_send(ToHost::Send(LinkDown { kind: Some(kind) }));
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
        return Ok(Known::Never);
    };
    if row.host != host {
        return Ok(Known::Another);
    }
    let stored = stored_us.map(|at_us| stamp(Stage::RegionStored, at_us));
    let before = row.stamps.into_iter().chain(stored);
    result.stamps = before.chain(result.stamps).collect();
    result.stamps.push(stamp(Stage::RegionResultStored, now_us));
    if tx.finish_command(id, &result, now_us)? {
        let report = RegionResult {
            host: host.to_wire(),
            result: Some(result),
        };
        tx.send_later(CENTRE, numbered::Kind::Result(report))?;
    }
    Ok(Known::Recorded)
}

enum Known {
    Recorded,
    Never,
    Another,
}

fn stamp(stage: Stage, at_us: i64) -> Stamp {
    Stamp {
        stage: stage.into(),
        at_us,
        note: String::new(),
    }
}

async fn answer(socket: &mut Agent, kind: link_down::Kind) -> Result<(), String> {
    socket
        .send(&LinkDown { kind: Some(kind) })
        .await
        .map_err(|error| error.to_string())
}
