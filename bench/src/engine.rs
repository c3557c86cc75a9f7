//! What Fairlead adds to the engine's own time: the same acts through the API, durable, with a real agent,
//! and straight at the engine through the agent's own adapter; the two take turns.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use fairlead_agent::runtime::docker::{DockerRuntime, default_socket};
use fairlead_agent::runtime::{ContainerRuntime, ExecSpec};
use fairlead_api::types::{Action, Command, ContainerSpec};
use fairlead_protocol::ContainerSpec as EngineSpec;
use fairlead_tests::engine::{IMAGE, Names};
use fairlead_tests::fleet::{Fleet, Options};
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::figures::Figure;
use crate::measuring::{millis, percentile};

/// Syncs in a row of a command's way: controller, region, host's intent, host's result, region, controller.
/// Those of one hop go side by side with the next hop's work, so a command may take less.
const SYNCS: usize = 6;
/// What may be added to the engine's own time, milliseconds.
const ADDED_GOAL_MS: f64 = 3.0;

#[derive(Default)]
struct Series {
    through: Vec<f64>,
    straight: Vec<f64>,
    /// What the API says was not spent in the engine, and the client's way to the API.
    added: Vec<f64>,
}

impl Series {
    fn took(&mut self, began: Instant, command: &Command) {
        assert_eq!(command.state, "succeeded", "{command:#?}");
        let whole = millis(began.elapsed());
        self.through.push(whole);
        if let Some(engine_ms) = command.engine_ms {
            self.added.push(whole - engine_ms);
        }
    }

    fn figures(&self, kind: &'static str) -> Vec<Figure> {
        let mut figures = vec![
            Figure::new(
                "engine",
                format!("{kind}, p50"),
                percentile(&self.through, 0.5),
                "ms",
            )
            .floor(percentile(&self.straight, 0.5), "the engine"),
        ];
        for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
            let what = format!("{kind}, beyond the engine's time in the same command, {name}");
            let figure = Figure::new("engine", what, percentile(&self.added, share), "ms");
            figures.push(match name {
                "p50" => figure.at_most(ADDED_GOAL_MS),
                _ => figure,
            });
        }
        figures
    }
}

/// Measures.
///
/// # Panics
/// When something fails.
pub async fn measure(times: usize) -> Vec<Figure> {
    let names = Names::new();
    let engine = DockerRuntime::new(default_socket(None)).expect("the engine's client");
    let fleet = Fleet::start(Options::docker()).await;
    let script = "trap 'exit 0' TERM; sleep 3600 & wait";
    let container = names.by_hand("web", &["--network", "none"], &["sh", "-c", script]);
    let mut figures = pings(&fleet, times * 5).await;
    figures.extend(execs(&fleet, &engine, &container, times).await);
    figures.extend(restarts(&fleet, &engine, &container, times.div_ceil(3)).await);
    figures.extend(runs(&fleet, &engine, &names, times.div_ceil(3)).await);
    figures
}

async fn pings(fleet: &Fleet, times: usize) -> Vec<Figure> {
    let (mut through, mut syncs) = (Vec::new(), Vec::new());
    let path = fleet.dir().join("syncs");
    for _ in 0..times {
        syncs.push(six_syncs(&path));
        let began = Instant::now();
        fleet.done(Action::Ping {}).await;
        through.push(millis(began.elapsed()));
    }
    [(0.5, "p50", 2.0), (0.99, "p99", 5.0)]
        .map(|(share, name, goal)| {
            let what = format!("ping, API to agent and back, durable, {name}");
            Figure::new("engine", what, percentile(&through, share), "ms")
                .floor(percentile(&syncs, share), "six syncs")
                .at_most(goal)
        })
        .to_vec()
}

fn six_syncs(path: &Path) -> f64 {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .expect("a file");
    let began = Instant::now();
    for _ in 0..SYNCS {
        file.write_all(&[0; 512]).expect("it is written");
        file.sync_data().expect("it is synced");
    }
    millis(began.elapsed())
}

async fn execs(
    fleet: &Fleet,
    engine: &DockerRuntime,
    container: &str,
    times: usize,
) -> Vec<Figure> {
    let mut series = Series::default();
    let words = vec!["echo".to_owned(), "hi".to_owned()];
    for _ in 0..times {
        let began = Instant::now();
        let spec = ExecSpec {
            command: words.clone(),
            ..ExecSpec::default()
        };
        let exec = engine.exec_create(container, &spec).await.expect("an exec");
        let mut io = engine.exec_start(&exec, false).await.expect("it starts");
        while io.output.next().await.is_some() {}
        engine.exec_state(&exec).await.expect("its exit code");
        series.straight.push(millis(began.elapsed()));

        let began = Instant::now();
        let action = Action::Exec {
            container: container.to_owned(),
            command: words.clone(),
            env: Vec::new(),
            user: String::new(),
            workdir: String::new(),
            stdin: false,
            privileged: false,
        };
        let command = fleet.done(action).await;
        series.took(began, &command);
    }
    series.figures("exec echo")
}

async fn restarts(
    fleet: &Fleet,
    engine: &DockerRuntime,
    container: &str,
    times: usize,
) -> Vec<Figure> {
    let mut series = Series::default();
    for _ in 0..times {
        let began = Instant::now();
        engine
            .restart(container, Some(5), "")
            .await
            .expect("it restarts");
        series.straight.push(millis(began.elapsed()));

        let began = Instant::now();
        let action = Action::Restart {
            container: container.to_owned(),
            grace_s: Some(5),
            signal: String::new(),
        };
        let command = fleet.done(action).await;
        series.took(began, &command);
    }
    series.figures("restart, no network")
}

async fn runs(fleet: &Fleet, engine: &DockerRuntime, names: &Names, times: usize) -> Vec<Figure> {
    let mut series = Series::default();
    let words = vec!["sleep".to_owned(), "1000".to_owned()];
    for number in 0..times {
        let name = names.name(&format!("s{number}"));
        let began = Instant::now();
        let spec = EngineSpec {
            name: name.clone(),
            image: IMAGE.to_owned(),
            command: words.clone(),
            network: "none".to_owned(),
            ..EngineSpec::default()
        };
        let id = engine.create(&spec, &[]).await.expect("a container");
        engine.start(&id).await.expect("it starts");
        series.straight.push(millis(began.elapsed()));
        engine.remove(&id, true, true).await.expect("it goes");

        let name = names.name(&format!("t{number}"));
        let began = Instant::now();
        let spec = ContainerSpec {
            name: name.clone(),
            image: IMAGE.to_owned(),
            command: words.clone(),
            network: "none".to_owned(),
            ..ContainerSpec::default()
        };
        let action = Action::Run {
            spec: Box::new(spec),
        };
        let command = fleet.done(action).await;
        series.took(began, &command);
        engine.remove(&name, true, true).await.expect("it goes");
        // What the agent hears of it is not the next one's.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    series.figures("run, no network")
}
