//! Terminals: an exec with a tty, which lives no longer than its stream and leaves nothing behind.
//!
//! Everything that runs in one inherits an environment variable that names the command. When the shell or
//! the stream has ended, or the host's owner has forbidden it meanwhile, whatever still carries it is hung up and, if need be, killed.
//! Over an orderly restart of its server it is held (`line`).

use fairlead_link::socket::{StreamReceiver, StreamSender, StreamSocket};
use fairlead_protocol::{CommandId, Exec, codes};

use super::attached::exit_code;
use super::outcome::Outcome;
use crate::runtime::{ContainerRuntime, ExecIo, RuntimeError};
use line::{Again, Left, Line, Sink, Source};

pub(super) mod line;

/// The variable that all processes of a terminal inherit.
const MARKER: &str = "FAIRLEAD_TERMINAL";
/// What a terminal runs when no program is named. Nothing of a request is ever part of it.
const CHOOSE: &str = "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi";
/// The beginning of the output, in which an engine says that there is no shell.
const BEGINNING_BYTES: usize = 512;

/// The variable that marks a terminal's processes.
pub(super) fn marker(id: CommandId) -> String {
    format!("{MARKER}={id}")
}

/// Adds what a terminal's processes need to know.
pub(super) fn add_env(env: &mut Vec<String>, id: CommandId) {
    let named = |env: &[String], name: &str| env.iter().any(|v| v.starts_with(name));
    if !named(env, "TERM=") {
        env.push("TERM=xterm-256color".to_owned());
    }
    if !named(env, "COLORTERM=") {
        env.push("COLORTERM=truecolor".to_owned());
    }
    env.retain(|variable| !variable.starts_with("FAIRLEAD_TERMINAL="));
    env.push(marker(id));
}

/// `bash` where the image has it, else `sh`.
pub(super) fn shell() -> Vec<String> {
    ["/bin/sh", "-c", CHOOSE].map(str::to_owned).to_vec()
}

/// Sees an exec with a tty that was started, and its processes, to their end.
pub(super) async fn run(
    runtime: &dyn ContainerRuntime,
    (exec_id, io): (&str, ExecIo),
    exec: &Exec,
    (stream, again): (StreamSocket, Again<'_>),
    forbidden: impl Future<Output = Outcome>,
) -> Result<Outcome, RuntimeError> {
    let sink = Sink::Engine {
        runtime,
        exec_id,
        input: io.input,
        size: size(exec),
    };
    let mut line = Line::new(Source::Engine(io.output), sink, BEGINNING_BYTES);
    let (mut sender, mut receiver) = stream.split();
    let left = see(&mut line, (&mut sender, &mut receiver), &again, forbidden).await;
    let outcome = match left {
        Seen::Left(outcome) => outcome,
        Seen::Ended => ended(exit_code(runtime, exec_id).await?, exec, &line.beginning),
        Seen::Failed(error) => {
            runtime.exec_end(exec_id, &marker(again.id)).await?;
            return Err(error);
        }
    };
    drop(line);
    runtime.exec_end(exec_id, &marker(again.id)).await?;
    super::attached::end((sender, receiver), &outcome).await;
    Ok(outcome)
}

/// How a terminal's time came to an end.
pub(super) enum Seen {
    /// Its output has ended.
    Ended,
    /// Its client went, or its time is over.
    Left(Outcome),
    /// The engine broke.
    Failed(RuntimeError),
}

/// Passes both ways on one stream after another, as long as somebody comes back; `sender` and `receiver` are those of
/// the last one afterwards.
pub(super) async fn see(
    line: &mut Line<'_>,
    (sender, receiver): (&mut StreamSender, &mut StreamReceiver),
    again: &Again<'_>,
    forbidden: impl Future<Output = Outcome>,
) -> Seen {
    let mut forbidden = std::pin::pin!(forbidden);
    loop {
        let left = tokio::select! {
            left = line.pass(sender, receiver) => left,
            refused = &mut forbidden => return Seen::Left(refused),
        };
        match left {
            Left::Ended => return Seen::Ended,
            // The client has gone: so does a terminal.
            Left::Gone => return Seen::Left(closed()),
            Left::Failed(error) => return Seen::Failed(error),
            Left::Held => {}
        }
        tracing::info!(command = %again.id, "a stream is held: its server restarts");
        let next = tokio::select! {
            next = again.stream(line.position()) => next,
            refused = &mut forbidden => return Seen::Left(refused),
        };
        let Some(next) = next else {
            tracing::warn!(command = %again.id, "a stream was held, and nobody went on with it");
            return Seen::Left(abandoned());
        };
        tracing::info!(command = %again.id, "a stream goes on");
        (*sender, *receiver) = next.split();
    }
}

/// It was held, and nobody came back.
fn abandoned() -> Outcome {
    Outcome {
        message: "its server went and did not come back to the terminal; its processes were ended"
            .to_owned(),
        ..Outcome::done()
    }
}

/// Its client went.
pub(super) fn closed() -> Outcome {
    Outcome {
        message: "the terminal was closed; its processes were ended".to_owned(),
        ..Outcome::done()
    }
}

/// The size that was asked for, where one was.
fn size(exec: &Exec) -> Option<(u16, u16)> {
    let columns = u16::try_from(exec.columns).ok().filter(|n| *n > 0)?;
    let rows = u16::try_from(exec.rows).ok().filter(|n| *n > 0)?;
    Some((columns, rows))
}

/// A container without any shell says so in the engine's words; here it is said in ours.
fn ended(outcome: Outcome, exec: &Exec, beginning: &[u8]) -> Outcome {
    let said = String::from_utf8_lossy(beginning);
    let missing = matches!(outcome.exit_code, 126..=128)
        && [
            "exec failed",
            "executable file not found",
            "no such file or directory",
        ]
        .iter()
        .any(|words| said.contains(words))
        && said.contains("/bin/sh");
    if exec.shell && missing {
        return Outcome::failed(
            codes::NO_SHELL,
            format!(
                "container {} has no shell (no bash, no sh); run one of its own programs instead, \
                 or look at its logs and files",
                exec.container
            ),
        );
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_ours_alone_and_a_given_term_stays() {
        let id = CommandId::from_bytes([3; 16]);
        let mut env = vec!["TERM=dumb".to_owned(), "FAIRLEAD_TERMINAL=x".to_owned()];
        add_env(&mut env, id);
        assert_eq!(
            env,
            [
                "TERM=dumb".to_owned(),
                "COLORTERM=truecolor".to_owned(),
                marker(id)
            ]
        );
    }

    #[test]
    fn a_missing_shell_is_told_and_a_failing_one_is_not_mistaken_for_it() {
        let exec = Exec {
            shell: true,
            container: "web".to_owned(),
            ..Exec::default()
        };
        let code = |exit_code| Outcome {
            exit_code,
            ..Outcome::failed(codes::EXIT_CODE, "")
        };
        let said =
            b"OCI runtime exec failed: exec failed: unable to start container process: exec: \
            \"/bin/sh\": stat /bin/sh: no such file or directory: unknown\r\n";
        assert_eq!(ended(code(127), &exec, said).code, codes::NO_SHELL);
        assert_eq!(ended(code(126), &exec, said).code, codes::NO_SHELL);
        assert_eq!(
            ended(code(127), &exec, b"sh: x: not found").code,
            codes::EXIT_CODE
        );
        assert_eq!(ended(code(1), &exec, said).code, codes::EXIT_CODE);
    }
}
