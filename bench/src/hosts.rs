//! The process that is thousands of hosts: of the product's links (`links`), or of the floor (`echo`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Args, ValueEnum};
use fairlead_agent::identity::Identity;
use fairlead_link::backoff::random_share;
use serde::{Deserialize, Serialize};

use crate::simulated_host::{Answer, Counts, Manner, SimulatedHost, source};
use crate::worker::{Worker, answer, orders};
use crate::{echo, installation};

/// Which end of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The product's link.
    Links,
    /// The floor.
    Echo,
}

/// What hosts.
#[derive(Debug, Clone, Args)]
pub struct Hosts {
    /// File of their identities.
    #[arg(long)]
    pub identities: PathBuf,
    /// The first of them.
    #[arg(long)]
    pub first: usize,
    /// How many.
    #[arg(long)]
    pub count: usize,
    /// Where they dial.
    #[arg(long)]
    pub address: String,
    /// Product or floor.
    #[arg(long, value_enum)]
    pub kind: Kind,
    /// How they answer commands.
    #[arg(long, value_enum, default_value = "result")]
    pub answer: Answer,
    /// Milliseconds over which they first dial.
    #[arg(long)]
    pub spread_ms: u64,
    /// Containers that each reports.
    #[arg(long, default_value = "2")]
    pub containers: usize,
    /// Send measurements with each heartbeat.
    #[arg(long)]
    pub metrics: bool,
}

/// What a process of hosts says of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Connected now.
    pub connected: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Why the latest of them did.
    pub failure: String,
    /// Commands answered.
    pub answered: u64,
    /// Heartbeats answered, since they were last asked about.
    pub beats: u64,
    /// Of these, the late ones.
    pub beats_late: u64,
    /// The longest wait for one, microseconds.
    pub beat_max_us: u64,
}

/// Is those hosts until the parent goes.
///
/// # Panics
/// When an identity cannot be used.
pub async fn run(hosts: Hosts) {
    let counts = Arc::new(Counts::default());
    let manner = Arc::new(Manner {
        address: hosts.address.clone(),
        answer: hosts.answer,
        containers: hosts.containers,
        metrics: hosts.metrics,
    });
    let identities = installation::load(&hosts.identities, hosts.first, hosts.count);
    for (index, kept) in identities.into_iter().enumerate() {
        let enrolment = kept.enrolment.expect("an enrolment");
        let identity = Identity::new(enrolment, kept.key_der.to_vec()).expect("an identity");
        let from = source(hosts.first + index);
        let (manner, counts) = (Arc::clone(&manner), Arc::clone(&counts));
        let begin_after = Duration::from_millis(hosts.spread_ms).mul_f64(random_share());
        // They live as long as the process.
        match hosts.kind {
            Kind::Links => {
                let host = SimulatedHost::new(identity, from, manner, counts);
                tokio::spawn(host.live(begin_after));
            }
            Kind::Echo => {
                let dialler = identity
                    .dialler(None)
                    .expect("key and certificate of one host")
                    .leaving_from(from);
                let server = echo::server_of(&identity.enrolment.region);
                tokio::spawn(echo::live(dialler, manner, server, counts, begin_after));
            }
        }
    }
    let mut orders = orders();
    while let Some(order) = orders.recv().await {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        // `beats` begins to count them anew.
        let count = |counter: &std::sync::atomic::AtomicU64| match order.as_str() {
            "beats" => counter.swap(0, Ordering::Relaxed),
            _ => counter.load(Ordering::Relaxed),
        };
        answer(&Seen {
            connected: read(&counts.connected),
            failed: read(&counts.failed),
            failure: counts.latest_failure(),
            answered: read(&counts.answered),
            beats: count(&counts.beats),
            beats_late: count(&counts.beats_late),
            beat_max_us: count(&counts.beat_max_us),
        });
    }
}

/// Processes of hosts, as their parent sees them.
pub struct Crowd {
    workers: Vec<Worker>,
    arguments: Vec<Vec<String>>,
    program: PathBuf,
    /// How many hosts they are.
    pub count: usize,
}

/// Hosts of one process: each is an open file, and 20,000 is the most that a process may have here.
const PER_PROCESS_MAX: usize = 7_500;

impl Crowd {
    /// Starts as many processes as it takes.
    #[must_use]
    pub fn start(program: &std::path::Path, hosts: &Hosts) -> Self {
        let mut crowd = Self {
            workers: Vec::new(),
            arguments: Vec::new(),
            program: program.to_owned(),
            count: hosts.count,
        };
        let mut first = hosts.first;
        let end = hosts.first + hosts.count;
        // Two at least, so that one of them can die and the others go on.
        let share = hosts.count.div_ceil(2).clamp(1, PER_PROCESS_MAX);
        while first < end {
            let count = share.min(end - first);
            let kind = match hosts.kind {
                Kind::Links => "links",
                Kind::Echo => "echo",
            };
            let way = match hosts.answer {
                Answer::Progress => "progress",
                Answer::Result => "result",
            };
            let mut arguments = vec![
                "hosts".to_owned(),
                format!("--identities={}", hosts.identities.display()),
                format!("--first={first}"),
                format!("--count={count}"),
                format!("--address={}", hosts.address),
                format!("--kind={kind}"),
                format!("--answer={way}"),
                format!("--containers={}", hosts.containers),
                format!("--spread-ms={}", hosts.spread_ms),
            ];
            if hosts.metrics {
                arguments.push("--metrics".to_owned());
            }
            crowd.workers.push(Worker::start(program, &arguments));
            crowd.arguments.push(arguments);
            first += count;
        }
        crowd
    }

    /// How many processes.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.workers.len()
    }

    /// All of them together; the times are the worst of any.
    pub async fn seen(&mut self, order: &str) -> Seen {
        let mut all = Seen::default();
        for worker in &mut self.workers {
            let seen: Seen = worker.ask(order).await;
            all.connected += seen.connected;
            all.failed += seen.failed;
            if !seen.failure.is_empty() {
                all.failure = seen.failure;
            }
            all.answered += seen.answered;
            all.beats += seen.beats;
            all.beats_late += seen.beats_late;
            all.beat_max_us = all.beat_max_us.max(seen.beat_max_us);
        }
        all
    }

    /// One process's.
    pub async fn seen_by(&mut self, process: usize, order: &str) -> Seen {
        self.workers[process].ask(order).await
    }

    /// Waits until so many are connected.
    ///
    /// # Panics
    /// When they are not in time.
    pub async fn connected(&mut self, wanted: usize, within: Duration) -> Duration {
        let began = tokio::time::Instant::now();
        loop {
            let seen = self.seen("seen").await;
            if seen.connected >= wanted as u64 {
                if seen.failed > 0 {
                    eprintln!(
                        "until all were connected {} attempts failed; the latest: {}",
                        seen.failed, seen.failure
                    );
                }
                return began.elapsed();
            }
            assert!(
                began.elapsed() < within,
                "of {wanted} hosts {} are connected after {within:?} ({} attempts failed; the latest: {})",
                seen.connected,
                seen.failed,
                seen.failure
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// kill -9 of one process of hosts, and starts it again: they all dial at once.
    pub async fn restart(&mut self, process: usize) {
        self.workers[process].kill().await;
        let mut arguments = self.arguments[process].clone();
        arguments.retain(|argument| !argument.starts_with("--spread-ms="));
        arguments.push("--spread-ms=0".to_owned());
        self.workers[process] = Worker::start(&self.program, &arguments);
    }
}
