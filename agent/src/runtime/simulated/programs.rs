//! What the simulated engine can run: main processes of containers, and programs for exec.
//!
//! A main process is only a plan: how long it runs, how it ends, what it writes; time does the
//! rest. Programs of exec are real enough to talk to.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::sync::mpsc;

use crate::runtime::Output;

/// The exit code of a program that is not there.
pub(super) const NOT_FOUND: i64 = 127;
/// Images of this prefix ignore every signal but KILL, so that graces can be watched.
pub(super) const STUBBORN_PREFIX: &str = "demo/stubborn";

/// How a main process will go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// Runs until it is told to end; writes a line each second.
    Service,
    /// Ends by itself.
    Ends {
        after_us: i64,
        code: i64,
        output: String,
    },
    /// The program does not exist in the image.
    Missing(String),
}

/// A signal's number, and what a process ends with that gets it; `None` inside when it does not
/// end. `None` when there is no such signal.
pub(super) fn on_signal(signal: &str, stubborn: bool) -> Option<(&'static str, Option<i64>)> {
    let upper = signal.to_ascii_uppercase();
    let obeyed = |code| (!stubborn).then_some(code);
    Some(match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "" | "KILL" | "9" => ("9", Some(137)),
        "TERM" | "15" => ("15", obeyed(0)),
        "INT" | "2" => ("2", obeyed(130)),
        "QUIT" | "3" => ("3", obeyed(131)),
        "HUP" | "1" => ("1", None),
        "USR1" | "10" => ("10", None),
        "USR2" | "12" => ("12", None),
        _ => return None,
    })
}

/// The plan for an image and a command line.
pub(super) fn plan(image: &str, command: &[String]) -> Plan {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let ends = |code, output: String| Plan::Ends {
        after_us: 0,
        code,
        output,
    };
    match words.as_slice() {
        [] if image.starts_with("hello-world") => {
            ends(0, "Hello from the simulated engine.\n".to_owned())
        }
        // A shell without input has nothing to do.
        [] if image.starts_with("busybox") => ends(0, String::new()),
        [] => Plan::Service,
        ["sleep", time] => match time.parse::<f64>() {
            Ok(seconds) if seconds >= 0.0 => {
                let after_us = (seconds.min(1e9) * 1e6) as i64;
                Plan::Ends {
                    after_us,
                    code: 0,
                    output: String::new(),
                }
            }
            _ if *time == "infinity" => Plan::Service,
            _ => ends(1, format!("sleep: invalid number '{time}'\n")),
        },
        ["true"] => ends(0, String::new()),
        ["false"] => ends(1, String::new()),
        ["echo", rest @ ..] => ends(0, format!("{}\n", rest.join(" "))),
        ["sh" | "ash" | "/bin/sh", "-c", script] => script_plan(script),
        ["sh" | "ash" | "/bin/sh"] => ends(0, String::new()),
        ["httpd" | "nginx" | "top" | "tail" | "serve", ..] => Plan::Service,
        [program, ..] => Plan::Missing((*program).to_owned()),
    }
}

/// `echo`, `sleep`, `true`, `false` and `exit` in a row are understood; anything else (loops,
/// servers) is taken for a service.
fn script_plan(script: &str) -> Plan {
    let (mut after_us, mut code, mut output) = (0_i64, 0_i64, String::new());
    for statement in script
        .split([';', '\n'])
        .map(str::trim)
        .filter(|s| !s.is_empty())
    {
        if let Some(number) = statement.strip_prefix("exit") {
            code = number.trim().parse().unwrap_or(code);
            return Plan::Ends {
                after_us,
                code,
                output,
            };
        }
        let words: Vec<String> = statement.split_whitespace().map(unquoted).collect();
        match plan("", &words) {
            Plan::Ends {
                after_us: more,
                code: this,
                output: text,
            } if words.len() < 3 || words[0] == "echo" => {
                after_us += more;
                code = this;
                output.push_str(&text);
            }
            _ => return Plan::Service,
        }
    }
    Plan::Ends {
        after_us,
        code,
        output,
    }
}

fn unquoted(word: &str) -> String {
    word.trim_matches(['"', '\'']).to_owned()
}

/// What a program of exec sees of its container.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) hostname: String,
    pub(super) env: Vec<String>,
    pub(super) tty: bool,
}

/// Where a program writes. A full queue makes it wait, as a full pipe would.
#[derive(Debug, Clone)]
pub(super) struct Writer(pub(super) mpsc::Sender<Output>);

impl Writer {
    async fn out(&self, text: impl Into<Vec<u8>>) {
        // Nobody listens any more: as in the engine, the program goes on without an audience.
        let _ = self.0.send(Output::Stdout(text.into().into())).await;
    }

    async fn err(&self, text: &str, tty: bool) {
        let bytes = text.to_owned().into_bytes().into();
        let _ = self
            .0
            .send(if tty {
                Output::Stdout(bytes)
            } else {
                Output::Stderr(bytes)
            })
            .await;
    }
}

/// Runs a program to its end; returns its exit code.
pub(super) async fn run(
    command: &[String],
    around: &Surroundings,
    mut input: DuplexStream,
    writer: &Writer,
) -> i64 {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["cat"] => {
            let mut buffer = vec![0; 8 * 1024];
            loop {
                match input.read(&mut buffer).await {
                    Ok(0) | Err(_) => return 0,
                    Ok(n) => writer.out(&buffer[..n]).await,
                }
            }
        }
        // A terminal's own line, which hands over to the shell that there is.
        ["/bin/sh", "-c", script] if around.tty && script.contains("exec sh") => {
            interactive(around, input, writer).await
        }
        ["sh" | "ash" | "/bin/sh", "-c", script] => run_script(script, around, writer).await,
        ["sh" | "ash" | "/bin/sh"] => interactive(around, input, writer).await,
        _ => run_simple(&words, around, writer).await,
    }
}

async fn run_simple(words: &[&str], around: &Surroundings, writer: &Writer) -> i64 {
    match words {
        ["echo", rest @ ..] => {
            writer.out(format!("{}\n", rest.join(" "))).await;
            0
        }
        ["true"] => 0,
        ["false"] => 1,
        ["hostname"] => {
            writer.out(format!("{}\n", around.hostname)).await;
            0
        }
        ["env"] => {
            for line in &around.env {
                writer.out(format!("{line}\n")).await;
            }
            0
        }
        ["sleep", time] => match time.parse::<f64>() {
            Ok(seconds) if (0.0..1e9).contains(&seconds) => {
                tokio::time::sleep(std::time::Duration::from_secs_f64(seconds)).await;
                0
            }
            _ => {
                writer
                    .err(&format!("sleep: invalid number '{time}'\n"), around.tty)
                    .await;
                1
            }
        },
        [program, ..] => {
            let text = format!("exec: \"{program}\": executable file not found in $PATH\n");
            writer.err(&text, around.tty).await;
            NOT_FOUND
        }
        [] => 0,
    }
}

async fn run_script(script: &str, around: &Surroundings, writer: &Writer) -> i64 {
    let mut code = 0;
    for statement in script
        .split([';', '\n'])
        .map(str::trim)
        .filter(|s| !s.is_empty())
    {
        if statement == "exit" || statement.starts_with("exit ") {
            return statement[4..].trim().parse().unwrap_or(code);
        }
        let to_error = statement.strip_suffix(">&2");
        let words: Vec<String> = to_error
            .unwrap_or(statement)
            .split_whitespace()
            .map(unquoted)
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        code = match (to_error, words.as_slice()) {
            (Some(_), ["echo", rest @ ..]) => {
                writer
                    .err(&format!("{}\n", rest.join(" ")), around.tty)
                    .await;
                0
            }
            (_, words) => run_simple(words, around, writer).await,
        };
    }
    code
}

async fn interactive(around: &Surroundings, input: DuplexStream, writer: &Writer) -> i64 {
    let (reader, mut echo) = tokio::io::split(input);
    let mut lines = BufReader::new(reader).lines();
    let mut code = 0;
    loop {
        if around.tty {
            writer.out("/ # ").await;
        }
        let Ok(Some(line)) = lines.next_line().await else {
            break;
        };
        let line = line.trim();
        if line == "exit" || line.starts_with("exit ") {
            code = line[4..].trim().parse().unwrap_or(code);
            break;
        }
        code = run_script(line, around, writer).await;
    }
    // The other half belongs to the caller; nothing is written there.
    let _ = echo.shutdown().await;
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ')
            .filter(|w| !w.is_empty())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn plans() {
        let ends = |after_us, code, output: &str| Plan::Ends {
            after_us,
            code,
            output: output.into(),
        };
        assert_eq!(plan("demo/web:1", &[]), Plan::Service);
        assert_eq!(plan("busybox", &words("sleep 1.5")), ends(1_500_000, 0, ""));
        assert_eq!(plan("busybox", &words("echo a b")), ends(0, 0, "a b\n"));
        assert_eq!(
            plan("busybox", &words("nonsense")),
            Plan::Missing("nonsense".into())
        );
        let sh = |script: &str| plan("busybox", &["sh".into(), "-c".into(), script.into()]);
        assert_eq!(sh("exit 3"), ends(0, 3, ""));
        assert_eq!(sh("echo 'x'; sleep 2; exit 4"), ends(2_000_000, 4, "x\n"));
        assert_eq!(sh("while true; do echo x; sleep 1; done"), Plan::Service);
    }
}
