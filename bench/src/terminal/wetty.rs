//! The peer: `wetty` (npm), a terminal in the browser over socket.io. It starts `docker exec -it` on a
//! pseudo-terminal of its own, records nothing and asks nobody.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fairlead_tests::ports::Port;
use fairlead_tests::wait::wait_for;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Where it is installed: a folder with `node_modules/wetty`.
pub(super) const PLACE: &str = "FAIRLEAD_BENCH_WETTY";
const STARTED_WITHIN: Duration = Duration::from_secs(20);

/// Its server.
pub(super) struct Wetty {
    child: Child,
    port: Port,
    dir: tempfile::TempDir,
}

impl Drop for Wetty {
    fn drop(&mut self) {
        // One that has gone is what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Wetty {
    /// Starts it, where it is installed.
    pub(super) async fn start(container: &str) -> Option<Self> {
        let place = PathBuf::from(std::env::var_os(PLACE)?);
        let dir = tempfile::tempdir().expect("a directory");
        let entry = dir.path().join("enter");
        let mut script = std::fs::File::create(&entry).expect("a file");
        let what = dir.path().join("what");
        writeln!(
            script,
            "#!/bin/sh\nexec docker exec -it {container} sh -c \"$(cat {})\"",
            what.display()
        )
        .expect("a file");
        drop(script);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&entry, mode).expect("a program");
        let port = Port::claim();
        let child = Command::new("node")
            .arg(place.join("node_modules/wetty/build/main.js"))
            .args(["--host", "127.0.0.1", "--base", "/", "--port"])
            .arg(port.number.to_string())
            .arg("--command")
            .arg(&entry)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("node is here");
        let wetty = Self { child, port, dir };
        wait_for("wetty listens", STARTED_WITHIN, async || {
            let reached = TcpStream::connect(("127.0.0.1", wetty.port.number)).await;
            reached.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Some(wetty)
    }

    fn what(&self) -> &Path {
        self.dir.path()
    }
}

/// A page of it.
pub(super) struct Page(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Page {
    /// Begins what the next page is to run.
    pub(super) async fn open(wetty: &Wetty, script: &str) -> Self {
        std::fs::write(wetty.what().join("what"), script).expect("a file");
        let url = format!(
            "ws://127.0.0.1:{}/socket.io/?EIO=4&transport=websocket",
            wetty.port.number
        );
        let (socket, _) = connect_async(url).await.expect("wetty lets everybody in");
        let mut page = Self(socket);
        page.say("40").await;
        page
    }

    async fn say(&mut self, text: &str) {
        let text = Message::Text(text.to_owned().into());
        self.0.send(text).await.expect("wetty is there");
    }

    async fn event(&mut self, event: &Value) {
        self.say(&format!("42{event}")).await;
    }

    /// Types.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        self.event(&json!(["input", text])).await;
    }

    /// The next output, which is acknowledged as wetty's own page does.
    pub(super) async fn read(&mut self) -> Vec<u8> {
        loop {
            let heard = self
                .0
                .next()
                .await
                .expect("it goes on")
                .expect("it is there");
            let Message::Text(text) = heard else {
                continue;
            };
            if text.as_str() == "2" {
                self.say("3").await;
            }
            let Some(event) = text.strip_prefix("42") else {
                continue;
            };
            let event: Vec<Value> = serde_json::from_str(event).expect("JSON");
            if event[0] == "data" {
                let data = event[1].as_str().unwrap_or_default();
                self.event(&json!(["commit", data.len()])).await;
                return data.as_bytes().to_vec();
            }
        }
    }

    /// Leaves; wetty ends what ran.
    pub(super) async fn close(mut self) {
        // One that has gone is closed.
        let _ = self.0.close(None).await;
    }
}
