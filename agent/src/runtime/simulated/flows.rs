//! What flows out of the simulated engine: programs of exec, logs, events. Streams that wait look
//! for themselves whether time has changed something; nothing runs when nobody reads.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;

use super::logs::{self, Line};
use super::programs::{self, Surroundings, Writer};
use super::{Inner, SimulatedRuntime, span};
use crate::runtime::{EngineEvent, ExecIo, LogOptions, Output, RuntimeError};

/// How often followers look whether time has changed something by itself.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Output that a program of exec may have written and nobody read.
const EXEC_OUTPUT_PIECES: usize = 16;
/// Input that a program of exec has not read yet.
const EXEC_INPUT_BYTES: usize = 64 * 1024;

impl SimulatedRuntime {
    pub(super) fn attach_exec(&self, exec: &str, tty: bool) -> Result<ExecIo, RuntimeError> {
        let (exec, around, run) = self.inner.change(|world, now_us| {
            let exec = world.exec_start(exec, now_us)?;
            let container = &world.containers[world.find(&exec.container)?];
            let spec = container.spec();
            let mut env = vec![
                "PATH=/bin".to_owned(),
                format!("HOSTNAME={}", container.hostname()),
            ];
            env.extend(spec.env);
            env.extend(exec.env.iter().cloned());
            let around = Surroundings {
                hostname: container.hostname(),
                env,
                tty,
            };
            Ok((exec, around, container.started_us()))
        })?;
        let (near, far) = tokio::io::duplex(EXEC_INPUT_BYTES);
        // Without `stdin` the program reads an end at once.
        let (near, far) = if exec.stdin {
            (near, far)
        } else {
            (near, tokio::io::duplex(1).1)
        };
        let (sender, receiver) = mpsc::channel(EXEC_OUTPUT_PIECES);
        let inner = Arc::clone(&self.inner);
        let program = async move {
            let writer = Writer(sender);
            let code = tokio::select! {
                code = programs::run(&exec.command, &around, far, &writer) => code,
                () = gone(&inner, &exec.container, run) => 137,
            };
            // Kept before the output ends: who has read it all finds the code.
            let _ = inner.change(|world, _| {
                world.exec_ended(&exec.id, code);
                Ok(())
            });
        };
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        while programs.try_join_next().is_some() {}
        programs.spawn(program);
        let output = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (Ok(piece), receiver))
        });
        Ok(ExecIo {
            output: output.boxed(),
            input: Box::pin(near),
        })
    }

    pub(super) fn read_logs(
        &self,
        container: &str,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<Output, RuntimeError>>, RuntimeError> {
        let until_us = if options.until_us == 0 {
            i64::MAX
        } else {
            options.until_us
        };
        let (id, first, next_us) = {
            let (world, now_us) = self.inner.now();
            let found = &world.containers[world.find(container)?];
            let mut lines = logs::lines(found, options.since_us, now_us.min(until_us));
            if let Some(tail) = options.tail {
                let skip = lines
                    .len()
                    .saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX));
                lines.drain(..skip);
            }
            (found.id.clone(), lines, now_us + 1)
        };
        let stamps = options.timestamps;
        let first = stream::iter(first).map(move |line| Ok(shown(&line, stamps)));
        if !options.follow {
            return Ok(first.boxed());
        }
        let inner = Arc::clone(&self.inner);
        let rest = stream::unfold(Some((inner, id, next_us)), move |state| async move {
            let (inner, id, from_us) = state?;
            let (lines, to_us) = more_lines(&inner, &id, from_us.max(0), until_us).await?;
            Some((stream::iter(lines), Some((inner, id, to_us))))
        });
        Ok(first
            .chain(rest.flatten().map(move |line| Ok(shown(&line, stamps))))
            .boxed())
    }

    pub(super) fn follow_events(
        &self,
        since_us: i64,
    ) -> BoxStream<'static, Result<EngineEvent, RuntimeError>> {
        let from = if since_us == 0 {
            self.inner.now().0.next_event()
        } else {
            0
        };
        let inner = Arc::clone(&self.inner);
        stream::unfold((inner, from), move |(inner, from)| async move {
            loop {
                let changed = inner.changed.notified();
                let (events, next) = {
                    let (world, _) = inner.now();
                    (world.events_from(from, since_us), world.next_event())
                };
                if !events.is_empty() {
                    drop(changed);
                    let events = stream::iter(events.into_iter().map(Ok));
                    return Some((events, (inner, next)));
                }
                let _ = tokio::time::timeout(LOOK_EVERY, changed).await;
            }
        })
        .flatten()
        .boxed()
    }
}

/// Returns when the run of a container that began at `run` is over.
async fn gone(inner: &Inner, container: &str, run: i64) {
    loop {
        let changed = inner.changed.notified();
        {
            let (world, _) = inner.now();
            let lasts = world.find(container).is_ok_and(|index| {
                let container = &world.containers[index];
                container.is_running() && container.started_us() == run
            });
            if !lasts {
                return;
            }
        }
        let _ = tokio::time::timeout(LOOK_EVERY, changed).await;
    }
}

/// The next lines of a log that is followed; `None` when no more will come.
async fn more_lines(
    inner: &Inner,
    id: &str,
    from_us: i64,
    until_us: i64,
) -> Option<(Vec<Line>, i64)> {
    loop {
        let changed = inner.changed.notified();
        let wait = {
            let (world, now_us) = inner.now();
            let container = &world.containers[world.find(id).ok()?];
            let lines = logs::lines(container, from_us, now_us.min(until_us));
            if !lines.is_empty() {
                return Some((lines, now_us + 1));
            }
            let over = matches!(container.state(), "exited" | "created");
            if over || now_us >= until_us {
                return None;
            }
            span(logs::next_line_in_us(container, now_us)).min(LOOK_EVERY)
        };
        let _ = tokio::time::timeout(wait, changed).await;
    }
}

fn shown(line: &Line, stamps: bool) -> Output {
    let stamp = if stamps {
        logs::stamp(line.at_us)
    } else {
        String::new()
    };
    Output::Stdout(format!("{stamp}{}", line.text).into())
}
