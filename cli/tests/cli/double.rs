//! A small double of the API: answers as the test says, and remembers what it was asked.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `GET /api/v1/status`
    pub(crate) what: String,
    /// The query, as text.
    pub(crate) query: String,
    /// The body, where it was JSON.
    pub(crate) body: Value,
    /// The Authorization header.
    pub(crate) authorization: String,
    /// Last-Event-ID.
    pub(crate) last_event_id: String,
}

/// An answer: status and body.
pub(crate) type Answer = (u16, Value);

/// What the double says to a request; the number counts requests of the same kind from 0.
pub(crate) type Script = dyn Fn(&Asked, usize) -> Answer + Send + Sync;

/// A running double.
pub(crate) struct Double {
    /// `http://127.0.0.1:PORT`
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    dropped: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
    /// Home directory for the CLI under test.
    pub(crate) home: tempfile::TempDir,
}

impl Double {
    /// Answers by `script`.
    pub(crate) fn new(script: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::with(0, Router::new(), script)
    }

    /// Reads and drops the first `drop_first` connections; `routes` come before the script.
    pub(crate) fn with(
        drop_first: usize,
        routes: Router,
        script: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let dropped = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script: Arc<Script> = Arc::new(script);
        let router = {
            let asked = Arc::clone(&asked);
            routes.fallback(
                move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                    let (asked, script) = (Arc::clone(&asked), Arc::clone(&script));
                    async move { answer(&asked, &*script, &method, &uri, &headers, &body) }
                },
            )
        };
        let drops = Arc::clone(&dropped);
        runtime.spawn(async move {
            let listener = tokio::task::spawn_blocking(move || {
                for _ in 0..drop_first {
                    let (mut connection, _) = listener.accept().unwrap();
                    let mut bytes = [0; 16 * 1024];
                    let length = connection.read(&mut bytes).unwrap();
                    drops
                        .lock()
                        .unwrap()
                        .push(String::from_utf8_lossy(&bytes[..length]).into());
                }
                listener.set_nonblocking(true).unwrap();
                listener
            })
            .await
            .unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            url,
            asked,
            dropped,
            _runtime: runtime,
            home: tempfile::tempdir().unwrap(),
        }
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The raw requests that it read and did not answer.
    pub(crate) fn dropped(&self) -> Vec<String> {
        self.dropped.lock().unwrap().clone()
    }

    /// The CLI, logged in to this double by its environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = bare(args);
        command
            .env("HOME", self.home.path())
            .env("FAIRLEAD_URL", &self.url)
            .env("FAIRLEAD_TOKEN", "FA1test");
        command
    }

    /// Runs the CLI to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        finish(self.command(args), "")
    }

    /// Runs the CLI to its end, with this on its standard input.
    pub(crate) fn run_with(&self, args: &[&str], input: &str) -> Ran {
        finish(self.command(args), input)
    }
}

/// The CLI with an empty environment.
pub(crate) fn bare(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead"));
    command
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// How a run of the CLI ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a command to its end.
pub(crate) fn finish(mut command: Command, input: &str) -> Ran {
    let mut child = command.spawn().unwrap();
    // A verb that does not read its input may end before this is written.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn answer(
    asked: &Mutex<Vec<Asked>>,
    script: &Script,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Bytes,
) -> Response {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let one = Asked {
        what: format!("{method} {}", uri.path()),
        query: uri.query().unwrap_or_default().to_owned(),
        body: serde_json::from_slice(body).unwrap_or_default(),
        authorization: header("authorization"),
        last_event_id: header("last-event-id"),
    };
    let mut asked = asked.lock().unwrap();
    let count = asked.iter().filter(|other| other.what == one.what).count();
    let (status, value) = script(&one, count);
    asked.push(one);
    let status = StatusCode::from_u16(status).unwrap();
    match value {
        // Text is sent as it is, for server-sent events.
        Value::String(text) => {
            (status, [("content-type", "text/event-stream")], text).into_response()
        }
        Value::Null => status.into_response(),
        value => (status, axum::Json(value)).into_response(),
    }
}

/// An error answer.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Answer {
    (
        status,
        json!({ "error": { "code": code, "message": message, "request_id": "r1" } }),
    )
}

/// A page.
pub(crate) fn page(items: Vec<Value>) -> Answer {
    (200, json!({ "items": items }))
}

/// The command that a request asks for, in this state.
pub(crate) fn command(request: &Value, state: &str) -> Value {
    let action = &request["action"];
    let target = [
        &action["container"],
        &action["spec"]["name"],
        &action["image"],
    ]
    .into_iter()
    .find_map(Value::as_str)
    .unwrap_or_default();
    let mut value = sample(state);
    value["id"] = request["id"].clone();
    value["kind"] = action["kind"].clone();
    value["target"] = target.into();
    value
}

/// A restart of `box/web` in this state.
pub(crate) fn sample(state: &str) -> Value {
    let is_final = !matches!(state, "queued" | "delivered" | "running");
    let changes: BTreeMap<&str, Value> = BTreeMap::from([
        (
            "finished_at",
            if is_final {
                json!("2026-11-20T14:00:00.418Z")
            } else {
                Value::Null
            },
        ),
        (
            "overhead_ms",
            if is_final { json!(2.1) } else { Value::Null },
        ),
        (
            "engine_ms",
            if is_final { json!(416.0) } else { Value::Null },
        ),
    ]);
    let mut value = json!({
        "id": "7q3k9m2x7q3k9m2x7q3k9m2x70", "kind": "restart", "target": "web", "host": "box",
        "host_id": "h1", "region": "local", "issuer": "admin", "state": state,
        "is_final": is_final, "waiting_for": "", "code": "", "message": "", "exit_code": null,
        "container_id": "c0ffee", "issued_at": "2026-11-20T14:00:00Z",
        "not_after": "2099-11-20T14:05:00Z", "timeline": []
    });
    for (key, change) in changes {
        value[key] = change;
    }
    value
}

/// Host `box` in this state.
pub(crate) fn host(state: &str) -> Value {
    json!({
        "id": "h1", "name": "box", "tenant": "default", "region": "local", "labels": {},
        "state": state, "since": "2026-11-20T13:40:00Z", "reason": "the link was closed",
        "last_seen": null, "enrolled_at": "2026-11-20T13:00:00Z", "epoch": 1, "facts": null,
        "address": "", "clock_offset_ms": 0, "metrics": null, "containers": 0,
        "containers_running": 0, "certificate_expires_at": null
    })
}

/// Container `box/web`, with a name that tries to steer the terminal.
pub(crate) fn container(name: &str) -> Value {
    json!({
        "id": "c0ffeec0ffeec0ffee", "name": name, "host": "box", "host_id": "h1",
        "region": "local", "image": "demo:1", "image_id": "sha256:1", "command": "httpd",
        "state": "running", "health": "healthy", "created_at": "2026-11-20T13:00:00Z",
        "started_at": "2026-11-20T13:59:48Z", "finished_at": null, "exit_code": 0,
        "oom_killed": false, "restarts": 0, "restart_policy": "no", "ip": "172.17.0.4",
        "ports": [], "networks": ["bridge"], "project": "", "service": "", "made_by": "",
        "memory_limit": 0, "metrics": null, "as_of": "2026-11-20T14:00:00Z", "live": true
    })
}
