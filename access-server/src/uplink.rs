//! The WebSocket to the controller: dialled from here, kept for ever.
//!
//! Durable messages are numbered on both sides (`store::exchange`): reports leave the outbox when the
//! controller has acknowledged them, orders are acknowledged when they are in the ledger. What may be
//! lost (presence, inventory, metrics, progress) goes through a bounded queue; when it overflows, the
//! whole picture is sent again. The loop's arms by rank: shutdown, what is heard, the outbox, the
//! queue, the heartbeat.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fairlead_daemon::shutdown::Shutdown;
use fairlead_link::backoff::{Backoff, Last, random_share};
use fairlead_link::dial::{DialError, Dialler};
use fairlead_link::socket::{Heard, Socket, SocketError};
use fairlead_protocol::{
    Ack, Hello, HostEvent, HostId, Leaving, Numbered, OpenStream, RegionEvent, StreamId,
    StreamRefused, Unsupported, UplinkDown, UplinkUp, Welcome, codes, events, limits, numbered,
    uplink_down, uplink_up, version,
};
use fairlead_store::StoreError;
use fairlead_store::exchange::CENTRE;
use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::region::{Region, open_stream};

mod orders;

/// Reports read from the outbox at a time.
const REPORTS_AT_ONCE: u32 = 64;
/// Orders taken together at most: one sync, one acknowledgement.
const ORDERS_AT_ONCE: usize = 64;
/// How long the controller has to hear why the uplink ends.
const LAST_WORD_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

type Controller = Socket<UplinkUp, UplinkDown>;

/// Why an uplink (or the attempt) ended.
#[derive(Debug, thiserror::Error)]
enum UplinkEnd {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("refused: {message} ({code})")]
    Refused { code: String, message: String },
    #[error(transparent)]
    Ledger(#[from] StoreError),
    #[error("shutting down")]
    Shutdown,
}

/// Keeps the uplink until shutdown.
pub async fn run(
    region: Arc<Region>,
    dialler: Dialler,
    address: String,
    mut volatile: mpsc::Receiver<UplinkUp>,
    shutdown: Shutdown,
) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let end = connect(&region, &dialler, &address, &mut volatile, &shutdown).await;
        region.set_attached(false);
        // What was queued for the last connection is part of the whole picture of the next.
        while volatile.try_recv().is_ok() {}
        if matches!(end, UplinkEnd::Shutdown) {
            return;
        }
        if started.elapsed().as_secs() > 10 {
            backoff.reset();
        }
        // The controller serves few uplinks; coming back soon matters more than spreading.
        let wait = backoff.next_wait(Last::NobodyThere, random_share(), None);
        tracing::warn!(address, error = %end, retry_in_ms = wait.as_millis(), "no uplink");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn connect(
    region: &Arc<Region>,
    dialler: &Dialler,
    address: &str,
    volatile: &mut mpsc::Receiver<UplinkUp>,
    shutdown: &Shutdown,
) -> UplinkEnd {
    match open(region, dialler, address).await {
        Ok((socket, welcome)) => {
            let mut uplink = Uplink {
                region: Arc::clone(region),
                dialler: dialler.clone(),
                address: address.to_owned(),
                server: welcome.server.clone(),
                sent_up_to: welcome.taken,
                acked_up_to: 0,
                heard: Instant::now(),
                told_of_storage: None,
                ahead_us: region.clock.now_us().saturating_sub(welcome.server_time_us),
            };
            match uplink.serve(socket, welcome, volatile, shutdown).await {
                Ok(()) => UplinkEnd::Shutdown,
                Err(end) => end,
            }
        }
        Err(end) => end,
    }
}

async fn open(
    region: &Region,
    dialler: &Dialler,
    address: &str,
) -> Result<(Controller, Welcome), UplinkEnd> {
    let (mut socket, _): (Controller, _) = dialler
        .messages(
            address,
            version::paths::UPLINK,
            limits::UPLINK_MESSAGE_BYTES_MAX,
        )
        .await?;
    let marks = region.ledger.read(|tx| tx.watermarks(CENTRE)).await?;
    let hello = Hello {
        version_min: version::OLDEST,
        version_max: version::NEWEST,
        software: format!(
            "fairlead-access-server {}",
            fairlead_protocol::software::version()
        ),
        instance: bytes::Bytes::copy_from_slice(&fairlead_identity::random::bytes::<16>()),
        taken: marks.taken,
        kept_from: marks.kept_from,
        terminals_at: region
            .desk
            .as_ref()
            .map(|desk| desk.address().to_owned())
            .unwrap_or_default(),
        ..Hello::default()
    };
    socket
        .send(&UplinkUp {
            kind: Some(uplink_up::Kind::Hello(hello)),
        })
        .await?;
    match socket.hear_message(limits::HELLO_TIMEOUT).await?.kind {
        Some(uplink_down::Kind::Welcome(welcome)) => match version::not_spoken(welcome.version) {
            Some(message) => Err(UplinkEnd::Refused {
                code: codes::VERSION_MISMATCH.to_owned(),
                message,
            }),
            None => Ok((socket, welcome)),
        },
        Some(uplink_down::Kind::Refused(refused)) => Err(UplinkEnd::Refused {
            code: refused.code,
            message: refused.message,
        }),
        _ => Err(UplinkEnd::Refused {
            code: codes::PROTOCOL_VIOLATION.to_owned(),
            message: "the controller answered with something else".to_owned(),
        }),
    }
}

struct Uplink {
    region: Arc<Region>,
    dialler: Dialler,
    address: String,
    server: String,
    sent_up_to: u64,
    /// What the peer has acknowledged; leaves the outbox with the next beat, because forgetting is
    /// never urgent and costs a sync.
    acked_up_to: u64,
    heard: Instant,
    /// What the centre was last told of the ledger's disk.
    told_of_storage: Option<String>,
    /// How far our clock is ahead of the centre's.
    ahead_us: i64,
}

impl Uplink {
    async fn serve(
        &mut self,
        mut socket: Controller,
        welcome: Welcome,
        volatile: &mut mpsc::Receiver<UplinkUp>,
        shutdown: &Shutdown,
    ) -> Result<(), UplinkEnd> {
        let end = self.carry(&mut socket, welcome, volatile, shutdown).await;
        if matches!(end, Err(UplinkEnd::Ledger(_))) {
            // People should read why this region comes and goes.
            let _ = self.tell_of_storage(&mut socket).await;
            // What the controller is sending meanwhile is heard and comes again; a connection that closed
            // under its hands would take our word along.
            let heard = async { while socket.hear().await.is_ok() {} };
            let _ = tokio::time::timeout(LAST_WORD_WITHIN, heard).await;
            socket.close().await;
        }
        end
    }

    /// Tells the centre, where that is news, that the ledger cannot be written, or can again.
    async fn tell_of_storage(&mut self, socket: &mut Controller) -> Result<(), SocketError> {
        let trouble = self
            .region
            .ledger
            .trouble()
            .map(|trouble| trouble.to_string())
            .unwrap_or_default();
        if self.told_of_storage.as_ref() == Some(&trouble) {
            return Ok(());
        }
        self.told_of_storage = Some(trouble.clone());
        self.tell_of_ourselves(socket, events::REGION_STORAGE, trouble)
            .await
    }

    /// Tells the centre whether our clocks agree: deadlines are judged by ours and made by its.
    async fn tell_of_clock(&self, socket: &mut Controller) -> Result<(), SocketError> {
        let apart = self.ahead_us.unsigned_abs() / 1_000_000;
        let detail = if apart <= limits::CLOCKS_APART_MAX.as_secs() {
            String::new()
        } else if self.ahead_us > 0 {
            format!("{apart} s ahead")
        } else {
            format!("{apart} s behind")
        };
        if !detail.is_empty() {
            tracing::error!(
                our_clock = detail,
                "our clock and the controller's are apart"
            );
        }
        self.tell_of_ourselves(socket, events::REGION_CLOCK, detail)
            .await
    }

    /// Of the region itself, and kept nowhere.
    async fn tell_of_ourselves(
        &self,
        socket: &mut Controller,
        action: &str,
        detail: String,
    ) -> Result<(), SocketError> {
        let event = HostEvent {
            at_us: self.region.clock.now_us(),
            action: action.to_owned(),
            detail,
            ..HostEvent::default()
        };
        let said = RegionEvent {
            host: bytes::Bytes::new(),
            event: Some(event),
        };
        let report = Numbered {
            seq: 0,
            kind: Some(numbered::Kind::Event(said)),
        };
        let kind = Some(uplink_up::Kind::Report(report));
        socket.send(&UplinkUp { kind }).await
    }

    async fn carry(
        &mut self,
        socket: &mut Controller,
        welcome: Welcome,
        volatile: &mut mpsc::Receiver<UplinkUp>,
        shutdown: &Shutdown,
    ) -> Result<(), UplinkEnd> {
        let region = Arc::clone(&self.region);
        let (taken, kept_from) = (welcome.taken, welcome.kept_from);
        let missing = region
            .ledger
            .write(move |tx| tx.meet(CENTRE, taken, kept_from))
            .await?;
        if missing > 0 {
            tracing::error!(missing, "the controller has lost orders to this region");
        }
        if let Some(desk) = &region.desk {
            desk.attached(&welcome.browser_origins, self.ahead_us);
        }
        if let Some(keys) = welcome.command_keys {
            region.on_command_keys(keys).await?;
        }
        tracing::info!(controller = self.address, "uplink up");
        self.tell_of_clock(socket).await?;
        region.set_attached(true);
        for message in region.whole() {
            socket.send(&message).await?;
        }
        self.send_reports(socket).await?;
        let mut beat = tokio::time::interval(limits::UPLINK_PING_INTERVAL);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    let back_within_ms = region.departure().back_within_ms();
                    let leaving = uplink_up::Kind::Leaving(Leaving { back_within_ms });
                    // Otherwise it looks like a crash.
                    let _ = socket.send(&UplinkUp { kind: Some(leaving) }).await;
                    // A connection that is closed here with something unread is reset, and a controller that
                    // speaks just then hears that before it hears the word.
                    let taken = async { while socket.hear().await.is_ok() {} };
                    let _ = tokio::time::timeout(limits::LEAVING_TAKEN_WITHIN, taken).await;
                    socket.close().await;
                    return Ok(());
                }
                heard = socket.hear() => {
                    self.heard = Instant::now();
                    if let Heard::Message(message) = heard? {
                        self.on_message(socket, message).await?;
                    }
                }
                () = region.outbox_grew.notified() => self.send_reports(socket).await?,
                Some(message) = volatile.recv() => socket.send(&message).await?,
                _ = beat.tick() => {
                    if self.heard.elapsed() > limits::UPLINK_SILENT_AFTER {
                        return Err(SocketError::Silent.into());
                    }
                    socket.ping().await?;
                    self.tell_of_storage(socket).await?;
                    self.forget_acked().await?;
                    if region.resync.swap(false, Ordering::SeqCst) {
                        for message in region.whole() {
                            socket.send(&message).await?;
                        }
                    }
                }
            }
        }
    }

    async fn forget_acked(&mut self) -> Result<(), UplinkEnd> {
        let acked = std::mem::take(&mut self.acked_up_to);
        if acked > 0 {
            // Nobody waits for the sync: what is not forgotten is only sent again.
            self.region
                .ledger
                .enqueue(move |tx| tx.acknowledged_by(CENTRE, acked))
                .await?;
        }
        Ok(())
    }

    /// Everything in the outbox that this connection has not carried yet, in order.
    async fn send_reports(&mut self, socket: &mut Controller) -> Result<(), UplinkEnd> {
        loop {
            let from = self.sent_up_to + 1;
            let reports = self
                .region
                .ledger
                .look(|tx| tx.waiting_for(CENTRE, from, REPORTS_AT_ONCE))?;
            let more = reports.len() == REPORTS_AT_ONCE as usize;
            for report in reports {
                self.sent_up_to = report.seq;
                socket
                    .send(&UplinkUp {
                        kind: Some(uplink_up::Kind::Report(report)),
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
        socket: &mut Controller,
        message: UplinkDown,
    ) -> Result<(), UplinkEnd> {
        use uplink_down::Kind as K;
        match message.kind {
            Some(K::Order(order)) => {
                // What has arrived together is written together.
                let mut last = order.seq;
                let mut orders = vec![order];
                let mut other = None;
                while orders.len() < ORDERS_AT_ONCE && other.is_none() {
                    match socket.hear().now_or_never() {
                        Some(Ok(Heard::Message(UplinkDown {
                            kind: Some(K::Order(next)),
                        }))) => {
                            last = next.seq;
                            orders.push(next);
                        }
                        Some(Ok(Heard::Message(message))) => other = Some(message),
                        Some(Ok(Heard::Life)) => {}
                        Some(Err(error)) => return Err(error.into()),
                        None => break,
                    }
                }
                self.on_orders(orders).await?;
                let ack = uplink_up::Kind::Ack(Ack { seq: last });
                socket.send(&UplinkUp { kind: Some(ack) }).await?;
                if let Some(other) = other {
                    // Not an order, so this goes no deeper than once.
                    return Box::pin(self.on_message(socket, other)).await;
                }
            }
            Some(K::Ack(ack)) => self.acked_up_to = self.acked_up_to.max(ack.seq),
            Some(K::EnrolVerdict(verdict)) => self.region.on_verdict(verdict),
            Some(kind @ (K::TerminalAnswer(_) | K::EndTerminal(_) | K::RecordingTaken(_))) => {
                self.on_terminal(kind);
            }
            Some(K::OpenStream(open)) => {
                if let Some(refused) = self.open_stream(&open) {
                    let refused = uplink_up::Kind::StreamRefused(refused);
                    socket
                        .send(&UplinkUp {
                            kind: Some(refused),
                        })
                        .await?;
                }
            }
            Some(K::Unsupported(unsupported)) => {
                tracing::warn!(kind = unsupported.kind, "the controller lacks a kind");
            }
            Some(K::Refused(refused)) => {
                return Err(UplinkEnd::Refused {
                    code: refused.code,
                    message: refused.message,
                });
            }
            Some(K::Welcome(_) | K::Enrolled(_)) => {
                return Err(SocketError::Violation("a greeting out of turn".to_owned()).into());
            }
            None => {
                let kind = uplink_up::Kind::Unsupported(Unsupported::default());
                socket.send(&UplinkUp { kind: Some(kind) }).await?;
            }
        }
        Ok(())
    }

    /// About terminals that live here. Where none do, nothing was asked, and nothing is heard.
    fn on_terminal(&self, kind: uplink_down::Kind) {
        use uplink_down::Kind as K;
        match (&self.region.desk, kind) {
            (Some(desk), K::TerminalAnswer(answer)) => desk.answered(answer),
            (Some(desk), K::EndTerminal(end)) => desk.end(&end),
            (Some(desk), K::RecordingTaken(taken)) => desk.taken(taken),
            _ => {}
        }
    }

    // === streams

    /// Asks the host to dial, and joins its stream with one to the controller. What cannot be done is
    /// said at once.
    fn open_stream(&self, open: &OpenStream) -> Option<StreamRefused> {
        let refuse = |code: &str, message: &str| {
            Some(StreamRefused {
                id: open.id.clone(),
                code: code.to_owned(),
                message: message.to_owned(),
            })
        };
        let (Ok(id), Ok(host)) = (StreamId::from_wire(&open.id), HostId::from_wire(&open.host))
        else {
            return refuse(codes::PROTOCOL_VIOLATION, "ids are 16 bytes");
        };
        let region = Arc::clone(&self.region);
        let Some(arrival) = region.streams.expect(id, host) else {
            return refuse(
                codes::BUSY,
                "too many streams are being opened in this region",
            );
        };
        if !open_stream(&region, open.clone(), host) {
            region.streams.forget(id);
            return refuse(codes::HOST_OFFLINE, "the host is not connected");
        }
        let (dialler, address, server) = (
            self.dialler.clone(),
            self.address.clone(),
            self.server.clone(),
        );
        // Ends with the stream, or when nobody dials in time.
        tokio::spawn(async move {
            let Some(from_host) = region.streams.wait(id, arrival).await else {
                return;
            };
            let joined = async {
                match dialler.stream(&address, id, &server).await {
                    Ok(to_controller) => {
                        region.counters.streams_joined.increment();
                        region
                            .streams
                            .join(id, host, from_host, to_controller, |host, serial| {
                                region.revoked(host, serial).is_some()
                            })
                            .await;
                    }
                    Err(error) => {
                        tracing::warn!(stream = %id, %error, "no stream to the controller");
                    }
                }
            };
            region.streams.seen_to_its_end(Box::pin(joined)).await;
        });
        None
    }
}
