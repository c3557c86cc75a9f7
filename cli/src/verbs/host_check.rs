//! `host check`: what a restart of a host's engine would do.

use std::time::Duration;

use fairlead_api::types::{Action, HostCheck};
use fairlead_protocol::command::INSPECT_HOST;

use super::Context;
use super::act::{request, until_final};
use crate::exit::{Exit, Failure};
use crate::output::Colour;
use crate::output::table::{Cell, Table};

/// `fairlead host check`
pub(crate) async fn check(
    context: &Context,
    host: String,
    deadline: Option<Duration>,
) -> Result<Exit, Failure> {
    let action = Action::Inspect {
        object: String::new(),
        object_kind: INSPECT_HOST.to_owned(),
    };
    let asked = request(Some(host.clone()), action, deadline)?;
    let command = until_final(context, &context.client()?, asked).await?;
    if let Some(failure) = Failure::of_command(&command) {
        return Err(failure);
    }
    let output = command.output.unwrap_or_default();
    let found: HostCheck = serde_json::from_value(output).map_err(|error| {
        let what = format!("the agent on {host} says what cannot be read: {error}");
        Failure::new(Exit::Failed, what)
    })?;
    context
        .out
        .data(&found, |found| table(found).render(&context.out))?;
    Ok(if found.is_good {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

fn table(found: &HostCheck) -> Table {
    let mut table = Table::new(["CHECK", "VERDICT", "FOUND", "MEANS"]);
    for check in &found.checks {
        let colour = match &check.verdict[..] {
            "good" => Colour::Good,
            "mind" => Colour::Doubtful,
            _ => Colour::Bad,
        };
        table.row([
            Cell::from(&check.name),
            Cell::painted(Some(colour), &check.verdict),
            (&check.found).into(),
            (&check.means).into(),
        ]);
    }
    table
}
