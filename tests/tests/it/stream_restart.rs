//! Streams over an orderly restart of the access server between, and the CLI's over the controller's: what a process
//! writes and reads, what a container logs, and what is copied, is exact; what begins meanwhile begins, and what waits
//! for its turn, or for its link, has its reader; who leaves meanwhile leaves nothing open; what nobody goes on with
//! goes on alone; and what a controller that dies takes with it is said to be lost.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fairlead_api::types::{Action, Command, Page as Rows};
use fairlead_protocol::limits;
use fairlead_protocol::stream::Channel;
use fairlead_tests::client::request;
use fairlead_tests::engine::{Names, docker, docker_says, started_at};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::line::{Cut, Weather};
use fairlead_tests::stream::Stream;
use fairlead_tests::wait::{moment, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};

use crate::acts::{self, attach, exec, logs};
use crate::cli::Cli;

const SOON: Duration = Duration::from_secs(30);
const RESTARTS: usize = 3;
const CHUNK: usize = 16 * 1024;
/// What may be under way in a `cat`: far more than the pipes between hold.
const AHEAD: usize = 4 * 1024 * 1024;
/// Clients that begin something at a time.
const BESIDE: usize = 3;
/// Bytes of a copy.
const COPIED: usize = 24 * 1024 * 1024;
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
    let echoed = Arc::new(AtomicUsize::new(0));
    let so_far = Arc::clone(&echoed);
    let echoes = tokio::spawn(async move {
        let (mut sent, mut came) = (0, 0);
        while is_enough.try_recv().is_err() {
            process.send(Channel::Input, &piece(sent)).await;
            sent += CHUNK;
            while sent - came > AHEAD {
                came += same(came, process.hear().await.expect("it goes on"));
                so_far.store(came, Ordering::Relaxed);
            }
        }
        process.send(Channel::InputEnd, &[]).await;
        // The two outputs are two pipes: what is written last to one may overtake the other.
        let end = process.rest().await;
        came += same(came, (Channel::Output, end.output.clone().into()));
        assert_eq!(came, sent);
        (sent, end)
    });
    let lines = tokio::spawn(async move { log.rest().await });
    for _ in 0..RESTARTS {
        restart(&mut fleet).await;
        let before = echoed.load(Ordering::Relaxed);
        wait_for("it goes on", SOON, async || {
            let more = echoed.load(Ordering::Relaxed) > before || echoes.is_finished();
            more.then_some(()).ok_or(format!("{before} B came"))
        })
        .await;
    }
    let _ = enough.send(());
    let (sent, end) = echoes.await.unwrap();
    assert_eq!(end.errors, b"read\n");
    assert_eq!(end.end.expect("an end")["exit_code"], 7);
    let ended = fleet.api.ended(&ran.id, SOON).await;
    assert_eq!(ended.exit_code, Some(7), "{ended:#?}");

    counts_to_its_end(&talker).await;
    let heard = lines.await.unwrap();
    let text = heard.text();
    let numbers = counted(&text);
    assert_eq!(heard.end.expect("an end")["state"], "succeeded");
    let ended = fleet.api.ended(&follow.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    println!("{RESTARTS} restarts, {sent} B through a process, {numbers} lines");
    assert!(sent > AHEAD && numbers > 1000);
}

/// How many lines the counter wrote: none is lost or doubled.
fn counted(text: &str) -> usize {
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
    numbers.len()
}

/// Until what it says last is with the engine; then it is stopped.
async fn counts_to_its_end(talker: &str) {
    docker_says(&["exec", talker, "touch", "/tmp/enough"]);
    wait_for("it has counted to its end", SOON, async || {
        let said = docker(&["logs", "--tail", "1", talker]).stdout;
        let is_last = said.starts_with(b"the end");
        is_last.then_some(()).ok_or("not yet".to_owned())
    })
    .await;
    docker_says(&["stop", "-t", "1", talker]);
}

async fn write_until(enough: Arc<AtomicBool>, mut input: ChildStdin) -> usize {
    let mut sent = 0;
    while !enough.load(Ordering::Relaxed) {
        input.write_all(&piece(sent)).await.expect("it is taken");
        sent += CHUNK;
    }
    sent
}

async fn all_of(mut child: Child) -> (String, String, Option<i32>) {
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = tokio::join!(
        stdout.read_to_string(&mut out),
        stderr.read_to_string(&mut err)
    );
    read.0.unwrap();
    read.1.unwrap();
    (out, err, child.wait().await.unwrap().code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tool_goes_on_over_the_controllers_restarts_byte_for_byte() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let talker = names.by_hand("talker", &[], &["sh", "-c", COUNTER]);
    let cli = Cli::of(&fleet);
    let script = "cat; echo read >&2; exit 7";
    let mut process = cli.command(&["exec", "-i", &talker, "sh", "-c", script]);
    let mut process = process.stdin(Stdio::piped()).spawn().unwrap();
    let log = cli.command(&["logs", "-f", "--tail", "0", &talker]).spawn();
    let lines = tokio::spawn(all_of(log.unwrap()));

    let enough = Arc::new(AtomicBool::new(false));
    let came = Arc::new(AtomicUsize::new(0));
    let writes = write_until(Arc::clone(&enough), process.stdin.take().unwrap());
    let writes = tokio::spawn(writes);
    let mut stdout = process.stdout.take().unwrap();
    let so_far = Arc::clone(&came);
    let echoes = tokio::spawn(async move {
        let (mut buffer, mut at) = (vec![0; 64 * 1024], 0);
        loop {
            let read = stdout.read(&mut buffer).await.unwrap();
            if read == 0 {
                return at;
            }
            let data = bytes::Bytes::copy_from_slice(&buffer[..read]);
            at += same(at, (Channel::Output, data));
            so_far.store(at, Ordering::Relaxed);
        }
    });
    let more = async |than: usize| {
        wait_for("more has come", SOON * 3, async || {
            let is_more = came.load(Ordering::Relaxed) > than;
            is_more.then_some(()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
    };
    more(AHEAD).await;
    for _ in 0..RESTARTS {
        assert!(fleet.controller.leave().await.success());
        fleet.controller.start_again();
        fleet.all_online().await;
        more(came.load(Ordering::Relaxed) + AHEAD).await;
    }
    // And both at once, as on a machine that has both.
    assert!(fleet.controller.leave().await.success());
    assert!(fleet.regions[0].process.leave().await.success());
    fleet.controller.start_again();
    fleet.regions[0].process.start_again();
    fleet.all_online().await;
    more(came.load(Ordering::Relaxed) + AHEAD).await;

    // The controller goes while it asks for what the access server's restart has left held.
    let held = || fleet.controller.said().matches("a stream is held").count();
    let before = held();
    assert!(fleet.regions[0].process.leave().await.success());
    wait_for("both are held", SOON, async || {
        let held = held() - before;
        (held >= 2).then_some(()).ok_or(format!("{held}"))
    })
    .await;
    assert!(fleet.controller.leave().await.success());
    fleet.controller.start_again();
    fleet.regions[0].process.start_again();
    fleet.all_online().await;
    more(came.load(Ordering::Relaxed) + AHEAD).await;

    enough.store(true, Ordering::Relaxed);
    let (sent, came) = (writes.await.unwrap(), echoes.await.unwrap());
    assert_eq!(sent, came);
    let mut said = String::new();
    process
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .await
        .unwrap();
    let of_restarts = |line: &&str| !line.contains("the server restarts");
    let said: Vec<&str> = said.lines().filter(of_restarts).collect();
    assert_eq!(said, ["read"]);
    assert_eq!(process.wait().await.unwrap().code(), Some(7));

    counts_to_its_end(&talker).await;
    let (text, err, code) = lines.await.unwrap();
    assert_eq!(code, Some(0), "{err}");
    let numbers = counted(&text);
    println!("{sent} B through a process, {numbers} lines");
}

/// Over a line on which a copy takes some seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_go_on_over_the_servers_restarts_byte_for_byte() {
    let mut fleet = Fleet::start(Options::docker().lines()).await;
    let names = Names::new();
    let web = names.polite("web");
    let cli = Cli::of(&fleet);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let whole: Vec<u8> = (0..COPIED).step_by(CHUNK).flat_map(piece).collect();
    std::fs::write(path("there"), &whole).unwrap();
    fleet.regions[0].line().set(Weather {
        bytes_per_s: Some(4 * 1024 * 1024),
        ..Weather::default()
    });
    let inside = format!("{web}:/tmp/copied");
    for (kind, from, to) in [
        ("copy-in", path("there"), inside.clone()),
        ("copy-out", inside.clone(), path("back")),
    ] {
        let mut copying = cli.command(&["cp", &from, &to]).spawn().unwrap();
        wait_for("it is copied", SOON, async || {
            let all: Rows<Command> = fleet.api.get("commands?limit=10").await.unwrap();
            let is_it = |row: &Command| row.kind == kind && row.state == "running";
            let over = copying.try_wait().unwrap();
            assert!(over.is_none(), "{kind} was over too soon: {over:?}");
            all.items.iter().any(is_it).then_some(()).ok_or("not yet")?;
            Ok(())
        })
        .await;
        restart(&mut fleet).await;
        assert!(fleet.controller.leave().await.success());
        fleet.controller.start_again();
        fleet.all_online().await;
        let over = copying.try_wait().unwrap();
        assert!(over.is_none(), "{kind} was over too soon: {over:?}");
        let (_, err, code) = all_of(copying).await;
        assert_eq!(code, Some(0), "{kind}: {err}");
    }
    assert!(
        std::fs::read(path("back")).unwrap() == whole,
        "it is the same"
    );
}

/// At any moment of a restart: before the host was asked for the stream, before it has dialled, before it was joined.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_begins_while_a_server_restarts_begins() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let cli = Arc::new(Cli::of(&fleet));
    let enough = Arc::new(AtomicBool::new(false));
    let times = Arc::new(AtomicUsize::new(0));
    let mut begun = Vec::new();
    for _ in 0..BESIDE {
        let (enough, cli, web) = (Arc::clone(&enough), Arc::clone(&cli), web.clone());
        let times = Arc::clone(&times);
        begun.push(tokio::spawn(async move {
            while !enough.load(Ordering::Relaxed) {
                let words = ["exec", "-i", web.as_str(), "sh", "-c", "cat; echo said"];
                let mut child = cli.command(&words).stdin(Stdio::piped()).spawn().unwrap();
                let mut input = child.stdin.take().unwrap();
                input.write_all(b"heard ").await.unwrap();
                drop(input);
                let (out, err, code) = all_of(child).await;
                let is_good = (out.as_str(), code) == ("heard said\n", Some(0));
                assert!(is_good, "{code:?} {out} {err}");
                times.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for turn in 0..4 * RESTARTS {
        // By whomever: one restart after another may keep a client waiting for longer than a host waits over one link.
        let before = times.load(Ordering::Relaxed);
        wait_for("more have begun", SOON * 3, async || {
            let failed = begun.iter().any(tokio::task::JoinHandle::is_finished);
            let more = times.load(Ordering::Relaxed) - before;
            let is_enough = failed || more >= 2 * BESIDE;
            is_enough.then_some(()).ok_or(format!("{more}"))
        })
        .await;
        if turn % 4 == 3 {
            assert!(fleet.controller.leave().await.success());
            fleet.controller.start_again();
        } else {
            restart(&mut fleet).await;
        }
    }
    enough.store(true, Ordering::Relaxed);
    for begun in begun {
        begun.await.unwrap();
    }
    let times = times.load(Ordering::Relaxed);
    println!("{} restarts, {times} processes", 4 * RESTARTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_link_is_down_waits_for_its_reader() {
    let fleet = Fleet::start(Options::docker().lines()).await;
    let names = Names::new();
    let web = names.polite("web");
    let mut wanted = request("box", exec(&web, &["echo", "said"]));
    wanted.attach = true;
    let submitted = fleet.api.submit(&wanted, Duration::ZERO).await.unwrap();
    wait_for("the host has it", SOON, async || {
        let now: Command = fleet
            .api
            .get(&format!("commands/{}", submitted.id))
            .await
            .unwrap();
        (now.state != "queued").then_some(()).ok_or(now.state)
    })
    .await;
    let line = fleet.regions[0].line();
    line.set(Weather::refusing());
    line.cut(Cut::Reset);
    // For longer than it would have waited over a link.
    let longer = limits::STREAM_DIAL_TIMEOUT + Duration::from_secs(1);
    moment(u64::try_from(longer.as_millis()).unwrap()).await;
    line.heal();
    fleet.all_online().await;
    let mut process = Stream::open(&fleet.api, &submitted.id).await.unwrap();
    let said = process.rest().await;
    let ended = fleet.api.ended(&submitted.id, SOON).await;
    assert_eq!(ended.state, "succeeded", "{ended:#?}");
    assert_eq!(said.text(), "said\n");
}

/// A command that waits for its turn may have been given a stream by a server that is gone when the turn comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_turn_while_a_server_restarts_has_its_reader() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let slow = names.deaf("slow", 30);
    let cli = Cli::of(&fleet);
    let begun = request("box", acts::restart(&slow));
    let before = fleet.api.submit(&begun, Duration::ZERO).await.unwrap();
    wait_for("it has the turn", SOON, async || {
        let now: Command = fleet
            .api
            .get(&format!("commands/{}", before.id))
            .await
            .unwrap();
        (now.state == "running").then_some(()).ok_or(now.state)
    })
    .await;
    let waits = cli.command(&["exec", &slow, "echo", "said"]).spawn();
    wait_for("it waits", SOON, async || {
        let all: Rows<Command> = fleet.api.get("commands?limit=10").await.unwrap();
        let is_there = all.items.iter().any(|row| row.kind == "exec");
        is_there.then_some(()).ok_or("not yet".to_owned())
    })
    .await;
    for _ in 0..RESTARTS {
        restart(&mut fleet).await;
    }
    let now: Command = fleet
        .api
        .get(&format!("commands/{}", before.id))
        .await
        .unwrap();
    assert!(!now.is_final, "its turn came before the restarts: {now:#?}");
    // Half a minute is long enough for its reader to be back when the turn comes.
    let (out, err, code) = all_of(waits.unwrap()).await;
    assert_eq!((out.as_str(), code), ("said\n", Some(0)), "{err}");
}

/// The same, and the turn comes while the server is away: it left, or was killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_turn_comes_while_its_server_is_away_has_its_reader() {
    let mut fleet = Fleet::start(Options::docker().lines()).await;
    let names = Names::new();
    let slow = names.deaf("slow", 600);
    let cli = Cli::of(&fleet);
    for leaves in [true, false] {
        let began = started_at(&slow);
        let before = fleet.begin(acts::restart(&slow)).await;
        fleet.api.reaches(&before.id, "running", SOON).await;
        let dials = fleet.regions[0].line().dials();
        let mut waits = cli.command(&["exec", "-i", &slow, "sh", "-c", "cat; echo said"]);
        let mut waits = waits.stdin(Stdio::piped()).spawn().unwrap();
        let mut input = waits.stdin.take().unwrap();
        input.write_all(b"heard ").await.unwrap();
        drop(input);
        wait_for("its stream is dialled", SOON, async || {
            let more = fleet.regions[0].line().dials() > dials;
            more.then_some(()).ok_or("not yet".to_owned())
        })
        .await;
        // It is there after some more ways to the host and back: a few words are said on it first.
        for _ in 0..5 {
            fleet.done(Action::Ping {}).await;
        }
        let server = &mut fleet.regions[0].process;
        if leaves {
            assert!(server.leave().await.success());
        } else {
            server.kill();
        }
        docker_says(&["kill", &slow]);
        wait_for("it is the next one's turn", SOON, async || {
            let again = started_at(&slow) != began;
            again.then_some(()).ok_or("not yet".to_owned())
        })
        .await;
        fleet.regions[0].process.start_again();
        let (out, err, code) = all_of(waits).await;
        let is_good = (out.as_str(), code) == ("heard said\n", Some(0));
        assert!(is_good, "leaves: {leaves}, {code:?} {out} {err}");
    }
}

/// One that dies holds nothing for anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_with_a_controller_that_dies_is_no_success() {
    let mut fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let talker = names.by_hand("talker", &[], &["sh", "-c", COUNTER]);
    let cli = Cli::of(&fleet);
    let ends_with = |code: u8| {
        let gone = format!("/tmp/gone-{code}");
        format!("echo began; until [ -e {gone} ]; do sleep 0.1; done; exit {code}")
    };
    let (good, bad) = (ends_with(0), ends_with(3));
    let exec = |script| ["exec", talker.as_str(), "sh", "-c", script];
    let mut running = Vec::new();
    for words in [&exec(&good)[..], &exec(&bad), &["logs", "-f", &talker]] {
        let mut child = cli.command(words).spawn().unwrap();
        let mut first = [0];
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut first).await.unwrap();
        running.push(child);
    }
    fleet.controller.kill();
    fleet.controller.start_again();
    fleet.all_online().await;
    // How far they are was on no disk of its own.
    wait_for("both are shown as running", SOON, async || {
        let all: Rows<Command> = fleet.api.get("commands?limit=10").await.unwrap();
        let execs = all.items.into_iter().filter(|row| row.kind == "exec");
        let states: Vec<_> = execs.map(|row| row.state).collect();
        let are = states == ["running"; 2];
        are.then_some(()).ok_or(format!("{states:?}"))
    })
    .await;
    docker_says(&["exec", &talker, "touch", "/tmp/gone-0", "/tmp/gone-3"]);

    let said = [
        "the process ended with 0",
        "the process ended with 3",
        "ask for it again",
    ];
    for ((child, code), said) in running.into_iter().zip([8, 3, 8]).zip(said) {
        let (_, err, ended) = all_of(child).await;
        assert_eq!(ended, Some(code), "{err}");
        assert!(err.contains("stream_lost") && err.contains(said), "{err}");
    }
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
