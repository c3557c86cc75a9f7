//! Admission: who may hold a host's link.
//!
//! Version, continuity of counter and epoch, and the challenge that tells a ghost from a clone. Nothing of
//! a host is changed before it is admitted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fairlead_link::socket::SocketError;
use fairlead_protocol::{
    Hello, HostFacts, HostId, HostPresence, InstanceId, LinkDown, Message, RunId, Welcome, codes,
    events, link_down, version,
};
use fairlead_store::hosts::HostRow;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::allowance::{Allowance, Coming};
use super::{Agent, Link};
use crate::capacity::Capacity;
use crate::region::{Refusal, Region, unavailable};
use crate::registry::{Admission, Entry};
use crate::router::ToHost;
use crate::router::queue::{self, FromRouter};
use crate::{clones, doors};

/// When one that is held may: an admin who approves it looks at the screen.
const HELD_RETRY_MS: u32 = 10_000;

/// When one that there is no room for may: it has other addresses to try meanwhile.
const NO_ROOM_RETRY_MS: u32 = 30_000;

/// When one that comes too often may.
const TOO_OFTEN_RETRY_MS: u32 = 5_000;

/// The version that both speak.
fn negotiated(hello: &Hello) -> Result<u32, Refusal> {
    version::negotiate(hello.version_min, hello.version_max).ok_or_else(|| {
        let message = format!(
            "the agent speaks {} to {}, this server {} to {}: upgrade the older one",
            hello.version_min,
            hello.version_max,
            version::OLDEST,
            version::NEWEST
        );
        (codes::VERSION_MISMATCH, message)
    })
}

impl Link {
    /// Judges a hello; on success the link is in the registry and the agent has its welcome.
    pub(super) async fn admit(
        socket: &mut Agent,
        host: HostId,
        serial: String,
        hello: Hello,
        region: Arc<Region>,
    ) -> Result<(Self, FromRouter, HostPresence), (Refusal, u32)> {
        let no = |code, message: String| ((code, message), 0);
        let version = negotiated(&hello).map_err(|refusal| (refusal, 0))?;
        let odd = || {
            no(
                codes::PROTOCOL_VIOLATION,
                "hello names no instance".to_owned(),
            )
        };
        let instance = InstanceId::from_wire(&hello.instance).map_err(|_| odd())?;
        let run = RunId::from_wire(&hello.run).map_err(|_| odd())?;
        Self::check_coming(&region, host).await?;
        Self::check_room(&region, host)?;
        let known = Self::known(&region, host)
            .await
            .map_err(|refusal| (refusal, 2000))?;
        Self::check_continuity(&region, host, run, &known, &hello)
            .await
            .map_err(|refusal| {
                let again = match refusal.0 {
                    codes::CLONE => clones::RETRY_MS,
                    codes::BUSY => 0,
                    _ => HELD_RETRY_MS,
                };
                (refusal, again)
            })?;
        let connection = region.new_connection();
        let (to_host, queue) = queue::pair();
        let entry = Entry {
            connection,
            instance,
            run,
            epoch: hello.epoch,
            serial,
            to_host,
            lagging: Arc::default(),
            end: CancellationToken::new(),
        };
        Self::take_place(&region, host, entry.clone(), hello.beside).await?;
        // It may have been revoked since the door; from here on a new list finds it in the registry.
        if let Some(refusal) = region.revoked(host, &entry.serial) {
            region.registry.remove(host, connection);
            return Err((refusal, 0));
        }
        let now_us = region.clock.now_us();
        let presence = presence(
            host,
            hello.epoch,
            instance,
            hello.facts.clone(),
            socket,
            now_us,
        );
        let interval = Duration::from_millis(u64::from(region.ping_interval_ms));
        let now = Instant::now();
        let link = Self {
            host,
            connection,
            suspect_since_us: None,
            interval,
            heard: now,
            beat_at: now + interval,
            bodies: HashMap::new(),
            challenges: Vec::new(),
            beside: hello.beside,
            probe: None,
            keys: region.command_keys(),
            entry,
            allowance: Allowance::new(now),
            pause: None,
            region,
        };
        let epoch = known.epoch;
        link.welcome(socket, version, epoch)
            .await
            .map_err(|error| {
                link.region.registry.remove(host, connection);
                no(codes::PROTOCOL_VIOLATION, error.to_string())
            })?;
        if !hello.beside {
            link.note_hello(hello, now_us);
        }
        Ok((link, queue, presence))
    }

    /// One that is here already takes no more room than it has.
    fn check_room(region: &Region, host: HostId) -> Result<(), (Refusal, u32)> {
        let Capacity {
            links, open_files, ..
        } = region.capacity;
        if region.registry.taken() < links || region.registry.get(host).is_some() {
            return Ok(());
        }
        let message = format!(
            "this access server has no room for more than {links} hosts: it may open {open_files} files \
             (LimitNOFILE in its unit), or the region needs another access server"
        );
        Err(((codes::BUSY, message), NO_ROOM_RETRY_MS))
    }

    /// Each coming and going is written down, here and at the centre: that must not be had without end.
    async fn check_coming(region: &Region, host: HostId) -> Result<(), (Refusal, u32)> {
        let coming = region.comings.comes(host, Instant::now());
        if coming == Coming::Welcome {
            return Ok(());
        }
        let message = "this host connects too often: see why its links end".to_owned();
        if coming == Coming::TooOften {
            region
                .record(host, events::HOST_FLOODING, message.clone())
                .await;
        }
        Err(((codes::BUSY, message), TOO_OFTEN_RETRY_MS))
    }

    /// What is merely good to know is not worth a wait: the next hello says it again.
    fn note_hello(&self, hello: Hello, now_us: i64) {
        let facts = hello.facts.unwrap_or_default().encode_to_vec();
        let (epoch, host) = (hello.epoch, self.host);
        let region = Arc::clone(&self.region);
        // Ends with the sync.
        tokio::spawn(async move {
            let seen = region
                .ledger
                .write(move |tx| tx.host_seen(host, now_us, epoch, &facts))
                .await;
            if let Err(error) = seen {
                tracing::warn!(%host, %error, "hello could not be noted");
            }
        });
    }

    async fn known(region: &Region, host: HostId) -> Result<HostRow, Refusal> {
        let found = region.ledger.look(|tx| tx.host(host));
        match found.map_err(|error| unavailable(&error))? {
            Some(row) => Ok(row),
            None => {
                // The ledger was lost or restored from before this host joined. Its certificate is
                // the region's own, so it is taken in again, and the centre is told.
                let record = fairlead_protocol::HostRecord {
                    host: host.to_wire(),
                    name: host.short(),
                    tenant: fairlead_store::DEFAULT_TENANT.to_owned(),
                    ..fairlead_protocol::HostRecord::default()
                };
                let row = doors::host_row(&record, &region.name, region.clock.now_us());
                let kept = row.clone();
                region
                    .ledger
                    .write(move |tx| tx.insert_host(host, &kept))
                    .await
                    .map_err(|error| unavailable(&error))?;
                region
                    .record(host, "host.adopted", "unknown to the ledger".to_owned())
                    .await;
                Ok(row)
            }
        }
    }

    /// Counters and epochs only grow; where one went back, somebody uses an older copy of the host. Is the
    /// true one connected, then the copy alone is refused; else nobody can tell which is which.
    async fn check_continuity(
        region: &Region,
        host: HostId,
        run: RunId,
        known: &HostRow,
        hello: &Hello,
    ) -> Result<(), Refusal> {
        if !known.held.is_empty() {
            let message = format!(
                "held: {}; an admin decides with `fairlead host approve`",
                known.held
            );
            return Err((codes::HELD, message));
        }
        // Nobody is owner by a hello beside: what it says when it becomes one is judged then.
        let epoch = if hello.beside {
            known.epoch
        } else {
            hello.epoch
        };
        if epoch < known.epoch && region.registry.knows_run(host, run) {
            // The same supervisor has granted a higher epoch meanwhile: no older copy, only late.
            let message = "another instance of this agent owns the host by now".to_owned();
            return Err((codes::BUSY, message));
        }
        let went_back =
            epoch < known.epoch || hello.certificate_counter + 1 < known.certificate_counter;
        if went_back
            && let Some(older) = region.registry.get(host).filter(|older| older.run != run)
            && clones::lives(&older).await
        {
            return Err(clones::noticed(region, host).await);
        }
        if epoch < known.epoch && !Self::approved(region, host).await? {
            let reason = format!(
                "its epoch went back from {} to {}: an older copy of the machine is in use",
                known.epoch, hello.epoch
            );
            return Err(doors::hold(region, host, reason).await);
        }
        if hello.certificate_counter + 1 < known.certificate_counter {
            let reason = format!(
                "its certificate counter went back from {} to {}",
                known.certificate_counter, hello.certificate_counter
            );
            return Err(doors::hold(region, host, reason).await);
        }
        Ok(())
    }

    async fn approved(region: &Region, host: HostId) -> Result<bool, Refusal> {
        let used = region.ledger.write(move |tx| tx.use_approval(host)).await;
        used.map_err(|error| unavailable(&error))
    }

    /// Enters the registry, challenging an older link of another supervisor first: silence means that
    /// it is a ghost, an answer that the newcomer is a clone.
    async fn take_place(
        region: &Region,
        host: HostId,
        entry: Entry,
        beside: bool,
    ) -> Result<(), (Refusal, u32)> {
        let mut displaces = None;
        loop {
            let admission = if beside {
                region.registry.admit_beside(host, entry.clone())
            } else {
                region.registry.admit(host, entry.clone(), displaces)
            };
            match admission {
                Admission::Challenge(_) if beside => {
                    let message = "this host's link is another supervisor's".to_owned();
                    return Err(((codes::BUSY, message), 1000));
                }
                Admission::Admitted(older) => {
                    if let Some(older) = older {
                        let message = "a newer connection of this host took over".to_owned();
                        let end = ToHost::End {
                            code: codes::BUSY,
                            message,
                        };
                        let _ = older.to_host.push(end);
                    }
                    return Ok(());
                }
                Admission::Outdated => {
                    let message = "a younger instance of this agent is connected".to_owned();
                    return Err(((codes::BUSY, message), 1000));
                }
                Admission::Challenge(older) => {
                    if clones::lives(&older).await {
                        return Err((clones::noticed(region, host).await, clones::RETRY_MS));
                    }
                    displaces = Some(older.connection);
                }
            }
        }
    }

    async fn welcome(
        &self,
        socket: &mut Agent,
        version: u32,
        epoch: u64,
    ) -> Result<(), SocketError> {
        let welcome = Welcome {
            version,
            software: format!(
                "fairlead-access-server {}",
                fairlead_protocol::software::version()
            ),
            features: version::SERVER_FEATURES
                .iter()
                .map(|&feature| feature.to_owned())
                .collect(),
            server: self.region.server.to_string(),
            connection: self.connection,
            server_time_us: self.region.clock.now_us(),
            ping_interval_ms: self.region.ping_interval_ms,
            addresses: self.region.addresses.clone(),
            command_keys: Some(self.keys.borrow().clone()),
            epoch,
            ..Welcome::default()
        };
        socket
            .send(&LinkDown {
                kind: Some(link_down::Kind::Welcome(welcome)),
            })
            .await
    }
}

/// A host that is online, by the word of this instance of its agent.
pub(super) fn presence(
    host: HostId,
    epoch: u64,
    instance: InstanceId,
    facts: Option<HostFacts>,
    socket: &Agent,
    now_us: i64,
) -> HostPresence {
    let remote = socket.remote.map(|remote| remote.ip().to_string());
    HostPresence {
        host: host.to_wire(),
        state: "online".to_owned(),
        since_us: now_us,
        reason: String::new(),
        epoch,
        instance: instance.to_wire(),
        facts,
        address: remote.unwrap_or_default(),
        clock_offset_us: 0,
    }
}
