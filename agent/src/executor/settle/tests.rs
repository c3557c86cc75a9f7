//! Settling, at a simulated engine.

use fairlead_protocol::{ContainerSpec, Kill, State};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::executor::act::COMMAND_LABEL;
use crate::runtime::docker::DockerRuntime;
use crate::runtime::simulated::{SimulatedOptions, SimulatedRuntime};

/// A signal that was never sent is not taken for one that did its work.
#[tokio::test]
async fn a_kill_of_what_had_ended_before_is_not_done_and_of_what_ended_since_is() {
    let runtime = SimulatedRuntime::new(SimulatedOptions::default()).unwrap();
    let spec = ContainerSpec {
        name: "web".to_owned(),
        image: "demo/web:1".to_owned(),
        ..ContainerSpec::default()
    };
    let container_id = runtime.create(&spec, &[]).await.unwrap();
    runtime.start("web").await.unwrap();
    runtime.kill("web", "KILL").await.unwrap();
    let ended_us = runtime.inspect("web").await.unwrap().finished_us;
    let kind = Kind::Kill(Kill {
        container: "web".to_owned(),
        signal: "KILL".to_owned(),
    });
    for (at_us, done) in [(ended_us + 1, false), (ended_us, true)] {
        let intent = Intent {
            container_id: container_id.clone(),
            at_us,
            ..Intent::default()
        };
        let before = Before {
            id: CommandId::from_bytes([1; 16]),
            kind: &kind,
            intent: &intent,
            exec: None,
            waited: Duration::ZERO,
            not_before_us: at_us,
            is_late: &|| false,
        };
        let settled = settle(&runtime, &before).await.unwrap();
        assert_eq!(matches!(settled, Settled::Done(_)), done);
    }
}

/// An engine that stops for a while in the middle of its answer, as a busy one does: what it says after that
/// counts too.
#[tokio::test]
async fn a_kill_is_found_in_what_a_slow_engine_remembers() {
    const ASKED_US: i64 = 1_700_000_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let server = async {
        let mut answers = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            answers.spawn(answer_slowly(stream, ASKED_US));
        }
    };
    let runtime = DockerRuntime::new(&socket).unwrap();
    let kind = Kind::Kill(Kill {
        container: "web".to_owned(),
        signal: "KILL".to_owned(),
    });
    let intent = Intent {
        container_id: "1f".to_owned(),
        at_us: ASKED_US,
        ..Intent::default()
    };
    let before = Before {
        id: CommandId::from_bytes([5; 16]),
        kind: &kind,
        intent: &intent,
        exec: None,
        waited: Duration::ZERO,
        not_before_us: ASKED_US,
        is_late: &|| false,
    };
    let settled = tokio::select! {
        settled = settle(&runtime, &before) => settled.unwrap(),
        () = server => unreachable!("it serves for ever"),
    };
    assert!(matches!(settled, Settled::Done(_)));
}

/// An engine with one container, that was sent two signals since it was asked.
async fn answer_slowly(mut stream: tokio::net::UnixStream, asked_us: i64) {
    let mut buffer = [0; 4096];
    let n = stream.read(&mut buffer).await.unwrap();
    let asked = String::from_utf8_lossy(&buffer[..n]).into_owned();
    let path = asked.split(' ').nth(1).unwrap_or_default();
    let kill = |signal: u32, after_us: i64| {
        let line = serde_json::json!({
            "Type": "container",
            "Action": "kill",
            "Actor": { "ID": "1f", "Attributes": { "signal": signal.to_string(), "name": "web" } },
            "timeNano": (asked_us + after_us) * 1000,
        });
        format!("{line}\n")
    };
    let pieces = if path.ends_with("/version") {
        vec![r#"{"ApiVersion":"1.41"}"#.to_owned()]
    } else if path.contains("/events?") {
        vec![kill(15, 1_000), kill(9, 2_000)]
    } else if path.ends_with("/containers/1f/json") {
        let state = r#"{"Status":"exited","FinishedAt":"2023-11-14T22:13:21Z"}"#;
        vec![format!(r#"{{"Id":"1f","Name":"/web","State":{state}}}"#)]
    } else {
        vec!["[]".to_owned()]
    };
    let length: usize = pieces.iter().map(String::len).sum();
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            tokio::time::sleep(Duration::from_millis(800)).await;
        }
        if stream.write_all(piece.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A container that was made and never started is no `run` that went well, whatever becomes of it.
#[tokio::test]
async fn a_run_is_settled_by_what_was_started() {
    let id = CommandId::from_bytes([2; 16]);
    let labels = [(COMMAND_LABEL.to_owned(), id.to_string())];
    let spec = ContainerSpec {
        name: "web".to_owned(),
        image: "demo/web:1".to_owned(),
        ..ContainerSpec::default()
    };
    let kind = Kind::Run(fairlead_protocol::Run {
        spec: Some(spec.clone()),
    });
    for (started, removed, state) in [
        (false, false, State::Succeeded),
        (true, true, State::Succeeded),
        (false, true, State::Failed),
    ] {
        let runtime = SimulatedRuntime::new(SimulatedOptions::default()).unwrap();
        let container_id = runtime.create(&spec, &labels).await.unwrap();
        if started {
            runtime.start("web").await.unwrap();
        }
        if removed {
            runtime.remove("web", true, false).await.unwrap();
        }
        let intent = Intent {
            at_us: 1,
            ..Intent::default()
        };
        let before = Before {
            id,
            kind: &kind,
            intent: &intent,
            exec: None,
            waited: Duration::ZERO,
            not_before_us: 0,
            is_late: &|| false,
        };
        let Settled::Done(outcome) = settle(&runtime, &before).await.unwrap() else {
            panic!("it was made");
        };
        assert_eq!(outcome.state, state, "{started} {removed}");
        if !removed {
            let now = runtime.inspect(&container_id).await.unwrap();
            assert_eq!(now.container.state, "running");
        }
    }
}

/// Of a process that was made before a crash nobody knows whether it was asked to start as well.
#[tokio::test]
async fn a_process_that_was_made_is_begun_in_time_or_not_at_all() {
    for (is_late, state) in [(true, State::Expired), (false, State::Succeeded)] {
        let runtime = SimulatedRuntime::new(SimulatedOptions::default()).unwrap();
        let spec = ContainerSpec {
            name: "web".to_owned(),
            image: "demo/web:1".to_owned(),
            ..ContainerSpec::default()
        };
        runtime.create(&spec, &[]).await.unwrap();
        runtime.start("web").await.unwrap();
        let exec = fairlead_protocol::Exec {
            container: "web".to_owned(),
            command: vec!["true".to_owned()],
            ..fairlead_protocol::Exec::default()
        };
        let id = CommandId::from_bytes([3; 16]);
        let wanted = crate::executor::attached::exec_spec(id, &exec);
        let made = runtime.exec_create("web", &wanted).await.unwrap();
        let before = Before {
            id,
            kind: &Kind::Exec(exec),
            intent: &Intent::default(),
            exec: Some(&made),
            waited: Duration::ZERO,
            not_before_us: 0,
            is_late: &|| is_late,
        };
        let Settled::Done(outcome) = settle(&runtime, &before).await.unwrap() else {
            panic!("it has an end");
        };
        assert_eq!(outcome.state, state);
        let then = runtime.exec_state(&made).await.unwrap();
        assert_eq!(then == ExecState::Created, is_late, "{then:?}");
    }
}

/// What an engine notes of a process whose reader has gone is not how that ended.
#[tokio::test]
async fn the_code_of_a_process_that_nobody_read_is_not_taken_for_its_own() {
    for (code, state, told) in [
        (0, State::Succeeded, 0),
        (3, State::Failed, 3),
        (126, State::Unknown, 0),
    ] {
        let runtime = SimulatedRuntime::new(SimulatedOptions::default()).unwrap();
        let spec = ContainerSpec {
            name: "web".to_owned(),
            image: "demo/web:1".to_owned(),
            ..ContainerSpec::default()
        };
        runtime.create(&spec, &[]).await.unwrap();
        runtime.start("web").await.unwrap();
        let exec = fairlead_protocol::Exec {
            container: "web".to_owned(),
            command: vec!["sh".to_owned(), "-c".to_owned(), format!("exit {code}")],
            ..fairlead_protocol::Exec::default()
        };
        let id = CommandId::from_bytes([4; 16]);
        let wanted = crate::executor::attached::exec_spec(id, &exec);
        let made = runtime.exec_create("web", &wanted).await.unwrap();
        let mut io = runtime.exec_start(&made, false).await.unwrap();
        while io.output.next().await.is_some() {}
        let before = Before {
            id,
            kind: &Kind::Exec(exec),
            intent: &Intent::default(),
            exec: Some(&made),
            waited: Duration::ZERO,
            not_before_us: 0,
            is_late: &|| false,
        };
        let Settled::Done(outcome) = settle(&runtime, &before).await.unwrap() else {
            panic!("it has an end");
        };
        assert_eq!((outcome.state, outcome.exit_code), (state, told), "{code}");
        assert!(!outcome.message.is_empty(), "{code}");
    }
}

#[test]
fn a_signal_is_told_from_another_by_name_or_number() {
    for (told, asked, same) in [
        ("10", "SIGUSR1", true),
        ("10", "10", true),
        ("9", "", true),
        ("15", "10", false),
        ("SIGTERM", "9", false),
        ("34", "SIGRTMIN", true),
    ] {
        assert_eq!(is_same_signal(told, asked), same, "{told} {asked}");
    }
}
