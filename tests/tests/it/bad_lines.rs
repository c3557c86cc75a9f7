//! P1, P2, P3 on bad lines, and how long it takes until people see that a line is bad and until it is used
//! again.
//!
//! Holds: issue 4 (half-open links, loss, 2 s round trip, MTU black hole, a link that flaps each second);
//! DESIGN §5 (suspect, offline, backoff). The lines are relays between the processes (`tests/src/line.rs`);
//! what came of the commands is judged by the oracle.

use std::time::{Duration, Instant};

use fairlead_api::types::{Action, CommandRequest};
use fairlead_tests::client::request;
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::line::{Cut, Line, Weather};
use fairlead_tests::oracle::{judge, tell};
use fairlead_tests::wait::{moment, wait_for};
use jiff::{SignedDuration, Timestamp};

use crate::acts::{restart, run_simulated};
use crate::storm::stream::{self, Dice, Size, Stream};

/// After a line is good again.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// What a busy machine may add to a time that is promised.
const SLACK: Duration = Duration::from_secs(4);
/// Milliseconds between pings where a round trip may take 2 s.
const PING_MS: u32 = 1_500;
/// An agent reckons server time from its welcome, and a bad line brings that late.
const STAMPS_APART_US: i64 = 3_000_000;
const COMMANDS_MIN: usize = 25;
/// Commands are asked as long as there is weather; then the stream is told that it is enough.
const SIZE: Size = Size {
    commands: usize::MAX / 2,
    grace_s: 2,
    process_s: 2,
    patience: Duration::from_secs(120),
};

/// What happens to a line.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Cut(Cut),
    Weather(Weather),
}

/// Each of them, and for how many seconds in the short form.
fn troubles() -> [(&'static str, Trouble, u64); 8] {
    let weather = Trouble::Weather;
    [
        ("reset", Trouble::Cut(Cut::Reset), 1),
        ("closed", Trouble::Cut(Cut::Close), 1),
        ("stalled", weather(Weather::stalled()), 2),
        ("forgotten", Trouble::Cut(Cut::Forgotten), 2),
        (
            "2 s round trip",
            weather(Weather::round_trip(Duration::from_secs(2))),
            4,
        ),
        (
            "30 % loss",
            weather(Weather {
                loses_of_100: 30,
                delay: Duration::from_millis(20),
                ..Weather::default()
            }),
            3,
        ),
        (
            "slow",
            weather(Weather {
                bytes_per_s: Some(4_000),
                ..Weather::default()
            }),
            2,
        ),
        (
            "swallows what is large",
            weather(Weather {
                swallows_above: Some(1_200),
                ..Weather::default()
            }),
            3,
        ),
    ]
}

async fn suffer(line: &Line, name: &str, mut dice: Dice, times_as_long: u64) {
    let mut all = troubles().to_vec();
    while !all.is_empty() {
        let (what, trouble, seconds) = all.remove(dice.roll(all.len() as u64) as usize);
        println!("{name}: {what}");
        match trouble {
            Trouble::Cut(how) => line.cut(how),
            Trouble::Weather(weather) => line.set(weather),
        }
        moment(seconds * times_as_long * 1_000).await;
        line.heal();
        moment(dice.roll(500)).await;
    }
}

async fn bad_lines(times_as_long: u64) {
    let mut dice = Dice::seeded();
    let mut fleet = Fleet::start(Options::docker().lines().pings(PING_MS)).await;
    let stream = Stream::begin(&fleet, SIZE, &mut dice);
    moment(1_000).await;
    tokio::join!(
        suffer(
            fleet.regions[0].line(),
            "agent",
            dice.split(),
            times_as_long
        ),
        suffer(fleet.uplink_line(), "uplink", dice.split(), times_as_long),
    );
    let healed = Instant::now();
    fleet.all_online().await;
    let back = healed.elapsed();
    let in_bad_weather = stream.asked();
    // Lines that are silent for most of the time let few pass; what lies between good and bad counts too.
    stream.is_enough(COMMANDS_MIN).await;
    let mut history = stream.end(&mut fleet).await;
    history.stamps_apart_us = STAMPS_APART_US;
    let found = judge(&history);
    let ends = stream::count_ends(&history);
    let dials = (fleet.regions[0].line().dials(), fleet.uplink_line().dials());
    println!(
        "{in_bad_weather} of {} commands in bad weather, back after {back:?}, dials of agent and access server \
        {dials:?}: {ends:?}",
        history.asked.len()
    );
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
    assert!(in_bad_weather >= 8, "{in_bad_weather}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bad_line_loses_or_doubles_a_command() {
    bad_lines(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./dev test --long"]
async fn long_no_bad_line_loses_or_doubles_a_command() {
    bad_lines(13).await;
}

/// Cuts both lines each second, one way or another.
async fn flap(during: Duration) {
    let mut dice = Dice::seeded();
    let mut fleet = Fleet::start(Options::docker().lines()).await;
    let stream = Stream::begin(&fleet, SIZE, &mut dice);
    let dialled = (fleet.regions[0].line().dials(), fleet.uplink_line().dials());
    let began = Instant::now();
    let mut cuts = 0;
    while began.elapsed() < during {
        moment(1_000).await;
        let how = *dice.pick(&[Cut::Reset, Cut::Close]);
        fleet.regions[0].line().cut(how);
        fleet.uplink_line().cut(how);
        cuts += 1;
    }
    let healed = Instant::now();
    fleet.all_online().await;
    let back = healed.elapsed();
    stream.is_enough(0).await;
    let dials = (
        fleet.regions[0].line().dials() - dialled.0,
        fleet.uplink_line().dials() - dialled.1,
    );
    let mut history = stream.end(&mut fleet).await;
    history.stamps_apart_us = STAMPS_APART_US;
    let found = judge(&history);
    println!(
        "{} commands, {cuts} cuts, back after {back:?}, dials {dials:?}: {:?}",
        history.asked.len(),
        stream::count_ends(&history)
    );
    assert!(found.is_empty(), "seed {}: {}", dice.seed, tell(&found));
    // A dial that was cut in the middle of its handshake may have been told nothing: then the pauses grow to 16 s.
    let after_cut_handshakes = Duration::from_secs(16);
    assert!(
        back < after_cut_handshakes + BACK_WITHIN + SLACK,
        "back after {back:?}"
    );
    // One dial for each cut, and streams; far below what dialling without a wait would be.
    assert!(dials.0 >= cuts / 4, "{dials:?}: the agent gave up");
    assert!(dials.0 <= cuts * 2 + 5, "{dials:?}: a storm of dials");
    assert!(dials.1 <= cuts * 2 + 5, "{dials:?}: a storm of dials");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_flap_each_second_lose_nothing() {
    flap(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ./dev test --long"]
async fn long_lines_that_flap_each_second_lose_nothing() {
    flap(Duration::from_secs(300)).await;
}

/// How long until the host is shown so.
async fn shown(fleet: &Fleet, state: &str, since: Instant, within: Duration) -> Duration {
    fleet.api.host_is("box", state, within).await;
    since.elapsed()
}

#[tokio::test]
async fn a_half_open_link_is_shown_in_time_and_used_again_when_it_heals() {
    // Long enough that each state is seen, whoever of the four is late.
    const PING: Duration = Duration::from_secs(2);
    let fleet = Fleet::start(Options::simulated().lines().pings(2_000)).await;
    fleet.done(run_simulated("web")).await;
    let line = fleet.regions[0].line();
    let before = fleet.begin(restart("web")).await;

    line.set(Weather::stalled());
    let (stalled, at_cut) = (Instant::now(), Timestamp::now());
    let during = fleet.begin(restart("web")).await;
    let silent = fleet.api.host_is("box", "suspect", PING * 4 + SLACK).await;
    let suspect = stalled.elapsed();
    // Not since the link came up, nor since somebody noticed: since it was last heard.
    let heard = silent.last_seen.unwrap();
    assert_eq!(heard, silent.since, "{silent:#?}");
    assert!(
        heard <= at_cut + SignedDuration::from_secs(3),
        "{heard} {at_cut}"
    );
    assert!(
        heard >= at_cut - SignedDuration::from_secs(5),
        "{heard} {at_cut}"
    );
    let offline = shown(&fleet, "offline", stalled, PING * 5 + SLACK).await;
    wait_for("the last sign of life is kept", SLACK * 5, async || {
        let gone = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        let is_kept = gone.last_seen == Some(heard);
        is_kept.then_some(()).ok_or(format!("{gone:#?}"))
    })
    .await;
    // The last sign of life may be one interval old when the line stalls, and what has become of it is
    // looked at once an interval.
    assert!(suspect > PING, "{suspect:?}");
    assert!(suspect < PING * 3 + SLACK, "{suspect:?}");
    assert!(offline > PING * 2, "{offline:?}");
    assert!(offline < PING * 4 + SLACK, "{offline:?}");
    let waiting = fleet.api.command(&during.id).await.unwrap();
    assert!(!waiting.is_final, "{waiting:#?}");
    assert!(waiting.waiting_for.contains("offline"), "{waiting:#?}");
    let dialled = line.dials();

    line.heal();
    let healed = Instant::now();
    let back = shown(&fleet, "online", healed, BACK_WITHIN + SLACK).await;
    println!("suspect {suspect:?}, offline {offline:?}, back {back:?}");
    for command in [&before, &during] {
        let ended = fleet.api.ended(&command.id, SLACK * 5).await;
        assert_eq!(ended.state, "succeeded", "{ended:#?}");
    }
    assert!(dialled <= 4, "{dialled} dials");

    // A middlebox that forgets costs the silence, and no more: the next dial works at once.
    // Both ends notice it by their own clocks, so it may be offline for some milliseconds only.
    line.cut(Cut::Forgotten);
    let forgotten = Timestamp::now();
    let back_within = PING * 4 + BACK_WITHIN + SLACK;
    wait_for("it has another link", back_within, async || {
        let host = fleet.api.host("box").await.map_err(|no| no.to_string())?;
        let is_back = host.state == "online" && host.since > forgotten;
        is_back.then_some(()).ok_or(format!("{host:?}"))
    })
    .await;
    fleet.done(restart("web")).await;
}

#[tokio::test]
async fn a_half_open_uplink_is_shown_in_time_and_used_again_when_it_heals() {
    let fleet = Fleet::start(Options::simulated().lines()).await;
    fleet.done(run_simulated("web")).await;
    let line = fleet.uplink_line();
    line.set(Weather::stalled());
    let stalled = Instant::now();
    let waiting = fleet.begin(restart("web")).await;
    fleet.region_is("local", "offline").await;
    let offline = stalled.elapsed();
    // Silent for 10 s, looked at each 2 s.
    assert!(offline > Duration::from_secs(6), "{offline:?}");
    assert!(offline < Duration::from_secs(13) + SLACK, "{offline:?}");
    assert!(!fleet.api.command(&waiting.id).await.unwrap().is_final);

    line.heal();
    let healed = Instant::now();
    fleet.region_is("local", "online").await;
    let back = healed.elapsed();
    println!("offline {offline:?}, back {back:?}");
    assert!(back < BACK_WITHIN + SLACK, "{back:?}");
    let ended = fleet.api.ended(&waiting.id, SLACK * 5).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    let links = fleet.hosts[0].supervisor.said().matches("link up").count();
    assert_eq!(links, 1, "the agent's own link was never cut");
}

/// Nobody to be reached for so long; then how long until the host is back, and how often it dialled.
async fn unreachable(during: Duration) {
    let fleet = Fleet::start(Options::simulated().lines().pings(1_000)).await;
    let line = fleet.regions[0].line();
    line.set(Weather::refusing());
    let began = Instant::now();
    line.cut(Cut::Reset);
    let asked = CommandRequest {
        deadline_s: Some(2),
        ..request("box", Action::Ping {})
    };
    fleet.api.host_is("box", "offline", SLACK * 5).await;
    let late = fleet.api.submit(&asked, SLACK * 5).await.unwrap();
    assert_eq!(late.state, "expired", "{late:#?}");
    let waiting = fleet.begin(Action::Ping {}).await;
    moment(u64::try_from(during.as_millis()).unwrap()).await;
    line.heal();
    let healed = Instant::now();
    let back = shown(&fleet, "online", healed, BACK_WITHIN + SLACK).await;
    let ended = fleet.api.ended(&waiting.id, SLACK * 5).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    let during = began.elapsed();
    let dials = fleet.hosts[0].supervisor.said().matches("no link").count();
    println!("{dials} dials in {during:?}, back after {back:?}");
    // One each 2 s in the middle, and some at the beginning.
    let most = usize::try_from(during.as_secs()).unwrap();
    assert!(dials <= most + 8, "{dials} dials in {during:?}");
    wait_for("the newest links hold", SLACK * 5, async || {
        let most = line.most_dials_within(Duration::from_secs(5));
        if most <= 8 {
            Ok(())
        } else {
            Err(format!("{most} dials within 5 s"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_host_is_back_within_seconds_after_nobody_could_be_reached() {
    unreachable(Duration::from_secs(8)).await;
}

#[tokio::test]
#[ignore = "long: ./dev test --long"]
async fn long_a_host_is_back_within_seconds_after_minutes() {
    unreachable(Duration::from_secs(240)).await;
}
