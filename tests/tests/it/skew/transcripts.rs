//! What the programs of version 1 said to each other, kept in `tests/transcripts/1` and held against today's programs:
//! every message still means what it meant, an agent that says it works with today's access server, and an access
//! server that says it works with today's agent.
//!
//! A transcript is never written anew, because then it would hold nothing: a next version gets a folder of its
//! own (`long_write_the_transcripts`, with `FAIRLEAD_TRANSCRIPTS` naming it).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fairlead_api::types::{Action, Command as Told};
use fairlead_identity::random;
use fairlead_link::socket::Socket;
use fairlead_protocol::{
    Command, CommandResult, Deliver, LinkDown, LinkUp, Message, UplinkDown, UplinkUp, Welcome,
    link_down, link_up,
};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::skew::{Frame, Manner, Said};
use fairlead_tests::wait::wait_for;

use super::{SOON, with_agent, with_region};
use crate::acts::{exec, remove, restart, run_simulated, start, stop};
use crate::hostile::Stolen;
use crate::liar::{Agent, Liar, result, tell};

/// The life that the transcripts are of.
fn life() -> Vec<Action> {
    let inspect = Action::Inspect {
        object: "web".to_owned(),
        object_kind: String::new(),
    };
    vec![
        Action::Ping {},
        run_simulated("web"),
        restart("web"),
        exec("web", &["echo", "hello"]),
        inspect,
        Action::List { all: true },
        stop("web"),
        start("web"),
        restart("not-there"),
        remove("web", true),
    ]
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts")
}

fn hex(bytes: &[u8]) -> String {
    fairlead_identity::digest::hex(bytes)
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A line for each message: who says it (`>` the dialling side), its bytes, and what it is.
fn written(said: &[Said], name: impl Fn(&Said) -> String) -> String {
    let line = |one: &Said| {
        let who = if one.0 { '>' } else { '<' };
        format!("{who} {} {}\n", hex(&one.1), name(one))
    };
    said.iter().map(line).collect()
}

fn read(version: &str, what: &str) -> Vec<Said> {
    let path = folder().join(version).join(what);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let said: Vec<Said> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split(' ');
            let who = words.next().unwrap();
            (who == ">", unhex(words.next().unwrap()))
        })
        .collect();
    assert!(said.len() > 20, "{what} of version {version}");
    said
}

/// The name of what a frame carries; the message must encode to the same bytes again.
fn kind<M: Message + Default + std::fmt::Debug>(bytes: &[u8]) -> String {
    let message = M::decode(bytes).unwrap();
    assert_eq!(hex(&message.encode_to_vec()), hex(bytes), "{message:?}");
    let said = format!("{message:?}");
    let kind = said.split_once("Some(").map_or("", |(_, kind)| kind);
    kind.split('(').next().unwrap_or_default().to_owned()
}

fn link_kind((up, bytes): &Said) -> String {
    if *up {
        kind::<LinkUp>(bytes)
    } else {
        kind::<LinkDown>(bytes)
    }
}

fn uplink_kind((up, bytes): &Said) -> String {
    if *up {
        kind::<UplinkUp>(bytes)
    } else {
        kind::<UplinkDown>(bytes)
    }
}

#[test]
fn what_was_said_in_version_one_means_what_it_meant() {
    let link = read("1", "link");
    let kinds: BTreeSet<String> = link.iter().map(link_kind).collect();
    for kind in [
        "Hello",
        "Welcome",
        "Deliver",
        "Progress",
        "Result",
        "ResultAck",
        "Inventory",
        "Metrics",
        "Event",
        "EventAck",
    ] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }
    let uplink = read("1", "uplink");
    let kinds: BTreeSet<String> = uplink.iter().map(uplink_kind).collect();
    for kind in [
        "Hello",
        "Welcome",
        "Order",
        "Report",
        "Ack",
        "Presence",
        "Inventory",
        "Metrics",
        "Progress",
        "EnrolCheck",
        "EnrolVerdict",
        "PresenceComplete",
    ] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }
}

/// Writes them; how version 1's were made. Not for the programs of a version whose transcripts are there already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes into the folder that FAIRLEAD_TRANSCRIPTS names"]
async fn long_write_the_transcripts() {
    let Some(to) = std::env::var_os("FAIRLEAD_TRANSCRIPTS").map(PathBuf::from) else {
        return;
    };
    std::fs::create_dir_all(&to).unwrap();
    for (what, name) in [
        ("link", link_kind as fn(&Said) -> String),
        ("uplink", uplink_kind),
    ] {
        assert!(!to.join(what).exists(), "they are never written anew");
        let (fleet, skew) = if what == "link" {
            with_agent(Manner::default()).await
        } else {
            with_region(Manner::default()).await
        };
        for action in life() {
            fleet.act(action).await;
        }
        fleet.api.event("container.destroy", "box", SOON).await;
        wait_for("it was measured", SOON, async || {
            let host = fleet.api.host("box").await.unwrap();
            host.metrics.map(|_| ()).ok_or(host.state)
        })
        .await;
        // What was said behind the enrol door, tokens with it, is no part of it.
        let mut said = skew.said();
        let first = said.iter().position(|one| name(one) == "Hello").unwrap();
        said.drain(..first);
        std::fs::write(to.join(what), written(&said, name)).unwrap();
    }
}

/// The command of a delivery.
fn command_of(bytes: &[u8]) -> Option<(Deliver, Command)> {
    let Some(link_down::Kind::Deliver(deliver)) = LinkDown::decode(bytes).ok()?.kind else {
        return None;
    };
    let command = Command::decode(&deliver.command.as_ref()?.command[..]).ok()?;
    Some((deliver, command))
}

/// What became of a command, in the words of its result.
fn result_of(said: &[Said], id: &[u8]) -> CommandResult {
    let mut results = said.iter().filter(|(up, _)| *up).filter_map(|(_, bytes)| {
        match LinkUp::decode(&bytes[..]).unwrap().kind {
            Some(link_up::Kind::Result(result)) if result.command == id => Some(result),
            _ => None,
        }
    });
    results.next_back().expect("it had a result")
}

/// The commands that were delivered, in order.
fn delivered(said: &[Said]) -> Vec<Command> {
    let down = said.iter().filter(|(up, _)| !*up);
    down.filter_map(|(_, bytes)| command_of(bytes))
        .map(|(_, command)| command)
        .collect()
}

/// What was said of a command, as frames.
fn said_of(said: &[Said], id: &[u8]) -> Vec<Vec<u8>> {
    let is_of = |bytes: &[u8]| match LinkUp::decode(bytes).unwrap().kind {
        Some(link_up::Kind::Progress(one)) => one.command == id,
        Some(link_up::Kind::ResultPart(one)) => one.command == id,
        Some(link_up::Kind::Result(one)) => one.command == id,
        _ => false,
    };
    let up = said.iter().filter(|(up, bytes)| *up && is_of(bytes));
    up.map(|(_, bytes)| bytes.clone()).collect()
}

/// Pictures, measurements and events, as frames.
fn reports(said: &[Said]) -> Vec<Vec<u8>> {
    let is_report = |bytes: &[u8]| {
        matches!(
            LinkUp::decode(bytes).unwrap().kind,
            Some(link_up::Kind::Inventory(_) | link_up::Kind::Metrics(_) | link_up::Kind::Event(_))
        )
    };
    let up = said.iter().filter(|(up, bytes)| *up && is_report(bytes));
    up.map(|(_, bytes)| bytes.clone()).collect()
}

/// An agent of version 1: it says what such a one said, of the commands that it gets now.
async fn agent_of_version_one(mut socket: Socket<Frame, LinkDown>, said: Vec<Said>) {
    for bytes in reports(&said) {
        socket.send(&Frame(bytes)).await.unwrap();
    }
    let mut deliveries = delivered(&said).into_iter();
    while let Ok(message) = socket.hear_message(SOON * 4).await {
        let Some((_, command)) = command_of(&message.encode_to_vec()) else {
            continue;
        };
        let then = deliveries.next().expect("no more than then");
        let name = |command: &Command| command.kind.as_ref().map(|kind| kind.name());
        assert_eq!(name(&then), name(&command));
        for mut bytes in said_of(&said, &then.id) {
            // Byte for byte what was said then, but for the command's id.
            let at = bytes.windows(16).position(|part| part == &then.id[..]);
            let at = at.expect("its id");
            bytes[at..at + 16].copy_from_slice(&command.id);
            socket.send(&Frame(bytes)).await.unwrap();
        }
    }
}

fn same_end(told: &Told, then: &CommandResult) {
    assert_eq!(told.state, then.state().name(), "{told:#?}");
    assert_eq!(told.code, then.code, "{told:#?}");
    assert_eq!(told.container_id, then.container_id, "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_version_one_works_with_todays_servers() {
    let said = read("1", "link");
    let mut fleet = Fleet::start(Options::simulated()).await;
    fleet.hosts[0].kill();
    fleet.api.host_is("box", "offline", SOON).await;
    let stolen = Stolen::of(&fleet.hosts[0].dir);
    let mut socket: Socket<Frame, LinkDown> = stolen
        .knock(
            &fleet.regions[0].agents.address(),
            fairlead_protocol::version::paths::LINK,
        )
        .await;
    // Its greeting, as the instance that it is now.
    let Some(link_up::Kind::Hello(mut hello)) = LinkUp::decode(&said[0].1[..]).unwrap().kind else {
        panic!("a transcript begins with a hello");
    };
    let Some(link_up::Kind::Hello(now)) = stolen.hello().kind else {
        panic!("a hello");
    };
    hello.instance = random::bytes::<16>().to_vec().into();
    hello.run = now.run;
    hello.epoch = now.epoch;
    hello.certificate_counter = now.certificate_counter;
    let hello = LinkUp {
        kind: Some(link_up::Kind::Hello(hello)),
    };
    socket.send(&Frame(hello.encode_to_vec())).await.unwrap();
    let answer = socket.hear_message(SOON).await.unwrap();
    assert!(
        matches!(answer.kind, Some(link_down::Kind::Welcome(_))),
        "{answer:?}"
    );
    let agent = tokio::spawn(agent_of_version_one(socket, said.clone()));
    fleet.online("box").await;
    let then = delivered(&said);
    assert_eq!(then.len(), life().len());
    for (action, then) in life().into_iter().zip(then) {
        let told = fleet.act(action).await;
        same_end(&told, &result_of(&said, &then.id));
    }
    // What it reported is what is shown.
    fleet.api.event("container.destroy", "box", SOON).await;
    let host = fleet.api.host("box").await.unwrap();
    assert!(host.metrics.is_some(), "{host:?}");
    agent.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_server_of_version_one_works_with_todays_agent() {
    let said = read("1", "link");
    let dir = tempfile::tempdir().unwrap();
    let mut liar = Liar::new().await;
    let welcome = said.iter().find_map(|(up, bytes)| {
        match LinkDown::decode(&bytes[..]).unwrap_or_default().kind {
            Some(link_down::Kind::Welcome(welcome)) if !*up => Some(welcome),
            _ => None,
        }
    });
    // Time, keys and addresses are those of now.
    liar.says = Welcome {
        server_time_us: 0,
        addresses: Vec::new(),
        epoch: 0,
        ..welcome.expect("a transcript has a welcome")
    };
    let agent = Agent::start(&liar, dir.path());
    let mut socket = liar.link().await;
    let mut done = 0;
    for (_, bytes) in said.iter().filter(|(up, _)| !*up) {
        match LinkDown::decode(&bytes[..]).unwrap().kind {
            Some(link_down::Kind::Deliver(mut deliver)) => {
                let (_, then) = command_of(bytes).unwrap();
                let now = jiff::Timestamp::now().as_microsecond();
                let command = Command {
                    host: liar.host.to_wire(),
                    issued_at_us: now,
                    not_after_us: now + 60_000_000,
                    ..then.clone()
                };
                deliver.command = Some(liar.controller.sign(&command));
                deliver.epoch = 0;
                tell(&mut socket, link_down::Kind::Deliver(deliver)).await;
                let now = result(&mut socket, &then.id).await;
                let then = result_of(&said, &then.id);
                assert_eq!(
                    (now.state(), &now.code),
                    (then.state(), &then.code),
                    "{now:#?}"
                );
                assert_eq!(now.exit_code, then.exit_code);
                done += 1;
            }
            Some(kind @ (link_down::Kind::ResultAck(_) | link_down::Kind::EventAck(_))) => {
                tell(&mut socket, kind).await;
            }
            _ => {}
        }
    }
    assert_eq!(done, life().len());
    drop(agent);
}
