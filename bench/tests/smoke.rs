//! The bench does not rot: some hundred simulated hosts, in seconds. They come, answer commands, survive
//! their access server's death, and one process of them dies and comes back.

use std::path::Path;
use std::time::Duration;

use fairlead_bench::fleet::{Plan, Simulation, ping};

const HOSTS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn simulated_hosts_come_answer_and_come_back() {
    let plan = Plan {
        program: Path::new(env!("CARGO_BIN_EXE_fairlead-bench")),
        regions: vec!["bench".to_owned()],
        hosts: HOSTS,
        metrics: true,
    };
    let mut simulation = Simulation::start(&plan).await;
    for host in ["bench-00000", "bench-00117", "bench-00199"] {
        ping(&simulation.fleet.api, host).await;
    }
    let within = Duration::from_secs(60);
    simulation.fleet.regions[0].process.start_again();
    simulation.gone(0).await;
    simulation.crowds[0].connected(HOSTS, within).await;
    simulation.settled().await;

    assert!(simulation.crowds[0].processes() > 1);
    simulation.crowds[0].restart(1).await;
    simulation.crowds[0].connected(HOSTS, within).await;
    simulation.settled().await;
    for host in ["bench-00000", "bench-00199"] {
        ping(&simulation.fleet.api, host).await;
    }
    assert_eq!(
        simulation.crowds[0].seen("seen").await.answered,
        3,
        "the killed process has forgotten two"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn product_and_floor_are_measured_by_the_same_means() {
    let program = Path::new(env!("CARGO_BIN_EXE_fairlead-bench"));
    let figures = fairlead_bench::links::measure(program, 100, 100).await;
    assert_eq!(figures.len(), 5);
    for figure in &figures {
        let floor = figure.floor.expect("each has a floor");
        assert!(figure.value > 0.0 && floor > 0.0, "{figure:?}");
    }
}
