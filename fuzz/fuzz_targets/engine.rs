//! What a container engine answers, its multiplexed log stream first of all: any bytes end in output or an
//! error, in bounded time, and never in more output than came.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use fairlead_agent::runtime::docker::DockerRuntime;
use fairlead_agent::runtime::{ContainerRuntime, ExecState, LogOptions, Output, RuntimeError};
use fairlead_fuzz::{RUNTIME, dir};
use futures_util::StreamExt;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// Longest that one answer may keep the agent busy.
const IN_TIME: Duration = Duration::from_secs(20);

struct Engine {
    answer: watch::Sender<Answer>,
    socket: PathBuf,
}

#[derive(Debug, Clone, Default)]
struct Answer {
    /// Of containers, to the question whether there is a terminal.
    tty: bool,
    /// Whether what describes a container or an exec is the input too.
    wild: bool,
    body: Vec<u8>,
}

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let socket = dir().join("engine.sock");
    let (answer, now) = watch::channel(Answer::default());
    let _context = RUNTIME.enter();
    let listener = UnixListener::bind(&socket).expect("a socket");
    RUNTIME.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = now.borrow().clone();
            tokio::spawn(serve(stream, answer));
        }
    });
    Engine { answer, socket }
});

async fn serve(mut stream: UnixStream, answer: Answer) {
    let mut request = Vec::new();
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let path = line.split(' ').nth(1).unwrap_or_default();
    let about_one = path.contains("/containers/") && path.ends_with("/json") && !path.contains("/containers/json");
    let mut head = "HTTP/1.1 200 OK\r\nConnection: close\r\nApi-Version: 1.41\r\n\r\n".to_owned();
    let body = if path == "/version" {
        // The negotiation; without a version nothing else is asked.
        br#"{"ApiVersion":"1.41"}"#.to_vec()
    } else if path.contains("/exec/") && path.ends_with("/start") {
        "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".clone_into(&mut head);
        answer.body
    } else if path.contains("/exec/") && !answer.wild {
        br#"{"ID":"e1","Running":false,"ExitCode":null}"#.to_vec()
    } else if about_one && !answer.wild {
        format!(r#"{{"Id":"{}","Name":"/web","Config":{{"Tty":{}}},"State":{{}}}}"#, "a".repeat(64), answer.tty).into_bytes()
    } else {
        answer.body
    };
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&body).await;
    let _ = stream.shutdown().await;
}

async fn read(output: impl futures_util::Stream<Item = Result<Output, RuntimeError>>, sent: usize) {
    let mut output = std::pin::pin!(output);
    let mut got = 0;
    while let Some(piece) = output.next().await {
        match piece {
            Ok(Output::Stdout(bytes) | Output::Stderr(bytes)) => got += bytes.len(),
            Err(error) => {
                assert!(!error.to_string().contains('\u{1b}'), "an escape sequence in an error's words");
                break;
            }
        }
        assert!(got <= sent);
    }
}

async fn ask(way: u8, sent: usize) {
    let runtime = DockerRuntime::new(&ENGINE.socket).expect("a client");
    match way {
        0 | 1 => {
            if let Ok(output) = runtime.logs("web", &LogOptions::default()).await {
                read(output, sent).await;
            }
        }
        2 | 3 => {
            if let Ok(io) = runtime.exec_start("e1", way == 3).await {
                read(io.output, sent).await;
            }
        }
        4 => {
            let mut events = runtime.events(0).await;
            while let Some(Ok(_)) = events.next().await {}
        }
        5 => drop(runtime.list().await),
        6 => drop(runtime.inspect("web").await),
        7 => drop(runtime.facts().await),
        8 => drop(runtime.pull("busybox:1", "").await),
        9 => {
            if let Ok(mut archive) = runtime.copy_out("web", "/etc/hosts").await {
                while let Some(Ok(_)) = archive.next().await {}
            }
        }
        10 => assert!(!matches!(runtime.exec_state("e1").await, Ok(ExecState::Forgotten)) || sent > 0),
        11 => drop(runtime.prune_images(true).await),
        _ => drop(runtime.past_events(0, Duration::ZERO).await),
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&way, body)) = input.split_first() else { return };
    let way = way % 13;
    let engine = &*ENGINE;
    let answer = Answer { tty: way == 1, wild: way > 4, body: body.to_vec() };
    engine.answer.send_replace(answer);
    RUNTIME.block_on(async {
        tokio::time::timeout(IN_TIME, ask(way, body.len())).await.expect("it ends");
    });
});
