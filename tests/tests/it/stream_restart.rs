//! Streams over an orderly restart of the access server between: what a process writes and reads, and what a container
//! logs, is exact; who leaves meanwhile leaves nothing open; and what nobody goes on with goes on alone.

use std::time::Duration;

use fairlead_protocol::stream::Channel;
use fairlead_tests::engine::{Names, docker, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::wait::wait_for;

use crate::acts::{attach, exec, logs};

const SOON: Duration = Duration::from_secs(30);
const RESTARTS: usize = 3;
const CHUNK: usize = 16 * 1024;
/// What may be under way in a `cat`: far more than the pipes between hold.
const AHEAD: usize = 4 * 1024 * 1024;
/// Numbers that tell their place.
const COUNTER: &str = "n=0; while [ ! -e /tmp/enough ]; do n=$((n+1)); echo line $n; done; echo the end; \
    while :; do sleep 1; done";

fn piece(at: usize) -> Vec<u8> {
    let byte = |n: usize| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
    (at..at + CHUNK).map(byte).collect()
}

async fn restart(fleet: &mut Fleet) {
    let server = &mut fleet.regions[0].process;
    assert!(server.leave().await.success());
    server.start_again();
    fleet.all_online().await;
}

fn command(name: &str, words: &[&str]) -> fairlead_api::types::Action {
    let mut action = exec(name, words);
    if let fairlead_api::types::Action::Exec { stdin, .. } = &mut action {
        *stdin = true;
    }
    action
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_and_a_log_go_on_over_their_access_servers_restarts_byte_for_byte() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let talker = names.by_hand("talker", &[], &["sh", "-c", COUNTER]);
    let script = ["sh", "-c", "cat; echo read >&2; exit 7"];
    let (ran, mut process) = attach(&fleet.api, "box", command(&talker, &script)).await;
    let (follow, mut log) = attach(&fleet.api, "box", logs(&talker, Some(0), true)).await;
    process.begun().await;
    log.begun().await;

    // So that it is in the middle of it at each restart.
    let (enough, mut is_enough) = tokio::sync::oneshot::channel();
    let echoes = tokio::spawn(async move {
        let (mut sent, mut came) = (0, 0);
        while is_enough.try_recv().is_err() {
            process.send(Channel::Input, &piece(sent)).await;
            sent += CHUNK;
            while sent - came > AHEAD {
                came += same(came, process.hear().await.expect("it goes on"));
            }
        }
        process.send(Channel::InputEnd, &[]).await;
        while came < sent {
            came += same(came, process.hear().await.expect("it goes on"));
        }
        (sent, process.rest().await)
    });
    let lines = tokio::spawn(async move { log.rest().await });
    for _ in 0..RESTARTS {
        restart(&mut fleet).await;
    }
    let _ = enough.send(());
    let (sent, end) = echoes.await.unwrap();
    assert_eq!((end.output.len(), &end.errors[..]), (0, &b"read\n"[..]));
    assert_eq!(end.end.expect("an end")["exit_code"], 7);
    let ended = fleet.api.ended(&ran.id, SOON).await;
    assert_eq!(ended.exit_code, Some(7), "{ended:#?}");

    docker_says(&["exec", &talker, "touch", "/tmp/enough"]);
    docker_says(&["stop", "-t", "1", &talker]);
    let heard = lines.await.unwrap();
    let text = heard.text();
    let mut lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.pop(), Some("the end"));
    let number = |line: &str| line.strip_prefix("line ")?.parse::<u64>().ok();
    let numbers: Vec<u64> = lines
        .iter()
        .map(|line| number(line).expect("whole"))
        .collect();
    assert!(
        numbers.windows(2).all(|two| two[1] == two[0] + 1),
        "none is lost or doubled"
    );
    assert_eq!(heard.end.expect("an end")["state"], "succeeded");
    let ended = fleet.api.ended(&follow.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    println!(
        "{RESTARTS} restarts, {sent} B through a process, {} lines",
        numbers.len()
    );
    assert!(sent > AHEAD && numbers.len() > 1000);
}

/// How much it is, when it is the right thing.
fn same(at: usize, (channel, data): (Channel, bytes::Bytes)) -> usize {
    assert_eq!(channel, Channel::Output);
    let from = at - at % CHUNK;
    let mut expected = Vec::new();
    while from + expected.len() < at + data.len() {
        expected.extend(piece(from + expected.len()));
    }
    let here = at - from;
    assert!(
        expected[here..here + data.len()] == data[..],
        "other bytes at {at}"
    );
    data.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_it_is_held_leaves_nothing_open() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let talker = names.by_hand("talker", &[], &["sh", "-c", COUNTER]);
    let script = [
        "sh",
        "-c",
        "cat; while [ ! -e /tmp/enough ]; do echo on; done; exit 3",
    ];
    let (ran, mut process) = attach(&fleet.api, "box", command(&talker, &script)).await;
    let (follow, mut log) = attach(&fleet.api, "box", logs(&talker, Some(1), true)).await;
    process.begun().await;
    log.begun().await;
    assert!(fleet.regions[0].process.leave().await.success());
    drop((process, log));
    fleet.regions[0].process.start_again();
    // The follow ends with its reader, and not when the host's minute is over; the process does not.
    let ended = fleet.api.ended(&follow.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    docker_says(&["exec", &talker, "touch", "/tmp/enough"]);
    let ended = fleet.api.ended(&ran.id, SOON).await;
    assert_eq!(ended.exit_code, Some(3), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_nobody_goes_on_with_goes_on_alone() {
    let options = Options::docker().agent_env("FAIRLEAD_TERMINALS_HELD_S", "2");
    let mut fleet = Fleet::start(options).await;
    let names = Names::new();
    let web = names.polite("web");
    // More than fits between it and its reader, so that it waits as long as it is held.
    let script = [
        "sh",
        "-c",
        "cat; head -c 50000000 /dev/zero; echo end > /tmp/ended; exit 4",
    ];
    let (ran, mut process) = attach(&fleet.api, "box", command(&web, &script)).await;
    process.begun().await;
    assert!(fleet.regions[0].process.leave().await.success());
    wait_for("it has come to its end", SOON, async || {
        let said = docker(&["exec", &web, "cat", "/tmp/ended"]);
        let has = said.status.success();
        has.then_some(()).ok_or_else(|| "it has not".to_owned())
    })
    .await;
    fleet.regions[0].process.start_again();
    let ended = fleet.api.ended(&ran.id, SOON).await;
    assert_eq!(ended.exit_code, Some(4), "{ended:#?}");
    // Its reader learns that nothing more comes, and of no end that there was not.
    assert!(process.rest().await.end.is_none());
}
