//! A fleet under everyday stress, for as long as asked: agents come and go, commands, log follows, kills.
//! Memory and open files of the servers, and the time of a command, must not grow.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use fairlead_api::types::{Action, ContainerSpec};
use fairlead_tests::client::request;
use fairlead_tests::fleet::Fleet;
use fairlead_tests::stream::Stream;
use tokio::time::Instant;

use crate::fleet::{Plan, Simulation, ping};
use crate::measuring::{growth, millis, percentile, usage};

/// Between two samples, at least.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Commands to simulated hosts in each round.
const PINGS: usize = 40;
/// Between two kills of the agent. One that has not lived for ten seconds is started again after a wait that
/// grows, and the soak would measure that wait.
const AGENT_KILLED_EVERY: Duration = Duration::from_secs(20);
/// Between two kills of a process of simulated hosts: no multiple of the other.
const HOSTS_KILLED_EVERY: Duration = Duration::from_secs(13);
/// The real agent, under the simulated engine.
const HOST: &str = "box";
const CONTAINER: &str = "web";

/// Of the samples, those that are looked at: caches fill first.
const WARM_SHARE: f64 = 1.0 / 3.0;

/// Parts of the time whose means are told.
const PARTS: usize = 10;

/// `90s`, `30m`, `2h`.
///
/// # Errors
/// When it is none of these.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a number and s, m or h: 30m".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: u64 = text[..text.len() - unit.len_utf8()]
        .parse()
        .map_err(|_| wrong())?;
    match unit {
        's' => Ok(Duration::from_secs(number)),
        'm' => Ok(Duration::from_secs(number * 60)),
        'h' => Ok(Duration::from_secs(number * 3600)),
        _ => Err(wrong()),
    }
}

/// One thing that must not grow.
struct Watched {
    what: &'static str,
    unit: &'static str,
    /// More growth than this share of its mean…
    share_max: f64,
    /// …and than this is too much.
    size_max: f64,
    series: Vec<f64>,
}

impl Watched {
    fn new(what: &'static str, unit: &'static str, share_max: f64, size_max: f64) -> Self {
        Self {
            what,
            unit,
            share_max,
            size_max,
            series: Vec::new(),
        }
    }

    /// The means of ten equal parts: whether it grows still, or has come to an end.
    fn course(&self) -> String {
        let part = self.series.len().div_ceil(PARTS).max(1);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let means = self
            .series
            .chunks(part)
            .map(|part| format!("{:.1}", mean(part)));
        means.collect::<Vec<_>>().join(" ")
    }

    /// First, last, growth, and whether it is flat.
    fn verdict(&self) -> (f64, f64, f64, bool) {
        // An index below the length.
        let from = (self.series.len() as f64 * WARM_SHARE) as usize;
        let warm = &self.series[from..];
        let mean = warm.iter().sum::<f64>() / (warm.len().max(1) as f64);
        let grown = growth(warm);
        let flat = grown <= self.size_max.max(mean * self.share_max);
        let first = warm.first().copied().unwrap_or_default();
        let last = warm.last().copied().unwrap_or_default();
        (first, last, grown, flat)
    }
}

/// Runs it; fails when something grows.
///
/// # Panics
/// When something fails that must work.
pub async fn run(program: &Path, during: Duration, hosts: usize) -> ExitCode {
    let plan = Plan {
        program,
        regions: vec!["soak".to_owned()],
        hosts,
        metrics: true,
    };
    let mut simulation = Simulation::start(&plan).await;
    simulation.fleet.add_host(HOST).await;
    begin_container(&simulation.fleet).await;
    let mut watched = [
        Watched::new("access server, memory", "MiB RSS", 0.08, 2.0),
        Watched::new("access server, open files", "", 0.02, 5.0),
        Watched::new("controller, memory", "MiB RSS", 0.08, 2.0),
        Watched::new("controller, open files", "", 0.02, 5.0),
        Watched::new("ping through the API, p99", "ms", 0.5, 2.0),
    ];
    let began = Instant::now();
    let (mut pings, mut sampled_at) = (Vec::new(), Instant::now());
    let (mut agent_killed_at, mut hosts_killed_at) = (Instant::now(), Instant::now());
    let (mut commands, mut follows, mut kills) = (0u64, 0u64, 0u64);
    while began.elapsed() < during {
        for _ in 0..PINGS {
            let chance = u32::from_le_bytes(fairlead_identity::random::bytes()) as usize;
            let asked = Instant::now();
            ping(
                &simulation.fleet.api,
                &format!("soak-{:05}", chance % hosts),
            )
            .await;
            pings.push(millis(asked.elapsed()));
            commands += 1;
        }
        restart(&simulation.fleet).await;
        follow(&simulation.fleet).await;
        (commands, follows) = (commands + 2, follows + 1);
        if agent_killed_at.elapsed() >= AGENT_KILLED_EVERY {
            agent_killed_at = Instant::now();
            simulation.fleet.hosts[0].kill_agent().await;
            kills += 1;
        }
        if hosts_killed_at.elapsed() >= HOSTS_KILLED_EVERY {
            hosts_killed_at = Instant::now();
            let crowd = &mut simulation.crowds[0];
            let process = kills as usize % crowd.processes();
            crowd.restart(process).await;
            crowd.connected(hosts, Duration::from_secs(60)).await;
            simulation.online().await;
            kills += 1;
        }
        if sampled_at.elapsed() >= SAMPLE_EVERY {
            sampled_at = Instant::now();
            let server = usage(simulation.fleet.regions[0].process.pid());
            let controller = usage(simulation.fleet.controller.pid());
            let now = [
                server.rss_kib / 1024.0,
                server.files,
                controller.rss_kib / 1024.0,
                controller.files,
                percentile(&pings, 0.99),
            ];
            pings.clear();
            for (watched, now) in watched.iter_mut().zip(now) {
                watched.series.push(now);
            }
        }
    }
    println!(
        "{} s, {hosts} simulated hosts and one agent: {commands} commands, {follows} log follows, {kills} kills",
        began.elapsed().as_secs()
    );
    said(&watched)
}

fn said(watched: &[Watched]) -> ExitCode {
    println!(
        "{:28} {:>10} {:>10} {:>10} {:15} MEANS OF TEN PARTS",
        "FIGURE", "FIRST", "LAST", "GROWTH", ""
    );
    let mut all_flat = true;
    for one in watched {
        let (first, last, grown, flat) = one.verdict();
        all_flat &= flat;
        println!(
            "{:28} {first:>10.1} {last:>10.1} {grown:>+10.2} {:8} {:6} {}",
            one.what,
            one.unit,
            if flat { "flat" } else { "GROWS" },
            one.course()
        );
    }
    println!("growth: of the straight line through all samples but the first third");
    if all_flat {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn begin_container(fleet: &Fleet) {
    let spec = ContainerSpec {
        name: CONTAINER.to_owned(),
        image: "busybox".to_owned(),
        command: vec!["sleep".to_owned(), "100000".to_owned()],
        ..ContainerSpec::default()
    };
    let spec = Box::new(spec);
    fleet.api.done(HOST, Action::Run { spec }).await;
}

async fn restart(fleet: &Fleet) {
    let action = Action::Restart {
        container: CONTAINER.to_owned(),
        grace_s: Some(1),
        signal: String::new(),
    };
    fleet.api.done(HOST, action).await;
}

/// Follows a log for a moment and goes away.
async fn follow(fleet: &Fleet) {
    let mut wanted = request(
        HOST,
        Action::Logs {
            container: CONTAINER.to_owned(),
            follow: true,
            tail: Some(10),
            since: None,
            until: None,
            timestamps: false,
        },
    );
    wanted.attach = true;
    let command = fleet
        .api
        .submit(&wanted, Duration::ZERO)
        .await
        .unwrap_or_else(|no| panic!("logs: {no}"));
    match Stream::open(&fleet.api, &command.id).await {
        Ok(mut stream) => {
            // It begins, unless its agent has just been killed.
            let _ = tokio::time::timeout(Duration::from_secs(5), stream.hear()).await;
        }
        Err(no) => panic!("a follow: {no}"),
    }
}
