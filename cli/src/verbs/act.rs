//! Hands commands over, waits for their ends, and says what became of them.

use std::time::Duration;

use fairlead_api::types::{Action, Command, CommandRequest, Host, Precondition};
use fairlead_protocol::{CommandId, codes};
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Context;
use crate::args::Waiting;
use crate::client::{Client, RESEND_FOR, Retry};
use crate::exit::{Exit, Failure, short, subject};
use crate::output::human::{ago, clock, millis, since, with_times};
use crate::output::{clean, report, say};

/// The first answer is waited for this long before anything is said about waiting.
const FIRST_LOOK: Duration = Duration::from_millis(1500);
/// Between two looks at what a command waits for.
const LOOK: Duration = Duration::from_secs(2);
/// A deadline may lie days ahead; a server that is away is waited for this long at most.
const WAIT_FOR_SERVER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// What becomes of a command that its host gave up at its deadline is known this soon after it.
const SAID_WITHIN: Duration = Duration::from_secs(5);
/// What is known of a command past its deadline whose host says nothing.
const OVERDUE: &str =
    "its deadline has passed; whether it had begun is known when the host is back";
/// How many commands are under way at once.
pub(crate) const AT_ONCE: usize = 8;
/// Waiting that is shorter is not worth a word.
const WAITED_WORTH_SAYING_MS: f64 = 100.0;

/// A container as typed: `HOST/NAME` or `NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The host, where it was said.
    pub(crate) host: Option<String>,
    /// Name or id of the container.
    pub(crate) name: String,
}

/// Reads a target; `host` is what `--host` says.
pub(crate) fn target(text: &str, host: Option<&str>) -> Result<Target, Failure> {
    let (in_text, name) = match text.split_once('/') {
        Some((host, name)) => (Some(host), name),
        None => (None, text),
    };
    if name.is_empty() || in_text == Some("") || name.contains('/') {
        return Err(Failure::usage(format!("{text:?} is not a container"))
            .hint("a container is HOST/NAME, NAME, or the beginning of its id"));
    }
    match (in_text, host) {
        (Some(a), Some(b)) if a != b => Err(Failure::usage(format!(
            "{text} is on host {a}, and --host says {b}"
        ))),
        (a, b) => Ok(Target {
            host: a.or(b).map(str::to_owned),
            name: name.to_owned(),
        }),
    }
}

/// A new command id: 16 random bytes.
pub(crate) fn new_id() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Failure::new(Exit::Failed, "this machine gives no random numbers"))?;
    Ok(CommandId::from_bytes(bytes).to_string())
}

/// A request for `action`, with an id of its own.
pub(crate) fn request(
    host: Option<String>,
    action: Action,
    deadline: Option<Duration>,
) -> Result<CommandRequest, Failure> {
    Ok(CommandRequest {
        id: Some(new_id()?),
        host,
        action,
        deadline_s: deadline.map(|deadline| deadline.as_secs().max(1)),
        timeout_ms: None,
        precondition: None,
        attach: false,
    })
}

/// The same, to begin only while the container has this id.
pub(crate) fn only_if(mut request: CommandRequest, container_id: Option<&str>) -> CommandRequest {
    request.precondition = container_id.map(|id| Precondition {
        container_id: id.to_owned(),
        image_digest: String::new(),
    });
    request
}

/// Hands the requests over, waits, and prints a line (or the commands themselves) as they end.
pub(crate) async fn act(
    context: &Context,
    requests: Vec<CommandRequest>,
    waiting: &Waiting,
    line: fn(&Command) -> String,
) -> Result<Exit, Failure> {
    let client = context.client()?;
    let one = requests.len() == 1;
    let mut results = futures_util::stream::iter(requests.into_iter().enumerate())
        .map(|(index, request)| {
            let client = &client;
            async move {
                let result = if waiting.no_wait {
                    client.submit(&request, Duration::ZERO).await
                } else {
                    until_final(context, client, request).await
                };
                (index, result)
            }
        })
        .buffer_unordered(AT_ONCE);
    let mut commands = Vec::new();
    let mut failures = Vec::new();
    while let Some((index, result)) = results.next().await {
        match result {
            Ok(command) => {
                let failure = if waiting.no_wait {
                    None
                } else {
                    Failure::of_command(&command)
                };
                if waiting.no_wait && !context.out.is_structured() {
                    context.out.write(format!("{}\n", command.id).as_bytes())?;
                } else if failure.is_none() && !context.out.is_structured() {
                    context
                        .out
                        .write(format!("{}\n", line(&command)).as_bytes())?;
                }
                failures.extend(failure);
                commands.push((index, command));
            }
            Err(failure) => failures.push(failure),
        }
    }
    if context.out.is_structured() {
        commands.sort_by_key(|(index, _)| *index);
        let commands: Vec<Command> = commands.into_iter().map(|(_, command)| command).collect();
        match commands.as_slice() {
            [command] if one => context.out.structured(command)?,
            [] if one => {}
            commands => context.out.structured(commands)?,
        }
    }
    if one {
        return failures.pop().map_or(Ok(Exit::Ok), Err);
    }
    failures.iter().for_each(report);
    Ok(if failures.is_empty() {
        Exit::Ok
    } else {
        Exit::SomeFailed
    })
}

/// Hands one command over and waits for its end, through restarts of the server.
pub(crate) async fn until_final(
    context: &Context,
    client: &Client,
    request: CommandRequest,
) -> Result<Command, Failure> {
    let id = request.id.clone().unwrap_or_default();
    context.open.add(&id);
    let command = match client.submit(&request, FIRST_LOOK).await {
        Ok(command) => command,
        Err(failure) => {
            context.open.remove(&id);
            return Err(not_known(failure, &request));
        }
    };
    let command = wait_with(context, client, command, true).await;
    context.open.remove(&id);
    command
}

/// After a lost connection nobody here knows whether the command was taken: say how to find out.
pub(crate) fn not_known(failure: Failure, request: &CommandRequest) -> Failure {
    if !failure.transient {
        return failure;
    }
    let id = request.id.as_deref().unwrap_or_default();
    let message = format!(
        "{}; whether the command was taken is not known",
        failure.message
    );
    Failure { message, ..failure }.hint(format!(
        "when the server is back: fairlead command show {}",
        short(id)
    ))
}

/// Waits for the end of a command, however long that takes.
pub(crate) async fn wait(
    context: &Context,
    client: &Client,
    command: Command,
) -> Result<Command, Failure> {
    wait_with(context, client, command, false).await
}

async fn wait_with(
    context: &Context,
    client: &Client,
    mut command: Command,
    ends: bool,
) -> Result<Command, Failure> {
    let mut teller = Teller::default();
    let patience = Patience::with(&command);
    while !command.is_final {
        teller.look(context, client, &command).await;
        let look = if ends { patience.next_look() } else { LOOK };
        command = look_again(client, command, look, &mut teller).await?;
        if ends {
            patience.check(client, &command).await?;
        }
    }
    Ok(command)
}

/// How long a command that has just been handed over is waited for. Past its deadline it is not begun any
/// more; when nobody says even then what became of it, its host is silent, perhaps for days.
pub(crate) struct Patience(Instant);

impl Patience {
    /// Counted from here on: the clocks of this machine and of the server may differ.
    pub(crate) fn with(command: &Command) -> Self {
        let left = command.not_after.as_millisecond() - command.issued_at.as_millisecond();
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        Self(Instant::now() + left.min(WAIT_FOR_SERVER_MAX) + SAID_WITHIN)
    }

    /// How long the next look may take.
    pub(crate) fn next_look(&self) -> Duration {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() { LOOK } else { left.min(LOOK) }
    }

    /// Ends the waiting when it has no prospect.
    pub(crate) async fn check(&self, client: &Client, command: &Command) -> Result<(), Failure> {
        if command.is_final || Instant::now() < self.0 {
            return Ok(());
        }
        // What runs may take its time, as long as its host is there.
        if command.state == "running" {
            let host = client
                .get::<Host>(&["hosts", &command.host_id], &[])
                .await
                .ok();
            if host.is_none_or(|host| host.state == "online") {
                return Ok(());
            }
        }
        Err(Failure::new(
            Exit::Unreachable,
            format!(
                "{}: {}: {OVERDUE}",
                clean(&subject(command)),
                clean(&command.kind)
            ),
        )
        .code(codes::HOST_OFFLINE)
        .hint(format!(
            "wait for that: fairlead command watch {}",
            short(&command.id)
        )))
    }
}

/// The command as it is when it ends or `wait` is over. A server that is away is waited for until
/// the command's deadline: it goes on meanwhile.
pub(crate) async fn look_again(
    client: &Client,
    command: Command,
    wait: Duration,
    teller: &mut Teller,
) -> Result<Command, Failure> {
    let left = command.not_after.as_second() - Timestamp::now().as_second();
    let left = Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(WAIT_FOR_SERVER_MAX);
    let mut retry = Retry::until(Instant::now() + left.max(RESEND_FOR));
    loop {
        match client.command(&command.id, wait).await {
            Ok(newer) => return Ok(newer),
            Err(failure) if failure.transient => {
                teller.away(&failure);
                retry.pause(failure).await.map_err(|failure| {
                    let id = short(&command.id);
                    let message = format!("{}; command {id} goes on", failure.message);
                    Failure { message, ..failure }.hint(format!(
                        "when the server is back: fairlead command show {id}"
                    ))
                })?;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Says why nothing happens yet: each reason once.
#[derive(Default)]
pub(crate) struct Teller {
    said: String,
    away: bool,
}

impl Teller {
    /// Says why a command waits, where that is new.
    pub(crate) async fn look(&mut self, context: &Context, client: &Client, command: &Command) {
        if command.waiting_for.is_empty() {
            // Under way, only longer than a moment: of interest to who sits there.
            if context.out.stderr_tty && self.said != command.state {
                command.state.clone_into(&mut self.said);
                let (what, state) = (subject(command), clean(&command.state));
                say(&format!(
                    "{}: {} is {state} …",
                    clean(&what),
                    clean(&command.kind)
                ));
            }
            return;
        }
        if command.waiting_for == self.said {
            return;
        }
        command.waiting_for.clone_into(&mut self.said);
        let host = client
            .get::<Host>(&["hosts", &command.host_id], &[])
            .await
            .ok();
        let away = host.filter(|host| host.state != "online");
        // One that its host should have taken by now is worth a word to everybody.
        if away.is_some() || command.state == "queued" || context.out.stderr_tty {
            say(&waiting_text(command, away.as_ref(), Timestamp::now()));
        }
    }

    fn away(&mut self, failure: &Failure) {
        if !std::mem::replace(&mut self.away, true) {
            say(&format!(
                "{}; trying again, the command goes on",
                clean(&failure.message)
            ));
        }
    }
}

/// Why a command waits, until when, and how to withdraw it.
fn waiting_text(command: &Command, away: Option<&Host>, now: Timestamp) -> String {
    let why = match away {
        Some(host) => {
            let reason = if host.reason.is_empty() {
                String::new()
            } else {
                format!(" ({})", host.reason)
            };
            format!(
                "host {} is {} since {} ({}){reason}",
                host.name,
                host.state,
                clock(host.since, now),
                since(host.since, now),
            )
        }
        None => {
            // Until when is said below, and how to withdraw it.
            let why = command.waiting_for.split("; waits until ").next();
            with_times(why.unwrap_or_default(), now)
        }
    };
    if command.not_after <= now {
        let (what, kind) = (subject(command), &command.kind);
        return format!("{}: {}: {OVERDUE}", clean(&what), clean(kind));
    }
    format!(
        "{}: {} waits: {}\n  until {} ({}); withdraw it: fairlead command cancel {}",
        clean(&subject(command)),
        clean(&command.kind),
        clean(&why),
        clock(command.not_after, now),
        ago(command.not_after, now),
        short(&command.id),
    )
}

/// `box/demo-web  restarted  418 ms (engine 416, Fairlead 2)   command 7q3k9m`
pub(crate) fn result_line(command: &Command, done: &str) -> String {
    let time = timing(command)
        .map(|time| format!("  {time}"))
        .unwrap_or_default();
    format!(
        "{}  {done}{time}   command {}",
        clean(&subject(command)),
        short(&command.id)
    )
}

/// How long it took, and where the time went; `None` while that is not known.
pub(crate) fn timing(command: &Command) -> Option<String> {
    let Some(overhead) = command.overhead_ms else {
        let finished = command.finished_at?;
        let took = finished.as_microsecond() - command.issued_at.as_microsecond();
        return Some(millis(took as f64 / 1000.0));
    };
    let engine = command.engine_ms.unwrap_or(0.0);
    let waited = waited_ms(command).min(overhead);
    let mut parts = Vec::new();
    if command.engine_ms.is_some() {
        parts.push(("engine", engine));
    }
    if waited >= WAITED_WORTH_SAYING_MS {
        parts.push(("waited", waited));
        parts.push(("Fairlead", overhead - waited));
    } else {
        parts.push(("Fairlead", overhead));
    }
    let total = engine + overhead;
    // One unit for all when they are all below a second; then it is said once.
    let parts: Vec<String> = parts
        .into_iter()
        .map(|(who, ms)| {
            if (9.95..999.5).contains(&total) {
                format!("{who} {ms:.0}")
            } else {
                format!("{who} {}", millis(ms))
            }
        })
        .collect();
    Some(format!("{} ({})", millis(total), parts.join(", ")))
}

/// The time in which nobody could act: before delivery, and behind others on its lane.
fn waited_ms(command: &Command) -> f64 {
    let at = |stage: &str| {
        command
            .timeline
            .iter()
            .rev()
            .find(|stamp| stamp.stage == stage)
            .map(|stamp| stamp.after_ms)
    };
    let between = |from: &str, to: &str| match (at(from), at(to)) {
        (Some(from), Some(to)) if to > from => to - from,
        _ => 0.0,
    };
    // When the region had it on disk is not known any more after a restart of it, or a long wait.
    let kept = at("region_stored").map_or("region_received", |_| "region_stored");
    between(kept, "delivered") + between("verified", "intent_stored")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;
    use fairlead_api::types::Stamp;

    #[test]
    fn targets() {
        let t = |host: Option<&str>, name: &str| Target {
            host: host.map(str::to_owned),
            name: name.to_owned(),
        };
        assert_eq!(target("web", None).unwrap(), t(None, "web"));
        assert_eq!(target("box/web", None).unwrap(), t(Some("box"), "web"));
        assert_eq!(target("web", Some("box")).unwrap(), t(Some("box"), "web"));
        assert_eq!(
            target("box/web", Some("box")).unwrap(),
            t(Some("box"), "web")
        );
        for (text, host) in [
            ("", None),
            ("/web", None),
            ("box/", None),
            ("a/b/c", None),
            ("a/web", Some("b")),
        ] {
            assert_eq!(target(text, host).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }

    #[test]
    fn ids_differ_and_are_ids() {
        let id = new_id().unwrap();
        assert!(id.parse::<CommandId>().is_ok());
        assert_ne!(id, new_id().unwrap());
    }

    #[test]
    fn the_result_says_where_the_time_went() {
        let mut command = samples::command();
        assert_eq!(
            result_line(&command, "restarted"),
            "box/demo-web  restarted  418 ms (engine 416, Fairlead 2)   command 7q3k9m"
        );
        command.overhead_ms = Some(802.0);
        command.timeline = [("region_stored", 1.0), ("delivered", 780.0)]
            .map(|(stage, after_ms)| Stamp {
                stage: stage.to_owned(),
                at: command.issued_at,
                after_ms,
                note: String::new(),
            })
            .to_vec();
        assert_eq!(
            timing(&command).unwrap(),
            "1.2 s (engine 416 ms, waited 779 ms, Fairlead 23 ms)"
        );
        // The region was restarted while the host was away.
        command.timeline[0].stage = "region_received".to_owned();
        assert_eq!(
            timing(&command).unwrap(),
            "1.2 s (engine 416 ms, waited 779 ms, Fairlead 23 ms)"
        );
        command.overhead_ms = None;
        assert_eq!(timing(&command).unwrap(), "418 ms");
        command.finished_at = None;
        assert_eq!(timing(&command), None);
    }

    #[test]
    fn waiting_says_since_when_until_when_and_how_to_withdraw() {
        let mut command = samples::command();
        command.waiting_for = "host offline".to_owned();
        let host: Host = serde_json::from_value(serde_json::json!({
            "id": "h", "name": "box", "tenant": "default", "region": "local", "labels": {},
            "state": "offline", "since": "2026-11-20T13:40:00Z", "reason": "the link was closed",
            "last_seen": null, "enrolled_at": "2026-11-20T13:00:00Z", "epoch": 1, "facts": null,
            "address": "", "clock_offset_ms": 0, "metrics": null, "containers": 0,
            "containers_running": 0, "certificate_expires_at": null
        }))
        .unwrap();
        let now = "2026-11-20T14:00:00Z".parse().unwrap();
        assert_eq!(
            waiting_text(&command, Some(&host), now),
            "box/demo-web: restart waits: host box is offline since 13:40:00 UTC (20 min) (the \
             link was closed)\n  until 14:05:00 UTC (in 5 min); withdraw it: fairlead command \
             cancel 7q3k9m"
        );
        command.waiting_for =
            "host box has not taken it yet; waits until 2026-11-20T14:05:00Z, and \
                               is not begun after that"
                .to_owned();
        assert_eq!(
            waiting_text(&command, None, now),
            "box/demo-web: restart waits: host box has not taken it yet\n  until 14:05:00 UTC (in 5 \
             min); withdraw it: fairlead command cancel 7q3k9m"
        );
        let now = "2026-11-20T14:05:00Z".parse().unwrap();
        assert_eq!(
            waiting_text(&command, Some(&host), now),
            "box/demo-web: restart: its deadline has passed; whether it had begun is known when \
             the host is back"
        );
    }
}
