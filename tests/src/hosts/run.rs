//! The docker CLI, asked without blocking the test's other tasks.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What a command said, and its exit code.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its output.
    pub stdout: String,
    /// What it said beside.
    pub stderr: String,
}

impl Output {
    /// Whether it succeeded.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.code == 0
    }
}

/// A command that says nothing for this long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(300);

/// `docker ARGUMENTS…`
pub(super) async fn docker(arguments: &[&str]) -> Output {
    docker_with(arguments, &[]).await
}

/// The same with an input.
pub(super) async fn docker_with(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new("docker")
        .args(arguments)
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the docker CLI is here");
    let pipe = child.stdin.take();
    let feed = async {
        if let Some(mut pipe) = pipe {
            // A command that ends early says why in its own output.
            let _ = pipe.write_all(input).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(HANGS_AFTER, both)
        .await
        .unwrap_or_else(|_| panic!("docker {arguments:?} hangs"))
        .expect("its output is read");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// What it printed, trimmed.
///
/// # Panics
/// When it fails.
pub(super) async fn docker_says(arguments: &[&str]) -> String {
    let output = docker(arguments).await;
    assert!(output.is_ok(), "docker {arguments:?}: {}", output.stderr);
    output.stdout.trim().to_owned()
}

/// Blocking, for the end of a value: whatever it says.
pub(super) fn docker_now(arguments: &[&str]) {
    let _ = std::process::Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .output();
}
