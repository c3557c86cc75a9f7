//! The whole of it with thousands of hosts: a real controller, real access servers, simulated hosts. What an
//! idle host costs, how long all are away when the access server dies or is restarted, whether the others
//! notice when thousands come back, and commands through the API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fairlead_api::types::Action;
use fairlead_tests::client::{Api, request};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::ports::Port;
use fairlead_tests::wait::wait_for;
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::crossing::Crossed;
use crate::figures::Figure;
use crate::hosts::{Crowd, Hosts, Kind};
use crate::installation::{self, Installation};
use crate::measuring::{micros, millis, percentile, slab_kib, usage};
use crate::simulated_host::Answer;
use crate::worker::Worker;

/// How long thousands of hosts may take to come (back).
const ALL_WITHIN: Duration = Duration::from_secs(240);
/// Commands under way at once, through the API.
const COMMANDS_AT_ONCE: usize = 64;
/// The goal for 50,000 hosts that come back, seconds; for fewer it is that much less.
const STORM_GOAL_S: f64 = 30.0;
const STORM_GOAL_HOSTS: f64 = 50_000.0;

/// Controller, access servers, hosts.
pub struct Simulation {
    /// The servers.
    pub fleet: Fleet,
    /// The hosts, region by region.
    pub crowds: Vec<Crowd>,
    /// Memory of each access server before there were hosts, KiB.
    pub before_kib: Vec<f64>,
    /// The controller's.
    pub controller_before_kib: f64,
    slab_before_kib: f64,
}

/// How a simulation is to be.
pub struct Plan<'a> {
    /// `fairlead-bench`.
    pub program: &'a Path,
    /// Its regions.
    pub regions: Vec<String>,
    /// Hosts in each.
    pub hosts: usize,
    /// Whether they send measurements all 15 s.
    pub metrics: bool,
}

impl Simulation {
    /// Starts the servers, enters the hosts, starts those; returns when all are connected and nothing is
    /// owed to the controller.
    ///
    /// # Panics
    /// When something fails.
    pub async fn start(plan: &Plan<'_>) -> Self {
        let mut options = Options::simulated().hosts(&[]);
        options.regions.clone_from(&plan.regions);
        let mut fleet = Fleet::start(options).await;
        fleet.controller.leave().await;
        let store = fleet.dir().join("controller/controller.db");
        let mut files = Vec::new();
        for region in &mut fleet.regions {
            region.process.leave().await;
            let addresses = [region.agents.address()];
            let hosts = Installation::load(&region.dir).hosts(plan.hosts, &addresses);
            let file = region.dir.join("simulated-hosts");
            installation::save(&file, &hosts);
            installation::enter(&region.dir.join("ledger.db"), &hosts).await;
            installation::enter(&store, &hosts).await;
            files.push(file);
        }
        fleet.controller.start_again();
        for region in &mut fleet.regions {
            region.process.start_again();
        }
        fleet.all_online().await;
        let before_kib = fleet
            .regions
            .iter()
            .map(|region| usage(region.process.pid()).rss_kib)
            .collect();
        let mut simulation = Self {
            controller_before_kib: usage(fleet.controller.pid()).rss_kib,
            slab_before_kib: slab_kib(),
            before_kib,
            fleet,
            crowds: Vec::new(),
        };
        for (index, file) in files.into_iter().enumerate() {
            simulation.add_crowd(plan, index, file).await;
        }
        simulation.settled().await;
        simulation
    }

    async fn add_crowd(&mut self, plan: &Plan<'_>, region: usize, identities: PathBuf) {
        let hosts = Hosts {
            identities,
            first: 0,
            count: plan.hosts,
            address: self.fleet.regions[region].agents.address(),
            kind: Kind::Links,
            answer: Answer::Result,
            spread_ms: plan.hosts as u64,
            containers: 2,
            metrics: plan.metrics,
        };
        let mut crowd = Crowd::start(plan.program, &hosts);
        crowd.connected(plan.hosts, ALL_WITHIN).await;
        self.crowds.push(crowd);
    }

    /// Waits until some host of that region has noticed that its server has gone.
    pub async fn gone(&mut self, region: usize) {
        gone(&mut self.crowds[region]).await;
    }

    /// Hosts of all regions.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.crowds.iter().map(|crowd| crowd.count).sum()
    }

    /// Waits until the controller knows that all are there, and what that left to write is written.
    pub async fn settled(&self) {
        self.online().await;
        // The ledger's queue and the outbox run empty within seconds; memory for them is not a host's.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    /// Waits until the controller knows that all are there.
    ///
    /// # Panics
    /// When it does not learn it in time.
    pub async fn online(&self) {
        // A real agent may be among them.
        let wanted = (self.hosts() + self.fleet.hosts.len()) as u64;
        wait_for("all hosts online", ALL_WITHIN, async || {
            match self.fleet.api.status().await {
                Ok(status) if status.hosts_online == wanted => Ok(()),
                Ok(status) => Err(format!("{} of {wanted}", status.hosts_online)),
                Err(no) => Err(no.to_string()),
            }
        })
        .await;
    }

    /// What a host costs in memory: access server, controller, kernel.
    #[must_use]
    pub fn memory(&self) -> (f64, f64, f64) {
        let hosts = self.hosts() as f64;
        let now: f64 = self
            .fleet
            .regions
            .iter()
            .map(|region| usage(region.process.pid()).rss_kib)
            .sum();
        let before: f64 = self.before_kib.iter().sum();
        let controller = usage(self.fleet.controller.pid()).rss_kib - self.controller_before_kib;
        // Both ends of each connection are on this machine: half of the slab is the server's.
        let slab = (slab_kib() - self.slab_before_kib) / 2.0;
        ((now - before) / hosts, controller / hosts, slab / hosts)
    }
}

/// All of them, in one simulation.
///
/// # Panics
/// When something fails.
pub async fn measure(program: &Path, count: usize) -> Vec<Figure> {
    let mut figures = Vec::new();
    let floor = echo_storm(program, count).await;
    let plan = Plan {
        program,
        regions: vec!["bench".to_owned()],
        hosts: count,
        metrics: false,
    };
    let mut simulation = Simulation::start(&plan).await;
    let (server, controller, kernel) = simulation.memory();
    let hosts = format!("per idle host of {count}");
    figures.push(
        Figure::new(
            "fleet",
            format!("access server, {hosts}"),
            server,
            "KiB RSS",
        )
        .floor(floor.kib_per_link, "TLS WebSocket echo")
        .at_most(11.0),
    );
    figures.push(
        Figure::new(
            "fleet",
            format!("the same with the kernel's share, {hosts}"),
            server + kernel,
            "KiB",
        )
        .at_most(16.0),
    );
    figures.push(Figure::new(
        "fleet",
        format!("controller, {hosts}"),
        controller,
        "KiB RSS",
    ));
    figures.extend(commands(&simulation.fleet.api, "bench", count).await);
    figures.extend(storms(&mut simulation, &floor).await);
    figures
}

/// What the floor does.
struct Floor {
    storm_s: f64,
    kib_per_link: f64,
}

/// As many bare connections, and how long they take to come back after a kill -9.
async fn echo_storm(program: &Path, count: usize) -> Floor {
    let dir = tempfile::tempdir().expect("a directory");
    Installation::make(dir.path(), "bench");
    let identities = dir.path().join("hosts");
    installation::save(
        &identities,
        &Installation::load(dir.path()).hosts(count, &[]),
    );
    let port = Port::claim();
    let arguments = [
        "echo-server".to_owned(),
        format!("--installation={}", dir.path().display()),
        format!("--listen={}", port.address()),
    ];
    let mut server = Worker::start(program, &arguments);
    let _: Crossed = server.ask("links").await;
    let before = usage(server.pid()).rss_kib;
    let hosts = Hosts {
        identities,
        first: 0,
        count,
        address: port.address(),
        kind: Kind::Echo,
        answer: Answer::Result,
        spread_ms: count as u64,
        containers: 0,
        metrics: false,
    };
    let mut crowd = Crowd::start(program, &hosts);
    crowd.connected(count, ALL_WITHIN).await;
    let kib_per_link = (usage(server.pid()).rss_kib - before) / count as f64;
    let began = Instant::now();
    server.kill().await;
    drop(std::mem::replace(
        &mut server,
        Worker::start(program, &arguments),
    ));
    gone(&mut crowd).await;
    crowd.connected(count, ALL_WITHIN).await;
    Floor {
        storm_s: began.elapsed().as_secs_f64(),
        kib_per_link,
    }
}

/// Waits until the hosts have noticed that their server has gone, or some of them are back already.
async fn gone(crowd: &mut Crowd) {
    let count = crowd.count as u64;
    let noticed = async {
        while crowd.seen("seen").await.connected == count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(ALL_WITHIN, noticed)
        .await
        .expect("the hosts notice");
}

async fn storms(simulation: &mut Simulation, floor: &Floor) -> Vec<Figure> {
    let count = simulation.hosts();
    let goal = STORM_GOAL_S * count as f64 / STORM_GOAL_HOSTS;
    let mut figures = Vec::new();

    let began = Instant::now();
    simulation.fleet.regions[0].process.start_again();
    simulation.gone(0).await;
    simulation.crowds[0].connected(count, ALL_WITHIN).await;
    let seconds = began.elapsed().as_secs_f64();
    let what = format!("{count} hosts back after kill -9 of the access server");
    figures.push(
        Figure::new("fleet", what, seconds, "s")
            .floor(floor.storm_s, "the echo server's")
            .at_most(goal),
    );
    simulation.settled().await;

    let began = Instant::now();
    simulation.fleet.regions[0].process.leave().await;
    simulation.fleet.regions[0].process.start_again();
    simulation.gone(0).await;
    simulation.crowds[0].connected(count, ALL_WITHIN).await;
    let seconds = began.elapsed().as_secs_f64();
    let what = format!("{count} hosts back after an orderly restart");
    figures.push(Figure::new("fleet", what, seconds, "s").at_most(goal));
    simulation.settled().await;

    // One process of hosts dies and comes back at once; the others go on.
    if simulation.crowds[0].processes() > 1 {
        let crowd = &mut simulation.crowds[0];
        crowd.seen("beats").await;
        let began = Instant::now();
        crowd.restart(1).await;
        crowd.connected(count, ALL_WITHIN).await;
        let seconds = began.elapsed().as_secs_f64();
        let seen = crowd.seen_by(0, "beats").await;
        let back = count / crowd.processes();
        figures.push(Figure::new(
            "fleet",
            format!(
                "{back} hosts die and come back, {} others stay",
                count - back
            ),
            seconds,
            "s",
        ));
        let longest = seen.beat_max_us as f64 / 1000.0;
        let what = format!(
            "meanwhile: longest answer to the others' {} heartbeats",
            seen.beats
        );
        figures.push(Figure::new("fleet", what, longest, "ms").at_most(1000.0));
    }
    figures
}

/// `ping` through the API to simulated hosts: one after another, and many at once.
async fn commands(api: &Api, region: &str, count: usize) -> Vec<Figure> {
    let any = || {
        let chance = u32::from_le_bytes(fairlead_identity::random::bytes()) as usize;
        format!("{region}-{:05}", chance % count)
    };
    let mut alone = Vec::new();
    for _ in 0..300 {
        let began = Instant::now();
        ping(api, &any()).await;
        alone.push(millis(began.elapsed()));
    }
    let total = 3000;
    let began = Instant::now();
    futures_util::stream::iter(0..total)
        .for_each_concurrent(COMMANDS_AT_ONCE, |_| {
            let host = any();
            async move {
                ping(api, &host).await;
            }
        })
        .await;
    let rate = f64::from(total) / (micros(began.elapsed()) / 1e6);
    vec![
        Figure::new(
            "fleet",
            "ping through the API, one at a time, p50",
            percentile(&alone, 0.5),
            "ms",
        ),
        Figure::new(
            "fleet",
            "ping through the API, one at a time, p99",
            percentile(&alone, 0.99),
            "ms",
        ),
        Figure::new(
            "fleet",
            format!("ping through the API, {COMMANDS_AT_ONCE} at a time, durable"),
            rate,
            "commands/s",
        ),
    ]
}

/// One `ping`, to its end.
///
/// # Panics
/// When it does not succeed.
pub async fn ping(api: &Api, host: &str) {
    let wait = Duration::from_secs(60);
    let command = api
        .submit(&request(host, Action::Ping {}), wait)
        .await
        .unwrap_or_else(|no| panic!("ping of {host}: {no}"));
    assert_eq!(command.state, "succeeded", "{command:#?}");
}

/// How long the large fleet is held.
const HELD: Duration = Duration::from_secs(600);
const HELD_QUICK: Duration = Duration::from_secs(20);

/// Three regions of so many hosts, each with its own access server, held for ten minutes with heartbeats,
/// measurements each 15 s, and commands.
///
/// # Panics
/// When something fails.
pub async fn hold(program: &Path, hosts: usize, quick: bool) -> Vec<Figure> {
    let regions: Vec<String> = ["east", "middle", "west"].map(str::to_owned).to_vec();
    let plan = Plan {
        program,
        regions: regions.clone(),
        hosts,
        metrics: true,
    };
    let began = Instant::now();
    let mut simulation = Simulation::start(&plan).await;
    eprintln!("  up after {:.0} s", began.elapsed().as_secs_f64());
    for crowd in &mut simulation.crowds {
        crowd.seen("beats").await;
    }
    let servers: Vec<u32> = simulation
        .fleet
        .regions
        .iter()
        .map(|region| region.process.pid())
        .chain([simulation.fleet.controller.pid()])
        .collect();
    let cpu = |pids: &[u32]| -> Vec<f64> { pids.iter().map(|pid| usage(*pid).cpu_ms).collect() };
    let before = cpu(&servers);
    let began = Instant::now();
    let during = if quick { HELD_QUICK } else { HELD };
    let (mut pings, mut least) = (Vec::new(), u64::MAX);
    while began.elapsed() < during {
        for region in &regions {
            for _ in 0..10 {
                let chance = u32::from_le_bytes(fairlead_identity::random::bytes()) as usize;
                let asked = Instant::now();
                let host = format!("{region}-{:05}", chance % hosts);
                ping(&simulation.fleet.api, &host).await;
                pings.push(millis(asked.elapsed()));
            }
        }
        let mut connected = 0;
        for crowd in &mut simulation.crowds {
            connected += crowd.seen("seen").await.connected;
        }
        least = least.min(connected);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let spent: Vec<f64> = cpu(&servers)
        .iter()
        .zip(&before)
        .map(|(after, before)| (after - before) / 1000.0 / minutes)
        .collect();
    let (mut beats, mut late, mut longest) = (0, 0, 0);
    for crowd in &mut simulation.crowds {
        let seen = crowd.seen("beats").await;
        beats += seen.beats;
        late += seen.beats_late;
        longest = longest.max(seen.beat_max_us);
    }
    let all = simulation.hosts() as f64;
    let (server, controller, kernel) = simulation.memory();
    let (centre, access) = spent.split_last().map_or((0.0, 0.0), |(centre, access)| {
        (*centre, access.iter().sum::<f64>() / access.len() as f64)
    });
    let figure =
        |what: &str, value: f64, unit: &'static str| Figure::new("fleet45k", what, value, unit);
    let held = format!("connected at the worst moment of {minutes:.1} minutes, of {all}");
    vec![
        figure(&held, least as f64, "hosts").at_least(all),
        figure("heartbeats answered", beats as f64, ""),
        figure("of these later than 1 s", late as f64, ""),
        figure(
            "longest answer to a heartbeat",
            longest as f64 / 1000.0,
            "ms",
        ),
        figure("ping through the API, p50", percentile(&pings, 0.5), "ms"),
        figure("ping through the API, p99", percentile(&pings, 0.99), "ms"),
        figure("commands", pings.len() as f64, ""),
        figure("access server, per host", server, "KiB RSS"),
        figure("kernel, per host", kernel, "KiB"),
        figure("controller, per host", controller, "KiB RSS"),
        figure("an access server", access, "s CPU/min"),
        figure("the controller", centre, "s CPU/min"),
    ]
}
