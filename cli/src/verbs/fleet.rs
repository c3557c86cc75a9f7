//! `status` and `host`.

use fairlead_api::types::{Action, Host, Status};
use fairlead_protocol::codes;
use jiff::Timestamp;

use super::Context;
use super::act::{act, request};
use crate::args::{HostVerb, Waiting};
use crate::exit::{Exit, Failure, short};
use crate::output::human::{ago, ago_or, bytes, bytes_of, clock, count, since, with_times};
use crate::output::table::{Cell, Table};
use crate::output::{Colour, Output, clean, say};

/// `fairlead status`
pub(crate) async fn status(context: &Context) -> Result<Exit, Failure> {
    let status: Status = context.client()?.get(&["status"], &[]).await?;
    context.out.data(&status, |status| {
        status_text(status, &context.out, Timestamp::now())
    })?;
    Ok(Exit::Ok)
}

fn status_text(status: &Status, out: &Output, now: Timestamp) -> String {
    let mut text = format!(
        "{} of {} connected · {} of {} running{} · {} of {} connected · {} open\n",
        status.hosts_online,
        count(status.hosts, "host"),
        status.containers_running,
        count(status.containers, "container"),
        match status.containers_unwell {
            0 => String::new(),
            unwell => out.paint(Colour::Bad, &format!(", {unwell} not well")),
        },
        status.regions_online,
        count(status.regions, "region"),
        count(status.commands_open, "command"),
    );
    if let Some(https) = &status.https
        && let (true, Some(until)) = (https.source != "own-ca", https.not_after)
    {
        text.push_str(&format!(
            "https certificate by {} until {} ({})\n",
            clean(&https.source),
            clock(until, now),
            ago(until, now),
        ));
    }
    for line in &status.attention {
        text.push_str(&format!(
            "{}  {}\n",
            out.paint(Colour::Bad, "WRONG"),
            clean(&with_times(line, now))
        ));
    }
    text
}

/// `fairlead host …`
pub(crate) async fn host(context: &Context, verb: HostVerb) -> Result<Exit, Failure> {
    let client = context.client()?;
    match verb {
        HostVerb::Add(wanted) => super::host_add::add(context, wanted).await,
        HostVerb::Ls => {
            let hosts: Vec<Host> = client.list(&["hosts"], &[]).await?;
            context.out.data(&hosts, |hosts| {
                hosts_table(hosts, Timestamp::now()).render(&context.out)
            })?;
            Ok(Exit::Ok)
        }
        HostVerb::Show { host } => {
            let host: Host = client.get(&["hosts", &host], &[]).await?;
            context
                .out
                .data(&host, |host| host_text(host, Timestamp::now()))?;
            Ok(Exit::Ok)
        }
        HostVerb::Check { host, deadline } => {
            super::host_check::check(context, host, deadline).await
        }
        HostVerb::Approve { hosts } => {
            super::each(hosts, async |host| {
                let body = serde_json::json!({});
                let _: Host = client.post(&["hosts", host, "approve"], &body).await?;
                say(&format!(
                    "{}: approved; it is let in when it dials again, within some seconds",
                    clean(host)
                ));
                Ok(())
            })
            .await
        }
        HostVerb::Rm {
            hosts,
            offline_for,
            dry_run,
            uninstall,
            no_wait,
            deadline,
        } => {
            if uninstall {
                return take_off(context, hosts, Waiting { no_wait, deadline }).await;
            }
            let hosts = match offline_for {
                Some(least) => silent(&client.list(&["hosts"], &[]).await?, least),
                None => hosts,
            };
            if hosts.is_empty() {
                say("no host has been away for so long");
                return Ok(Exit::Ok);
            }
            if dry_run {
                for host in &hosts {
                    say(&format!("{}: its identity would be revoked", clean(host)));
                }
                return Ok(Exit::Ok);
            }
            super::each(hosts, async |host| {
                client.delete(&["hosts", host]).await?;
                say(&format!(
                    "{}: identity revoked; its link is cut, its containers go on",
                    clean(host)
                ));
                Ok(())
            })
            .await
        }
    }
}

/// `fairlead host rm --uninstall`: the agents are asked to take themselves off, and the controller ends the
/// identity of each that says it will.
async fn take_off(
    context: &Context,
    hosts: Vec<String>,
    waiting: Waiting,
) -> Result<Exit, Failure> {
    let client = context.client()?;
    for host in &hosts {
        let shown: Host = client.get(&["hosts", host], &[]).await?;
        if shown.state != "online" {
            let (name, state) = (clean(&shown.name), clean(&shown.state));
            say(&format!(
                "{name} is {state}: its agent is waited for until the deadline (--deadline), and nothing ends \
                 before it answers; `fairlead host rm {name}` ends the identity at once and leaves the agent there"
            ));
        }
    }
    let asked = hosts
        .into_iter()
        .map(|host| request(Some(host), Action::UninstallAgent {}, waiting.deadline));
    let asked = asked.collect::<Result<Vec<_>, _>>()?;
    act(context, asked, &waiting, |command| {
        let what = if command.code == codes::INSTALLER_PACKAGED {
            "its identity has ended, its agent stops, its containers go on; the package's files stay: \
             apt-get purge fairlead-agent"
        } else {
            "its identity has ended, its agent takes itself off, its containers go on"
        };
        // No engine has to do with it: its times would mean nothing.
        format!(
            "{}: {what}   command {}",
            clean(&command.host),
            short(&command.id)
        )
    })
    .await
}

/// The colour of a host's or region's state.
pub(crate) fn state_colour(state: &str) -> Option<Colour> {
    match state {
        "online" => Some(Colour::Good),
        "suspect" | "unknown" | "waiting" | "restarting" => Some(Colour::Doubtful),
        "offline" | "held" | "revoked" => Some(Colour::Bad),
        _ => None,
    }
}

/// Hosts that were last heard at least so long ago. One whose region is not connected may be well, so
/// it is not among them.
fn silent(hosts: &[Host], least: std::time::Duration) -> Vec<String> {
    let now = Timestamp::now();
    let is_silent = |host: &&Host| {
        let heard = host.last_seen.unwrap_or(host.enrolled_at);
        let away = u64::try_from(now.as_second() - heard.as_second()).unwrap_or(0);
        host.state == "offline" && away >= least.as_secs()
    };
    let silent = hosts.iter().filter(is_silent);
    silent.map(|host| host.name.clone()).collect()
}

fn hosts_table(hosts: &[Host], now: Timestamp) -> Table {
    let mut table = Table::new([
        "NAME",
        "STATE",
        "SINCE",
        "REGION",
        "CONTAINERS",
        "CPU",
        "MEM",
        "DISK",
        "ENGINE",
        "AGENT",
        "ID",
    ]);
    for host in hosts {
        let metrics = host.metrics.as_ref();
        let facts = host.facts.as_ref();
        table.row([
            Cell::from(&host.name),
            Cell::painted(state_colour(&host.state), &host.state),
            since(host.since, now).into(),
            (&host.region).into(),
            format!("{}/{}", host.containers_running, host.containers).into(),
            metrics
                .map_or(String::new(), |m| format!("{:.1} %", m.cpu_percent))
                .into(),
            metrics
                .map_or(String::new(), |m| bytes_of(m.memory_used, m.memory_total))
                .into(),
            metrics
                .map_or(String::new(), |m| bytes_of(m.disk_used, m.disk_total))
                .into(),
            facts.map_or(String::new(), |f| engine(&f.engine)).into(),
            facts.map_or("", |f| &f.agent_version).into(),
            crate::exit::short(&host.id).into(),
        ]);
    }
    table
}

fn engine(engine: &fairlead_api::types::Engine) -> String {
    if engine.error.is_empty() {
        format!("{} {}", engine.kind, engine.version)
    } else {
        format!("{}: {}", engine.kind, engine.error)
    }
}

fn host_text(host: &Host, now: Timestamp) -> String {
    let mut rows: Vec<(&str, String)> = vec![
        ("name", host.name.clone()),
        ("id", host.id.clone()),
        (
            "state",
            format!("{} since {}", host.state, since(host.since, now)),
        ),
        ("reason", host.reason.clone()),
        ("last heard", ago_or(host.last_seen, now, "never")),
        ("region", host.region.clone()),
        ("labels", labels(&host.labels)),
        ("enrolled", ago(host.enrolled_at, now)),
        (
            "certificate",
            host.certificate_expires_at.map_or(String::new(), |at| {
                if at < now {
                    format!("ended {}", ago(at, now))
                } else {
                    format!("ends {}", ago(at, now))
                }
            }),
        ),
        ("epoch", host.epoch.to_string()),
        ("address", host.address.clone()),
        ("clock", format!("{} ms off", host.clock_offset_ms)),
        (
            "containers",
            format!("{} running of {}", host.containers_running, host.containers),
        ),
    ];
    if let Some(facts) = &host.facts {
        rows.extend([
            (
                "machine",
                format!(
                    "{}, {}, {} ({}), {}",
                    facts.hostname,
                    facts.os,
                    facts.kernel,
                    facts.arch,
                    count(facts.cpus.into(), "processor")
                ),
            ),
            ("engine", engine(&facts.engine)),
            ("agent", agent(facts)),
            ("last return", last_return(facts)),
            ("forbidden here", facts.policy.clone()),
            (
                "host shell",
                if facts.host_shell { "allowed" } else { "" }.to_owned(),
            ),
        ]);
    }
    if let Some(metrics) = &host.metrics {
        rows.extend([
            (
                "cpu",
                format!("{:.1} %, load {:.2}", metrics.cpu_percent, metrics.load1),
            ),
            (
                "memory",
                bytes_of(metrics.memory_used, metrics.memory_total),
            ),
            ("disk", bytes_of(metrics.disk_used, metrics.disk_total)),
            (
                "network",
                format!(
                    "{} in, {} out since boot",
                    bytes(metrics.network_rx),
                    bytes(metrics.network_tx)
                ),
            ),
            (
                "up",
                since(
                    Timestamp::from_second(
                        now.as_second().saturating_sub_unsigned(metrics.uptime_s),
                    )
                    .unwrap_or(now),
                    now,
                ),
            ),
        ]);
    }
    super::facts(&rows)
}

/// The agent's version, and what its host would go back to.
fn agent(facts: &fairlead_api::types::HostFacts) -> String {
    let mut text = facts.agent_version.clone();
    let Some(versions) = &facts.versions else {
        return text;
    };
    if versions.safe_mode {
        text.push_str(", in safe mode: nothing is changed on the host");
    } else if versions.on_trial {
        text.push_str(", on trial");
    }
    if !versions.previous.is_empty() {
        text.push_str(&format!("; before it {}", versions.previous));
    }
    text
}

fn last_return(facts: &fairlead_api::types::HostFacts) -> String {
    let versions = facts.versions.as_ref();
    versions
        .and_then(|versions| versions.last_return.as_ref())
        .map_or_else(String::new, |last| {
            format!("{} made room for {}: {}", last.from, last.to, last.why)
        })
}

/// `a=b, c=d`
pub(crate) fn labels(labels: &fairlead_api::types::Labels) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(", ")
}
