//! One simulated host: dials as the agent does, says what an idle agent says, answers commands at once.
//!
//! Its loop is the agent's `session` without executor and observer. Its heartbeat tells how long the server
//! took to answer: a server that is busy with others shows there.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use fairlead_agent::identity::Identity;
use fairlead_link::backoff::{Backoff, Last, random_share};
use fairlead_link::dial::Dialler;
use fairlead_link::socket::{Heard, Socket};
use fairlead_protocol::version::{self, paths};
use fairlead_protocol::{
    ChallengeAnswer, Command, CommandResult, Container, Deliver, EngineFacts, Hello, HostFacts,
    HostSample, InstanceId, InventoryPart, LinkDown, LinkUp, Message, MetricsPart, Progress, RunId,
    Stage, Stamp, State, Welcome, limits, link_down, link_up,
};
use tokio::time::Instant;

/// A heartbeat that was answered later than this is late.
pub const LATE_AFTER: Duration = Duration::from_secs(1);
/// A link that lived so long was good: the next wait is short again. As in the agent.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// What a command is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Answer {
    /// Progress only: the region's ledger has nothing to do with it.
    Progress,
    /// Its result.
    Result,
}

/// What the hosts of a process have seen, together.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connected now.
    pub connected: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
    /// Why the latest of them did.
    failure: Mutex<String>,
    /// Commands answered.
    pub answered: AtomicU64,
    /// Heartbeats answered.
    pub beats: AtomicU64,
    /// Of these, later than [`LATE_AFTER`].
    pub beats_late: AtomicU64,
    /// The longest wait for one, microseconds.
    pub beat_max_us: AtomicU64,
}

impl Counts {
    /// Another attempt failed.
    pub fn failed(&self, why: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why the latest attempt that failed did; empty: none did.
    #[must_use]
    pub fn latest_failure(&self) -> String {
        let failure = self.failure.lock();
        failure.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What all hosts of a process do alike.
#[derive(Debug, Clone)]
pub struct Manner {
    /// Where they dial.
    pub address: String,
    /// How they answer commands.
    pub answer: Answer,
    /// Containers that each reports.
    pub containers: usize,
    /// Whether measurements go with each heartbeat, as an agent's do every 15 s.
    pub metrics: bool,
}

/// One host.
pub struct SimulatedHost {
    identity: Identity,
    dialler: Dialler,
    manner: Arc<Manner>,
    counts: Arc<Counts>,
    run: RunId,
}

/// The address that a host dials from: each has its own.
#[must_use]
pub fn source(index: usize) -> IpAddr {
    // 127.16.0.0/12 has room for a million; the last byte is never 0 or 255.
    let last = u8::try_from(index % 250).unwrap_or(0) + 1;
    let third = u8::try_from(index / 250 % 250).unwrap_or(0);
    let second = 16 + u8::try_from(index / 62_500 % 16).unwrap_or(0);
    IpAddr::V4(Ipv4Addr::new(127, second, third, last))
}

impl SimulatedHost {
    /// A host that dials from that address.
    ///
    /// # Panics
    /// When key and certificate do not fit together.
    #[must_use]
    pub fn new(
        identity: Identity,
        source: IpAddr,
        manner: Arc<Manner>,
        counts: Arc<Counts>,
    ) -> Self {
        let dialler = identity
            .dialler(None)
            .expect("key and certificate of one host")
            .leaving_from(source);
        Self {
            identity,
            dialler,
            manner,
            counts,
            run: RunId::from_bytes(fairlead_identity::random::bytes()),
        }
    }

    /// Lives until the process ends.
    pub async fn live(self, begin_after: Duration) {
        tokio::time::sleep(begin_after).await;
        let mut backoff = Backoff::default();
        loop {
            // On the heap: the handshake's future is large and must not stay.
            let (last, retry_after) = match Box::pin(self.open()).await {
                Ok((socket, welcome)) => {
                    let opened = Instant::now();
                    self.counts.connected.fetch_add(1, Ordering::Relaxed);
                    let wish = self.serve(socket, &welcome).await;
                    self.counts.connected.fetch_sub(1, Ordering::Relaxed);
                    if opened.elapsed() > GOOD_AFTER {
                        backoff.reset();
                    }
                    (Last::Taken, wish)
                }
                Err((last, retry_after, why)) => {
                    self.counts.failed(why);
                    (last, retry_after)
                }
            };
            tokio::time::sleep(backoff.next_wait(last, random_share(), retry_after)).await;
        }
    }

    async fn open(
        &self,
    ) -> Result<(Socket<LinkUp, LinkDown>, Welcome), (Last, Option<Duration>, String)> {
        let (mut socket, _): (Socket<LinkUp, LinkDown>, _) = self
            .dialler
            .messages(
                &self.manner.address,
                paths::LINK,
                limits::LINK_MESSAGE_BYTES_MAX,
            )
            .await
            .map_err(|error| {
                let nobody = error.nobody_there();
                let last = if nobody {
                    Last::NobodyThere
                } else {
                    Last::NotTaken
                };
                (last, None, error.to_string())
            })?;
        let hello = Hello {
            version_min: version::OLDEST,
            version_max: version::NEWEST,
            software: format!("fairlead-bench {}", fairlead_protocol::software::version()),
            features: version::AGENT_FEATURES
                .iter()
                .map(|&feature| feature.to_owned())
                .collect(),
            instance: InstanceId::from_bytes(fairlead_identity::random::bytes()).to_wire(),
            run: self.run.to_wire(),
            epoch: 1,
            certificate_counter: self.identity.enrolment.certificate_counter,
            facts: Some(facts(&self.identity.enrolment.name)),
            ..Hello::default()
        };
        let said = say(&mut socket, link_up::Kind::Hello(hello)).await;
        said.map_err(|()| (Last::NotTaken, None, "hello was not taken".to_owned()))?;
        match socket.hear_message(limits::HELLO_TIMEOUT).await {
            Ok(LinkDown {
                kind: Some(link_down::Kind::Welcome(welcome)),
            }) => Ok((socket, welcome)),
            Ok(LinkDown {
                kind: Some(link_down::Kind::Refused(refused)),
            }) => {
                let after = Duration::from_millis(u64::from(refused.retry_after_ms));
                Err((Last::NotTaken, Some(after), refused.message))
            }
            Ok(_) => Err((Last::NotTaken, None, "no welcome".to_owned())),
            Err(error) => Err((Last::NotTaken, None, error.to_string())),
        }
    }

    /// Until the link ends; when the server wants us back.
    async fn serve(
        &self,
        mut socket: Socket<LinkUp, LinkDown>,
        welcome: &Welcome,
    ) -> Option<Duration> {
        let interval = Duration::from_millis(u64::from(welcome.ping_interval_ms));
        let connection = welcome.connection;
        if self.report(&mut socket).await.is_err() {
            return None;
        }
        let mut heard_at = Instant::now();
        let mut asked_at: Option<Instant> = None;
        // Spread from the first beat on.
        let mut beat_at = heard_at + interval.mul_f64(random_share());
        loop {
            tokio::select! {
                biased;
                heard = socket.hear() => {
                    heard_at = Instant::now();
                    if let Some(asked) = asked_at.take() {
                        self.answered_in(asked.elapsed());
                    }
                    match heard {
                        Ok(Heard::Life) => {}
                        Ok(Heard::Message(message)) => {
                            match self.on_message(&mut socket, connection, message).await {
                                Ok(()) => {}
                                Err(wish) => return wish,
                            }
                        }
                        Err(_) => return None,
                    }
                }
                () = tokio::time::sleep_until(beat_at) => {
                    if heard_at.elapsed() > interval * limits::PINGS_MISSED_OFFLINE {
                        return None;
                    }
                    beat_at = Instant::now() + interval - interval.mul_f64(random_share() * 0.2);
                    asked_at = asked_at.or(Some(Instant::now()));
                    if socket.ping().await.is_err() {
                        return None;
                    }
                    if self.manner.metrics && say(&mut socket, metrics()).await.is_err() {
                        return None;
                    }
                }
            }
        }
    }

    fn answered_in(&self, elapsed: Duration) {
        self.counts.beats.fetch_add(1, Ordering::Relaxed);
        if elapsed > LATE_AFTER {
            self.counts.beats_late.fetch_add(1, Ordering::Relaxed);
        }
        let us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.counts.beat_max_us.fetch_max(us, Ordering::Relaxed);
    }

    /// What an agent says of itself when its link is up.
    async fn report(&self, socket: &mut Socket<LinkUp, LinkDown>) -> Result<(), ()> {
        let inventory = InventoryPart {
            generation: 1,
            full: true,
            last: true,
            upserts: (0..self.manner.containers).map(container).collect(),
            removed: Vec::new(),
            as_of_us: 1,
            engine: Some(engine()),
        };
        say(socket, link_up::Kind::Inventory(inventory)).await?;
        say(socket, metrics()).await
    }

    async fn on_message(
        &self,
        socket: &mut Socket<LinkUp, LinkDown>,
        connection: u64,
        message: LinkDown,
    ) -> Result<(), Option<Duration>> {
        use link_down::Kind as K;
        match message.kind {
            Some(K::Deliver(deliver)) => {
                let answer = self.answer(deliver, connection).ok_or(None)?;
                say(socket, answer).await.map_err(|()| None)?;
                self.counts.answered.fetch_add(1, Ordering::Relaxed);
            }
            Some(K::Challenge(challenge)) => {
                let answer = ChallengeAnswer {
                    nonce: challenge.nonce,
                };
                say(socket, link_up::Kind::ChallengeAnswer(answer))
                    .await
                    .map_err(|()| None)?;
            }
            Some(K::Reconnect(wish)) => {
                let spread = Duration::from_millis(u64::from(wish.spread_ms));
                let after = Duration::from_millis(u64::from(wish.after_ms));
                return Err(Some(after + spread.mul_f64(random_share())));
            }
            Some(K::Refused(refused)) => {
                let after = Duration::from_millis(u64::from(refused.retry_after_ms));
                return Err(Some(after));
            }
            // Acknowledgements, and what only a whole agent has an answer to.
            _ => {}
        }
        Ok(())
    }

    fn answer(&self, deliver: Deliver, connection: u64) -> Option<link_up::Kind> {
        let signed = deliver.command?;
        let command = Command::decode(&signed.command[..]).ok()?;
        let now_us = fairlead_daemon::clock::Clock::system().now_us();
        let stamps = [Stage::DeliveredToHost, Stage::Verified]
            .map(|stage| Stamp::at(stage, now_us))
            .to_vec();
        Some(match self.manner.answer {
            Answer::Progress => link_up::Kind::Progress(Progress {
                command: command.id,
                state: State::Running.into(),
                stamps,
                waiting_for: String::new(),
            }),
            Answer::Result => link_up::Kind::Result(CommandResult {
                command: command.id,
                state: State::Succeeded.into(),
                stamps,
                epoch: 1,
                connection,
                ..CommandResult::default()
            }),
        })
    }
}

async fn say(socket: &mut Socket<LinkUp, LinkDown>, kind: link_up::Kind) -> Result<(), ()> {
    socket
        .send(&LinkUp { kind: Some(kind) })
        .await
        .map_err(|error| tracing::debug!(%error, "a link broke"))
}

fn engine() -> EngineFacts {
    EngineFacts {
        kind: "simulated".to_owned(),
        version: "20.10.24+dfsg1".to_owned(),
        api_version: "1.41".to_owned(),
        runtime: "1.6.20~ds1".to_owned(),
        ..EngineFacts::default()
    }
}

fn facts(name: &str) -> HostFacts {
    HostFacts {
        hostname: name.to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        kernel: "6.1.0-18-amd64".to_owned(),
        arch: "x86_64".to_owned(),
        cpus: 4,
        memory_bytes: 8 << 30,
        engine: Some(engine()),
        agent_version: fairlead_protocol::software::version().to_owned(),
        policy: String::new(),
        host_shell: false,
        versions: None,
    }
}

fn container(index: usize) -> Container {
    let id: String = fairlead_identity::random::bytes::<32>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Container {
        image_id: format!("sha256:{id}"),
        id,
        name: format!("web-{index}"),
        image: "registry.example.com/shop/web:1.27.3".to_owned(),
        state: "running".to_owned(),
        health: "healthy".to_owned(),
        created_us: 1_700_000_000_000_000,
        started_us: 1_700_000_000_000_000,
        ip: format!("172.17.0.{}", index + 2),
        project: "shop".to_owned(),
        service: "web".to_owned(),
        command: "/docker-entrypoint.sh nginx -g 'daemon off;'".to_owned(),
        restart_policy: "unless-stopped".to_owned(),
        networks: vec!["bridge".to_owned()],
        ..Container::default()
    }
}

fn metrics() -> link_up::Kind {
    link_up::Kind::Metrics(MetricsPart {
        at_us: fairlead_daemon::clock::Clock::system().now_us(),
        host: Some(HostSample {
            cpu_permille: 31,
            memory_used: 2_111_000_000,
            memory_total: 8 << 30,
            disk_used: 11_000_000_000,
            disk_total: 80_000_000_000,
            network_rx: 1_234_567_890,
            network_tx: 987_654_321,
            load1_centi: 12,
            uptime_s: 1_000_000,
        }),
        containers: Vec::new(),
    })
}
