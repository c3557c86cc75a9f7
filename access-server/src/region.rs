//! The region: what all tasks share, and the few decisions that need more than one of its parts.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use fairlead_daemon::clock::Clock;
use fairlead_identity::Root;
use fairlead_identity::authority::{Authority, LeafUse, RequestedKey};
use fairlead_identity::roles::Role;
use fairlead_protocol::{
    AgentVersions, CommandKeys, EnrolCheck, EnrolVerdict, HostEvent, HostId, HostPresence, Message,
    RegionEvent, RenewReply, Revocations, UplinkUp, codes, limits, numbered, uplink_up,
};
use fairlead_store::exchange::CENTRE;
use fairlead_store::{Enqueued, Store, StoreError};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use crate::capacity::Capacity;
use crate::fleet::Fleet;
use crate::link::allowance::Comings;
use crate::link::departure::Departure;
use crate::link::greetings::Greetings;
use crate::metrics::Counters;
use crate::registry::Registry;
use crate::router::{self, ToHost};
use crate::streams::Streams;
use crate::terminals::Desk;
use crate::under_way::UnderWay;

/// Messages to the controller that may be lost and wait for the uplink; when they are too many the
/// whole picture is sent again instead.
const VOLATILE_MAX: usize = 1024;
/// How long the controller may take to judge a join token.
const VERDICT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// What is no longer believed.
#[derive(Debug, Default)]
struct Revoked {
    hosts: HashSet<HostId>,
    serials: HashSet<String>,
}

/// Shared by all tasks.
pub struct Region {
    /// The region's name.
    pub name: String,
    /// This server's role, as agents see it in its certificate.
    pub server: Role,
    /// Where agents dial.
    pub addresses: Vec<String>,
    /// The installation's root.
    pub root: Root,
    /// Certifies the region's agents.
    pub agents_ca: Authority,
    /// Durable state.
    pub ledger: Store,
    /// Who is connected.
    pub registry: Registry,
    /// What is known of hosts.
    pub fleet: Fleet,
    /// Streams under way.
    pub streams: Streams,
    /// Terminals that live here; `None`: the controller relays them.
    pub desk: Option<Arc<Desk>>,
    /// How often hosts come.
    pub comings: Comings,
    /// How many hosts there is room for.
    pub capacity: Capacity,
    /// How many links are greeted at once: what each asks of the ledger waits in one row.
    pub greetings: Greetings,
    /// Clones that are heard at a time.
    pub clone_places: Semaphore,
    /// Time.
    pub clock: Clock,
    /// For `/metrics`.
    pub counters: Counters,
    /// Milliseconds between pings on links.
    pub ping_interval_ms: u32,
    /// Wakes the uplink when the outbox has grown.
    pub outbox_grew: Notify,
    /// The whole picture has to be sent again.
    pub resync: AtomicBool,
    volatile: mpsc::Sender<UplinkUp>,
    attached: AtomicBool,
    next_connection: AtomicU64,
    next_request: AtomicU64,
    verdicts: Mutex<HashMap<u64, oneshot::Sender<EnrolVerdict>>>,
    revoked: RwLock<Revoked>,
    command_keys: watch::Sender<CommandKeys>,
    /// What is told of open commands.
    pub under_way: UnderWay,
    departure: OnceLock<Departure>,
}

/// What a region is made of.
pub struct RegionParts {
    /// See [`Region`].
    pub name: String,
    /// See [`Region`].
    pub server: Role,
    /// See [`Region`].
    pub addresses: Vec<String>,
    /// See [`Region`].
    pub root: Root,
    /// See [`Region`].
    pub agents_ca: Authority,
    /// See [`Region`].
    pub ledger: Store,
    /// See [`Region`].
    pub desk: Option<Arc<Desk>>,
    /// See [`Region`].
    pub clock: Clock,
    /// See [`Region`].
    pub ping_interval_ms: u32,
}

/// A refusal: stable code and words.
pub type Refusal = (&'static str, String);

impl Region {
    /// A region from its parts, with what the ledger remembers. The receiver is the uplink's.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn new(parts: RegionParts) -> Result<(Self, mpsc::Receiver<UplinkUp>), StoreError> {
        let (volatile, queue) = mpsc::channel(VOLATILE_MAX);
        let (keys, revocations) = parts
            .ledger
            .read(|tx| Ok((tx.meta("command_keys")?, tx.meta("revocations")?)))
            .await?;
        let region = Self {
            name: parts.name,
            server: parts.server,
            addresses: parts.addresses,
            root: parts.root,
            agents_ca: parts.agents_ca,
            ledger: parts.ledger,
            registry: Registry::default(),
            fleet: Fleet::default(),
            streams: Streams::default(),
            desk: parts.desk,
            comings: Comings::default(),
            capacity: Capacity::of(fairlead_daemon::process::open_files()),
            greetings: Greetings::default(),
            clone_places: Semaphore::new(crate::clones::PLACES),
            counters: Counters::default(),
            ping_interval_ms: parts.ping_interval_ms,
            outbox_grew: Notify::new(),
            resync: AtomicBool::new(false),
            volatile,
            attached: AtomicBool::new(false),
            // Connection numbers must not repeat after a restart, or a late ack could be believed.
            next_connection: AtomicU64::new(parts.clock.now_us().unsigned_abs()),
            next_request: AtomicU64::new(1),
            verdicts: Mutex::default(),
            revoked: RwLock::default(),
            command_keys: watch::Sender::new(decoded(keys)),
            under_way: UnderWay::default(),
            departure: OnceLock::new(),
            clock: parts.clock,
        };
        region.set_revoked(&decoded::<Revocations>(revocations));
        region.learn(&region.command_keys.borrow());
        Ok((region, queue))
    }

    /// A number that no other connection has had.
    pub fn new_connection(&self) -> u64 {
        self.next_connection.fetch_add(1, Ordering::Relaxed)
    }

    // === the centre

    /// What hosts and centre are told when this server ends; once said, always the same.
    pub fn departure(&self) -> Departure {
        *self
            .departure
            .get_or_init(|| Departure::of(self.registry.len()))
    }

    /// Whether the uplink is up.
    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::SeqCst)
    }

    /// The uplink came or went. Nobody waits for verdicts that cannot come any more.
    pub fn set_attached(&self, attached: bool) {
        self.attached.store(attached, Ordering::SeqCst);
        if !attached {
            self.verdicts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clear();
            if let Some(desk) = &self.desk {
                desk.detached();
            }
        }
    }

    /// Tells the centre something that may be lost; if it is, the whole picture follows later.
    pub fn tell(&self, kind: uplink_up::Kind) {
        if self.is_attached()
            && self
                .volatile
                .try_send(UplinkUp { kind: Some(kind) })
                .is_err()
        {
            self.resync.store(true, Ordering::SeqCst);
        }
    }

    /// As [`Self::tell`], for what comes again by itself.
    pub fn tell_if_room(&self, kind: uplink_up::Kind) {
        if self.is_attached() {
            let _ = self.volatile.try_send(UplinkUp { kind: Some(kind) });
        }
    }

    /// Notes and tells that a host came, went or changed.
    pub fn note_presence(&self, host: HostId, presence: HostPresence) {
        self.fleet.presence(host, &presence);
        self.tell(uplink_up::Kind::Presence(presence));
    }

    /// Notes and tells which versions of the agent a host has.
    pub fn note_versions(&self, host: HostId, versions: AgentVersions) {
        if let Some(presence) = self.fleet.versions(host, versions) {
            self.tell(uplink_up::Kind::Presence(presence));
        }
    }

    /// Notes and tells that a host's state is another one; the rest of its presence stays.
    pub fn note_state(&self, host: HostId, state: &str, reason: &str, since_us: Option<i64>) {
        let known = self.fleet.state(host, state, reason, since_us);
        // Of one that is forgotten already, whose identity has ended, that it has gone.
        let presence = known.unwrap_or_else(|| HostPresence {
            host: host.to_wire(),
            state: state.to_owned(),
            since_us: since_us.unwrap_or_default(),
            reason: reason.to_owned(),
            ..HostPresence::default()
        });
        self.tell(uplink_up::Kind::Presence(presence));
    }

    /// Puts something that happened in the region into the ledger's queue. It is kept, and its report
    /// on its way, once the outcome is there.
    ///
    /// # Errors
    /// When the ledger is closed.
    pub async fn enqueue_event(
        &self,
        host: HostId,
        event: HostEvent,
    ) -> Result<Enqueued<()>, StoreError> {
        let region = self.name.clone();
        self.ledger
            .enqueue(move |tx| {
                let tenant = fairlead_store::DEFAULT_TENANT;
                if tx
                    .insert_event(tenant, Some(host), &region, &event)?
                    .is_some()
                {
                    let report = RegionEvent {
                        host: host.to_wire(),
                        event: Some(event),
                    };
                    tx.send_later(CENTRE, numbered::Kind::Event(report))?;
                }
                Ok(())
            })
            .await
    }

    /// Records something that this server itself has seen.
    pub async fn record(&self, host: HostId, action: &str, detail: String) {
        if let Err(error) = self.record_own(host, action, detail).await {
            tracing::error!(%host, action, %error, "an event could not be recorded");
        }
    }

    async fn record_own(
        &self,
        host: HostId,
        action: &str,
        detail: String,
    ) -> Result<(), StoreError> {
        let event = HostEvent {
            id: bytes::Bytes::copy_from_slice(&fairlead_identity::random::bytes::<16>()),
            at_us: self.clock.now_us(),
            action: action.to_owned(),
            detail,
            ..HostEvent::default()
        };
        self.enqueue_event(host, event).await?.outcome().await?;
        self.outbox_grew.notify_one();
        Ok(())
    }

    /// Ends a host's identity because its owner wants so. The centre is told by the event.
    ///
    /// # Errors
    /// When the ledger cannot be written; the host may ask again.
    pub async fn give_up(&self, host: HostId) -> Result<(), StoreError> {
        let detail = "its owner gave its identity up".to_owned();
        self.record_own(host, fairlead_protocol::events::HOST_LEFT, detail)
            .await?;
        let list = Revocations {
            hosts: vec![host.to_wire()],
            ..Revocations::default()
        };
        self.on_revocations(list).await
    }

    /// Asks the centre whether a machine may join.
    pub async fn ask_verdict(&self, mut check: EnrolCheck) -> Result<EnrolVerdict, Refusal> {
        let offline = || {
            let message = "the region has no connection to its controller, which alone knows join \
                           tokens; it is tried again by itself";
            (codes::REGION_OFFLINE, message.to_owned())
        };
        if !self.is_attached() {
            return Err(offline());
        }
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        check.request = request;
        let (answer, verdict) = oneshot::channel();
        self.verdicts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(request, answer);
        self.tell(uplink_up::Kind::EnrolCheck(check));
        let outcome = tokio::time::timeout(VERDICT_TIMEOUT, verdict).await;
        self.verdicts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&request);
        outcome.ok().and_then(Result::ok).ok_or_else(offline)
    }

    /// The centre has judged.
    pub fn on_verdict(&self, verdict: EnrolVerdict) {
        let waiting = self
            .verdicts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&verdict.request);
        if let Some(waiting) = waiting {
            // Whoever asked may have given up.
            let _ = waiting.send(verdict);
        }
    }

    // === belief

    /// Why a host (or its certificate) is not believed any more.
    pub fn revoked(&self, host: HostId, serial: &str) -> Option<Refusal> {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        if revoked.hosts.contains(&host) {
            let message = "this host's identity has been ended; enrol the machine again with a new \
                           join token, if it is meant to come back";
            return Some((codes::REVOKED, message.to_owned()));
        }
        revoked.serials.contains(serial).then(|| {
            let message = "this certificate has been revoked; enrol the machine again with a new \
                           join token";
            (codes::REVOKED, message.to_owned())
        })
    }

    fn set_revoked(&self, list: &Revocations) {
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        revoked.hosts = list
            .hosts
            .iter()
            .filter_map(|h| HostId::from_wire(h).ok())
            .collect();
        revoked.serials = list.serials.iter().cloned().collect();
    }

    /// Takes a list into use and ends the links and streams of those on it. A list only ever adds: nothing
    /// revoked comes back, whatever a controller that was restored from a backup has forgotten.
    ///
    /// # Errors
    /// When the ledger cannot be written; the list is not in use then.
    pub async fn on_revocations(&self, list: Revocations) -> Result<(), StoreError> {
        let now_us = self.clock.now_us();
        let list = self
            .ledger
            .write(move |tx| {
                let kept: Revocations = decoded(tx.meta("revocations")?);
                let list = joined(&list, &kept);
                tx.set_meta("revocations", &list.encode_to_vec())?;
                // Their names are free again for machines that enrol anew.
                for host in list
                    .hosts
                    .iter()
                    .filter_map(|host| HostId::from_wire(host).ok())
                {
                    tx.revoke_host(host, now_us)?;
                }
                Ok(list)
            })
            .await?;
        self.set_revoked(&list);
        let mut gone = HashSet::new();
        for (host, entry) in self.registry.links() {
            if let Some((code, message)) = self.revoked(host, &entry.serial) {
                // Nobody waits for a link that does not move: it ends by its own token.
                let _ = entry.to_host.push(ToHost::End { code, message });
                entry.end.cancel();
                self.fleet.forget(host);
                gone.insert(host);
            }
        }
        self.streams
            .cut(|host, serial| gone.contains(&host) || self.revoked(host, serial).is_some());
        Ok(())
    }

    /// The keys that may sign commands, for hosts that say hello; tells when they change.
    pub fn command_keys(&self) -> watch::Receiver<CommandKeys> {
        self.command_keys.subscribe()
    }

    fn learn(&self, keys: &CommandKeys) {
        if let Some(desk) = &self.desk {
            desk.learn(keys, self.clock.now_us());
        }
    }

    /// All that the centre knows of this region by being told, from the beginning.
    pub fn whole(&self) -> Vec<UplinkUp> {
        let mut whole = self.fleet.whole();
        whole.extend(self.desk.as_ref().map(|desk| UplinkUp {
            kind: Some(uplink_up::Kind::Terminals(desk.list())),
        }));
        let newest = self.under_way.newest().into_iter();
        whole.extend(newest.map(|newest| UplinkUp {
            kind: Some(uplink_up::Kind::Progress(newest)),
        }));
        whole
    }

    /// New keys from the centre; hosts judge them by themselves.
    pub async fn on_command_keys(&self, keys: CommandKeys) -> Result<(), StoreError> {
        self.learn(&keys);
        let bytes = keys.encode_to_vec();
        self.ledger
            .write(move |tx| tx.set_meta("command_keys", &bytes))
            .await?;
        self.command_keys.send_if_modified(|known| {
            let is_news = *known != keys;
            *known = keys;
            is_news
        });
        Ok(())
    }

    /// Certifies a host's key and remembers the answer, so that asking again gives it again.
    ///
    /// # Errors
    /// A refusal, in words.
    pub async fn certify(
        &self,
        host: HostId,
        key: &RequestedKey,
        counter: u64,
    ) -> Result<RenewReply, Refusal> {
        let role = Role::Agent {
            region: self.name.clone(),
            host,
        };
        let times = (self.clock.now_s(), limits::AGENT_CERTIFICATE_LIFE);
        let leaf = self
            .agents_ca
            .certify(key, &role, LeafUse::Client, &[], times)
            .map_err(|error| (codes::CERTIFICATE_REJECTED, error.to_string()))?;
        let reply = RenewReply {
            certificates: leaf
                .chain
                .iter()
                .map(|c| bytes::Bytes::copy_from_slice(c))
                .collect(),
            counter,
        };
        let (answer, hash) = (reply.encode_to_vec(), key.hash());
        let not_after_us = leaf.not_after_s * 1_000_000;
        let report = fairlead_protocol::HostCertified {
            host: host.to_wire(),
            counter,
            serial: leaf.serial,
            not_after_us,
        };
        self.ledger
            .write(move |tx| {
                tx.host_certified(host, counter, &hash, &answer, not_after_us)?;
                tx.send_later(CENTRE, numbered::Kind::Certified(report))
                    .map(|_| ())
            })
            .await
            .map_err(|error| unavailable(&error))?;
        self.outbox_grew.notify_one();
        Ok(reply)
    }
}

/// A ledger that cannot be written, for a peer.
pub fn unavailable(error: &StoreError) -> Refusal {
    tracing::error!(%error, "the ledger cannot be used");
    (
        codes::STORAGE_UNAVAILABLE,
        "the region's ledger cannot be written now".to_owned(),
    )
}

fn decoded<M: Message + Default>(bytes: Option<Vec<u8>>) -> M {
    bytes
        .and_then(|bytes| M::decode(&bytes[..]).ok())
        .unwrap_or_default()
}

/// Everything that either list holds.
fn joined(list: &Revocations, kept: &Revocations) -> Revocations {
    let mut all = list.clone();
    all.version = all.version.max(kept.version);
    all.as_of_us = all.as_of_us.max(kept.as_of_us);
    all.hosts.extend(kept.hosts.iter().cloned());
    all.hosts.sort();
    all.hosts.dedup();
    all.serials.extend(kept.serials.iter().cloned());
    all.serials.sort();
    all.serials.dedup();
    all
}

/// Asks the host to dial a stream; the socket comes through `streams`.
pub fn open_stream(region: &Region, open: fairlead_protocol::OpenStream, host: HostId) -> bool {
    router::send(
        &region.registry,
        host,
        fairlead_protocol::link_down::Kind::OpenStream(open),
    )
}
