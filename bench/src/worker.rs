//! Child processes of the bench: this very program with another verb, asked line by line on its standard
//! input, answering each line with one line of JSON. When their parent goes they end.

use std::process::Stdio;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

/// A child, as its parent sees it.
pub struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts one; `program` is where `fairlead-bench` is.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(program: &std::path::Path, arguments: &[String]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .env("FAIRLEAD_DIE_WITH_PARENT", "1")
            .env("FAIRLEAD_LOG", "error")
            .spawn()
            .expect("the bench starts itself");
        let orders = child.stdin.take().expect("a pipe");
        let answers = child.stdout.take().expect("a pipe");
        Self {
            child,
            orders,
            answers: BufReader::new(answers).lines(),
        }
    }

    /// Its pid.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the worker runs")
    }

    /// Asks, and waits for the answer.
    ///
    /// # Panics
    /// When the worker has ended, or says something else.
    pub async fn ask<T: DeserializeOwned>(&mut self, order: &str) -> T {
        let line = format!("{order}\n");
        self.orders
            .write_all(line.as_bytes())
            .await
            .expect("the worker listens");
        let answer = self.answers.next_line().await.expect("a pipe");
        let answer = answer.expect("the worker has ended");
        serde_json::from_str(&answer).expect("an answer of the agreed shape")
    }

    /// kill -9, and waits until it is gone.
    pub async fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill().await;
    }
}

/// The parent's orders, in a worker. Ends the process when the parent has gone.
///
/// # Panics
/// When the thread cannot be started.
#[must_use]
pub fn orders() -> mpsc::Receiver<String> {
    fairlead_daemon::shutdown::die_with_parent_if_asked();
    let (sender, orders) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("orders".to_owned())
        .spawn(move || {
            for line in std::io::stdin().lines() {
                let Ok(line) = line else { break };
                if sender.blocking_send(line).is_err() {
                    break;
                }
            }
            std::process::exit(0);
        })
        .expect("a thread");
    orders
}

/// A worker's answer.
///
/// # Panics
/// When it cannot be said.
pub fn answer(answer: &impl Serialize) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, answer).expect("the parent listens");
    writeln!(stdout).expect("the parent listens");
    stdout.flush().expect("the parent listens");
}
