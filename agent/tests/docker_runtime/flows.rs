//! Exec, logs, archives, events, numbers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_agent::runtime::{
    ContainerRuntime, ExecSpec, ExecState, LogOptions, Output, RuntimeError,
};
use fairlead_protocol::ContainerSpec;
use futures_util::{StreamExt, stream};
use tokio::io::AsyncWriteExt;

use crate::engine::{IMAGE, Name, SERVICE, WAIT, engine, exited, spec, started, text};

#[tokio::test]
async fn exec_with_input_and_exit_code() {
    let Some(engine) = engine() else { return };
    let name = Name::new("exec");
    started(&engine, &name, SERVICE).await;
    let exec = ExecSpec {
        command: vec!["sh".into(), "-c".into(), "cat; echo $B >&2; exit 5".into()],
        env: vec!["B=2".into()],
        stdin: true,
        ..Default::default()
    };
    let id = engine.exec_create(&name.0, &exec).await.unwrap();
    assert_eq!(engine.exec_state(&id).await.unwrap(), ExecState::Created);
    let mut io = engine.exec_start(&id, false).await.unwrap();
    // Larger than every buffer on the way.
    let input = "0123456789abcdef".repeat(64 * 1024);
    let (_, (out, err)) = tokio::join!(
        async {
            io.input.write_all(input.as_bytes()).await.unwrap();
            io.input.shutdown().await.unwrap();
        },
        text(io.output)
    );
    assert!(
        out == input,
        "{} of {} bytes came back",
        out.len(),
        input.len()
    );
    assert_eq!(err, "2\n");
    assert_eq!(exited(&engine, &id).await, 5);
    assert!(
        engine.exec_start(&id, false).await.is_err(),
        "a second start is refused"
    );
    assert_eq!(
        engine.exec_state(&"0".repeat(64)).await.unwrap(),
        ExecState::Forgotten
    );
    let forgotten = engine.exec_start(&"0".repeat(64), false).await.err();
    assert!(matches!(forgotten, Some(RuntimeError::NoSuchExec(_))));
    let relative = ExecSpec {
        workdir: "x".into(),
        ..exec.clone()
    };
    assert!(engine.exec_create(&name.0, &relative).await.is_err());
    engine.stop(&name.0, Some(5), "").await.unwrap();
    let stopped = engine.exec_create(&name.0, &exec).await;
    assert!(
        matches!(stopped, Err(RuntimeError::NotRunning(_))),
        "{stopped:?}"
    );
    let missing = engine.exec_create("fl-agent-nope", &exec).await;
    assert!(matches!(missing, Err(RuntimeError::NoSuchContainer(_))));
}

#[tokio::test]
async fn exec_with_a_terminal_is_raw() {
    let Some(engine) = engine() else { return };
    let name = Name::new("tty");
    started(&engine, &name, SERVICE).await;
    let exec = ExecSpec {
        // Bytes that look like the engine's own frames.
        command: vec![
            "printf".into(),
            r"\001\000\000\000\000\000\000\005no newline".into(),
        ],
        tty: true,
        ..Default::default()
    };
    let id = engine.exec_create(&name.0, &exec).await.unwrap();
    let io = engine.exec_start(&id, true).await.unwrap();
    assert_eq!(text(io.output).await.0, "\u{1}\0\0\0\0\0\0\u{5}no newline");
    let exec = ExecSpec {
        command: vec!["cat".into()],
        tty: true,
        stdin: true,
        ..Default::default()
    };
    let id = engine.exec_create(&name.0, &exec).await.unwrap();
    let mut io = engine.exec_start(&id, true).await.unwrap();
    engine.exec_resize(&id, 100, 30).await.unwrap();
    io.input.write_all(b"hi\n\x04").await.unwrap();
    assert_eq!(text(io.output).await.0, "hi\r\nhi\r\n");
    assert_eq!(exited(&engine, &id).await, 0);
}

#[tokio::test]
async fn logs_by_tail_time_and_following() {
    let Some(engine) = engine() else { return };
    let name = Name::new("logs");
    let script = "echo one; echo two >&2; echo three; trap 'echo end; exit 0' TERM; \
                  while true; do sleep 0.1; done";
    started(&engine, &name, script).await;
    let begun = Instant::now();
    loop {
        let all = text(engine.logs(&name.0, &LogOptions::default()).await.unwrap()).await;
        if all == ("one\nthree\n".to_owned(), "two\n".to_owned()) {
            break;
        }
        assert!(begun.elapsed() < WAIT, "{all:?}");
    }
    let tail = LogOptions {
        tail: Some(1),
        timestamps: true,
        ..Default::default()
    };
    // The engine keeps no order between the two streams: the last line may be of either.
    let (out, err) = text(engine.logs(&name.0, &tail).await.unwrap()).await;
    let last = out + &err;
    assert!(
        last.starts_with("20") && last.contains("Z t") && last.lines().count() == 1,
        "{last}"
    );
    let later = jiff::Timestamp::now().as_microsecond();
    let since = LogOptions {
        since_us: later,
        ..Default::default()
    };
    assert_eq!(
        text(engine.logs(&name.0, &since).await.unwrap()).await.0,
        ""
    );
    let until = LogOptions {
        until_us: later,
        ..Default::default()
    };
    assert_eq!(
        text(engine.logs(&name.0, &until).await.unwrap()).await.0,
        "one\nthree\n"
    );
    let follow = LogOptions {
        follow: true,
        tail: Some(0),
        ..Default::default()
    };
    let following = engine.logs(&name.0, &follow).await.unwrap();
    let (ended, followed) = tokio::join!(engine.stop(&name.0, Some(10), ""), text(following));
    ended.unwrap();
    assert_eq!(followed.0, "end\n");
    let missing = engine
        .logs("fl-agent-nope", &LogOptions::default())
        .await
        .err();
    assert!(matches!(missing, Some(RuntimeError::NoSuchContainer(_))));
}

#[tokio::test]
async fn logs_of_a_terminal_are_raw() {
    let Some(engine) = engine() else { return };
    let name = Name::new("ttylogs");
    let spec = ContainerSpec {
        tty: true,
        // It lives on: of a container that has ended, an engine may give the log before it has all of it.
        ..spec(&name, &format!("printf '\\001\\000raw\\n'; {SERVICE}"))
    };
    engine.create(&spec, &[]).await.unwrap();
    engine.start(&name.0).await.unwrap();
    let follow = LogOptions {
        follow: true,
        ..Default::default()
    };
    let whole = "\u{1}\0raw\r\n";
    let mut output = engine.logs(&name.0, &follow).await.unwrap();
    let mut out = String::new();
    while out.len() < whole.len() {
        match output.next().await.unwrap().unwrap() {
            Output::Stdout(bytes) => out.push_str(&String::from_utf8_lossy(&bytes)),
            Output::Stderr(bytes) => panic!("a terminal has one stream, not {bytes:?}"),
        }
    }
    assert_eq!(out, whole);
}

#[tokio::test]
async fn archives_go_in_and_out() {
    let Some(engine) = engine() else { return };
    let name = Name::new("copy");
    engine.create(&spec(&name, SERVICE), &[]).await.unwrap();
    let content = vec![42_u8; 3_000_000];
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    builder
        .append_data(&mut header, "dir/file.bin", content.as_slice())
        .unwrap();
    let bytes = Bytes::from(builder.into_inner().unwrap());
    let archive = || {
        let pieces: Vec<_> = bytes
            .chunks(30_000)
            .map(|c| Ok(Bytes::copy_from_slice(c)))
            .collect();
        stream::iter(pieces).boxed()
    };
    engine.copy_in(&name.0, "/srv", archive()).await.unwrap();
    let mut out = Vec::new();
    let mut pieces = engine.copy_out(&name.0, "/srv/dir").await.unwrap();
    while let Some(piece) = pieces.next().await {
        out.extend_from_slice(&piece.unwrap());
    }
    let mut archive_out = tar::Archive::new(out.as_slice());
    let mut found = None;
    for entry in archive_out.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().ends_with("dir/file.bin") {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            found = Some(bytes);
        }
    }
    assert!(found == Some(content));
    let refused = engine.copy_in(&name.0, "/no/where", archive()).await;
    assert!(
        matches!(&refused, Err(RuntimeError::Engine(t)) if t.contains("/no/where")),
        "{refused:?}"
    );
    let refused = engine.copy_in("fl-agent-nope", "/srv", archive()).await;
    assert!(
        matches!(refused, Err(RuntimeError::NoSuchContainer(_))),
        "{refused:?}"
    );
    let refused = engine.copy_out(&name.0, "/no/where").await.err();
    assert!(
        matches!(refused, Some(RuntimeError::Engine(_))),
        "{refused:?}"
    );
    let broken = stream::iter([Ok(bytes.slice(..1000)), Err(std::io::Error::other("cut"))]);
    assert!(
        engine
            .copy_in(&name.0, "/srv", broken.boxed())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn events_from_a_time_on() {
    let Some(engine) = engine() else { return };
    let name = Name::new("events");
    let since = jiff::Timestamp::now().as_microsecond();
    let labels = [("fairlead.command".to_owned(), "c9".to_owned())];
    let id = engine
        .create(&spec(&name, "exit 3"), &labels)
        .await
        .unwrap();
    engine.start(&name.0).await.unwrap();
    let mut events = engine.events(since).await;
    let mut seen = Vec::new();
    while !seen.iter().any(|action| action == "die") {
        let event = tokio::time::timeout(WAIT, events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if event.id != id {
            continue;
        }
        assert_eq!(
            (event.object.as_str(), event.name.as_str()),
            ("container", name.0.as_str())
        );
        assert_eq!(
            (event.command_label.as_str(), event.image.as_str()),
            ("c9", IMAGE)
        );
        assert!(event.at_us >= since);
        if event.action == "die" {
            assert_eq!(event.detail, "3");
        }
        seen.push(event.action);
    }
    assert_eq!(
        seen.iter()
            .filter(|a| ["create", "start", "die"].contains(&a.as_str()))
            .count(),
        3
    );
    // The same, asked for afterwards: the answer has an end.
    let past = engine.past_events(since, Duration::ZERO).await.unwrap();
    let past: Vec<&str> = past
        .iter()
        .filter(|event| event.id == id)
        .map(|event| event.action.as_str())
        .filter(|action| ["create", "start", "die"].contains(action))
        .collect();
    assert_eq!(past, ["create", "start", "die"]);
    let later = jiff::Timestamp::now().as_microsecond() + 60_000_000;
    let later = engine.past_events(later, Duration::ZERO).await.unwrap();
    assert!(later.iter().all(|event| event.id != id), "{later:?}");
}

async fn engines_stats(socket: &std::path::Path, id: &str) -> serde_json::Value {
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let request = format!(
        "GET /v1.41/containers/{id}/stats?stream=false&one-shot=true HTTP/1.0\r\nHost: x\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer)
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&answer);
    let body = text.split_once("\r\n\r\n").unwrap().1;
    serde_json::from_str(body.trim()).unwrap()
}

#[tokio::test]
async fn numbers_are_those_of_docker_stats() {
    let Some(engine) = engine() else { return };
    let name = Name::new("load");
    let spec = ContainerSpec {
        memory_bytes: 64 << 20,
        ..spec(
            &name,
            "busybox dd if=/dev/zero of=/tmp/x bs=1M count=4 2>/dev/null; echo done; while true; do :; done",
        )
    };
    let id = engine.create(&spec, &[]).await.unwrap();
    engine.start(&name.0).await.unwrap();
    let follow = LogOptions {
        follow: true,
        ..Default::default()
    };
    let first = engine.logs(&name.0, &follow).await.unwrap().next().await;
    assert_eq!(first.unwrap().unwrap(), Output::Stdout("done\n".into()));
    engine.list().await.unwrap();
    let mut sampler = fairlead_agent::metrics::Sampler::new("/var/lib/docker");
    let begun = Instant::now();
    let sample = loop {
        let load = engine.load().await;
        let parts = sampler.round(&load, Instant::now(), 0);
        let found = parts
            .into_iter()
            .flat_map(|p| p.containers)
            .find(|c| c.id == id)
            .unwrap();
        // A loop that does nothing takes a processor, or what is left of one.
        if found.cpu_permille > 100 {
            break found;
        }
        assert!(begun.elapsed() < WAIT, "{found:?}");
    };
    assert_eq!(sample.memory_limit, 64 << 20);
    assert!(sample.pids >= 1);
    // The engine's own number, by its own call. While it has none it tells an empty object.
    let begun = Instant::now();
    let stats = loop {
        let stats = engines_stats(engine.socket(), &id).await;
        if stats["memory_stats"]["usage"].is_u64() {
            break stats;
        }
        assert!(begun.elapsed() < WAIT, "{stats}");
    };
    let memory = &stats["memory_stats"];
    let v1 = memory["stats"]["total_inactive_file"].as_u64();
    let cache = v1.or(memory["stats"]["inactive_file"].as_u64()).unwrap();
    let theirs = memory["usage"].as_u64().unwrap() - cache;
    assert!(
        sample.memory_used.abs_diff(theirs) < 1 << 20,
        "{} {theirs}",
        sample.memory_used
    );
}
