//! What flows: exec, logs and copies, with and without a stream.
//!
//! Holds: DESIGN §5 (streams), §7 (exec, logs, copy-in, copy-out), "nothing half done".

use std::time::Duration;

use fairlead_api::types::{Action, CommandRequest};
use fairlead_identity::digest::{hex, sha256};
use fairlead_protocol::stream::Channel;
use fairlead_tests::client::request;
use fairlead_tests::engine::{self, Names, docker, docker_says};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::stream::Stream;
use fairlead_tests::wait::wait_for;

use crate::acts::{attach, exec, logs, text};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_exec_without_a_stream_leaves_its_code_and_the_end_of_its_output() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");

    let command = fleet
        .act(exec(&web, &["sh", "-c", "echo out; echo err >&2; exit 7"]))
        .await;
    assert_eq!(
        (&command.state[..], &command.code[..]),
        ("failed", "exit_code")
    );
    assert_eq!(command.exit_code, Some(7));
    assert!(
        text(&command).contains("out") && text(&command).contains("err"),
        "{command:#?}"
    );

    let command = fleet.done(exec(&web, &["sh", "-c", "seq 1 100000"])).await;
    assert_eq!(command.exit_code, Some(0));
    assert!(command.output_truncated);
    assert!(
        text(&command).ends_with("99999\n100000\n"),
        "the end is what is kept"
    );

    let mut action = exec(&web, &["sh", "-c", "echo $COLOUR; pwd; id -u"]);
    if let Action::Exec {
        env, user, workdir, ..
    } = &mut action
    {
        env.push("COLOUR=blue".to_owned());
        "7".clone_into(user);
        "/tmp".clone_into(workdir);
    }
    assert_eq!(text(&fleet.done(action).await), "blue\n/tmp\n7\n");

    let missing = fleet.act(exec(&web, &["/no/such/program"])).await;
    assert_eq!(missing.state, "failed", "{missing:#?}");
}

#[tokio::test]
async fn an_exec_with_a_stream_carries_input_output_and_code() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let mut action = exec(&web, &["sh", "-c", "cat; echo bad >&2; exit 3"]);
    if let Action::Exec { stdin, .. } = &mut action {
        *stdin = true;
    }
    let input: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();

    let (command, mut stream) = attach(&fleet.api, "box", action).await;
    stream.begun().await;
    for chunk in input.chunks(16 * 1024) {
        stream.send(Channel::Input, chunk).await;
    }
    stream.send(Channel::InputEnd, &[]).await;
    let heard = stream.rest().await;

    assert_eq!(
        heard.output,
        input,
        "byte for byte, {} came",
        heard.output.len()
    );
    assert_eq!(heard.errors, b"bad\n");
    let end = heard.end.expect("an end frame");
    assert_eq!(
        (end["exit_code"].as_i64(), end["code"].as_str()),
        (Some(3), Some("exit_code"))
    );
    let command = fleet.api.ended(&command.id, SOON).await;
    assert_eq!(command.exit_code, Some(3));
}

#[tokio::test]
async fn a_process_whose_stream_is_lost_goes_on_to_its_end() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let action = exec(
        &web,
        &[
            "sh",
            "-c",
            "echo begun; sleep 1; touch /tmp/finished; exit 4",
        ],
    );

    let (command, mut stream) = attach(&fleet.api, "box", action).await;
    stream.begun().await;
    drop(stream);

    let command = fleet.api.ended(&command.id, SOON).await;
    assert_eq!(command.exit_code, Some(4), "{command:#?}");
    assert!(
        docker(&["exec", &web, "test", "-e", "/tmp/finished"])
            .status
            .success()
    );
}

#[tokio::test]
async fn a_stream_nobody_attaches_to_runs_nothing() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let asked = CommandRequest {
        attach: true,
        ..request("box", exec(&web, &["touch", "/tmp/ran"]))
    };

    let command = fleet.api.submit(&asked, SOON).await.unwrap();

    assert_eq!(
        (&command.state[..], &command.code[..]),
        ("failed", "stream_not_attached")
    );
    assert!(
        !docker(&["exec", &web, "test", "-e", "/tmp/ran"])
            .status
            .success()
    );
    let late = Stream::open(&fleet.api, &command.id).await.unwrap_err();
    assert_eq!(late.code, "no_stream");

    // Nor does the owner read that something began.
    let log = fleet.hosts[0].owner_log();
    assert!(
        log.contains("nothing was run") && !log.contains("began"),
        "{log}"
    );
    fleet.done(exec(&web, &["true"])).await;
    let log = fleet.hosts[0].owner_log();
    assert_eq!(log.matches("began: run `true`").count(), 1, "{log}");
}

#[tokio::test]
async fn logs_are_read_from_where_it_was_asked() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.by_hand(
        "web",
        &[],
        &[
            "sh",
            "-c",
            "seq 1 20; echo oops >&2; while :; do sleep 0.3; echo more; done",
        ],
    );
    wait_for("it has said twenty lines", SOON, async || {
        let said = docker_says(&["logs", &web]);
        if said.contains("\n20\n") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;

    let (_, mut stream) = attach(&fleet.api, "box", logs(&web, None, false)).await;
    let all = stream.rest().await;
    assert!(all.text().starts_with("1\n2\n3\n"), "{}", all.text());
    assert_eq!(all.errors, b"oops\n");
    assert_eq!(all.end.unwrap()["state"], "succeeded");

    let (_, mut stream) = attach(&fleet.api, "box", logs(&web, Some(2), false)).await;
    let tail = stream.rest().await;
    // The last two lines of both outputs together: "oops" may be one of them.
    let errors = tail.errors.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(tail.text().lines().count() + errors, 2);

    let since = jiff::Timestamp::now();
    let mut action = logs(&web, None, false);
    if let Action::Logs {
        since: from,
        timestamps,
        ..
    } = &mut action
    {
        *from = Some(since);
        *timestamps = true;
    }
    let (_, mut stream) = attach(&fleet.api, "box", action).await;
    assert!(!stream.rest().await.text().contains("20\n"));

    // A follow goes on as lines appear, and ends when its reader leaves.
    let (command, mut stream) = attach(&fleet.api, "box", logs(&web, Some(0), true)).await;
    stream.begun().await;
    for _ in 0..3 {
        let (channel, data) = stream.hear().await.expect("a line");
        assert_eq!((channel, &data[..]), (Channel::Output, &b"more\n"[..]));
    }
    drop(stream);
    let command = fleet.api.ended(&command.id, SOON).await;
    assert_eq!(command.state, "succeeded", "{command:#?}");

    // Without a stream the result carries them.
    let body = fleet.done(logs(&web, Some(3), false)).await;
    assert_eq!(text(&body).lines().count(), 3);
}

fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap()
}

fn copy_in(container: &str, archive: &[u8], digest: [u8; 32]) -> Action {
    Action::CopyIn {
        container: container.to_owned(),
        path: "/tmp".to_owned(),
        size: archive.len() as u64,
        sha256: hex(&digest),
    }
}

#[tokio::test]
async fn a_copy_arrives_whole_or_not_at_all() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let content: Vec<u8> = (0..500_000u32).map(|n| (n % 241) as u8).collect();
    let good = archive("file", &content);

    let (command, mut stream) =
        attach(&fleet.api, "box", copy_in(&web, &good, sha256(&good))).await;
    stream.begun().await;
    for chunk in good.chunks(32 * 1024) {
        stream.send(Channel::Input, chunk).await;
    }
    stream.send(Channel::InputEnd, &[]).await;
    assert_eq!(stream.rest().await.end.unwrap()["state"], "succeeded");
    assert_eq!(fleet.api.ended(&command.id, SOON).await.state, "succeeded");
    assert_eq!(docker(&["exec", &web, "cat", "/tmp/file"]).stdout, content);

    // Out again, the same bytes.
    let out = Action::CopyOut {
        container: web.clone(),
        path: "/tmp/file".to_owned(),
    };
    let (_, mut stream) = attach(&fleet.api, "box", out).await;
    let heard = stream.rest().await;
    let mut entries = tar::Archive::new(&heard.output[..]);
    let mut entry = entries.entries().unwrap().next().unwrap().unwrap();
    let mut back = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut back).unwrap();
    assert_eq!(back, content);

    // Altered on the way: what was signed is not what came.
    let altered = archive("altered", &content);
    let (command, mut stream) = attach(
        &fleet.api,
        "box",
        copy_in(&web, &altered, sha256(b"another")),
    )
    .await;
    stream.begun().await;
    for chunk in altered.chunks(32 * 1024) {
        stream.send(Channel::Input, chunk).await;
    }
    stream.send(Channel::InputEnd, &[]).await;
    stream.rest().await;
    let command = fleet.api.ended(&command.id, SOON).await;
    assert_eq!(
        (&command.state[..], &command.code[..]),
        ("failed", "digest_mismatch")
    );
    assert!(
        !docker(&["exec", &web, "test", "-e", "/tmp/altered"])
            .status
            .success()
    );

    // The sender leaves in the middle.
    let half = archive("half", &content);
    let (command, mut stream) =
        attach(&fleet.api, "box", copy_in(&web, &half, sha256(&half))).await;
    stream.begun().await;
    stream.send(Channel::Input, &half[..100_000 / 4]).await;
    drop(stream);
    let command = fleet.api.ended(&command.id, SOON).await;
    assert_eq!(
        (&command.state[..], &command.code[..]),
        ("failed", "stream_lost")
    );
    assert!(
        !docker(&["exec", &web, "test", "-e", "/tmp/half"])
            .status
            .success()
    );

    let nowhere = Action::CopyOut {
        container: web.clone(),
        path: "/no/such".to_owned(),
    };
    let (command, mut stream) = attach(&fleet.api, "box", nowhere).await;
    stream.rest().await;
    let command = fleet.api.ended(&command.id, SOON).await;
    assert_eq!(command.state, "failed", "{command:#?}");
    assert!(engine::is_running(&web));
}

#[tokio::test]
async fn a_process_that_closes_its_output_and_runs_on_is_waited_for() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let script = "echo before; exec >&- 2>&- <&-; sleep 3; exit 7";
    let ended = fleet.act(exec(&web, &["sh", "-c", script])).await;
    assert_eq!(
        (&ended.code[..], ended.exit_code),
        ("exit_code", Some(7)),
        "{ended:#?}"
    );
    assert_eq!(text(&ended), "before\n");
}
