//! The engine, its test image, and containers that go when their test ends.

use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use fairlead_agent::runtime::docker::{DockerRuntime, default_socket};
use fairlead_agent::runtime::{ContainerRuntime, ExecState, Output, RuntimeError};
use fairlead_protocol::ContainerSpec;
use futures_util::{StreamExt, stream};

pub(crate) const IMAGE: &str = "fairlead-agent-test:busybox";
pub(crate) const WAIT: Duration = Duration::from_secs(30);

/// The engine and the image, or `None` (said once) where there is no engine.
pub(crate) fn engine() -> Option<DockerRuntime> {
    static READY: OnceLock<bool> = OnceLock::new();
    let socket = default_socket(std::env::var("DOCKER_HOST").ok().as_deref());
    let ready = *READY.get_or_init(|| {
        let script = "docker version >/dev/null 2>&1 || exit 3; \
            docker image inspect \"$0\" >/dev/null 2>&1 && exit 0; set -e; \
            dir=$(mktemp -d); mkdir -p $dir/bin $dir/tmp $dir/srv $dir/etc; \
            cp /bin/busybox $dir/bin/; \
            for a in sh cat echo sleep true false env ls date hostname printf tr; do \
              ln -s busybox $dir/bin/$a; done; \
            echo 'root:x:0:0:root:/:/bin/sh' > $dir/etc/passwd; \
            tar -C $dir -c . | docker import - \"$0\" >/dev/null; rm -r $dir";
        Command::new("sh")
            .args(["-c", script, IMAGE])
            .status()
            .is_ok_and(|s| s.success())
    });
    if !ready {
        eprintln!("no container engine (or no busybox) here: skipped");
        return None;
    }
    Some(DockerRuntime::new(socket).unwrap())
}

/// A container's name; the container goes when this goes.
pub(crate) struct Name(pub(crate) String);

impl Name {
    pub(crate) fn new(test: &str) -> Self {
        let name = Self(format!("fl-agent-{test}-{}", std::process::id()));
        name.remove();
        name
    }

    fn remove(&self) {
        let _ = Command::new("docker").args(["rm", "-fv", &self.0]).output();
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.remove();
    }
}

pub(crate) fn spec(name: &Name, script: &str) -> ContainerSpec {
    ContainerSpec {
        name: name.0.clone(),
        image: IMAGE.into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        stop_timeout_s: 1,
        ..ContainerSpec::default()
    }
}

/// Ends on TERM.
pub(crate) const SERVICE: &str = "trap 'exit 0' TERM; while true; do sleep 0.1; done";

pub(crate) async fn started(engine: &DockerRuntime, name: &Name, script: &str) -> String {
    let id = engine.create(&spec(name, script), &[]).await.unwrap();
    engine.start(&name.0).await.unwrap();
    id
}

pub(crate) async fn text(
    mut output: stream::BoxStream<'static, Result<Output, RuntimeError>>,
) -> (String, String) {
    let (mut out, mut err) = (String::new(), String::new());
    while let Some(piece) = output.next().await {
        match piece.unwrap() {
            Output::Stdout(bytes) => out.push_str(&String::from_utf8_lossy(&bytes)),
            Output::Stderr(bytes) => err.push_str(&String::from_utf8_lossy(&bytes)),
        }
    }
    (out, err)
}

/// Asks until the state is this one.
pub(crate) async fn until_state(engine: &DockerRuntime, name: &str, state: &str) {
    let begun = Instant::now();
    loop {
        let now = engine.inspect(name).await.unwrap().container.state;
        if now == state {
            return;
        }
        assert!(begun.elapsed() < WAIT, "{name} is {now}, not {state}");
        tokio::task::yield_now().await;
    }
}

pub(crate) async fn exited(engine: &DockerRuntime, exec: &str) -> i64 {
    let begun = Instant::now();
    loop {
        match engine.exec_state(exec).await.unwrap() {
            ExecState::Exited(code) => return code,
            other => assert!(begun.elapsed() < WAIT, "{other:?}"),
        }
    }
}
