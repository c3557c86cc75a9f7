//! `fairlead-agent status`: what runs here, whether it has a link, and whether engine, policy and identity
//! are as they should be. Servers are told of the versions in it, and upgrades look there too. Reads only.

use std::io::{self, Write};
use std::path::Path;

use fairlead_identity::digest::hex;
use fairlead_protocol::{AgentVersions, codes};

use crate::config::Config;
use crate::handoff::words::{OneInstance, Status};
use crate::identity::IdentityFiles;
use crate::link_report::LinkReport;
use crate::{app, policy};

/// Of why a version returned, what is told to servers.
const WORDS_MAX: usize = 400;

/// When a process began, in ticks since the machine's start: with the pid it names a process for good.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(start)
}

/// Whether that process lives. One whose start was not written (by an older version) counts by its pid.
fn lives(pid: u32, start: Option<u64>) -> bool {
    start_of(pid).is_some_and(|now| start.is_none_or(|start| start == now))
}

/// What lives of that, and the owner's pid.
fn processes(state_dir: &Path) -> (Vec<String>, Option<u32>) {
    let Some(status) = read(state_dir) else {
        return (vec!["the supervisor has not run here".to_owned()], None);
    };
    if !lives(status.supervisor, status.supervisor_start) {
        let none = "none runs: start the service (systemctl start fairlead-agent)";
        return (vec![none.to_owned()], None);
    }
    let mut lines = vec![format!(
        "supervisor {}{}, {}",
        status.supervisor,
        named(&status.supervisor_version),
        if status.phase.is_empty() {
            "steady"
        } else {
            &status.phase
        }
    )];
    let living = |instance: &&OneInstance| lives(instance.pid, instance.start);
    lines.extend(status.instances.iter().filter(living).map(|instance| {
        let version = named(&instance.version);
        let (role, pid, epoch) = (&instance.role, instance.pid, instance.epoch);
        format!("{role} {pid}{version}, epoch {epoch}")
    }));
    let owner = status
        .instances
        .iter()
        .filter(living)
        .find(|instance| Some(instance.pid) == status.agent)
        .map(|instance| instance.pid);
    if owner.is_none() {
        lines.push("no agent: it is started again in 30 s at most".to_owned());
    }
    lines.extend(versions(&status));
    (lines, owner)
}

fn named(version: &str) -> String {
    if version.is_empty() {
        String::new()
    } else {
        format!(" version {version}")
    }
}

/// Which version is started, and which one did not get or keep the host.
fn versions(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    if !status.current.is_empty() {
        let trial = match (status.safe, status.tries_left) {
            (true, _) => ", in safe mode: nothing is changed on this machine".to_owned(),
            (false, Some(left)) => format!(", on trial, {left} starts left"),
            (false, None) => String::new(),
        };
        let previous = status.previous.as_deref().unwrap_or("none");
        lines.push(format!(
            "started is {}{trial}; before it {previous}",
            status.current
        ));
    }
    if let Some(returned) = &status.returned {
        lines.push(format!(
            "last return: {} made room for {}: {}",
            returned.from, returned.to, returned.why
        ));
    }
    lines
}

/// What the supervisor says of versions, for the servers; `None` where the agent is not laid out in versions.
#[must_use]
pub fn versions_of(state_dir: &Path) -> Option<AgentVersions> {
    let status = read(state_dir)?;
    if status.current.is_empty() {
        return None;
    }
    let cut = |text: &str| text.chars().take(WORDS_MAX).collect::<String>();
    let returned = status.returned.as_ref();
    Some(AgentVersions {
        on_trial: status.tries_left.is_some(),
        safe_mode: status.safe,
        previous: status.previous.unwrap_or_default(),
        started: status.current,
        returned_from: returned.map(|r| r.from.clone()).unwrap_or_default(),
        returned_to: returned.map(|r| r.to.clone()).unwrap_or_default(),
        returned_why: returned.map(|r| cut(&r.why)).unwrap_or_default(),
        supervisor: status.supervisor_version,
    })
}

/// What the supervisor has written down of itself and its agents.
#[must_use]
pub(crate) fn read(state_dir: &Path) -> Option<Status> {
    let text = std::fs::read(state_dir.join("status.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn link(state: Option<&LinkReport>, agent: Option<u32>) -> String {
    let at = |us: i64| {
        jiff::Timestamp::from_microsecond(us)
            .map(|at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
            .unwrap_or_default()
    };
    let why = |state: &LinkReport| {
        let code = if state.code.is_empty() || state.why.contains(&state.code) {
            String::new()
        } else {
            format!(" ({})", state.code)
        };
        format!("{}{code}", state.why)
    };
    match (state, agent) {
        (Some(state), Some(agent)) if state.agent == agent && state.up => {
            format!("up since {}, to {}", at(state.since_us), state.address)
        }
        (Some(state), Some(agent)) if state.agent == agent => format!(
            "none since {}; last dialled {}: {}",
            at(state.since_us),
            state.address,
            why(state)
        ),
        (_, Some(_)) => "none yet".to_owned(),
        (Some(state), None) if !state.up => {
            format!("none; the last agent said: {}", why(state))
        }
        (_, None) => "none".to_owned(),
    }
}

/// Whether servers refuse the identity that is here for good, as the agent of now or the last one was told.
fn is_revoked(said: Option<&LinkReport>, agent: Option<u32>) -> bool {
    said.is_some_and(|said| {
        let is_its = agent.is_none_or(|agent| agent == said.agent);
        !said.up && said.code == codes::REVOKED && is_its
    })
}

/// Prints it; whether an agent runs here and its identity can be used.
#[must_use]
pub fn print(config: &Config) -> bool {
    let identity = IdentityFiles::new(&config.state_dir).load();
    let (processes, agent) = processes(&config.state_dir);
    let said = LinkReport::read(&config.state_dir);
    let revoked = matches!(identity, Ok(Some(_))) && is_revoked(said.as_ref(), agent);
    let enrolled = match &identity {
        // The installer looks for that word.
        Ok(Some(identity)) if revoked => format!(
            "REVOKED: it was {} in region {}, and was taken back: no server lets it in any more ({})\n          \
             The containers go on. To join again: a new line of `fairlead host add`, with --re-enrol;\n          \
             to take the agent off: fairlead-agent uninstall",
            identity.enrolment.name,
            identity.enrolment.region,
            codes::REVOKED
        ),
        Ok(Some(identity)) => format!(
            "enrolled as {} in region {}, certificate {}",
            identity.enrolment.name,
            identity.enrolment.region,
            identity.enrolment.certificate_counter
        ),
        Ok(None) => "not enrolled".to_owned(),
        Err(error) => error.to_string(),
    };
    say(&format!("identity  {enrolled}"));
    // The installer holds it against a token's.
    if let Ok(Some(identity)) = &identity {
        say(&format!("ca        {}", hex(&identity.root.hash())));
    }
    say(&format!("processes {}", processes.join("\n          ")));
    say(&format!("link      {}", link(said.as_ref(), agent)));
    let forbidden = policy::PolicyFile::new(&config.policy).summary();
    if forbidden.is_empty() {
        say(&format!(
            "policy    forbids nothing ({})",
            config.policy.display()
        ));
    } else {
        say(&format!("policy    forbids {forbidden}"));
    }
    say(&format!("engine    {}", engine(config)));
    identity.is_ok() && agent.is_some() && !revoked
}

/// Whoever reads may have read enough.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn engine(config: &Config) -> String {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return "could not be asked".to_owned();
    };
    runtime.block_on(async {
        match app::runtime(config) {
            Ok(engine) => {
                let facts = engine.facts().await;
                if facts.error.is_empty() {
                    let (kind, version) = (facts.kind, facts.version);
                    format!("{kind} {version} (API {})", facts.api_version)
                } else {
                    facts.error
                }
            }
            Err(error) => error.to_string(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_of_others_are_not_taken_for_ours() {
        let dir = tempfile::tempdir().unwrap();
        let me = std::process::id();
        let start = start_of(me).unwrap();
        let write = |supervisor: u64, agent: u64| {
            let status = Status {
                supervisor: me,
                supervisor_start: Some(supervisor),
                agent: Some(me),
                instances: vec![OneInstance {
                    pid: me,
                    start: Some(agent),
                    epoch: 3,
                    role: "owner".to_owned(),
                    ..OneInstance::default()
                }],
                ..Status::default()
            };
            let text = serde_json::to_vec(&status).unwrap();
            std::fs::write(dir.path().join("status.json"), text).unwrap();
            let (lines, agent) = processes(dir.path());
            (lines.join("; "), agent)
        };
        let (said, agent) = write(start, start);
        assert!(said.contains(&format!("owner {me}, epoch 3")), "{said}");
        assert_eq!(agent, Some(me));
        let (said, agent) = write(start, start + 1);
        assert!(said.contains("no agent") && agent.is_none(), "{said}");
        let (said, agent) = write(start + 1, start);
        assert!(said.contains("none runs") && agent.is_none(), "{said}");
    }

    #[test]
    fn revoked_is_what_the_agent_of_now_or_the_last_one_was_told() {
        let down = |code| LinkReport::down("a:443", "no".to_owned(), code, 1);
        let told = down(codes::REVOKED);
        let me = told.agent;
        assert!(is_revoked(Some(&told), Some(me)) && is_revoked(Some(&told), None));
        // Another agent has come since, perhaps with another identity.
        assert!(!is_revoked(Some(&told), Some(me + 1)));
        assert!(!is_revoked(Some(&down(codes::HELD)), Some(me)));
        assert!(!is_revoked(Some(&LinkReport::up("a:443", 1)), Some(me)));
        assert!(!is_revoked(None, None));
    }

    #[test]
    fn the_link_is_that_of_the_agent_that_lives() {
        let up = LinkReport::up("a:443", 1_700_000_000_000_000);
        let me = Some(up.agent);
        assert_eq!(
            link(Some(&up), me),
            "up since 2023-11-14 22:13:20 UTC, to a:443"
        );
        assert_eq!(link(Some(&up), Some(up.agent + 1)), "none yet");
        assert_eq!(link(Some(&up), None), "none");
        let why = "the server's answer".to_owned();
        let down = LinkReport::down("a:443", why, "revoked", 1_700_000_000_000_000);
        assert_eq!(
            link(Some(&down), me),
            "none since 2023-11-14 22:13:20 UTC; last dialled a:443: the server's answer (revoked)"
        );
    }
}
