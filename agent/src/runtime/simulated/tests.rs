use std::time::{Duration, Instant};

use bytes::Bytes;
use fairlead_protocol::ContainerSpec;
use futures_util::{StreamExt, stream};
use tokio::io::AsyncWriteExt;

use super::{SimulatedOptions, SimulatedRuntime};
use crate::runtime::{
    ContainerRuntime, ExecSpec, ExecState, Load, LogOptions, Output, RuntimeError,
};

fn engine() -> SimulatedRuntime {
    SimulatedRuntime::new(SimulatedOptions::default()).unwrap()
}

async fn web(engine: &SimulatedRuntime) -> String {
    let spec = ContainerSpec {
        name: "web".into(),
        image: "demo/web:1".into(),
        ..Default::default()
    };
    let id = engine
        .create(&spec, &[("fairlead.command".into(), "c1".into())])
        .await
        .unwrap();
    engine.start("web").await.unwrap();
    id
}

async fn run(engine: &SimulatedRuntime, command: &[&str], input: &str) -> (String, String, i64) {
    let spec = ExecSpec {
        command: command.iter().map(|w| (*w).to_owned()).collect(),
        stdin: !input.is_empty(),
        ..Default::default()
    };
    let id = engine.exec_create("web", &spec).await.unwrap();
    assert_eq!(engine.exec_state(&id).await.unwrap(), ExecState::Created);
    let mut io = engine.exec_start(&id, false).await.unwrap();
    assert!(
        engine.exec_start(&id, false).await.is_err(),
        "a second start is refused"
    );
    io.input
        .write_all(input.as_bytes())
        .await
        .unwrap_or_default();
    io.input.shutdown().await.unwrap_or_default();
    let (mut out, mut err) = (String::new(), String::new());
    while let Some(piece) = io.output.next().await {
        match piece.unwrap() {
            Output::Stdout(bytes) => out.push_str(&String::from_utf8_lossy(&bytes)),
            Output::Stderr(bytes) => err.push_str(&String::from_utf8_lossy(&bytes)),
        }
    }
    match engine.exec_state(&id).await.unwrap() {
        ExecState::Exited(code) => (out, err, code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn programs_of_exec() {
    let engine = engine();
    let id = web(&engine).await;
    assert_eq!(
        run(&engine, &["echo", "a", "b"], "").await,
        ("a b\n".into(), String::new(), 0)
    );
    assert_eq!(run(&engine, &["cat"], "through").await.0, "through");
    assert_eq!(run(&engine, &["sh", "-c", "exit 7"], "").await.2, 7);
    assert_eq!(
        run(&engine, &["sh", "-c", "echo x >&2; false"], "").await.1,
        "x\n"
    );
    assert_eq!(
        run(&engine, &["hostname"], "").await.0,
        format!("{}\n", &id[..12])
    );
    assert_eq!(
        run(&engine, &["sh"], "echo hi\nexit 4\n").await,
        ("hi\n".into(), String::new(), 4)
    );
    let (_, err, code) = run(&engine, &["vi"], "").await;
    assert_eq!(code, 127);
    assert!(err.contains("vi"));
    assert_eq!(
        engine.exec_state("nope").await.unwrap(),
        ExecState::Forgotten
    );
}

#[tokio::test]
async fn an_exec_ends_with_its_container() {
    let engine = engine();
    web(&engine).await;
    let spec = ExecSpec {
        command: vec!["sleep".into(), "600".into()],
        ..Default::default()
    };
    let id = engine.exec_create("web", &spec).await.unwrap();
    let mut io = engine.exec_start(&id, false).await.unwrap();
    assert_eq!(engine.exec_state(&id).await.unwrap(), ExecState::Running);
    engine.kill("web", "").await.unwrap();
    assert!(io.output.next().await.is_none());
    assert_eq!(
        engine.exec_state(&id).await.unwrap(),
        ExecState::Exited(137)
    );
}

#[tokio::test]
async fn state_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let options = SimulatedOptions {
        state_file: Some(dir.path().join("engine.json")),
        ..SimulatedOptions::default()
    };
    let first = SimulatedRuntime::new(options.clone()).unwrap();
    let id = web(&first).await;
    let started = first.inspect("web").await.unwrap().started_us;
    drop(first);
    let second = SimulatedRuntime::new(options.clone()).unwrap();
    let detail = second.inspect(&id[..12]).await.unwrap();
    assert_eq!(detail.container.state, "running");
    assert_eq!(detail.started_us, started);
    assert_eq!(
        detail.labels,
        [("fairlead.command".to_owned(), "c1".to_owned())]
    );
    std::fs::write(dir.path().join("engine.json"), "{").unwrap();
    assert!(
        SimulatedRuntime::new(options).is_err(),
        "a broken file is not overwritten"
    );
}

#[tokio::test]
async fn stop_and_restart_take_their_time() {
    let engine = engine();
    web(&engine).await;
    let before = engine.inspect("web").await.unwrap().started_us;
    engine.restart("web", None, "").await.unwrap();
    assert!(engine.inspect("web").await.unwrap().started_us > before);
    let begun = Instant::now();
    engine.stop("web", None, "").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(20));
    engine.stop("web", None, "").await.unwrap();
    assert_eq!(
        engine.inspect("web").await.unwrap().container.state,
        "exited"
    );
    let spec = ContainerSpec {
        name: "mule".into(),
        image: "demo/stubborn:1".into(),
        ..Default::default()
    };
    engine.create(&spec, &[]).await.unwrap();
    engine.start("mule").await.unwrap();
    // A kill within the grace ends the stop at once.
    let begun = Instant::now();
    let (stopped, killed) = tokio::join!(engine.stop("mule", Some(600), ""), async {
        tokio::task::yield_now().await;
        engine.kill("mule", "KILL").await
    });
    stopped.unwrap();
    killed.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn logs_tail_and_follow() {
    let engine = engine();
    web(&engine).await;
    let mut follow = engine
        .logs(
            "web",
            &LogOptions {
                follow: true,
                tail: Some(1),
                ..Default::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(
        follow.next().await.unwrap().unwrap(),
        Output::Stdout("web: started\n".into())
    );
    engine.kill("web", "").await.unwrap();
    assert!(follow.next().await.is_none(), "it ends with the container");
    let options = LogOptions {
        timestamps: true,
        ..Default::default()
    };
    let lines: Vec<_> = engine.logs("web", &options).await.unwrap().collect().await;
    assert_eq!(lines.len(), 1);
    let missing = engine.logs("nope", &LogOptions::default()).await.err();
    assert!(matches!(missing, Some(RuntimeError::NoSuchContainer(_))));
}

#[tokio::test]
async fn archives_go_in_and_out() {
    let engine = engine();
    web(&engine).await;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "note.txt", &b"hello"[..])
        .unwrap();
    let bytes = Bytes::from(builder.into_inner().unwrap());
    let archive = || stream::iter([Ok(bytes.clone())]).boxed();
    engine.copy_in("web", "/srv", archive()).await.unwrap();
    assert!(engine.copy_in("web", "/nope", archive()).await.is_err());
    let out: Vec<_> = engine
        .copy_out("web", "/srv/note.txt")
        .await
        .unwrap()
        .collect()
        .await;
    let out: Vec<u8> = out.into_iter().flat_map(|piece| piece.unwrap()).collect();
    let mut archive = tar::Archive::new(out.as_slice());
    let mut entries = archive.entries().unwrap();
    let entry = entries.next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap().to_str(), Some("note.txt"));
    assert!(engine.copy_out("web", "/nope").await.is_err());
}

#[tokio::test]
async fn events_images_and_load() {
    let engine = engine();
    let mut events = engine.events(1).await;
    web(&engine).await;
    let created = events.next().await.unwrap().unwrap();
    assert_eq!(
        (created.action.as_str(), created.command_label.as_str()),
        ("create", "c1")
    );
    assert_eq!(events.next().await.unwrap().unwrap().action, "start");
    let id = engine.pull("registry.example/app:3", "").await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().action, "pull");
    assert!(
        engine
            .inspect_image("registry.example/app:3")
            .await
            .unwrap()
            .contains(&id)
    );
    let refused = engine.pull("missing/app", "").await;
    assert!(matches!(refused, Err(RuntimeError::NoSuchImage(_))));
    let (gone, bytes) = engine.prune_images(true).await.unwrap();
    assert!(gone.contains(&"registry.example/app:3".to_owned()) && bytes > 0);
    assert!(
        !gone.contains(&"demo/web:1".to_owned()),
        "images in use stay"
    );
    match engine.load().await {
        Load::Samples(samples) => assert_eq!(samples.len(), 1),
        Load::Processes(_) => panic!("nothing runs"),
    }
}
