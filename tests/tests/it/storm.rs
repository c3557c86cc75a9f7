//! P1, P2, P3 under a storm: agent, access server and controller are killed with SIGKILL at random
//! moments, alone and together, under a stream of mixed commands from four clients on a dozen
//! containers. The judge is the engine's own event stream, by way of the oracle.
//!
//! In flight at every kill: a stop with its grace, a long process, and a queue of three on one
//! container. The seed is printed; `FAIRLEAD_TEST_SEED` takes it up again.

use std::time::Duration;

use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::oracle::{judge, tell};
use fairlead_tests::wait::moment;

pub(crate) mod kills;
pub(crate) mod stream;

use kills::Kills;
use stream::{Dice, Size, Stream};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_storm_of_kills() {
    storm(Size {
        commands: 300,
        grace_s: 2,
        process_s: 4,
        patience: PATIENCE,
    })
    .await;
}

/// The whole of it; takes ten minutes or so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./dev test --long"]
async fn long_storm_of_kills() {
    storm(Size {
        commands: 2_000,
        grace_s: 5,
        process_s: 20,
        patience: PATIENCE,
    })
    .await;
}

/// A settled stop may take its grace and some seconds, and a queue of them some time.
const PATIENCE: Duration = Duration::from_secs(120);

async fn storm(size: Size) {
    let mut dice = Dice::seeded();
    let mut fleet = Fleet::start(Options::docker()).await;
    let stream = Stream::begin(&fleet, size, &mut dice);
    let mut kills = Kills::new(size);
    let mut count = 0;
    while !stream.is_over() {
        kills.load(&stream, &mut dice).await;
        moment(dice.roll(400)).await;
        kills.strike(&mut fleet, &mut dice).await;
        fleet.all_online().await;
        count += 1;
        moment(dice.roll(1_000)).await;
    }
    let history = stream.end(&mut fleet).await;
    let found = judge(&history);
    let ends = stream::count_ends(&history);
    println!("{} commands, {count} kills: {ends:?}", history.asked.len());
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
    assert!(
        history.asked.len() >= size.commands,
        "{}",
        history.asked.len()
    );
}
