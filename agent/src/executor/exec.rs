//! A process in a container: made, its id journalled, then started. Each of the three may take a while, so
//! the deadline is looked at once more before the last: nothing of it runs until then.

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

/// From making it to its end; `exec` becomes its id at the engine.
pub(super) async fn carry_out(
    asked: &Asked<'_>,
    stream: Option<StreamSocket>,
    exec: &mut Option<String>,
    call: &mut Option<News>,
    around: &Surroundings,
) -> Result<Outcome, RuntimeError> {
    let runtime = &*around.runtime;
    let (id, wanted) = (asked.id, asked.wanted);
    let made = runtime
        .exec_create(&wanted.container, &attached::exec_spec(id, wanted))
        .await?;
    // Before it is started its id must be on disk, else a crash would leave it unknown.
    if let Err(error) = around.appender.exec_created(id, &made).await {
        return Ok(Outcome::failed(
            codes::JOURNAL_UNAVAILABLE,
            format!("{error}; nothing was run"),
        ));
    }
    let news = News::ExecMade {
        id,
        exec: made.clone(),
    };
    let _ = around.news.send(news).await;
    *exec = Some(made.clone());
    // What was made and never started the engine forgets with its container.
    if around.is_past(asked.command.not_after_us) {
        return Ok(Outcome::too_late());
    }
    tell(call, around).await;
    let forbidden = forbidden(asked.command, Some(&wanted.container), around);
    let stream = stream.map(|stream| (stream, around.again(id)));
    attached::run_exec(runtime, &made, wanted, stream, forbidden).await
}
