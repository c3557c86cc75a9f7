//! A process in a container: made, its id journalled, then started. Each of the three may take a while, so
//! the deadline is looked at once more before the last: nothing of it runs until then. An engine that was restarted
//! meanwhile has forgotten what it had made, and is asked for another one.

use fairlead_link::socket::StreamSocket;
use fairlead_protocol::{Command, CommandId, Exec, codes};

use super::attached;
use super::job::tell;
use super::look::forbidden;
use super::outcome::Outcome;
use super::surroundings::{News, Surroundings};
use crate::runtime::RuntimeError;

/// What was asked.
pub(super) struct Asked<'a> {
    /// By which command.
    pub(super) id: CommandId,
    /// The command: it is not begun after its deadline.
    pub(super) command: &'a Command,
    /// What shall run.
    pub(super) wanted: &'a Exec,
}

/// How often one is made: more restarts of an engine than that between making and starting are something else.
const MADE_MAX: u32 = 3;

/// From making it to its end; `exec` becomes its id at the engine. The `stream` is taken when it has been started.
pub(super) async fn carry_out(
    asked: &Asked<'_>,
    stream: &mut Option<StreamSocket>,
    exec: &mut Option<String>,
    call: &mut Option<News>,
    around: &Surroundings,
) -> Result<Outcome, RuntimeError> {
    let wanted = asked.wanted;
    if wanted.tty && stream.is_none() {
        return Ok(Outcome::failed(
            codes::STREAM_NOT_ATTACHED,
            "a terminal needs a stream, and none was attached; nothing was run",
        ));
    }
    let mut made = 0;
    let (exec_id, io) = loop {
        let id = match make(asked, exec, around).await? {
            Ok(id) => id,
            Err(outcome) => return Ok(outcome),
        };
        made += 1;
        tell(call, around).await;
        match around.runtime.exec_start(&id, wanted.tty).await {
            Err(RuntimeError::NoSuchExec(_)) if made < MADE_MAX => {}
            started => break (id, started?),
        }
    };
    let forbidden = forbidden(asked.command, Some(&wanted.container), around);
    let stream = stream.take().map(|stream| (stream, around.again(asked.id)));
    let started = (exec_id.as_str(), io);
    attached::run_exec(&*around.runtime, started, wanted, stream, forbidden).await
}

/// Makes it; its id at the engine, or why it may not begin any more.
async fn make(
    asked: &Asked<'_>,
    exec: &mut Option<String>,
    around: &Surroundings,
) -> Result<Result<String, Outcome>, RuntimeError> {
    let runtime = &*around.runtime;
    let (id, wanted) = (asked.id, asked.wanted);
    let made = runtime
        .exec_create(&wanted.container, &attached::exec_spec(id, wanted))
        .await?;
    // Before it is started its id must be on disk, else a crash would leave it unknown.
    if let Err(error) = around.appender.exec_created(id, &made).await {
        return Ok(Err(Outcome::failed(
            codes::JOURNAL_UNAVAILABLE,
            format!("{error}; nothing was run"),
        )));
    }
    let news = News::ExecMade {
        id,
        exec: made.clone(),
    };
    let _ = around.news.send(news).await;
    *exec = Some(made.clone());
    // What was made and never started the engine forgets with its container.
    if around.is_past(asked.command.not_after_us) {
        return Ok(Err(Outcome::too_late()));
    }
    Ok(Ok(made))
}
