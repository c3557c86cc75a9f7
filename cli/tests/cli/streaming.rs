//! Streams: logs, exec, cp, and connections that break.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use fairlead_protocol::stream::{Channel, frame, parse};
use serde_json::{Value, json};

use crate::double::{self, Double};

/// What the double does with a stream; the number counts streams from 0.
type Play =
    fn(WebSocket, usize, Arc<Mutex<Vec<u8>>>) -> futures_util::future::BoxFuture<'static, ()>;

/// Routes that play each stream, refuse the first `refuse`, and keep what came in.
fn streams(play: Play, refuse: usize) -> (Router, Arc<Mutex<Vec<u8>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let count = Arc::new(AtomicUsize::new(0));
    let input = Arc::clone(&kept);
    let route = get(move |upgrade: WebSocketUpgrade| {
        let input = Arc::clone(&input);
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            if number < refuse {
                let (_, body) = double::error(503, "host_offline", "box is offline");
                return (
                    axum::http::StatusCode::SERVICE_UNAVAILABLE,
                    axum::Json(body),
                )
                    .into_response();
            }
            let answer: Response = upgrade
                .protocols(["fairlead.stream.v1"])
                .on_upgrade(move |socket| play(socket, number - refuse, input));
            answer
        }
    });
    (
        Router::new().route("/api/v1/commands/{id}/stream", route),
        kept,
    )
}

async fn send(socket: &mut WebSocket, channel: Channel, payload: &[u8]) {
    socket
        .send(Message::Binary(frame(channel, payload)))
        .await
        .unwrap();
}

async fn end(socket: &mut WebSocket, state: &str, code: &str, exit_code: i32) {
    let text = json!({ "state": state, "code": code, "message": "", "exit_code": exit_code });
    send(socket, Channel::End, text.to_string().as_bytes()).await;
}

/// All input of the client, until it says that no more follows.
async fn take_input(socket: &mut WebSocket) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Ok(message)) = socket.recv().await {
        let Message::Binary(bytes) = message else {
            continue;
        };
        match parse(bytes) {
            Some((Channel::Input, bytes)) => all.extend_from_slice(&bytes),
            Some((Channel::InputEnd, _)) => return all,
            other => panic!("{other:?}"),
        }
    }
    panic!("the input broke off");
}

fn accept(asked: &double::Asked, _: usize) -> double::Answer {
    if asked.what.starts_with("POST") {
        return (201, double::command(&asked.body, "queued"));
    }
    (200, double::sample("queued"))
}

#[test]
fn logs_come_as_they_are_into_a_pipe() {
    let (routes, _) = streams(
        |mut socket, _, _| {
            Box::pin(async move {
                send(&mut socket, Channel::Begun, b"").await;
                send(&mut socket, Channel::Output, b"\x1b[31mred\x1b[0m\n").await;
                send(&mut socket, Channel::ErrorOutput, b"warning\n").await;
                end(&mut socket, "succeeded", "", 0).await;
            })
        },
        0,
    );
    let server = Double::with(0, routes, accept);
    let ran = server.run(&[
        "logs",
        "box/web",
        "-f",
        "--tail",
        "5",
        "--since",
        "2026-11-20T14:00:00Z",
        "-t",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "\u{1b}[31mred\u{1b}[0m\n");
    assert_eq!(ran.err, "warning\n");
    let asked = &server.asked()[0];
    assert_eq!(asked.body["attach"], true);
    let action = &asked.body["action"];
    assert_eq!(
        (&action["tail"], &action["follow"]),
        (&json!(5), &json!(true))
    );
    assert_eq!(action["since"], "2026-11-20T14:00:00Z");
    assert_eq!(server.run(&["logs", "web", "--tail", "some"]).code, 2);
}

#[test]
fn exec_carries_input_both_outputs_and_the_code() {
    let (routes, input) = streams(
        |mut socket, _, kept| {
            Box::pin(async move {
                send(&mut socket, Channel::Begun, b"").await;
                let all = take_input(&mut socket).await;
                send(&mut socket, Channel::Output, &all[..5]).await;
                send(&mut socket, Channel::ErrorOutput, b"oops").await;
                kept.lock().unwrap().extend(all);
                end(&mut socket, "failed", "exit_code", 42).await;
            })
        },
        0,
    );
    let server = Double::with(0, routes, accept);
    let text = "hello".repeat(20_000);
    let mut command = server.command(&[
        "exec", "-i", "-e", "A=1", "-e", "HOME", "web", "cat", "-u", "-",
    ]);
    command
        .env("HOME", "/h")
        .env("XDG_CONFIG_HOME", server.home.path());
    let ran = double::finish(command, &text);
    assert_eq!(ran.code, 42, "{ran:?}");
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("hello", "oops"));
    assert_eq!(input.lock().unwrap().len(), text.len());
    let action = &server.asked()[0].body["action"];
    assert_eq!(action["command"], json!(["cat", "-u", "-"]));
    assert_eq!(action["env"], json!(["A=1", "HOME=/h"]));
    assert_eq!(action["stdin"], true);
    let ran = server.run(&["exec", "-it", "web", "sh"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("not a terminal"), "{ran:?}");
}

#[test]
fn a_stream_that_breaks_before_the_work_began_is_opened_again() {
    let (routes, _) = streams(
        |mut socket, number, _| {
            Box::pin(async move {
                if number == 0 {
                    return;
                }
                send(&mut socket, Channel::Begun, b"").await;
                send(&mut socket, Channel::Output, b"done\n").await;
                end(&mut socket, "succeeded", "", 0).await;
            })
        },
        1,
    );
    let server = Double::with(0, routes, accept);
    let ran = server.run(&["exec", "web", "true"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "done\n");
    let posts = server
        .asked()
        .iter()
        .filter(|asked| asked.what.starts_with("POST"))
        .count();
    assert_eq!(posts, 1, "it is the same command");
}

#[test]
fn a_stream_that_breaks_later_leaves_the_truth_to_the_api() {
    let (routes, _) = streams(
        |mut socket, _, _| {
            Box::pin(async move {
                send(&mut socket, Channel::Begun, b"").await;
                send(&mut socket, Channel::Output, b"half").await;
            })
        },
        0,
    );
    let server = Double::with(0, routes, |asked, count| {
        if asked.what.starts_with("POST") {
            return (201, double::command(&asked.body, "running"));
        }
        let mut command = double::sample(if count == 0 { "running" } else { "failed" });
        command["code"] = "exit_code".into();
        command["exit_code"] = 3.into();
        (200, command)
    });
    let ran = server.run(&["exec", "web", "true"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(ran.out, "half");
    assert!(ran.err.contains("broke"), "{ran:?}");
}

/// An archive with one entry.
fn archive(name: &str, data: Option<&[u8]>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(data.map_or(0, <[u8]>::len) as u64);
    if data.is_none() {
        header.set_entry_type(tar::EntryType::Directory);
    }
    builder
        .append_data(&mut header, name, data.unwrap_or_default())
        .unwrap();
    let mut bytes = builder.into_inner().unwrap();
    // Engines pad archives.
    bytes.extend([0; 8192]);
    bytes
}

#[test]
fn a_file_is_copied_into_a_folder_that_is_there() {
    // The first stream answers what is at /etc; the second takes the archive.
    let (routes, input) = streams(
        |mut socket, number, kept| {
            Box::pin(async move {
                send(&mut socket, Channel::Begun, b"").await;
                if number == 0 {
                    send(&mut socket, Channel::Output, &archive("etc", None)).await;
                    // The client goes away: it has seen enough.
                    let _ = socket.recv().await;
                    return;
                }
                let all = take_input(&mut socket).await;
                kept.lock().unwrap().extend(all);
                end(&mut socket, "succeeded", "", 0).await;
            })
        },
        0,
    );
    let server = Double::with(0, routes, accept);
    let file = server.home.path().join("motd");
    std::fs::write(&file, b"welcome").unwrap();
    let ran = server.run(&["cp", file.to_str().unwrap(), "box/web:/etc"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("copied to /etc"), "{ran:?}");
    let asked = server.asked();
    let actions: Vec<&Value> = asked
        .iter()
        .filter(|asked| asked.what.starts_with("POST"))
        .map(|asked| &asked.body["action"])
        .collect();
    assert_eq!(actions[0]["kind"], "copy-out");
    assert_eq!(
        (&actions[1]["kind"], &actions[1]["path"]),
        (&json!("copy-in"), &json!("/etc"))
    );
    let sent = input.lock().unwrap().clone();
    assert_eq!(actions[1]["size"], sent.len());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &sent);
    let hex: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(actions[1]["sha256"], hex);
    let mut archive = tar::Archive::new(&sent[..]);
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap().to_str(), Some("motd"));
    assert_eq!(entry.header().uid().unwrap(), 0);
}

#[test]
fn a_file_is_copied_out_here_and_to_standard_output() {
    let (routes, _) = streams(
        |mut socket, _, _| {
            Box::pin(async move {
                send(&mut socket, Channel::Begun, b"").await;
                for piece in archive("hosts", Some(b"127.0.0.1 here\n")).chunks(700) {
                    send(&mut socket, Channel::Output, piece).await;
                }
                end(&mut socket, "succeeded", "", 0).await;
            })
        },
        0,
    );
    let server = Double::with(0, routes, accept);
    let to = server.home.path().to_str().unwrap();
    let ran = server.run(&["cp", "web:/etc/hosts", to]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("1 file, 15 B copied to"), "{ran:?}");
    assert_eq!(
        std::fs::read(server.home.path().join("hosts")).unwrap(),
        b"127.0.0.1 here\n"
    );
    let mut piped = server.command(&["cp", "web:/etc/hosts", "-"]);
    piped.stdin(std::process::Stdio::null());
    let output = piped.output().unwrap();
    assert_eq!(
        Bytes::from(output.stdout),
        Bytes::from(archive("hosts", Some(b"127.0.0.1 here\n")))
    );
    assert_eq!(server.run(&["cp", "a", "b"]).code, 2);
    assert_eq!(server.run(&["cp", "web:/a", "web:/b"]).code, 2);
    assert_eq!(
        server.run_with(&["cp", "/no/such/file", "web:/b"], "").code,
        3
    );
}
