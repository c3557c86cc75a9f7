//! `audit` and `events`: what was done, and what happened.

use std::time::Duration;

use fairlead_api::types::{AuditRow, Event, Page};
use jiff::Timestamp;
use tokio::time::Instant;

use super::Context;
use crate::args::{AuditArgs, Events};
use crate::client::{Client, Retry};
use crate::exit::{Exit, Failure};
use crate::output::human::clock;
use crate::output::table::{Cell, Table};
use crate::output::{Colour, Output, clean, say};
use crate::quantities::moment;

/// How long a follower waits for a server that has gone away.
const FOLLOW_THROUGH: Duration = Duration::from_secs(300);

/// `fairlead audit`
pub(crate) async fn audit(context: &Context, args: AuditArgs) -> Result<Exit, Failure> {
    let mut query = vec![("limit", args.limit.to_string())];
    query.extend(args.before.map(|before| ("before", before.to_string())));
    query.extend(args.action.map(|action| ("action", action)));
    let page: Page<AuditRow> = context.client()?.get(&["audit"], &query).await?;
    context.out.data(&page.items, |rows| {
        audit_table(rows, Timestamp::now()).render(&context.out)
    })?;
    more(page.next);
    Ok(Exit::Ok)
}

/// Says that a list goes on.
pub(crate) fn more(next: Option<i64>) {
    if let Some(next) = next {
        say(&format!("there is more: --before {next}"));
    }
}

fn audit_table(rows: &[AuditRow], now: Timestamp) -> Table {
    let mut table = Table::new([
        "SEQ", "AT", "WHO", "FROM", "ACTION", "OBJECT", "OUTCOME", "DETAIL",
    ]);
    for row in rows {
        let colour = match row.outcome.as_str() {
            "denied" => Some(Colour::Bad),
            "failed" => Some(Colour::Doubtful),
            _ => None,
        };
        table.row([
            Cell::from(row.seq.to_string()),
            clock(row.at, now).into(),
            (&row.actor).into(),
            (&row.from).into(),
            (&row.action).into(),
            (&row.object).into(),
            Cell::painted(colour, &row.outcome),
            (&row.detail).into(),
        ]);
    }
    table
}

/// `fairlead events`
pub(crate) async fn events(context: &Context, args: Events) -> Result<Exit, Failure> {
    let client = context.client()?;
    let now = Timestamp::now();
    let since = args
        .since
        .as_deref()
        .map(|text| moment(text, now))
        .transpose()
        .map_err(Failure::usage)?;
    let mut query = vec![("limit", args.limit.to_string())];
    query.extend(args.host.clone().map(|host| ("host", host)));
    query.extend(since.map(|since| ("since", since.to_string())));
    let mut page: Page<Event> = client.get(&["events"], &query).await?;
    // Newest last, as in a log.
    page.items.reverse();
    let last = page.items.last().map(|event| event.seq);
    if args.follow {
        for event in page.items.iter().filter(|_| since.is_some()) {
            context.out.item(event, |event| line(event, &context.out))?;
        }
        return follow(context, &client, args.host, last).await;
    }
    context.out.data(&page.items, |events| {
        events
            .iter()
            .map(|event| line(event, &context.out) + "\n")
            .collect()
    })?;
    Ok(Exit::Ok)
}

/// Prints events as they come, through restarts of the server, each once.
async fn follow(
    context: &Context,
    client: &Client,
    host: Option<String>,
    last: Option<i64>,
) -> Result<Exit, Failure> {
    let query: Vec<(&str, String)> = host.map(|host| ("host", host)).into_iter().collect();
    let mut last = last;
    let mut retry: Option<Retry> = None;
    loop {
        let quoted = last.map(|seq| seq.to_string()).unwrap_or_default();
        let mut came = false;
        let ended = client
            .events(&["events", "stream"], &query, &quoted, |event| {
                came = true;
                if event.event != "event" {
                    return Ok(true);
                }
                let Ok(event) = serde_json::from_str::<Event>(&event.data) else {
                    return Err(Failure::new(
                        Exit::Failed,
                        "the server sent an event that is not understood",
                    ));
                };
                if last.is_none_or(|last| event.seq > last) {
                    last = Some(event.seq);
                    context
                        .out
                        .item(&event, |event| line(event, &context.out))?;
                }
                Ok(true)
            })
            .await;
        if came {
            retry = None;
        }
        let failure = match ended {
            Err(failure) if !failure.transient => return Err(failure),
            Err(failure) => failure,
            Ok(()) => Failure::new(Exit::Unreachable, "the server ended the stream of events"),
        };
        let retry = retry.get_or_insert_with(|| Retry::until(Instant::now() + FOLLOW_THROUGH));
        retry.pause(failure).await?;
    }
}

/// `14:00:07 UTC  box/web  container.die  exit code 137  (by hand)`
fn line(event: &Event, out: &Output) -> String {
    let what = match (event.host.as_str(), event.container.as_str()) {
        ("", "") => event.region.clone(),
        (host, "") => host.to_owned(),
        (host, container) => format!("{host}/{container}"),
    };
    let mut text = format!(
        "{}  {}  {}",
        out.paint(Colour::Faint, &clock(event.at, Timestamp::now())),
        clean(&what),
        clean(&event.action)
    );
    for more in [&event.image, &event.detail] {
        if !more.is_empty() {
            text.push_str(&format!("  {}", clean(more)));
        }
    }
    let cause = match (event.cause.as_str(), event.command.as_str()) {
        ("", "") => String::new(),
        ("by-hand", _) => out.paint(Colour::Doubtful, "by hand"),
        ("" | "command", id) => format!("by command {}", clean(crate::exit::short(id))),
        (cause, _) => format!("by {}", clean(cause)),
    };
    if !cause.is_empty() {
        text.push_str(&format!("  ({cause})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn an_event_says_who_caused_it() {
        let out = Output {
            format: Format::Table,
            colour: false,
            stdout_tty: false,
            stderr_tty: false,
        };
        let event: Event = serde_json::from_value(serde_json::json!({
            "seq": 1, "at": "2020-01-01T14:00:00Z", "host": "box", "host_id": "h",
            "region": "local", "action": "container.die", "container": "web",
            "container_id": "c", "image": "", "command": "", "cause": "by-hand",
            "detail": "exit code 137"
        }))
        .unwrap();
        assert_eq!(
            line(&event, &out),
            "2020-01-01 14:00:00 UTC  box/web  container.die  exit code 137  (by hand)"
        );
        let ours = Event {
            cause: "command".into(),
            command: "7q3k9m2x7q".into(),
            ..event.clone()
        };
        assert!(line(&ours, &out).ends_with("(by command 7q3k9m)"));
    }
}
