//! Terminals: an exec with a tty, which lives no longer than its stream and leaves nothing behind.
//!
//! Everything that runs in one inherits an environment variable that names the command. When the shell or
//! the stream has ended, or the host's owner has forbidden it meanwhile, whatever still carries it is hung up and, if need be, killed.

use fairlead_link::socket::StreamSocket;
use fairlead_protocol::stream::{Channel, frame};
use fairlead_protocol::{CommandId, Exec, codes};
use futures_util::StreamExt;

use super::attached::{exit_code, pump_in, send_output};
use super::outcome::Outcome;
use crate::runtime::{ContainerRuntime, Output, RuntimeError};

/// The variable that all processes of a terminal inherit.
const MARKER: &str = "FAIRLEAD_TERMINAL";
/// What a terminal runs when no program is named. Nothing of a request is ever part of it.
const CHOOSE: &str = "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi";
/// How often a size is tried: an engine may say for a moment that the exec does not run yet.
const RESIZES_MAX: u32 = 20;
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

/// Starts an exec with a tty that was made (and journalled), and sees it and its processes to their end.
pub(super) async fn run(
    runtime: &dyn ContainerRuntime,
    id: CommandId,
    exec_id: &str,
    exec: &Exec,
    stream: Option<StreamSocket>,
    forbidden: impl Future<Output = Outcome>,
) -> Result<Outcome, RuntimeError> {
    let Some(mut stream) = stream else {
        return Ok(Outcome::failed(
            codes::STREAM_NOT_ATTACHED,
            "a terminal needs a stream, and none was attached; nothing was run",
        ));
    };
    let io = runtime.exec_start(exec_id, true).await?;
    resize(runtime, exec_id, exec).await;
    // A stream that broke already is noticed by the pumps.
    let _ = stream.send(frame(Channel::Begun, &[])).await;
    let (mut sender, receiver) = stream.split();
    let mut output = io.output;
    let mut beginning = Vec::new();
    let mut ended_here = None;
    {
        let inward = pump_in(runtime, exec_id, receiver, io.input);
        let outward = async {
            while let Some(piece) = output.next().await {
                let piece = piece?;
                keep_beginning(&mut beginning, &piece);
                if !send_output(&mut sender, piece).await {
                    break;
                }
            }
            Ok::<(), RuntimeError>(())
        };
        tokio::select! {
            // The client has gone: so does the terminal.
            () = inward => ended_here = Some(Outcome {
                message: "the terminal was closed; its processes were ended".to_owned(),
                ..Outcome::done()
            }),
            refused = forbidden => ended_here = Some(refused),
            flown = outward => if let Err(error) = flown {
                runtime.exec_end(exec_id, &marker(id)).await?;
                return Err(error);
            },
        }
    }
    drop(output);
    let outcome = match ended_here {
        Some(outcome) => outcome,
        None => ended(exit_code(runtime, exec_id).await?, exec, &beginning),
    };
    runtime.exec_end(exec_id, &marker(id)).await?;
    let _ = sender.send(super::end_frame(&outcome)).await;
    sender.close().await;
    Ok(outcome)
}

async fn resize(runtime: &dyn ContainerRuntime, exec_id: &str, exec: &Exec) {
    let (Ok(columns), Ok(rows)) = (u16::try_from(exec.columns), u16::try_from(exec.rows)) else {
        return;
    };
    if columns == 0 || rows == 0 {
        return;
    }
    for _ in 0..RESIZES_MAX {
        if runtime.exec_resize(exec_id, columns, rows).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

fn keep_beginning(beginning: &mut Vec<u8>, piece: &Output) {
    let (Output::Stdout(data) | Output::Stderr(data)) = piece;
    let room = BEGINNING_BYTES
        .saturating_sub(beginning.len())
        .min(data.len());
    beginning.extend_from_slice(&data[..room]);
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
