//! `terminal`: those that are open, and recordings.

use fairlead_api::types::{Recording, Terminal};
use jiff::Timestamp;

use super::Context;
use crate::args::TerminalVerb;
use crate::exit::{Exit, Failure};
use crate::output::human::{ago, bytes, since};
use crate::output::table::{Cell, Table};
use crate::output::{clean, say};
use crate::quantities::moment;

/// `fairlead terminal …`
pub(crate) async fn terminal(context: &Context, verb: TerminalVerb) -> Result<Exit, Failure> {
    let client = context.client()?;
    match verb {
        TerminalVerb::Ls => {
            let open: Vec<Terminal> = client.list(&["terminals"], &[]).await?;
            context.out.data(&open, |open| {
                open_table(open, Timestamp::now()).render(&context.out)
            })?;
        }
        TerminalVerb::End { sessions } => {
            let open: Vec<Terminal> = client.list(&["terminals"], &[]).await?;
            for session in &sessions {
                let mut begun = open.iter().filter(|one| one.session.starts_with(session));
                let session = match (begun.next(), begun.next()) {
                    (Some(one), None) => &one.session,
                    _ => session,
                };
                client.delete(&["terminals", session]).await?;
                say(&format!("{}  ended", clean(session)));
            }
        }
        TerminalVerb::Recordings {
            user,
            host,
            container,
            from,
            to,
        } => {
            let now = Timestamp::now();
            let time = |text: Option<String>| {
                let at = text.map(|text| moment(&text, now)).transpose();
                at.map(|at| at.map(|at| at.to_string()))
                    .map_err(Failure::usage)
            };
            let wanted = [
                ("user", user),
                ("host", host),
                ("container", container),
                ("from", time(from)?),
                ("to", time(to)?),
            ];
            let query: Vec<(&str, String)> = wanted
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect();
            let found: Vec<Recording> = client.list(&["recordings"], &query).await?;
            context.out.data(&found, |found| {
                recordings_table(found, Timestamp::now()).render(&context.out)
            })?;
        }
        TerminalVerb::Recording { session } => {
            // Control characters in it are escaped: it steers no terminal.
            let write = |piece: &[u8]| context.out.write(piece);
            client.pieces(&["recordings", &session], write).await?;
        }
    }
    Ok(Exit::Ok)
}

fn open_table(open: &[Terminal], now: Timestamp) -> Table {
    let mut table = Table::new([
        "SESSION",
        "CONTAINER",
        "USER",
        "OPEN",
        "TYPED",
        "PAGE",
        "OUT",
    ]);
    for terminal in open {
        table.row([
            Cell::from(&terminal.session),
            format!("{}/{}", terminal.host, terminal.container).into(),
            (&terminal.user).into(),
            since(terminal.started_at, now).into(),
            ago(terminal.typed_at, now).into(),
            (if terminal.has_page { "yes" } else { "away" }).into(),
            bytes(terminal.output_bytes).into(),
        ]);
    }
    table
}

fn recordings_table(found: &[Recording], now: Timestamp) -> Table {
    let mut table = Table::new(["SESSION", "CONTAINER", "USER", "BEGAN", "SIZE"]);
    for recording in found {
        table.row([
            Cell::from(&recording.session),
            format!("{}/{}", recording.host, recording.container).into(),
            (&recording.user).into(),
            ago(recording.started_at, now).into(),
            bytes(recording.bytes).into(),
        ]);
    }
    table
}
