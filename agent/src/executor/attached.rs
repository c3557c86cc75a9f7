//! exec and logs: what flows, over a stream where its issuer attached one.
//!
//! TCP is the flow control: the engine is read only as fast as the stream takes it. Without a stream
//! the last part of the output becomes the result's body. A lost stream ends logs, but not
//! a process: its output is read on so that it does not block, and its exit code is reported. Over an orderly restart
//! of a server both are held (`terminal::line`).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use fairlead_link::socket::{StreamReceiver, StreamSender, StreamSocket};
use fairlead_protocol::stream::{Channel, frame};
use fairlead_protocol::{CommandId, Exec, Logs, codes, limits};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::outcome::Outcome;
use super::settle::exited;
use super::terminal::line::{Again, Line, Sink, Source};
use super::terminal::{self, Seen};
use crate::runtime::{
    ContainerRuntime, ExecIo, ExecSpec, ExecState, LogOptions, Output, RuntimeError,
};

/// The engine is asked again for an exit code that is not there yet, after so long at first.
const EXIT_CODE_ASKED_AFTER: Duration = Duration::from_millis(20);
/// See [`EXIT_CODE_ASKED_AFTER`]: at last.
const EXIT_CODE_ASKED_EVERY: Duration = Duration::from_secs(1);
/// How often it may say that the process has not begun at all.
const NOT_STARTED_MAX: u32 = 8;

/// The specification of an exec for the engine.
pub(super) fn exec_spec(id: CommandId, exec: &Exec) -> ExecSpec {
    let mut env = exec.env.clone();
    if exec.tty {
        terminal::add_env(&mut env, id);
    }
    ExecSpec {
        command: if exec.tty && exec.shell {
            terminal::shell()
        } else {
            exec.command.clone()
        },
        env,
        user: exec.user.clone(),
        workdir: exec.workdir.clone(),
        stdin: exec.stdin,
        tty: exec.tty,
        privileged: exec.privileged,
    }
}

/// Sees an exec that was started to its end. A terminal has a stream, and ends when it is `forbidden`.
pub(super) async fn run_exec(
    runtime: &dyn ContainerRuntime,
    (exec_id, io): (&str, ExecIo),
    exec: &Exec,
    stream: Option<(StreamSocket, Again<'_>)>,
    forbidden: impl Future<Output = Outcome>,
) -> Result<Outcome, RuntimeError> {
    let stream = match stream {
        Some(stream) if exec.tty => {
            let started = (exec_id, io);
            return Box::pin(terminal::run(runtime, started, exec, stream, forbidden)).await;
        }
        other => other,
    };
    let seen = see_exec(runtime, exec_id, io, stream).await;
    seen.map_err(|error| match error {
        // It has begun: an engine that is not there any more must not make it begin once more.
        RuntimeError::Unavailable(why) => RuntimeError::Interrupted(why),
        other => other,
    })
}

/// Without a terminal.
async fn see_exec(
    runtime: &dyn ContainerRuntime,
    exec_id: &str,
    io: ExecIo,
    stream: Option<(StreamSocket, Again<'_>)>,
) -> Result<Outcome, RuntimeError> {
    let Some((stream, again)) = stream else {
        drop(io.input);
        let tail = read_tail(io.output, limits::EXEC_TAIL_BYTES_MAX).await?;
        let mut outcome = exit_code(runtime, exec_id).await?;
        outcome = outcome.with_body(tail.bytes());
        outcome.truncated |= tail.cut;
        return Ok(outcome);
    };
    let sink = Sink::Process {
        input: io.input,
        is_closed: false,
    };
    let mut line = Line::new(Source::Engine(io.output), sink, 0);
    let (mut sender, mut receiver) = stream.split();
    let on = (&mut sender, &mut receiver);
    match terminal::see(&mut line, on, &again, std::future::pending()).await {
        Seen::Ended => {}
        // Nobody came back to it: it goes on alone.
        Seen::Left(_) => line.drain().await?,
        Seen::Failed(error) => return Err(error),
    }
    let outcome = exit_code(runtime, exec_id).await?;
    end((sender, receiver), &outcome).await;
    Ok(outcome)
}

pub(super) fn size(data: &[u8]) -> Option<(u16, u16)> {
    let value: serde_json::Value = serde_json::from_slice(data).ok()?;
    let number = |key: &str| u16::try_from(value.get(key)?.as_u64()?).ok();
    Some((number("columns")?, number("rows")?))
}

/// The last word of a stream. Nobody waits for the far end to have heard it.
pub(super) async fn end(
    (mut sender, mut receiver): (StreamSender, StreamReceiver),
    outcome: &Outcome,
) {
    let _ = sender.send(super::end_frame(outcome)).await;
    tokio::spawn(async move { sender.close_behind(&mut receiver).await });
}

/// Whether the client took it.
pub(super) async fn send_output(sender: &mut StreamSender, piece: Output) -> bool {
    let (channel, data) = match piece {
        Output::Stdout(data) => (Channel::Output, data),
        Output::Stderr(data) => (Channel::ErrorOutput, data),
    };
    for chunk in data.chunks(limits::STREAM_CHUNK_BYTES) {
        if sender.send(frame(channel, chunk)).await.is_err() {
            return false;
        }
    }
    true
}

/// The exit code, once the process has ended. Its output may end before: where it closed it and lives on,
/// or where the connection to the engine broke.
pub(super) async fn exit_code(
    runtime: &dyn ContainerRuntime,
    exec_id: &str,
) -> Result<Outcome, RuntimeError> {
    let mut wait = EXIT_CODE_ASKED_AFTER;
    let mut not_started = 0;
    while not_started < NOT_STARTED_MAX {
        match runtime.exec_state(exec_id).await? {
            ExecState::Exited(code) => return Ok(exited(code)),
            ExecState::Forgotten => break,
            ExecState::Created => not_started += 1,
            ExecState::Running => {}
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(EXIT_CODE_ASKED_EVERY);
    }
    Ok(Outcome::ended(
        fairlead_protocol::State::Unknown,
        codes::OUTCOME_UNKNOWN,
        "the engine does not say how the process ended",
    ))
}

/// Log lines, to the stream or (their last part) into the result.
pub(super) async fn run_logs(
    runtime: &dyn ContainerRuntime,
    logs: &Logs,
    stream: Option<(StreamSocket, Again<'_>)>,
) -> Result<Outcome, RuntimeError> {
    let options = LogOptions {
        // Without a reader a follow would never end.
        follow: logs.follow && stream.is_some(),
        tail: logs.tail.parse().ok(),
        since_us: logs.since_us,
        until_us: logs.until_us,
        timestamps: logs.timestamps,
    };
    let lines = runtime.logs(&logs.container, &options).await?;
    let Some((stream, again)) = stream else {
        let tail = read_tail(lines, limits::RESULT_BODY_BYTES_MAX).await?;
        let mut outcome = Outcome::done().with_body(tail.bytes());
        outcome.truncated |= tail.cut;
        return Ok(outcome);
    };
    let mut line = Line::new(Source::Engine(lines), Sink::Nothing, 0);
    let (mut sender, mut receiver) = stream.split();
    let on = (&mut sender, &mut receiver);
    match terminal::see(&mut line, on, &again, std::future::pending()).await {
        // The reader's leaving ends a follow, which is its usual end.
        Seen::Ended | Seen::Left(_) => {}
        Seen::Failed(error) => return Err(error),
    }
    let outcome = Outcome::done();
    end((sender, receiver), &outcome).await;
    Ok(outcome)
}

/// The last part of what flowed by.
struct Tail {
    pieces: VecDeque<Bytes>,
    length: usize,
    cut: bool,
    max: usize,
}

impl Tail {
    fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        self.pieces.push_back(piece);
        while self.length > self.max {
            let excess = self.length - self.max;
            self.cut = true;
            match self.pieces.front_mut() {
                Some(front) if front.len() > excess => {
                    let kept = front.split_off(excess);
                    *front = kept;
                    self.length -= excess;
                }
                Some(_) => {
                    self.length -= self.pieces.pop_front().map_or(0, |gone| gone.len());
                }
                None => break,
            }
        }
    }

    fn bytes(&self) -> Bytes {
        self.pieces.iter().flatten().copied().collect()
    }
}

async fn read_tail(
    mut output: BoxStream<'static, Result<Output, RuntimeError>>,
    max: usize,
) -> Result<Tail, RuntimeError> {
    let mut tail = Tail {
        pieces: VecDeque::new(),
        length: 0,
        cut: false,
        max,
    };
    while let Some(piece) = output.next().await {
        match piece? {
            Output::Stdout(data) | Output::Stderr(data) => tail.push(data),
        }
    }
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tail_is_the_end_of_what_flowed(pieces: Vec<Vec<u8>>, max in 1usize..64) {
            let mut tail = Tail { pieces: VecDeque::new(), length: 0, cut: false, max };
            for piece in &pieces {
                tail.push(Bytes::from(piece.clone()));
            }
            let whole = pieces.concat();
            let expected = &whole[whole.len().saturating_sub(max)..];
            prop_assert_eq!(&tail.bytes()[..], expected);
            prop_assert_eq!(tail.cut, whole.len() > max);
        }
    }
}
