//! One link's life: frames to requests and back, heartbeat, renewal.
//!
//! The loop never waits for the engine, nor for the disk but to read the supervisor's small status each second. Its
//! arms by rank: shutdown, what is to be sent (results free memory), what is heard, renewals, that status, the
//! heartbeat. Requests to the executor wait for room in its queue: a flooding server is slowed down by TCP.

use std::time::{Duration, SystemTime};

use fairlead_daemon::shutdown::Shutdown;
use fairlead_link::socket::{Heard, Socket, SocketError};
use fairlead_protocol::version::HANDOFF;
use fairlead_protocol::{
    AgentVersions, ChallengeAnswer, CommandId, HostFacts, LinkDown, LinkUp, Own, Unsupported,
    Welcome, limits, link_down, link_up,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::app::RenewNow;
use crate::connection::{Connection, LinkEnd};
use crate::executor::{Request, StreamDialler};
use crate::handoff::part::Standing;
use crate::handoff::role::Role;
use crate::handoff::words::ToSupervisor;
use crate::link_report::LinkReport;
use crate::observe::Watch;
use crate::status;

/// Messages that wait for the link; progress and metrics beyond are dropped, results come again.
const OUTBOUND_MAX: usize = 128;
/// A third of a certificate's life is over: time to renew.
const RENEW_LEFT_S: i64 = (limits::AGENT_CERTIFICATE_LIFE.as_secs() as i64) * 2 / 3;

/// How often it is looked whether the supervisor says something new of versions.
const VERSIONS_LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

/// What a server may ask for: more often is a load, less often does not notice that a line is dead.
const PING_MIN: Duration = Duration::from_millis(100);
/// See [`PING_MIN`].
const PING_MAX: Duration = Duration::from_secs(60);
/// A host that started once a second would need more than a century for so many epochs.
const EPOCHS_AHEAD_MAX: u64 = 1 << 32;
/// From 2020 to 2200, in microseconds since 1970.
const TIMES: std::ops::Range<i64> = 1_577_836_800_000_000..7_258_118_400_000_000;

/// What a server says of itself is believed within reason: a wrong epoch or time would stay with the host
/// after the server has been put right.
fn plausible(welcome: &Welcome, epoch: u64) -> Result<(), &'static str> {
    if welcome.epoch.saturating_sub(epoch) > EPOCHS_AHEAD_MAX {
        return Err("an epoch that no host has had");
    }
    if !TIMES.contains(&welcome.server_time_us) {
        return Err("a time of another age");
    }
    Ok(())
}

/// A link that is up.
#[derive(Debug)]
pub struct Up<'a> {
    /// Where it goes.
    pub address: &'a str,
    /// What the server has said.
    pub welcome: Welcome,
    /// Who this instance was when it said hello.
    pub standing: Standing,
    /// What it said of the machine.
    pub facts: HostFacts,
}

/// Runs a link until it ends.
pub async fn run(
    connection: &Connection,
    up: Up<'_>,
    mut socket: Socket<LinkUp, LinkDown>,
    renewals: &mut mpsc::Receiver<RenewNow>,
    shutdown: &Shutdown,
) -> LinkEnd {
    let (number, standing, address) = (up.welcome.connection, up.standing, up.address);
    // The engine is not asked while commands wait for their new owner.
    let facts = up.facts.clone();
    let (mut queue, mut live) = match begin(connection, up, &mut socket, shutdown).await {
        Ok(begun) => begun,
        Err(end) => return end,
    };
    let mut stands = connection.stands.clone();
    let mut told = standing.turn;
    let mut versions = Versions {
        told: facts.versions.clone(),
        looked_at: None,
    };
    let mut look = tokio::time::interval(VERSIONS_LOOKED_AT_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let end = loop {
        let now = *stands.borrow_and_update();
        if now.turn != told {
            told = now.turn;
            if let Err(end) = say_owner(connection, &mut socket, address, now.role, &facts).await {
                break end;
            }
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                socket.close().await;
                break LinkEnd::Shutdown;
            }
            // The loop's beginning says it. Without a supervisor nobody changes it.
            Ok(()) = stands.changed() => {}
            Some(message) = queue.recv() => if let Err(error) = socket.send(&message).await {
                break error.into();
            },
            heard = socket.hear() => {
                live.heard = Instant::now();
                match heard {
                    Ok(Heard::Life) => {}
                    Ok(Heard::Message(message)) => {
                        let answered = on_message(connection, message, &mut live).await;
                        match answered {
                            Ok(None) => {}
                            Ok(Some(answer)) => if let Err(error) = socket.send(&answer).await {
                                break error.into();
                            },
                            Err(end) => break end,
                        }
                    }
                    Err(error) => break error.into(),
                }
            }
            Some(asked) = renewals.recv(), if live.renewing.is_none() => {
                if let Err(end) = ask_renewal(connection, &mut socket, &mut live, Some(asked)).await {
                    break end;
                }
            }
            _ = look.tick() => {
                if let Some(changed) = versions.changed(connection) {
                    let kind = Some(link_up::Kind::Versions(changed));
                    if let Err(error) = socket.send(&LinkUp { kind }).await {
                        break error.into();
                    }
                }
            }
            () = tokio::time::sleep_until(live.beat_at) => {
                if let Err(end) = beat(connection, &mut socket, &mut live).await {
                    break end;
                }
            }
        }
    };
    let _ = connection
        .executor
        .send(Request::LinkDown { connection: number })
        .await;
    let _ = connection
        .observer
        .send(Watch::LinkDown { connection: number })
        .await;
    if connection.role().owns() {
        connection
            .owner_log
            .agent(&format!("the connection ended: {end}"));
    }
    end
}

/// From the welcome to a link that carries commands.
async fn begin(
    connection: &Connection,
    up: Up<'_>,
    socket: &mut Socket<LinkUp, LinkDown>,
    shutdown: &Shutdown,
) -> Result<(mpsc::Receiver<LinkUp>, Live), LinkEnd> {
    let Up {
        address,
        welcome,
        standing,
        ..
    } = up;
    if let Err(what) = plausible(&welcome, standing.role.epoch()) {
        return Err(odd(what));
    }
    let handoff = welcome.features.iter().any(|known| known == HANDOFF);
    if !standing.role.owns() && !handoff {
        // It knows owners only, and has taken this link for the owner's.
        socket.close().await;
        return Err(odd("the server knows no links beside the owner's"));
    }
    connection.time.told(welcome.server_time_us);
    if standing.role.owns() {
        connection.learn_region(&welcome.addresses).await;
    }
    if standing.role.owns() && welcome.epoch > standing.role.epoch() {
        return Err(connection.go_on_above(welcome.epoch, shutdown));
    }
    tracing::info!(
        address,
        server = welcome.server,
        role = ?standing.role,
        "link up"
    );
    if standing.role.owns() {
        connection
            .owner_log
            .agent(&format!("connected to {} at {address}", welcome.server));
        LinkReport::up(address, connection.clock.now_us()).keep(&connection.state_dir);
    }
    connection.link_state.up(handoff);
    let (outbound, queue) = mpsc::channel(OUTBOUND_MAX);
    announce(connection, address, &welcome, outbound).await?;
    let interval = match welcome.ping_interval_ms {
        0 => limits::LINK_PING_INTERVAL,
        told => Duration::from_millis(u64::from(told)).clamp(PING_MIN, PING_MAX),
    };
    Ok((queue, Live::new(interval)))
}

/// Tells the server that this instance owns the host.
async fn say_owner(
    connection: &Connection,
    socket: &mut Socket<LinkUp, LinkDown>,
    address: &str,
    role: Role,
    facts: &HostFacts,
) -> Result<(), LinkEnd> {
    let Role::Owner(epoch) = role else {
        return Ok(());
    };
    let own = link_up::Kind::Own(Own {
        epoch,
        facts: Some(facts.clone()),
    });
    socket.send(&LinkUp { kind: Some(own) }).await?;
    LinkReport::up(address, connection.clock.now_us()).keep(&connection.state_dir);
    connection.look_for_renewal().await;
    Ok(())
}

/// Which versions the servers were told of.
struct Versions {
    told: Option<AgentVersions>,
    /// The file that the supervisor writes, when it was read last.
    looked_at: Option<SystemTime>,
}

impl Versions {
    /// What the supervisor says of them, where that is news and this instance is the one to tell it.
    fn changed(&mut self, connection: &Connection) -> Option<AgentVersions> {
        if !connection.role().owns() {
            return None;
        }
        let about = std::fs::metadata(connection.state_dir.join("status.json")).ok()?;
        let written = about.modified().ok();
        if written.is_some() && self.looked_at == written {
            return None;
        }
        self.looked_at = written;
        let now = status::versions_of(&connection.state_dir);
        if now == self.told {
            return None;
        }
        self.told.clone_from(&now);
        now
    }
}

struct Live {
    heard: Instant,
    beat_at: Instant,
    interval: Duration,
    /// Set while a renewal is under way, with whoever waits for it.
    renewing: Option<Option<oneshot::Sender<Result<i64, String>>>>,
}

impl Live {
    fn new(interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            heard: now,
            interval,
            beat_at: now + interval,
            renewing: None,
        }
    }

    /// The next beat comes whatever flows meanwhile: it also finds out that nothing is heard.
    fn beaten(&mut self) {
        // Jitter of up to a fifth keeps tens of thousands of agents from pinging in step.
        let jitter = self
            .interval
            .mul_f64(fairlead_link::backoff::random_share() * 0.2);
        self.beat_at = Instant::now() + self.interval - jitter;
    }
}

async fn announce(
    connection: &Connection,
    address: &str,
    welcome: &Welcome,
    outbound: mpsc::Sender<LinkUp>,
) -> Result<(), LinkEnd> {
    let identity = connection.identity.lock().await.clone();
    let streams = StreamDialler {
        dialler: connection.dialler(&identity)?,
        address: address.to_owned(),
        server: welcome.server.clone(),
    };
    if let Some(keys) = welcome.command_keys.clone() {
        send_on(connection, Request::LearnKeys(keys)).await?;
    }
    let number = welcome.connection;
    let up = Request::LinkUp {
        outbound: outbound.clone(),
        connection: number,
        streams,
    };
    send_on(connection, up).await?;
    connection
        .observer
        .send(Watch::LinkUp {
            outbound,
            connection: number,
        })
        .await
        .map_err(|_| LinkEnd::Shutdown)
}

async fn send_on(connection: &Connection, request: Request) -> Result<(), LinkEnd> {
    connection
        .executor
        .send(request)
        .await
        .map_err(|_| LinkEnd::Shutdown)
}

/// Handles one message; an answer goes straight back.
async fn on_message(
    connection: &Connection,
    message: LinkDown,
    live: &mut Live,
) -> Result<Option<LinkUp>, LinkEnd> {
    use link_down::Kind as K;
    let answer = |kind| Ok(Some(LinkUp { kind: Some(kind) }));
    match message.kind {
        Some(K::Deliver(deliver)) => match deliver.command {
            Some(command) => {
                let epoch = deliver.epoch;
                send_on(connection, Request::Deliver { command, epoch }).await?;
            }
            None => return Err(odd("a delivery without a command")),
        },
        Some(K::ResultAck(ack)) => {
            let id =
                CommandId::from_wire(&ack.command).map_err(|_| odd("an id of wrong length"))?;
            send_on(connection, Request::Acked { id }).await?;
        }
        Some(K::Cancel(cancel)) => {
            let id =
                CommandId::from_wire(&cancel.command).map_err(|_| odd("an id of wrong length"))?;
            send_on(connection, Request::Cancel { id, by: cancel.by }).await?;
        }
        Some(K::OpenStream(open)) => send_on(connection, Request::OpenStream(open)).await?,
        Some(K::EventAck(ack)) => {
            // The observer may wait for the engine; an event that seems unacknowledged is told again.
            let _ = connection.observer.try_send(Watch::Acked { seq: ack.seq });
        }
        Some(K::Challenge(challenge)) => {
            return answer(link_up::Kind::ChallengeAnswer(ChallengeAnswer {
                nonce: challenge.nonce,
            }));
        }
        Some(K::Renewed(reply)) => {
            let outcome = connection.take_renewal(reply).await;
            if let Err(why) = &outcome {
                tracing::error!(why, "the renewed certificate cannot be used");
            }
            if let Some(Some(waiting)) = live.renewing.take() {
                let _ = waiting.send(outcome);
            }
        }
        Some(K::Reconnect(wish)) => {
            let spread = Duration::from_millis(u64::from(wish.spread_ms))
                .mul_f64(fairlead_link::backoff::random_share());
            return Err(LinkEnd::Reconnect {
                after: Duration::from_millis(u64::from(wish.after_ms)) + spread,
                reason: wish.reason,
            });
        }
        Some(K::Refused(refused)) => {
            return Err(LinkEnd::Refused {
                code: refused.code,
                message: refused.message,
                after: Duration::from_millis(u64::from(refused.retry_after_ms)),
            });
        }
        Some(K::Unsupported(unsupported)) => {
            tracing::warn!(
                kind = unsupported.kind,
                "the server does not know what we sent"
            );
        }
        Some(K::Probe(probe)) => {
            send_on(connection, Request::Probe { nonce: probe.nonce }).await?;
        }
        Some(K::Proven(_)) => {
            // A word that finds no room is said again with the next link.
            let _ = connection.say.try_send(ToSupervisor::Proved);
        }
        Some(K::Welcome(_) | K::Enrolled(_) | K::Left(_)) => {
            return Err(odd("a greeting out of turn"));
        }
        // A kind of a later version: said so, never ignored.
        None => {
            return answer(link_up::Kind::Unsupported(Unsupported::default()));
        }
    }
    Ok(None)
}

fn odd(what: &str) -> LinkEnd {
    SocketError::Violation(what.to_owned()).into()
}

/// Pings; when nothing was heard for too long, the link is dead; when the certificate has lived a third
/// of its life, it is renewed.
async fn beat(
    connection: &Connection,
    socket: &mut Socket<LinkUp, LinkDown>,
    live: &mut Live,
) -> Result<(), LinkEnd> {
    if live.heard.elapsed() > live.interval * limits::PINGS_MISSED_OFFLINE {
        return Err(SocketError::Silent.into());
    }
    socket.ping().await?;
    live.beaten();
    let left_s = connection.identity.lock().await.not_after_s() - connection.clock.now_s();
    if left_s < RENEW_LEFT_S && live.renewing.is_none() && connection.role().owns() {
        return ask_renewal(connection, socket, live, None).await;
    }
    Ok(())
}

async fn ask_renewal(
    connection: &Connection,
    socket: &mut Socket<LinkUp, LinkDown>,
    live: &mut Live,
    asked: Option<RenewNow>,
) -> Result<(), LinkEnd> {
    let request = match connection.renew_request().await {
        Ok(request) => request,
        Err(error) => {
            // A full disk, most likely: the link is as good as before, and the next beat asks again.
            tracing::warn!(%error, "the certificate cannot be renewed now");
            if let Some(asked) = asked {
                let _ = asked.done.send(Err(error.to_string()));
            }
            return Ok(());
        }
    };
    live.renewing = Some(asked.map(|asked| asked.done));
    socket
        .send(&LinkUp {
            kind: Some(link_up::Kind::Renew(request)),
        })
        .await?;
    Ok(())
}
