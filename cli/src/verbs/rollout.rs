//! `agent versions`, `agent push` and `agent upgrade`: versions on their way to the hosts.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use fairlead_api::types::{AgentVersion, PushedFile, Rollout, RolloutHost, RolloutRequest};
use fairlead_identity::package::{MANIFEST_BYTES_MAX, MANIFEST_NAME, SIGNATURES_NAME};
use jiff::Timestamp;

use super::Context;
use crate::args::{Upgrade, UpgradeVerb};
use crate::client::{Client, Retry};
use crate::exit::{Exit, Failure, short};
use crate::output::human::{ago, clock, since};
use crate::output::table::{Cell, Table};
use crate::output::{Colour, clean, say};

/// How often a rollout that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A server that is away is waited for this long.
const WAIT_FOR_SERVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// `fairlead agent versions`
pub(super) async fn versions(context: &Context) -> Result<Exit, Failure> {
    let client = context.client()?;
    let versions: Vec<AgentVersion> = client.list(&["agent", "versions"], &[]).await?;
    context.out.data(&versions, |versions| {
        let now = Timestamp::now();
        let mut table = Table::new(["VERSION", "FOR", "SIGNED BY", "MADE", "ENDS", "HOSTS"]);
        for version in versions {
            let ends = if version.expires_at < now {
                Cell::painted(Some(Colour::Bad), "ended")
            } else {
                ago(version.expires_at, now).into()
            };
            table.row([
                Cell::from(&version.version),
                version.targets.join(" ").into(),
                version.signed_by.join(" ").into(),
                ago(version.released_at, now).into(),
                ends,
                version.hosts.to_string().into(),
            ]);
        }
        table.render(&context.out)
    })?;
    Ok(Exit::Ok)
}

/// `fairlead agent push FOLDER`
pub(super) async fn push(context: &Context, folder: &Path) -> Result<Exit, Failure> {
    let client = context.client()?;
    let path = folder.join(MANIFEST_NAME);
    let reading = |error| Failure::local(&format!("cannot read {}", path.display()), &error);
    let about = std::fs::metadata(&path).map_err(reading)?;
    let no_package = || {
        Failure::usage(format!("{} is not a package", folder.display()))
            .hint("a package is a folder with a manifest, as ./dev package makes it")
    };
    if about.len() > MANIFEST_BYTES_MAX as u64 {
        return Err(no_package());
    }
    // The server reads it for what it is; here only where it belongs matters.
    let text = std::fs::read_to_string(&path).map_err(reading)?;
    let version = text.lines().find_map(|line| line.strip_prefix("version "));
    let version = version.ok_or_else(no_package)?.to_owned();
    let mut pushed = PushedFile {
        listed: false,
        wanted: vec![SIGNATURES_NAME.to_owned(), MANIFEST_NAME.to_owned()],
    };
    // What is wanted next the server says.
    while let Some(name) = pushed.wanted.first().cloned() {
        let file = folder.join(&name);
        let path = ["agent", "versions", &version, "files", &name];
        pushed = client.put_file(&path, &file).await?;
    }
    if !pushed.listed {
        return Err(Failure::new(
            Exit::Failed,
            "the server did not take all of it",
        ));
    }
    context
        .out
        .data(&pushed, |_| format!("version {version} is there\n"))?;
    say(&format!(
        "upgrade hosts to it: fairlead agent upgrade --to {version}"
    ));
    Ok(Exit::Ok)
}

/// `fairlead agent upgrade …`
pub(super) async fn upgrade(context: &Context, args: Upgrade) -> Result<Exit, Failure> {
    let client = context.client()?;
    match args.verb {
        None => begin(context, &client, args).await,
        Some(UpgradeVerb::Ls) => {
            let all: Vec<Rollout> = client.list(&["agent", "rollouts"], &[]).await?;
            context.out.data(&all, |all| {
                listed(all, Timestamp::now()).render(&context.out)
            })?;
            Ok(Exit::Ok)
        }
        Some(UpgradeVerb::Show { id }) => {
            let rollout: Rollout = client.get(&["agent", "rollouts", &id], &[]).await?;
            show(context, &rollout)?;
            Ok(Exit::Ok)
        }
        Some(UpgradeVerb::Watch { id }) => {
            let rollout: Rollout = client.get(&["agent", "rollouts", &id], &[]).await?;
            follow(context, &client, rollout).await
        }
        Some(UpgradeVerb::Pause { id }) => steer(context, &client, &id, "pause").await,
        Some(UpgradeVerb::Resume { id }) => steer(context, &client, &id, "resume").await,
        Some(UpgradeVerb::Abort { id }) => steer(context, &client, &id, "abort").await,
    }
}

async fn steer(context: &Context, client: &Client, id: &str, what: &str) -> Result<Exit, Failure> {
    let path = ["agent", "rollouts", id, what];
    let rollout: Rollout = client.post(&path, &serde_json::json!({})).await?;
    context.out.data(&rollout, |rollout| {
        format!(
            "rollout {} is {}\n",
            short(&rollout.id),
            clean(&rollout.state)
        )
    })?;
    Ok(Exit::Ok)
}

async fn begin(context: &Context, client: &Client, args: Upgrade) -> Result<Exit, Failure> {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let request = RolloutRequest {
        version: args.to.unwrap_or_default(),
        hosts: args.hosts,
        canary: args.canary,
        waves: args.wave,
        between_s: args.between.map(seconds),
        silent_s: None,
        allow_older: args.allow_older,
        dry_run: args.dry_run,
    };
    let rollout: Rollout = client.post(&["agent", "rollouts"], &request).await?;
    for left in &rollout.left_out {
        say(&format!(
            "{} is left out: {}",
            clean(&left.host),
            clean(&left.why)
        ));
    }
    if args.dry_run {
        context.out.data(&rollout, planned)?;
        return Ok(Exit::Ok);
    }
    if args.no_wait {
        context
            .out
            .data(&rollout, |rollout| format!("{}\n", rollout.id))?;
        return Ok(Exit::Ok);
    }
    follow(context, client, rollout).await
}

/// The waves, a line each.
fn planned(rollout: &Rollout) -> String {
    let mut text = String::new();
    for (index, size) in rollout.waves.iter().enumerate() {
        let wave = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let hosts = rollout.hosts.iter().filter(|host| host.wave == wave);
        let names: Vec<String> = hosts
            .take(8)
            .map(|host| clean(&host.host).into_owned())
            .collect();
        let more = if *size as usize > names.len() {
            ", …"
        } else {
            ""
        };
        text.push_str(&format!(
            "wave {wave}: {size} hosts: {}{more}\n",
            names.join(", ")
        ));
    }
    text
}

/// Says what changes, until it ends or halts.
async fn follow(context: &Context, client: &Client, rollout: Rollout) -> Result<Exit, Failure> {
    let id = rollout.id.clone();
    context.open.follow_rollout(Some(&id));
    say(&format!(
        "rollout {} of version {}: {} hosts in {} waves",
        short(&id),
        clean(&rollout.version),
        rollout.waves.iter().sum::<u32>(),
        rollout.waves.len()
    ));
    let mut told = Told::default();
    let mut now = rollout;
    loop {
        told.say(&now);
        if is_over(&now) {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let mut retry = Retry::until(tokio::time::Instant::now() + WAIT_FOR_SERVER);
        now = loop {
            match client.get(&["agent", "rollouts", &id], &[]).await {
                Err(failure) if failure.transient => retry.pause(failure).await?,
                done => break done?,
            }
        };
    }
    context.open.follow_rollout(None);
    if context.out.is_structured() {
        context.out.structured(&now)?;
    }
    let bad = now.hosts.iter().filter(|host| is_bad(host)).count();
    match now.state.as_str() {
        "finished" if bad == 0 => Ok(Exit::Ok),
        "finished" => Ok(Exit::SomeFailed),
        "halted" => Err(Failure::new(
            Exit::SomeFailed,
            format!("the rollout halted: {}", clean(&now.reason)),
        )
        .hint(format!(
            "fairlead agent upgrade show {0}; then resume {0}, or abort {0}",
            short(&id)
        ))),
        state => Err(Failure::new(
            Exit::Failed,
            format!("the rollout was {state}"),
        )),
    }
}

fn is_over(rollout: &Rollout) -> bool {
    ["finished", "halted", "aborted", "expired"].contains(&rollout.state.as_str())
}

fn is_bad(host: &RolloutHost) -> bool {
    host.state == "failed" || host.state == "silent"
}

/// What has been said.
#[derive(Default)]
struct Told {
    state: String,
    wave: u32,
    hosts: HashMap<String, String>,
}

impl Told {
    fn say(&mut self, rollout: &Rollout) {
        let now = Timestamp::now();
        for host in &rollout.hosts {
            let last = self.hosts.insert(host.host.clone(), host.state.clone());
            let news = last.as_ref() != Some(&host.state) && host.state != "waiting";
            if news {
                let name = clean(&host.host);
                let detail = if host.detail.is_empty() {
                    String::new()
                } else {
                    format!(": {}", clean(&host.detail))
                };
                say(&format!("{name}  {}{detail}", host.state));
            }
        }
        if self.state != rollout.state || self.wave != rollout.wave {
            self.state.clone_from(&rollout.state);
            self.wave = rollout.wave;
            say(&phase(rollout, now));
        }
    }
}

/// Where it is, in words.
fn phase(rollout: &Rollout, now: Timestamp) -> String {
    let waves = rollout.waves.len();
    match rollout.state.as_str() {
        "upgrading" => format!("wave {} of {waves}", rollout.wave),
        "between" => match rollout.next_wave_at {
            Some(at) if rollout.wave as usize >= waves => format!(
                "the last wave is over, and is watched until {}",
                clock(at, now)
            ),
            Some(at) => format!(
                "wave {} of {waves} is over; the next begins at {}",
                rollout.wave,
                clock(at, now)
            ),
            None => format!("wave {} of {waves} is over", rollout.wave),
        },
        "trailing" => {
            let ends = clock(rollout.ends_by, now);
            format!(
                "all waves are over; hosts that are away are upgraded as they return, until {ends}"
            )
        }
        "halted" => format!("halted: {}", clean(&rollout.reason)),
        state => clean(state).into_owned(),
    }
}

fn colour(state: &str) -> Option<Colour> {
    match state {
        "done" | "finished" => Some(Colour::Good),
        "waiting" | "asked" | "upgrading" | "between" | "trailing" | "paused" => {
            Some(Colour::Doubtful)
        }
        "failed" | "silent" | "halted" | "expired" => Some(Colour::Bad),
        _ => None,
    }
}

fn listed(all: &[Rollout], now: Timestamp) -> Table {
    let mut table = Table::new(["ID", "VERSION", "STATE", "SINCE", "WAVE", "HOSTS", "BY"]);
    for rollout in all {
        table.row([
            short(&rollout.id).into(),
            Cell::from(&rollout.version),
            Cell::painted(colour(&rollout.state), &rollout.state),
            since(rollout.since, now).into(),
            format!("{}/{}", rollout.wave, rollout.waves.len()).into(),
            rollout.waves.iter().sum::<u32>().to_string().into(),
            (&rollout.asked_by).into(),
        ]);
    }
    table
}

fn show(context: &Context, rollout: &Rollout) -> Result<(), Failure> {
    context.out.data(rollout, |rollout| {
        let now = Timestamp::now();
        let mut text = super::facts(&[
            ("rollout", rollout.id.clone()),
            ("version", rollout.version.clone()),
            (
                "state",
                format!("{}, {}", phase(rollout, now), ago(rollout.since, now)),
            ),
            (
                "asked by",
                format!("{}, {}", rollout.asked_by, ago(rollout.created_at, now)),
            ),
            ("ends by", ago(rollout.ends_by, now)),
        ]);
        let mut table = Table::new(["HOST", "WAVE", "STATE", "SINCE", "COMMAND", "DETAIL"]);
        for host in &rollout.hosts {
            table.row([
                Cell::from(&host.host),
                host.wave.to_string().into(),
                Cell::painted(colour(&host.state), &host.state),
                since(host.since, now).into(),
                short(&host.command).into(),
                (&host.detail).into(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(&context.out));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_printed_with_some_of_their_hosts() {
        let host = |name: &str, wave| RolloutHost {
            host: name.to_owned(),
            wave,
            ..RolloutHost::default()
        };
        let mut rollout = Rollout {
            waves: vec![1, 10],
            hosts: vec![host("a", 1)],
            ..Rollout::default()
        };
        rollout
            .hosts
            .extend((0..10).map(|n| host(&format!("b{n}"), 2)));
        let text = planned(&rollout);
        assert_eq!(
            text,
            "wave 1: 1 hosts: a\nwave 2: 10 hosts: b0, b1, b2, b3, b4, b5, b6, b7, …\n"
        );
    }
}
