//! Rollouts: planned, begun, steered by people, and moved on every second, by what `rollouts::decide` says.
//!
//! A step is on disk before anybody is asked, and who is asked is asked by a command whose id follows from the
//! rollout, the host and the attempt: a controller that dies in between asks the same again, and nobody twice.

use std::collections::{HashMap, HashSet};

use fairlead_api::backend::RolloutOrder;
use fairlead_api::input::{invalid, plain};
use fairlead_api::types::{
    LeftOut, Permission, Rollout as Shown, RolloutHost, RolloutRequest, time,
};
use fairlead_api::{ApiError, Caller};
use fairlead_identity::digest::{hex, sha256};
use fairlead_identity::random;
use fairlead_protocol::{CommandId, HostId, codes};
use fairlead_store::hosts::HostRow;
use fairlead_store::rollouts::RolloutRow;

use super::hosts::pick;
use super::{ControllerBackend, Note};
use crate::rollouts::decide::{LIFE_US, Member, Phase, Rollout, Step};

mod driving;

const SECOND_US: i64 = 1_000_000;
/// What is asked for when nobody says.
const WAVES: [u32; 3] = [5, 25, 100];
const BETWEEN_S: u32 = 600;
const SILENT_S: u32 = 120;
/// Longest that somebody may ask for.
const WAIT_S_MAX: u32 = 24 * 3600;
/// Hosts in one rollout.
const HOSTS_MAX: usize = 20_000;
/// Most waves.
const WAVES_MAX: usize = 20;
/// Rollouts without an end at a time.
const OPEN_MAX: usize = 16;
/// Of the newest so many are listed, and looked through for a prefix.
const LISTED_MAX: u32 = 50;

impl ControllerBackend {
    pub(super) async fn plan_rollout(
        &self,
        caller: &Caller,
        request: RolloutRequest,
    ) -> Result<Shown, ApiError> {
        caller.require(Permission::Upgrade)?;
        let version = plain(&request.version);
        let found = self.parts.packages.manifest(&request.version);
        let (_, hash) = found.ok_or_else(|| {
            let message = format!("there is no package of version {version:?} here");
            ApiError::new(codes::PACKAGE_NOT_FOUND, message)
                .hint("fairlead agent versions; fairlead agent push FOLDER")
        })?;
        let (hosts, left_out) = self.hosts_for(caller, &request).await?;
        let (rollout, names) = planned(&request, hosts, hex(&hash), self.now_us())?;
        let id = if request.dry_run {
            String::new()
        } else {
            CommandId::from_bytes(random::bytes()).to_string()
        };
        let row = RolloutRow {
            id,
            tenant: caller.tenant.clone(),
            created_us: rollout.begun_us,
            open: true,
            asked_by: caller.actor(),
            token_id: caller.token_id.clone(),
            payload: written(&rollout)?,
        };
        let mut shown = shown(&row, &rollout, &names);
        shown.left_out = left_out;
        if request.dry_run {
            return Ok(shown);
        }
        let _one = self.steering.lock().await;
        self.check_free(&rollout)?;
        let detail = format!(
            "rollout {} over {} hosts in {} waves",
            row.id,
            rollout.members.len(),
            rollout.waves
        );
        let note = Note::ok("agent.upgrade", format!("version {version}")).detail(detail);
        let entry = self.entry(caller, &note);
        self.write(move |tx| {
            tx.set_rollout(&row)?;
            tx.append_audit(&entry, sha256).map(|_| ())
        })
        .await?;
        Ok(shown)
    }

    /// The hosts that are to be upgraded, those that are there first, and those that are not, with why.
    async fn hosts_for(
        &self,
        caller: &Caller,
        request: &RolloutRequest,
    ) -> Result<(Vec<HostRow>, Vec<LeftOut>), ApiError> {
        let visible = self.visible_hosts(caller).await?;
        let mut meant = Vec::new();
        if request.hosts.is_empty() {
            meant = visible;
        } else {
            for name in &request.hosts {
                let row = pick(&visible, name)?;
                if meant.iter().all(|known: &HostRow| known.id != row.id) {
                    meant.push(row);
                }
            }
        }
        let (mut there, mut away, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for row in meant {
            let host = self.parts.fleet.host(&row);
            let facts = host.facts.unwrap_or_default();
            let started = facts.versions.as_ref().map(|v| v.started.as_str());
            let online = host.state == "online";
            let why = if started == Some(request.version.as_str()) {
                "it has the version"
            } else if facts.versions.is_none() && online {
                "its agent was not installed by install.sh, or is of a version that is not upgraded from here"
            } else {
                ""
            };
            if !why.is_empty() {
                left_out.push(LeftOut {
                    host: row.name,
                    why: why.to_owned(),
                });
            } else if online {
                there.push(row);
            } else {
                away.push(row);
            }
        }
        there.append(&mut away);
        Ok((there, left_out))
    }

    /// One host is in one rollout at a time.
    fn check_free(&self, rollout: &Rollout) -> Result<(), ApiError> {
        let open = self.look(|tx| tx.rollouts(true, u32::MAX))?;
        if open.len() >= OPEN_MAX {
            let message = format!("{OPEN_MAX} rollouts have no end yet");
            return Err(ApiError::new(codes::BUSY, message).hint("fairlead agent upgrade ls"));
        }
        let own: HashSet<&str> = rollout.members.iter().map(|m| m.host.as_str()).collect();
        for row in &open {
            let other = read(row)?;
            let mut there = other.members.iter();
            if there.any(|member| {
                !matches!(member.step, Step::Missed) && own.contains(member.host.as_str())
            }) {
                let message = format!(
                    "rollout {} to version {} has some of these hosts already",
                    row.id, other.version
                );
                return Err(ApiError::new(codes::ALREADY_EXISTS, message)
                    .hint(format!("fairlead agent upgrade abort {}", row.id)));
            }
        }
        Ok(())
    }

    pub(super) async fn list_rollouts(&self, caller: &Caller) -> Result<Vec<Shown>, ApiError> {
        let rows = self.read(|tx| tx.rollouts(false, LISTED_MAX)).await?;
        let mut all = Vec::new();
        for row in rows.iter().filter(|row| row.tenant == caller.tenant) {
            let rollout = read(row)?;
            let mut one = shown(row, &rollout, &HashMap::new());
            one.hosts.clear();
            all.push(one);
        }
        Ok(all)
    }

    /// Shows a rollout, and steers it before, where that is asked.
    pub(super) async fn steer_rollout(
        &self,
        caller: &Caller,
        id: &str,
        order: Option<RolloutOrder>,
    ) -> Result<Shown, ApiError> {
        let Some(order) = order else {
            let row = self.find_rollout(caller, id)?;
            return self.shown_rollout(caller, &row).await;
        };
        caller.require(Permission::Upgrade)?;
        let _one = self.steering.lock().await;
        let mut row = self.find_rollout(caller, id)?;
        let mut rollout = read(&row)?;
        self.sees_all(caller, &rollout)?;
        let now_us = self.now_us();
        let (done, what) = match order {
            RolloutOrder::Pause => (rollout.pause(now_us), "pause"),
            RolloutOrder::Resume => (rollout.resume(now_us), "resume"),
            RolloutOrder::Abort => (rollout.abort(now_us), "abort"),
        };
        if !done {
            let state = rollout.phase.name();
            let message = format!("rollout {} is {state}: it cannot {what}", row.id);
            return Err(invalid(message));
        }
        row.open = !rollout.phase.is_final();
        row.payload = written(&rollout)?;
        let note = Note::ok(
            &format!("agent.upgrade-{what}"),
            format!("rollout {}", row.id),
        );
        let entry = self.entry(caller, &note);
        let kept = row.clone();
        self.write(move |tx| {
            tx.set_rollout(&kept)?;
            tx.append_audit(&entry, sha256).map(|_| ())
        })
        .await?;
        self.shown_rollout(caller, &row).await
    }

    /// Who steers a rollout must see all of its hosts.
    fn sees_all(&self, caller: &Caller, rollout: &Rollout) -> Result<(), ApiError> {
        if caller.sees_everything() {
            return Ok(());
        }
        for member in &rollout.members {
            let Ok(id) = member.host.parse::<HostId>() else {
                continue;
            };
            let row = self.look(|tx| tx.host(id))?;
            if row.is_some_and(|row| !caller.sees(&row.region, &row.labels)) {
                let message = "the rollout has hosts that this token does not see";
                return Err(ApiError::new(codes::PERMISSION_DENIED, message));
            }
        }
        Ok(())
    }

    fn find_rollout(&self, caller: &Caller, id: &str) -> Result<RolloutRow, ApiError> {
        let rows = self.look(|tx| match tx.rollout(id)? {
            Some(row) => Ok(vec![row]),
            None => tx.rollouts(false, LISTED_MAX),
        })?;
        let mut found: Vec<RolloutRow> = rows
            .into_iter()
            .filter(|row| row.tenant == caller.tenant && row.id.starts_with(id))
            .collect();
        match found.len() {
            1 if !id.is_empty() => Ok(found.remove(0)),
            0 | 1 => {
                let message = format!("there is no rollout {:?}", plain(id));
                Err(ApiError::new(codes::NOT_FOUND, message).hint("fairlead agent upgrade ls"))
            }
            _ => {
                let message = format!("{:?} begins the ids of several rollouts", plain(id));
                Err(ApiError::new(codes::AMBIGUOUS, message).hint("give more of the id"))
            }
        }
    }

    /// With the hosts that the caller sees.
    async fn shown_rollout(&self, caller: &Caller, row: &RolloutRow) -> Result<Shown, ApiError> {
        let rollout = read(row)?;
        let names: HashMap<String, String> = self
            .read({
                let tenant = caller.tenant.clone();
                move |tx| tx.hosts(Some(&tenant))
            })
            .await?
            .into_iter()
            .filter(|host| caller.sees(&host.region, &host.labels))
            .filter_map(|host| Some((host.id?.to_string(), host.name)))
            .collect();
        Ok(shown(row, &rollout, &names))
    }
}

/// The same for the same asking, whoever makes it.
fn command_id(rollout: &str, member: &Member) -> CommandId {
    let text = format!("rollout {rollout} host {} {}", member.host, member.attempt);
    let mut id = [0; 16];
    id.copy_from_slice(&sha256(text.as_bytes())[..16]);
    CommandId::from_bytes(id)
}

/// The rollout that is asked for, and its hosts' names.
fn planned(
    request: &RolloutRequest,
    hosts: Vec<HostRow>,
    manifest: String,
    now_us: i64,
) -> Result<(Rollout, HashMap<String, String>), ApiError> {
    let percents = if request.waves.is_empty() {
        &WAVES[..]
    } else {
        &request.waves[..]
    };
    let rises = percents.windows(2).all(|pair| pair[0] < pair[1]);
    let shares = percents.iter().all(|percent| (1..=100).contains(percent));
    if percents.len() > WAVES_MAX || !rises || !shares || percents.last() != Some(&100) {
        return Err(invalid("waves must rise from 1 to 100, such as 5, 25, 100"));
    }
    let wait = |what: &str, asked: Option<u32>, or: u32| match asked.unwrap_or(or) {
        wait if wait <= WAIT_S_MAX => Ok(i64::from(wait) * SECOND_US),
        _ => Err(invalid(format!("{what} must be at most {WAIT_S_MAX}"))),
    };
    let (between_us, silent_us) = (
        wait("between_s", request.between_s, BETWEEN_S)?,
        wait("silent_s", request.silent_s, SILENT_S)?,
    );
    if hosts.is_empty() {
        return Err(
            invalid("there is no host to upgrade: all of them are left out")
                .hint("fairlead agent versions; fairlead host ls"),
        );
    }
    if hosts.len() > HOSTS_MAX {
        return Err(invalid(format!("a rollout has {HOSTS_MAX} hosts at most")));
    }
    let canaries = request.canary.unwrap_or(1) as usize;
    let sizes = Rollout::sizes(hosts.len(), canaries, percents);
    let waves = sizes
        .iter()
        .enumerate()
        .flat_map(|(wave, size)| std::iter::repeat_n(wave, *size));
    let mut names = HashMap::new();
    let members = hosts
        .into_iter()
        .zip(waves)
        .filter_map(|(row, wave)| {
            let host = row.id?.to_string();
            names.insert(host.clone(), row.name);
            Some(Member {
                host,
                wave,
                step: Step::Waiting,
                since_us: now_us,
                attempt: 0,
                detail: String::new(),
                forgiven: false,
            })
        })
        .collect();
    let rollout = Rollout {
        version: request.version.clone(),
        manifest,
        allow_older: request.allow_older,
        begun_us: now_us,
        between_us,
        silent_us,
        wave: 0,
        waves: sizes.len(),
        phase: Phase::Upgrading,
        since_us: now_us,
        members,
    };
    Ok((rollout, names))
}

fn read(row: &RolloutRow) -> Result<Rollout, ApiError> {
    serde_json::from_str(&row.payload).map_err(|error| {
        tracing::error!(rollout = row.id, %error, "a rollout cannot be read");
        ApiError::new(codes::INTERNAL, "the rollout cannot be read")
    })
}

fn written(rollout: &Rollout) -> Result<String, ApiError> {
    serde_json::to_string(rollout).map_err(|error| {
        tracing::error!(%error, "a rollout cannot be written");
        ApiError::new(codes::INTERNAL, "the rollout cannot be written")
    })
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// As the API shows it, with the hosts that have a name.
fn shown(row: &RolloutRow, rollout: &Rollout, names: &HashMap<String, String>) -> Shown {
    let hosts = rollout.members.iter().filter_map(|member| {
        Some(RolloutHost {
            host: names.get(&member.host)?.clone(),
            wave: number(member.wave + 1),
            state: member.step.name().to_owned(),
            since: time(member.since_us),
            detail: member.detail.clone(),
            command: match member.attempt {
                0 => String::new(),
                _ => command_id(&row.id, member).to_string(),
            },
        })
    });
    let (reason, next_wave_at) = match &rollout.phase {
        Phase::Halted { why } => (why.clone(), None),
        Phase::Between { until_us } => (String::new(), Some(time(*until_us))),
        _ => (String::new(), None),
    };
    let of_wave = |wave| rollout.members.iter().filter(|m| m.wave == wave).count();
    Shown {
        id: row.id.clone(),
        version: rollout.version.clone(),
        state: rollout.phase.name().to_owned(),
        reason,
        since: time(rollout.since_us),
        next_wave_at,
        wave: number(rollout.wave + 1),
        waves: (0..rollout.waves).map(of_wave).map(number).collect(),
        asked_by: row.asked_by.clone(),
        created_at: time(row.created_us),
        ends_by: time(rollout.begun_us.saturating_add(LIFE_US)),
        hosts: hosts.collect(),
        left_out: Vec::new(),
    }
}
