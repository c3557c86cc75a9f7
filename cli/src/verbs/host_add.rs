//! `host add`: the line that makes a machine a host, and what becomes of it.

use std::time::Duration;

use fairlead_api::types::{Host, JoinToken, JoinTokenRequest, NewJoinToken, Packages};
use jiff::Timestamp;
use serde::Serialize;

use super::Context;
use super::token::key_values;
use crate::exit::{Exit, Failure};
use crate::output::human::{ago, count};
use crate::output::{clean, say};

/// Between two looks at how far the machine is.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What was asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct HostAdd {
    /// The region that it joins; needed where there are several
    #[arg(long)]
    region: Option<String>,
    /// Labels that it gets
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Time until the line stops working [default: 1h]
    #[arg(long, value_parser = crate::quantities::duration)]
    ttl: Option<Duration>,
    /// How many machines the line lets in [default: 1]
    #[arg(long)]
    uses: Option<u32>,
    /// Only print the line
    #[arg(long)]
    no_wait: bool,
}

/// What is printed for programs.
#[derive(Serialize)]
struct Line {
    line: String,
    join_token: String,
    expires_at: Timestamp,
}

/// `fairlead host add`
pub(crate) async fn add(context: &Context, wanted: HostAdd) -> Result<Exit, Failure> {
    let client = context.client()?;
    let packages: Packages = client.get(&["packages"], &[]).await?;
    let Some(version) = &packages.stable else {
        return Err(Failure::new(
            Exit::NotFound,
            "this controller has no packages yet, so that a machine would find nothing to install",
        )
        .code(fairlead_protocol::codes::PACKAGE_NOT_FOUND)
        .hint("an administrator puts them there: see the guide, page packages"));
    };
    let body = JoinTokenRequest {
        region: wanted.region,
        labels: key_values(&wanted.labels)?,
        ttl_s: wanted.ttl.map(|ttl| ttl.as_secs()),
        uses: wanted.uses,
    };
    let made: NewJoinToken = client.post(&["join-tokens"], &body).await?;
    if made.addresses.is_empty() {
        return Err(Failure::new(
            Exit::Unreachable,
            format!(
                "no access server serves region {} yet: there is nothing that the machine could dial",
                clean(&made.info.region)
            ),
        )
        .code(fairlead_protocol::codes::REGION_OFFLINE)
        .hint("fairlead region ls"));
    }
    let now = Timestamp::now();
    say(&format!(
        "agent {} for region {}; on the machine, as root (lets in {}, ends {}):",
        clean(version),
        clean(&made.info.region),
        count(made.info.uses_max.into(), "machine"),
        ago(made.info.expires_at, now),
    ));
    let shown = Line {
        line: line(&packages, &made),
        join_token: made.info.id.clone(),
        expires_at: made.info.expires_at,
    };
    context
        .out
        .data(&shown, |shown| format!("{}\n", shown.line))?;
    if wanted.no_wait {
        return Ok(Exit::Ok);
    }
    say("waiting for it; Ctrl-C ends the waiting, not the line");
    follow(context, &made.info.id, made.info.uses_max, now).await
}

/// One line for a shell. Nothing in it needs quoting but the pin; the secret is in the environment, so
/// that it does not show in `ps`.
fn line(packages: &Packages, made: &NewJoinToken) -> String {
    let (fetch, pin) = if packages.pin.is_empty() {
        (String::new(), String::new())
    } else {
        let pin = format!("'{}'", packages.pin);
        (format!("k --pinnedpubkey {pin}"), format!(" --pin {pin}"))
    };
    format!(
        "curl -fsSL{fetch} {} | FAIRLEAD_JOIN_TOKEN={} sh -s -- --from {} --address {}{pin}",
        packages.script_url,
        made.token,
        packages.packages_url,
        made.addresses.join(",")
    )
}

/// What has been said of one machine.
#[derive(Default)]
struct Said {
    enrolled: bool,
    connected: bool,
    engine: bool,
}

async fn follow(
    context: &Context,
    token: &str,
    uses_max: u32,
    since: Timestamp,
) -> Result<Exit, Failure> {
    let client = context.client()?;
    // Of downloads the controller keeps the last ones only, so they are told apart by their time.
    let mut said_until = since;
    let mut said: std::collections::BTreeMap<String, Said> = std::collections::BTreeMap::new();
    let mut done = 0;
    loop {
        let packages: Packages = client.get(&["packages"], &[]).await?;
        for download in &packages.downloads {
            if download.at <= said_until {
                continue;
            }
            said_until = download.at;
            let (file, from) = (clean(&download.file), clean(&download.from));
            say(&format!(
                "downloaded  {file} {} by {from}",
                clean(&download.version)
            ));
        }
        let hosts: Vec<Host> = client.list(&["hosts"], &[]).await?;
        for host in hosts.iter().filter(|host| host.joined_with == token) {
            if tick(said.entry(host.id.clone()).or_default(), host) {
                done += 1;
            }
        }
        if done >= uses_max {
            return Ok(Exit::Ok);
        }
        let tokens: Vec<JoinToken> = client.list(&["join-tokens"], &[]).await?;
        let own = tokens.iter().find(|known| known.id == token);
        let ends = |own: &JoinToken| own.revoked_at.is_some() || own.expires_at < Timestamp::now();
        if own.is_none_or(|own| ends(own) && own.uses == done) {
            return Err(Failure::new(
                Exit::Expired,
                "the line works no longer, and the machine has not come",
            )
            .code(fairlead_protocol::codes::TOKEN_EXPIRED)
            .hint("fairlead host add makes a new one"));
        }
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
}

/// Says what is new of that host; whether it is there with all that belongs to it.
fn tick(said: &mut Said, host: &Host) -> bool {
    let name = clean(&host.name);
    if !std::mem::replace(&mut said.enrolled, true) {
        say(&format!("enrolled    {name}, {}", host.id));
    }
    if host.state != "online" {
        return false;
    }
    if !std::mem::replace(&mut said.connected, true) {
        let from = clean(&host.address);
        say(&format!(
            "connected   {name} in region {} from {from}",
            clean(&host.region)
        ));
    }
    let Some(facts) = &host.facts else {
        return false;
    };
    if said.engine {
        return false;
    }
    said.engine = true;
    let engine = &facts.engine;
    if engine.error.is_empty() {
        say(&format!(
            "engine ok   {} {}; {}, none touched",
            clean(&engine.kind),
            clean(&engine.version),
            count(host.containers, "container")
        ));
    } else {
        say(&format!(
            "no engine   {}; the agent goes on looking for one",
            clean(&engine.error)
        ));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_api::types::Labels;

    fn made() -> NewJoinToken {
        NewJoinToken {
            token: "FL1aa::id.secret".to_owned(),
            addresses: vec![
                "fleet.example.com:443".to_owned(),
                "192.0.2.1:7501".to_owned(),
            ],
            info: JoinToken {
                id: "id".to_owned(),
                region: "local".to_owned(),
                labels: Labels::new(),
                purpose: fairlead_api::types::JoinPurpose::Host,
                uses_max: 1,
                uses: 0,
                created_by: String::new(),
                created_at: Timestamp::UNIX_EPOCH,
                expires_at: Timestamp::UNIX_EPOCH,
                revoked_at: None,
            },
        }
    }

    fn packages(pin: &str) -> Packages {
        Packages {
            stable: Some("0.2.0".to_owned()),
            versions: vec!["0.2.0".to_owned()],
            script_url: "https://fleet.example.com/install.sh".to_owned(),
            packages_url: "https://fleet.example.com/packages".to_owned(),
            pin: pin.to_owned(),
            downloads: Vec::new(),
        }
    }

    #[test]
    fn the_line_is_one_that_can_be_pasted() {
        assert_eq!(
            line(&packages(""), &made()),
            "curl -fsSL https://fleet.example.com/install.sh | FAIRLEAD_JOIN_TOKEN=FL1aa::id.secret \
             sh -s -- --from https://fleet.example.com/packages \
             --address fleet.example.com:443,192.0.2.1:7501"
        );
        let pinned = line(&packages("sha256//AbC="), &made());
        assert!(pinned.starts_with("curl -fsSLk --pinnedpubkey 'sha256//AbC=' https://"));
        assert!(pinned.ends_with(" --pin 'sha256//AbC='"));
    }
}
