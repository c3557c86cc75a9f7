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
use fairlead_planted::{self as planted, Defect};
use fairlead_protocol::{
    Challenge, CommandId, CommandKeys, Deliver, HostId, LinkDown, LinkUp, Message, Probe,
    Reconnect, SignedCommand, State, codes, events, limits, link_down, link_up,
};
use fairlead_store::commands::CommandRow;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tokio::time::Instant;

use crate::region::{Region, unavailable};
use crate::registry::Entry;
use crate::router::ToHost;
use crate::router::queue::FromRouter;
use crate::{clones, doors};

mod admission;
pub mod allowance;
pub mod departure;
pub mod greetings;
mod heard;

use allowance::Allowance;
use departure::Departure;

type Agent = Socket<LinkDown, LinkUp>;

/// When one that found no place comes back, spread over as long again.
const GREETING_RETRY_MS: u32 = 2000;

/// Greets one agent and, once it is admitted, serves it to its end. There are tens of thousands of these
/// tasks for months, so they are small: what is needed now and then is on the heap while it is needed, and
/// that begins with the greeting. Nor is there a second task for what follows it: until the first heartbeat
/// the socket's wakers would keep both.
pub fn run(
    socket: Agent,
    host: HostId,
    serial: String,
    region: Arc<Region>,
    shutdown: Shutdown,
) -> impl Future<Output = ()> + Send {
    let greeting = Box::pin(greet(socket, host, serial, region));
    async move {
        if let Some(mut linked) = greeting.await {
            linked.serve(&shutdown).await;
        }
    }
}

async fn greet(
    mut socket: Agent,
    host: HostId,
    serial: String,
    region: Arc<Region>,
) -> Option<Box<Linked>> {
    let hello = match socket.hear_message(limits::HELLO_TIMEOUT).await {
        Ok(LinkUp {
            kind: Some(link_up::Kind::Hello(hello)),
        }) => hello,
        Ok(_) => {
            let message = "the first message must be hello".to_owned();
            doors::refuse(&mut socket, (codes::PROTOCOL_VIOLATION, message), 0).await;
            return None;
        }
        Err(error) => {
            tracing::debug!(%host, %error, "left before hello");
            return None;
        }
    };
    let Some(greeting) = region.greetings.enter().await else {
        let message = "more hosts come back than can be greeted at once".to_owned();
        let [high, low, ..] = *host.as_bytes();
        let spread = u32::from(u16::from_be_bytes([high, low])) % GREETING_RETRY_MS;
        let after = GREETING_RETRY_MS + spread;
        doors::refuse(&mut socket, (codes::BUSY, message), after).await;
        return None;
    };
    let admitted = Link::admit(&mut socket, host, serial, hello, Arc::clone(&region)).await;
    let (link, queue, presence) = match admitted {
        Ok(admitted) => admitted,
        Err((refusal, retry_after_ms)) => {
            tracing::warn!(%host, code = refusal.0, reason = refusal.1, "link refused");
            if refusal.0 == codes::CLONE {
                clones::serve(socket, host, refusal, retry_after_ms, &region).await;
            } else {
                doors::refuse(&mut socket, refusal, retry_after_ms).await;
            }
            return None;
        }
    };
    if link.beside {
        tracing::info!(host = %link.host, epoch = presence.epoch, "link up, beside the owner's");
    } else {
        tracing::info!(host = %link.host, epoch = presence.epoch, "link up");
        link.region.note_presence(link.host, presence);
    }
    Some(Box::new(Linked {
        link,
        socket,
        queue,
        greeting: Some(greeting),
    }))
}

/// An admitted link, with what it hears.
struct Linked {
    link: Link,
    socket: Agent,
    queue: FromRouter,
    /// Its place among those that are greeted, until it has what is open for it.
    greeting: Option<OwnedSemaphorePermit>,
}

impl Linked {
    async fn serve(&mut self, shutdown: &Shutdown) {
        let link = &mut self.link;
        if !link.beside {
            let online = format!("epoch {}", link.entry.epoch);
            Box::pin(link.region.record(link.host, "host.online", online)).await;
        }
        let reason = link
            .until_end(
                &mut self.socket,
                &mut self.queue,
                &mut self.greeting,
                shutdown,
            )
            .await;
        if shutdown.is_cancelled() {
            // It was told when to come back, and the centre that it will: it is not away.
            link.region.registry.remove(link.host, link.connection);
            tracing::info!(host = %link.host, reason, "link ended with this server");
        } else {
            Box::pin(link.ended(&reason)).await;
        }
    }
}

struct Link {
    region: Arc<Region>,
    host: HostId,
    connection: u64,
    /// Shown as suspect; since then it was not heard.
    suspect_since_us: Option<i64>,
    interval: Duration,
    heard: Instant,
    beat_at: Instant,
    bodies: HashMap<CommandId, BytesMut>,
    /// Of newcomers that wait for an answer, each its own: several copies may come at once.
    challenges: Vec<(u64, oneshot::Sender<()>)>,
    /// It does not own the host (yet, or any more, as far as it said at its hello).
    beside: bool,
    /// What it was asked to answer before it may own the host.
    probe: Option<u64>,
    /// The keys that its welcome told; a change means that there are newer ones.
    keys: watch::Receiver<CommandKeys>,
    entry: Entry,
    allowance: Allowance,
    /// It has said too much, and is not heard until then.
    pause: Option<Instant>,
}

impl Link {
    async fn until_end(
        &mut self,
        socket: &mut Agent,
        queue: &mut FromRouter,
        greeting: &mut Option<OwnedSemaphorePermit>,
        shutdown: &Shutdown,
    ) -> String {
        let begun = if self.beside {
            Box::pin(self.send_probe(socket)).await
        } else {
            Box::pin(self.send_open_commands(socket)).await
        };
        if let Err(error) = begun {
            return error.to_string();
        }
        drop(greeting.take());
        loop {
            let done = tokio::select! {
                biased;
                () = self.entry.end.cancelled() => {
                    // What was to be said first is in the queue.
                    while let Some(order) = queue.take() {
                        if let ToHost::End { code, message } = order {
                            let refusal = (code, message.clone());
                            Box::pin(doors::refuse(socket, refusal, 0)).await;
                            return message;
                        }
                    }
                    return "the link was ended".to_owned();
                }
                () = shutdown.cancelled() => {
                    let reason = "the access server is restarted";
                    let departure = self.region.departure();
                    Box::pin(send_away(socket, Some(departure), reason)).await;
                    return "the access server was shut down".to_owned();
                }
                order = queue.next() => Box::pin(self.on_order(socket, order)).await,
                heard = socket.hear(), if self.pause.is_none() => match heard {
                    Ok(Heard::Life) => {
                        self.heard();
                        Ok(())
                    }
                    Ok(Heard::Message(message)) => {
                        self.heard();
                        Box::pin(self.on_message(socket, message)).await
                    }
                    Err(error) => Err(error.to_string()),
                },
                () = tokio::time::sleep_until(self.next_time()) => Box::pin(self.on_time(socket)).await,
            };
            if let Err(reason) = done {
                return reason;
            }
            if self.entry.lagging.swap(false, Ordering::SeqCst)
                && self.region.registry.holds(self.host, self.connection)
                && let Err(error) = Box::pin(self.send_open_commands(socket)).await
            {
                return error.to_string();
            }
        }
    }

    /// A beat, or the end of a pause.
    fn next_time(&self) -> Instant {
        self.pause
            .map_or(self.beat_at, |until| until.min(self.beat_at))
    }

    async fn on_time(&mut self, socket: &mut Agent) -> Result<(), String> {
        let now = Instant::now();
        if self.pause.is_some_and(|until| until <= now) {
            self.pause = None;
            // What it said meanwhile waits in the socket: it was not silent.
            self.heard = now;
        }
        if self.beat_at <= now {
            return self.beat(socket).await;
        }
        Ok(())
    }

    async fn send_probe(&mut self, socket: &mut Agent) -> Result<(), SocketError> {
        let nonce = u64::from_le_bytes(fairlead_identity::random::bytes());
        self.probe = Some(nonce);
        let probe = link_down::Kind::Probe(Probe { nonce });
        socket.send(&LinkDown { kind: Some(probe) }).await
    }

    /// Tells how the host is, if it is this link that says so.
    fn tell_state(&self, state: &str, reason: &str, since_us: i64) {
        if self.region.registry.holds(self.host, self.connection) {
            self.region
                .note_state(self.host, state, reason, Some(since_us));
        }
    }

    fn heard(&mut self) {
        self.heard = Instant::now();
        if let Some(pause) = self.allowance.heard(self.heard) {
            self.pause = Some(self.heard + pause);
            self.note_slowed();
        }
        if self.suspect_since_us.take().is_some() {
            self.tell_state("online", "", self.region.clock.now_us());
        }
    }

    /// Says once for each link that it was slowed down.
    fn note_slowed(&mut self) {
        if std::mem::replace(&mut self.allowance.slowed, true) {
            return;
        }
        tracing::warn!(host = %self.host, "an agent says too much; it is slowed down");
        let (region, host) = (Arc::clone(&self.region), self.host);
        // Ends with the sync.
        tokio::spawn(async move {
            let detail = "it says too much; it is heard more slowly".to_owned();
            region.record(host, events::HOST_FLOODING, detail).await;
        });
    }

    /// The next beat comes whatever flows meanwhile: it also finds out that nothing is heard.
    fn beaten(&mut self) {
        let jitter = self.interval.mul_f64(random_share() * 0.2);
        self.beat_at = Instant::now() + self.interval - jitter;
    }

    /// Everything without a final state, in order: the agent knows what it has had before.
    async fn send_open_commands(&mut self, socket: &mut Agent) -> Result<(), SocketError> {
        let host = self.host;
        let ledger = &self.region.ledger;
        // Most hosts that come have none: to find that out takes no turn among the readers.
        let open = match ledger.look(|tx| tx.has_open_commands(host)) {
            Ok(false) => return Ok(()),
            Ok(true) => ledger.read(move |tx| tx.open_commands(host)).await,
            Err(error) => Err(error),
        };
        let mut open = open.map_err(|error| {
            unavailable(&error);
            SocketError::Broken("the ledger cannot be read".to_owned())
        })?;
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
        if planted::is(Defect::StragglerOvertaken) {
            open.reverse();
        }
        self.send_commands(socket, open).await
    }

    async fn send_commands(
        &self,
        socket: &mut Agent,
        open: Vec<CommandRow>,
    ) -> Result<(), SocketError> {
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
                self.challenges.retain(|(_, waiting)| !waiting.is_closed());
                self.challenges.push((nonce, answered));
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
        if silent > self.interval * limits::PINGS_MISSED_SUSPECT && self.suspect_since_us.is_none()
        {
            let since_us = self.silent_since_us();
            self.suspect_since_us = Some(since_us);
            self.tell_state("suspect", "heartbeats are missing", since_us);
        }
        if self.keys.has_changed().unwrap_or(false) {
            // The next welcome tells the new ones. It is rare, and beats are spread over the links.
            let reason = "the command key has its next certificate";
            send_away(socket, None, reason).await;
            return Err(reason.to_owned());
        }
        self.beaten();
        socket.ping().await.map_err(|error| error.to_string())
    }

    fn silent_since_us(&self) -> i64 {
        let silent_us = i64::try_from(self.heard.elapsed().as_micros()).unwrap_or(0);
        self.region.clock.now_us() - silent_us
    }

    async fn ended(&self, reason: &str) {
        if planted::is(Defect::LateCloseRemovesNewer) {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        if !self.region.registry.remove(self.host, self.connection) {
            return tracing::info!(host = %self.host, reason, "an old link ended");
        }
        tracing::warn!(host = %self.host, reason, "link lost");
        // One that was silent is away since it was last heard, not since it was given up.
        let now_us = || self.region.clock.now_us();
        let since_us = self.suspect_since_us.unwrap_or_else(now_us);
        self.region
            .note_state(self.host, "offline", reason, Some(since_us));
        self.region
            .record(self.host, "host.offline", reason.to_owned())
            .await;
    }
}

/// Asks the agent to come back, and closes.
async fn send_away(socket: &mut Agent, departure: Option<Departure>, reason: &str) {
    let wish = Reconnect {
        after_ms: departure.map_or(0, |departure| departure.after_ms),
        spread_ms: departure.map_or(0, |departure| departure.spread_ms),
        reason: reason.to_owned(),
    };
    let wish = LinkDown {
        kind: Some(link_down::Kind::Reconnect(wish)),
    };
    // It notices the closed connection as well.
    let _ = socket.send(&wish).await;
    socket.close().await;
}
