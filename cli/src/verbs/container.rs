//! `ps` and `inspect`.

use fairlead_api::types::{Action, Container};
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::Context;
use super::act;
use crate::args::{Inspect, Ps};
use crate::exit::{Exit, Failure};
use crate::output::human::{ago_or, bytes_of, since};
use crate::output::table::{Cell, Table};
use crate::output::{Colour, Format};

/// `fairlead ps`
pub(crate) async fn ps(context: &Context, args: Ps) -> Result<Exit, Failure> {
    let mut query = vec![("all", args.all.to_string())];
    query.extend(args.host.map(|host| ("host", host)));
    query.extend(args.project.map(|project| ("project", project)));
    query.extend(args.name.map(|name| ("name", name)));
    let page: Vec<Container> = context.client()?.list(&["containers"], &query).await?;
    if args.quiet && !context.out.is_structured() {
        for container in &page {
            let short = container.id.get(..12).unwrap_or(&container.id);
            context
                .out
                .write(format!("{}\n", crate::output::clean(short)).as_bytes())?;
        }
        return Ok(Exit::Ok);
    }
    context.out.data(&page, |containers| {
        let wide = context.out.format == Format::Wide;
        table(containers, wide, Timestamp::now()).render(&context.out)
    })?;
    Ok(Exit::Ok)
}

fn table(containers: &[Container], wide: bool, now: Timestamp) -> Table {
    let services = containers
        .iter()
        .any(|container| !container.service.is_empty());
    let mut heading = vec!["HOST", "NAME", "PROJECT"];
    if services {
        heading.push("SERVICE");
    }
    heading.extend(["STATE", "CPU", "MEM", "IP", "PORTS"]);
    if wide {
        heading.extend(["IMAGE", "COMMAND", "RESTARTS", "NETWORKS", "ID"]);
    }
    let mut table = Table::new(heading);
    for container in containers {
        let metrics = container.metrics.as_ref();
        let mut row = vec![
            Cell::from(&container.host),
            (&container.name).into(),
            (&container.project).into(),
        ];
        if services {
            row.push((&container.service).into());
        }
        row.extend([
            Cell::painted(colour(container), state(container, now)),
            metrics
                .map_or(String::new(), |m| format!("{:.1} %", m.cpu_percent))
                .into(),
            metrics
                .map_or(String::new(), |m| {
                    bytes_of(m.memory_used, container.memory_limit)
                })
                .into(),
            (&container.ip).into(),
            container.ports.join(", ").into(),
        ]);
        if wide {
            row.extend([
                Cell::from(&container.image),
                (&container.command).into(),
                container.restarts.to_string().into(),
                container.networks.join(", ").into(),
                container.id.get(..12).unwrap_or(&container.id).into(),
            ]);
        }
        table.row(row);
    }
    table
}

/// "up 12 s, healthy", "exited (137) 3 min ago, out of memory".
fn state(container: &Container, now: Timestamp) -> String {
    let mut text = match container.state.as_str() {
        "running" => match container.started_at {
            Some(at) => format!("up {}", since(at, now)),
            None => "up".to_owned(),
        },
        "exited" | "dead" => format!(
            "{} ({}) {}",
            container.state,
            container.exit_code,
            ago_or(container.finished_at, now, "")
        )
        .trim_end()
        .to_owned(),
        "created" => format!("created {} ago", since(container.created_at, now)),
        "restarting" => format!(
            "restarting ({}) {}",
            container.exit_code,
            ago_or(container.finished_at, now, "")
        )
        .trim_end()
        .to_owned(),
        other => other.to_owned(),
    };
    if container.oom_killed && container.state != "running" {
        text.push_str(", out of memory");
    }
    if container.state == "running" && !container.health.is_empty() {
        text.push_str(&format!(", {}", container.health));
    }
    if !container.live {
        text.push_str(&format!(" (as of {} ago)", since(container.as_of, now)));
    }
    text
}

fn colour(container: &Container) -> Option<Colour> {
    if !container.live {
        return Some(Colour::Faint);
    }
    match (container.state.as_str(), container.health.as_str()) {
        (_, "unhealthy") | ("restarting" | "dead", _) => Some(Colour::Bad),
        ("running", "starting") | ("paused", _) => Some(Colour::Doubtful),
        ("running", _) => Some(Colour::Good),
        ("exited", _) if container.exit_code != 0 => Some(Colour::Bad),
        _ => Some(Colour::Faint),
    }
}

/// `fairlead inspect`: the engine's own JSON, in a list as docker prints it.
pub(crate) async fn inspect(context: &Context, args: Inspect) -> Result<Exit, Failure> {
    let client = context.client()?;
    let mut requests = Vec::new();
    for name in &args.names {
        let (host, object) = if args.kind == "image" {
            // A slash belongs to the image's reference.
            (args.host.clone(), name.clone())
        } else {
            let target = act::target(name, args.host.as_deref())?;
            (target.host, target.name)
        };
        let action = Action::Inspect {
            object,
            object_kind: args.kind.clone(),
        };
        requests.push(act::request(host, action, args.deadline)?);
    }
    let client = &client;
    let outputs: Vec<serde_json::Value> = futures_util::stream::iter(requests)
        .map(|request| async move {
            let command = act::until_final(context, client, request).await?;
            match Failure::of_command(&command) {
                Some(failure) => Err(failure),
                None => Ok(command.output.unwrap_or_default()),
            }
        })
        .buffered(act::AT_ONCE)
        .try_collect()
        .await?;
    context.out.structured(&outputs)?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Output, samples};

    fn now() -> Timestamp {
        "2026-11-20T14:00:00Z".parse().unwrap()
    }

    #[test]
    fn states_are_said_with_age_health_and_cause() {
        let up = samples::container();
        assert_eq!(state(&up, now()), "up 12 s, healthy");
        let ended = Container {
            state: "exited".into(),
            exit_code: 137,
            finished_at: Some("2026-11-20T13:57:00Z".parse().unwrap()),
            oom_killed: true,
            ..up.clone()
        };
        assert_eq!(
            state(&ended, now()),
            "exited (137) 3 min ago, out of memory"
        );
        let made = Container {
            state: "created".into(),
            health: String::new(),
            ..up.clone()
        };
        assert_eq!(state(&made, now()), "created 60 min ago");
        let stale = Container {
            live: false,
            as_of: "2026-11-20T13:50:00Z".parse().unwrap(),
            ..up
        };
        assert_eq!(state(&stale, now()), "up 12 s, healthy (as of 10 min ago)");
    }

    #[test]
    fn the_table_is_the_one_of_the_guide() {
        let out = Output {
            format: Format::Table,
            colour: false,
            stdout_tty: false,
            stderr_tty: false,
        };
        let plain = table(&[samples::container()], false, now()).render(&out);
        assert_eq!(
            plain,
            "HOST  NAME      PROJECT  STATE             CPU    MEM      IP          PORTS\n\
             box   demo-web  -        up 12 s, healthy  0.1 %  1/64 MB  172.17.0.4  0.0.0.0:8080->80/tcp\n"
        );
        let compose = Container {
            project: "shop".into(),
            service: "db".into(),
            ..samples::container()
        };
        let wide = table(&[compose], true, now()).render(&out);
        assert!(wide.contains("SERVICE"), "{wide}");
        assert!(wide.contains("demo:1"), "{wide}");
    }
}
