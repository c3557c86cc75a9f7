//! What a real agent costs on a host with so many containers: memory, and processor time a minute.

use std::time::Duration;

use fairlead_tests::engine::{IMAGE, Names, docker_says};
use fairlead_tests::fleet::{Fleet, Options, START_WITHIN};
use fairlead_tests::wait::wait_for;

use crate::figures::Figure;
use crate::measuring::usage;

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(60);
const WATCHED_QUICK: Duration = Duration::from_secs(15);

/// Measures with each of these numbers of containers.
///
/// # Panics
/// When something fails.
pub async fn measure(counts: &[usize], quick: bool) -> Vec<Figure> {
    let names = Names::new();
    let watched = if quick { WATCHED_QUICK } else { WATCHED };
    let mut fleet = Fleet::start(Options::docker()).await;
    // As it is shipped: the harness measures more often.
    fleet.hosts[0]
        .supervisor
        .set_flag("--metrics-every-s", "15");
    fleet.hosts[0].kill();
    fleet.hosts[0].start();
    fleet.hosts[0].agent_pid().await;
    fleet.online("box").await;
    let mut figures = Vec::new();
    let mut made = 0;
    for &count in counts {
        while made < count {
            let name = names.name(&format!("idle{made}"));
            docker_says(&[
                "run",
                "-d",
                "--name",
                &name,
                "--network",
                "none",
                IMAGE,
                "sleep",
                "100000",
            ]);
            made += 1;
        }
        wait_for("the agent sees them", START_WITHIN, async || {
            match fleet.api.containers("box").await {
                Ok(seen) if seen.len() >= count => Ok(()),
                Ok(seen) => Err(format!("{} of {count}", seen.len())),
                Err(no) => Err(no.to_string()),
            }
        })
        .await;
        // What making them has cost is not part of it.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let seen = fleet
            .api
            .containers("box")
            .await
            .map_or(0, |seen| seen.len());
        let agent = fleet.hosts[0].agent_pid().await;
        let supervisor = fleet.hosts[0].supervisor.pid();
        let before = usage(agent).cpu_ms + usage(supervisor).cpu_ms;
        tokio::time::sleep(watched).await;
        let after = usage(agent).cpu_ms + usage(supervisor).cpu_ms;
        let cpu = (after - before) * 60.0 / watched.as_secs_f64();
        let rss = (usage(agent).rss_kib + usage(supervisor).rss_kib) / 1024.0;
        let what = format!("agent and supervisor, {seen} containers");
        let memory = Figure::new("agent", format!("{what}, memory"), rss, "MiB RSS");
        let time = Figure::new("agent", format!("{what}, idle"), cpu, "ms CPU/min");
        let alone = usage(agent).rss_kib / 1024.0;
        let of_it = Figure::new(
            "agent",
            format!("of it the agent, {seen} containers"),
            alone,
            "MiB RSS",
        );
        if count <= 20 {
            figures.extend([memory, of_it.at_most(10.0), time.at_most(40.0)]);
        } else {
            figures.extend([memory, of_it, time]);
        }
    }
    figures
}
