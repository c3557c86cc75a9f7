//! `logs` and `exec`: what a container writes, and a process within it.

use std::io::Write;
use std::ops::ControlFlow;

use fairlead_api::types::Action;
use jiff::Timestamp;

use super::attach::{Piece, attached, read_all};
use super::{Context, act};
use crate::args::{Exec, Logs};
use crate::config::process_env;
use crate::exit::{Exit, Failure, remote_code};
use crate::output::Output;
use crate::output::terminal::Filter;
use crate::quantities::moment;
use crate::run_flags::{self, Surroundings};

/// Writes what comes to this process's own output: raw into files and pipes, filtered on a
/// terminal, which the container must not steer.
struct Printer {
    out: Output,
    on_out: Option<Filter>,
    on_err: Option<Filter>,
}

impl Printer {
    fn new(out: Output) -> Self {
        Self {
            out,
            on_out: out.stdout_tty.then(Filter::default),
            on_err: out.stderr_tty.then(Filter::default),
        }
    }

    fn print(&mut self, piece: Piece) -> Result<ControlFlow<()>, Failure> {
        match piece {
            Piece::Out(bytes) => match &mut self.on_out {
                Some(filter) => self.out.write(filter.pass(&bytes).as_bytes())?,
                None => self.out.write(&bytes)?,
            },
            Piece::Err(bytes) => {
                let filtered = self.on_err.as_mut().map(|filter| filter.pass(&bytes));
                let bytes = filtered
                    .as_ref()
                    .map_or(bytes.as_ref(), |text| text.as_bytes());
                std::io::stderr()
                    .lock()
                    .write_all(bytes)
                    .map_err(|e| Failure::local("cannot write to standard error", &e))?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// `fairlead logs`
pub(crate) async fn logs(context: &Context, args: Logs) -> Result<Exit, Failure> {
    let target = act::target(&args.container, args.host.as_deref())?;
    let now = Timestamp::now();
    let at = |text: &Option<String>| {
        text.as_deref()
            .map(|text| moment(text, now))
            .transpose()
            .map_err(Failure::usage)
    };
    let action = Action::Logs {
        container: target.name,
        follow: args.follow,
        tail: match args.tail.as_str() {
            "all" => None,
            lines => Some(lines.parse().map_err(|_| {
                Failure::usage(format!("--tail {lines:?}: write a number of lines, or all"))
            })?),
        },
        since: at(&args.since)?,
        until: at(&args.until)?,
        timestamps: args.timestamps,
    };
    let mut request = act::request(target.host, action, args.deadline)?;
    request.attach = true;
    let mut printer = Printer::new(context.out);
    let client = context.client()?;
    let command = attached(context, &client, request, None, &mut |piece| {
        printer.print(piece)
    })
    .await?;
    Failure::of_command(&command).map_or(Ok(Exit::Ok), Err)
}

/// The environment that `-e` and `--env-file` ask for.
pub(super) fn exec_env(args: &Exec) -> Result<Vec<String>, Failure> {
    let files: Vec<String> = args
        .env_files
        .iter()
        .map(|file| file.to_string_lossy().into_owned())
        .collect();
    let surroundings = Surroundings {
        env: &process_env,
        read: &|path| std::fs::read_to_string(path),
    };
    run_flags::env(&files, &args.env, &surroundings)
}

/// `fairlead exec`
pub(crate) async fn exec(context: &Context, args: Exec) -> Result<Exit, Failure> {
    if args.detach && args.interactive {
        return Err(Failure::usage(
            "-d does not wait, so -i has nothing to attach",
        ));
    }
    let env = exec_env(&args)?;
    let mut words = args.container_and_command.into_iter();
    let target = act::target(&words.next().unwrap_or_default(), args.host.as_deref())?;
    let action = Action::Exec {
        container: target.name,
        command: words.collect(),
        env,
        user: args.user,
        workdir: args.workdir,
        stdin: args.interactive,
        privileged: args.privileged,
    };
    let mut request = act::request(target.host, action, args.deadline)?;
    let client = context.client()?;
    if args.detach {
        let command = client.submit(&request, std::time::Duration::ZERO).await?;
        context
            .out
            .data(&command, |command| format!("{}\n", command.id))?;
        return Ok(Exit::Ok);
    }
    request.attach = true;
    let id = request.id.clone().unwrap_or_default();
    let input = args.interactive.then(|| read_all(std::io::stdin()));
    let mut printer = Printer::new(context.out);
    context.open.add(&id);
    let command = attached(context, &client, request, input, &mut |piece| {
        printer.print(piece)
    })
    .await;
    context.open.remove(&id);
    let command = command?;
    match command.exit_code {
        // The process spoke for itself.
        Some(code) if code != 0 => Ok(Exit::Remote(remote_code(code))),
        _ => Failure::of_command(&command).map_or(Ok(Exit::Ok), Err),
    }
}
