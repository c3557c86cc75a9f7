//! One region's uplink: reports in, orders out.
//!
//! Orders are read from the outbox in the order of their numbers and leave it when the region has
//! acknowledged them. A report is taken once, by its number, in the same transaction that records what it
//! says; then it is acknowledged. The loop's arms by rank: shutdown, what is heard, the outbox, what may
//! be lost, the heartbeat.

use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::shutdown::Shutdown;
use fairlead_link::socket::{Heard, Socket, SocketError};
use fairlead_protocol::{
    Ack, Hello, HostId, Message, Numbered, Refused, StreamId, Unsupported, UplinkDown, UplinkUp,
    Welcome, codes, limits, numbered, uplink_down, uplink_up, version,
};
use fairlead_store::{DEFAULT_TENANT, StoreError};
use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{Centre, Wire, clones, enrolment, reports};

/// Orders read from the outbox at a time.
const ORDERS_AT_ONCE: u32 = 64;
/// Reports written together at most.
const REPORTS_AT_ONCE: usize = 64;
pub(super) type Server = Socket<UplinkDown, UplinkUp>;

/// Why an uplink ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum UplinkEnd {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a newer uplink of this region took over")]
    Displaced,
    #[error("shutting down")]
    Shutdown,
    #[error("its access server ended in order")]
    Left { back_within_us: i64 },
}

/// Serves one uplink from its hello to its end.
pub(super) async fn run(
    mut socket: Server,
    region: String,
    name: String,
    centre: Arc<Centre>,
    shutdown: Shutdown,
) {
    let hello = match socket.hear_message(limits::HELLO_TIMEOUT).await {
        Ok(UplinkUp {
            kind: Some(uplink_up::Kind::Hello(hello)),
        }) => hello,
        _ => return socket.close().await,
    };
    let Some(version) = version::negotiate(hello.version_min, hello.version_max) else {
        let refused = Refused {
            code: codes::VERSION_MISMATCH.to_owned(),
            message: format!(
                "the access server speaks {} to {}, the controller {} to {}: upgrade the older one",
                hello.version_min,
                hello.version_max,
                version::OLDEST,
                version::NEWEST
            ),
            retry_after_ms: 60_000,
            ..Refused::default()
        };
        let _ = socket
            .send(&UplinkDown {
                kind: Some(uplink_down::Kind::Refused(refused)),
            })
            .await;
        return socket.close().await;
    };
    // What the server before was asked for in its last moments.
    centre.streams.lost(&region);
    let wire = centre.regions.attach(&region);
    let connection = wire.connection;
    let mut uplink = Uplink {
        centre: Arc::clone(&centre),
        region: region.clone(),
        recording: Arc::new(Semaphore::new(1)),
        sent_up_to: hello.taken,
        acked_up_to: 0,
        heard: Instant::now(),
    };
    let end = match uplink.begin(&mut socket, &name, version, &hello).await {
        Ok(()) => uplink.serve(&mut socket, wire, shutdown).await,
        Err(end) => end,
    };
    socket.close().await;
    if centre.regions.detach(&region, connection) {
        tracing::warn!(region, reason = %end, "uplink lost");
        centre.desk.detached(&region);
        // One that ends in order still brings what it was asked for.
        if !matches!(end, UplinkEnd::Left { .. }) {
            centre.streams.lost(&region);
        }
        uplink.ended(&end).await;
    }
}

pub(super) struct Uplink {
    pub(super) centre: Arc<Centre>,
    pub(super) region: String,
    /// Pieces of recordings that are being written.
    pub(super) recording: Arc<Semaphore>,
    sent_up_to: u64,
    /// What the peer has acknowledged; leaves the outbox with the next beat, because forgetting is
    /// never urgent and costs a sync.
    acked_up_to: u64,
    heard: Instant,
}

impl Uplink {
    async fn begin(
        &mut self,
        socket: &mut Server,
        name: &str,
        version: u32,
        hello: &Hello,
    ) -> Result<(), UplinkEnd> {
        let centre = Arc::clone(&self.centre);
        let region = self.region.clone();
        let (taken, kept_from, software) = (hello.taken, hello.kept_from, hello.software.clone());
        let now_us = centre.clock.now_us();
        let (missing, marks) = centre
            .store
            .write(move |tx| {
                let missing = tx.meet(&region, taken, kept_from)?;
                tx.region_seen(&region, now_us, &software)?;
                // What was revoked while the region was away, or before its ledger was lost.
                let list = crate::dispatch::revocations(tx, now_us)?;
                tx.send_later(&region, numbered::Kind::Revocations(list))?;
                Ok((missing, tx.watermarks(&region)?))
            })
            .await?;
        if missing > 0 {
            tracing::error!(region = self.region, missing, "the region has lost reports");
        }
        let welcome = Welcome {
            version,
            software: format!(
                "fairlead-controller {}",
                fairlead_protocol::software::version()
            ),
            server: fairlead_identity::Role::Controller.to_string(),
            server_time_us: now_us,
            command_keys: Some(centre.authority.command_keys()),
            taken: marks.taken,
            kept_from: marks.kept_from,
            browser_origins: centre.desk.origins(),
            ..Welcome::default()
        };
        socket
            .send(&UplinkDown {
                kind: Some(uplink_down::Kind::Welcome(welcome)),
            })
            .await?;
        tracing::info!(region = self.region, server = name, "uplink up");
        centre
            .fleet
            .region_online(&self.region, name, &hello.software, now_us);
        centre.desk.attached(&self.region, &hello.terminals_at);
        self.note("region.online", name).await;
        Ok(())
    }

    /// It was the region's. A region is not offline because this controller ends.
    async fn ended(&self, end: &UplinkEnd) {
        let now_us = self.centre.clock.now_us();
        match end {
            UplinkEnd::Shutdown => {}
            UplinkEnd::Left { back_within_us } => {
                let back_by_us = now_us.saturating_add(*back_within_us);
                let fleet = &self.centre.fleet;
                fleet.region_restarts(&self.region, now_us, back_by_us);
                let detail = "its access server ended in order, and is expected back";
                self.note("region.restarting", detail).await;
            }
            _ => {
                self.centre.fleet.region_offline(&self.region, now_us);
                self.note("region.offline", &end.to_string()).await;
            }
        }
    }

    async fn note(&self, action: &str, detail: &str) {
        let noted = self
            .centre
            .feed
            .record(DEFAULT_TENANT, None, &self.region, action, detail)
            .await;
        if let Err(error) = noted {
            tracing::error!(region = self.region, action, %error, "an event could not be recorded");
        }
    }

    async fn serve(
        &mut self,
        socket: &mut Server,
        mut wire: Wire,
        shutdown: Shutdown,
    ) -> UplinkEnd {
        if let Err(end) = self.send_orders(socket).await {
            return end;
        }
        let mut beat = tokio::time::interval(limits::UPLINK_PING_INTERVAL);
        loop {
            let done = tokio::select! {
                biased;
                () = shutdown.cancelled() => return UplinkEnd::Shutdown,
                () = wire.end.cancelled() => return UplinkEnd::Displaced,
                heard = socket.hear() => {
                    self.heard = Instant::now();
                    match heard {
                        Ok(Heard::Message(message)) => self.on_message(socket, message).await,
                        Ok(Heard::Life) => Ok(()),
                        Err(error) => Err(error.into()),
                    }
                }
                () = wire.outbox_grew.notified() => self.send_orders(socket).await,
                Some(message) = wire.volatile.recv() => {
                    socket.send(&message).await.map_err(UplinkEnd::from)
                }
                _ = beat.tick() => {
                    if self.heard.elapsed() > limits::UPLINK_SILENT_AFTER {
                        Err(SocketError::Silent.into())
                    } else {
                        match socket.ping().await {
                            Ok(()) => self.forget_acked().await,
                            Err(error) => Err(error.into()),
                        }
                    }
                }
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn forget_acked(&mut self) -> Result<(), UplinkEnd> {
        let acked = std::mem::take(&mut self.acked_up_to);
        if acked > 0 {
            let region = self.region.clone();
            // Nobody waits for the sync: what is not forgotten is only sent again.
            self.centre
                .store
                .enqueue(move |tx| tx.acknowledged_by(&region, acked))
                .await?;
        }
        Ok(())
    }

    /// Everything in the outbox that this connection has not carried yet, in order.
    pub(super) async fn send_orders(&mut self, socket: &mut Server) -> Result<(), UplinkEnd> {
        loop {
            let (region, from) = (&self.region, self.sent_up_to + 1);
            let orders = self
                .centre
                .store
                .look(|tx| tx.waiting_for(region, from, ORDERS_AT_ONCE))?;
            let more = orders.len() == ORDERS_AT_ONCE as usize;
            for order in orders {
                self.sent_up_to = order.seq;
                socket
                    .send(&UplinkDown {
                        kind: Some(uplink_down::Kind::Order(order)),
                    })
                    .await?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn on_message(
        &mut self,
        socket: &mut Server,
        message: UplinkUp,
    ) -> Result<(), UplinkEnd> {
        use uplink_up::Kind as K;
        let centre = Arc::clone(&self.centre);
        match message.kind {
            Some(K::Report(report)) => {
                let (reports, other) = arrived_together(report, socket)?;
                let seq = reports.iter().map(|report| report.seq).max();
                reports::take(&self.centre, &self.region, reports).await?;
                if let Some(seq) = seq.filter(|seq| *seq > 0) {
                    let ack = uplink_down::Kind::Ack(Ack { seq });
                    socket.send(&UplinkDown { kind: Some(ack) }).await?;
                }
                if let Some(other) = other {
                    // Not a report, so this goes no deeper than once.
                    return Box::pin(self.on_message(socket, other)).await;
                }
            }
            Some(K::Ack(ack)) => self.acked_up_to = self.acked_up_to.max(ack.seq),
            Some(K::Presence(presence)) if centre.is_home(&self.region, &presence.host) => {
                centre.fleet.apply_presence(&self.region, &presence);
                self.keep_presence(presence);
            }
            Some(K::Inventory(inventory)) if centre.is_home(&self.region, &inventory.host) => {
                centre.fleet.apply_inventory(&inventory);
            }
            Some(K::Metrics(metrics)) if centre.is_home(&self.region, &metrics.host) => {
                centre.fleet.apply_metrics(&metrics);
            }
            Some(K::Progress(said)) if centre.is_home(&self.region, &said.host) => {
                if let Some(progress) = said.progress {
                    centre
                        .dispatch
                        .on_progress(&self.region, &said.host, progress);
                }
            }
            // A region that speaks for another's hosts is not heard.
            Some(K::Presence(_) | K::Inventory(_) | K::Metrics(_) | K::Progress(_)) => {
                tracing::warn!(region = self.region, "spoke for a host that is not its own");
            }
            Some(K::TerminalAsk(ask)) => self.on_terminal_ask(socket, ask).await?,
            Some(K::Terminals(open)) => self.on_open_terminals(socket, open).await?,
            Some(K::Recording(part)) => self.on_recording(socket, part).await?,
            Some(K::Leaving(leaving)) => {
                let within = limits::BACK_WITHIN_MAX
                    .min(Duration::from_millis(leaving.back_within_ms.into()));
                let back_within_us = i64::try_from(within.as_micros()).unwrap_or(i64::MAX);
                // It waits for this end to close, so that nothing said to it breaks what it has said.
                return Err(UplinkEnd::Left { back_within_us });
            }
            Some(K::PresenceComplete(_)) => centre.fleet.presence_complete(&self.region),
            Some(K::EnrolCheck(check)) => {
                let verdict = if check.clone_of.is_empty() {
                    enrolment::host(&centre, &self.region, check).await
                } else {
                    clones::host(&centre, &self.region, check).await
                };
                let verdict = uplink_down::Kind::EnrolVerdict(verdict);
                socket
                    .send(&UplinkDown {
                        kind: Some(verdict),
                    })
                    .await?;
            }
            Some(K::StreamRefused(refused)) => {
                if let Ok(id) = StreamId::from_wire(&refused.id) {
                    tracing::info!(stream = %id, code = refused.code, "a stream was refused");
                    centre.streams.refused(id, &self.region);
                }
            }
            Some(K::Unsupported(unsupported)) => {
                tracing::warn!(
                    region = self.region,
                    kind = unsupported.kind,
                    "lacks a kind"
                );
            }
            Some(K::Hello(_) | K::Enrol(_)) => {
                return Err(SocketError::Violation("a greeting out of turn".to_owned()).into());
            }
            None => {
                let kind = uplink_down::Kind::Unsupported(Unsupported::default());
                socket.send(&UplinkDown { kind: Some(kind) }).await?;
            }
        }
        Ok(())
    }

    /// Facts and last contact are worth keeping, but nobody waits for that.
    fn keep_presence(&self, presence: fairlead_protocol::HostPresence) {
        let Ok(host) = HostId::from_wire(&presence.host) else {
            return;
        };
        let store = self.centre.store.clone();
        let heard_us = heard_us(&presence, self.centre.clock.now_us());
        tokio::spawn(async move {
            let facts = presence
                .facts
                .map(|facts| facts.encode_to_vec())
                .unwrap_or_default();
            let kept = store
                .write(move |tx| tx.host_seen(host, heard_us, presence.epoch, &facts))
                .await;
            if let Err(error) = kept {
                tracing::warn!(%host, %error, "a host's presence could not be kept");
            }
        });
    }
}

/// That report, those that have come behind it, and what came then. What has arrived together is written
/// together: one sync, one acknowledgement.
fn arrived_together(
    first: Numbered,
    socket: &mut Server,
) -> Result<(Vec<Numbered>, Option<UplinkUp>), UplinkEnd> {
    let mut reports = vec![first];
    while reports.len() < REPORTS_AT_ONCE {
        match socket.hear().now_or_never() {
            Some(Ok(Heard::Message(UplinkUp {
                kind: Some(uplink_up::Kind::Report(next)),
            }))) => reports.push(next),
            Some(Ok(Heard::Message(message))) => return Ok((reports, Some(message))),
            Some(Ok(Heard::Life)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => break,
        }
    }
    Ok((reports, None))
}

/// When a host was last heard, by what its region says of it: one that is silent or away, when that began.
fn heard_us(presence: &fairlead_protocol::HostPresence, now_us: i64) -> i64 {
    match presence.state.as_str() {
        "online" => now_us,
        _ => presence.since_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_host_was_last_heard_before_it_was_silent() {
        let heard = |state: &str| {
            let presence = fairlead_protocol::HostPresence {
                state: state.to_owned(),
                since_us: 70,
                ..Default::default()
            };
            heard_us(&presence, 100)
        };
        assert_eq!(heard("online"), 100);
        assert_eq!(heard("suspect"), 70, "not when that was told");
        assert_eq!(heard("offline"), 70, "nor when it was given up");
    }
}
