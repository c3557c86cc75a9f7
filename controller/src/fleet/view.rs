//! Hosts and containers as the API shows them.

use fairlead_api::types as api;
use fairlead_api::types::{time, time_or_never};
use fairlead_protocol::{
    AgentVersions, Container, EngineFacts, HostFacts, HostId, Message, PortMapping,
};
use fairlead_store::hosts::HostRow;

use super::picture::{Entry, Picture};
use super::{Fleet, HostNow, Inner, Presence};

/// Which containers.
#[derive(Debug, Clone, Default)]
pub struct ContainerFilter {
    /// Stopped ones too.
    pub all: bool,
    /// Of that Compose project.
    pub project: Option<String>,
    /// Name, or part of it.
    pub name: Option<String>,
}

/// Containers counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stopped ones included.
    pub all: u64,
    /// Running.
    pub running: u64,
    /// With a failing health check or in a restart loop.
    pub unwell: u64,
}

/// A region's connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionState {
    /// Whether its access server is connected.
    pub is_online: bool,
    /// It is not, and is expected back: it was restarted, or this controller was.
    pub is_returning: bool,
    /// Since when; 0: not since this process began.
    pub since_us: i64,
    /// The access server.
    pub server: String,
    /// Its version.
    pub version: String,
    /// Why it cannot write its ledger; empty: it can.
    pub trouble: String,
    /// How far its clock is from ours; empty: they agree.
    pub clock: String,
}

impl Fleet {
    /// A host as the API shows it: what the store knows, and what was told since.
    #[must_use]
    pub fn host(&self, row: &HostRow) -> api::Host {
        let inner = self.read();
        let now = row.id.and_then(|id| inner.hosts.get(&id));
        let (state, since_us, reason) = state_of(&inner, row, now);
        let counts = now
            .and_then(|host| host.picture.as_deref())
            .map(counts)
            .unwrap_or_default();
        let live = matches!(state, "online" | "suspect");
        api::Host {
            id: row.id.map(|id| id.to_string()).unwrap_or_default(),
            name: row.name.clone(),
            tenant: row.tenant.clone(),
            region: row.region.clone(),
            labels: row.labels.clone(),
            state: state.to_owned(),
            since: time(since_us),
            reason,
            last_seen: last_seen(row, now, live),
            enrolled_at: time(row.enrolled_us),
            joined_with: row.token_id.clone(),
            epoch: now.map_or(0, |host| host.epoch).max(row.epoch),
            facts: facts_of(row, now),
            address: now.map(|host| host.address.to_string()).unwrap_or_default(),
            clock_offset_ms: now.map_or(0, |host| host.clock_offset_us / 1000),
            metrics: now
                .and_then(|host| host.sample.as_deref())
                .map(|(at, s)| api::HostMetrics {
                    at: time(*at),
                    cpu_percent: f64::from(s.cpu_permille) / 10.0,
                    load1: f64::from(s.load1_centi) / 100.0,
                    memory_used: s.memory_used,
                    memory_total: s.memory_total,
                    disk_used: s.disk_used,
                    disk_total: s.disk_total,
                    network_rx: s.network_rx,
                    network_tx: s.network_tx,
                    uptime_s: s.uptime_s,
                }),
            containers: counts.all,
            containers_running: counts.running,
            certificate_expires_at: time_or_never(row.certificate_not_after_us),
        }
    }

    /// Only the state of a host, since when, and why: without copying the rest.
    #[must_use]
    pub fn host_state(&self, row: &HostRow) -> (&'static str, i64, String) {
        let inner = self.read();
        state_of(&inner, row, row.id.and_then(|id| inner.hosts.get(&id)))
    }

    /// Which versions of the agent a host has, as it said last.
    #[must_use]
    pub fn versions(&self, row: &HostRow) -> Option<api::AgentVersions> {
        let inner = self.read();
        let now = row.id.and_then(|id| inner.hosts.get(&id));
        facts_of(row, now)?.versions
    }

    /// Containers of these hosts, by host and name.
    #[must_use]
    pub fn containers(&self, hosts: &[HostRow], filter: &ContainerFilter) -> Vec<api::Container> {
        let inner = self.read();
        let mut shown = Vec::new();
        for row in hosts {
            let Some(id) = row.id else { continue };
            let Some(now) = inner.hosts.get(&id) else {
                continue;
            };
            let Some(picture) = now.picture.as_deref() else {
                continue;
            };
            let (state, ..) = state_of(&inner, row, Some(now));
            let live = matches!(state, "online" | "suspect") && picture.engine_answers();
            for entry in picture
                .entries()
                .iter()
                .filter(|entry| filter.takes(&entry.container))
            {
                shown.push(show(row, id, picture, entry, live));
            }
        }
        shown.sort_by(|a, b| (&a.host, &a.name, &a.id).cmp(&(&b.host, &b.name, &b.id)));
        shown
    }

    /// Containers of a host, counted.
    #[must_use]
    pub fn count(&self, id: HostId) -> Counts {
        let inner = self.read();
        inner
            .hosts
            .get(&id)
            .and_then(|host| host.picture.as_deref())
            .map(counts)
            .unwrap_or_default()
    }

    /// A region's connection.
    #[must_use]
    pub fn region(&self, name: &str) -> RegionState {
        let inner = self.read();
        inner
            .regions
            .get(name)
            .map_or_else(RegionState::default, |now| RegionState {
                is_online: now.is_online,
                is_returning: now.back_by_us != 0,
                since_us: now.since_us,
                server: now.server.clone(),
                version: now.version.clone(),
                trouble: now.trouble.clone(),
                clock: now.clock.clone(),
            })
    }

    /// When a copy of the host was last refused; 0: not since this process began.
    #[must_use]
    pub fn clone_refused_us(&self, id: HostId) -> i64 {
        let inner = self.read();
        inner.hosts.get(&id).map_or(0, |host| host.clone_refused_us)
    }
}

impl ContainerFilter {
    fn takes(&self, container: &Container) -> bool {
        (self.all
            || matches!(
                container.state.as_str(),
                "running" | "paused" | "restarting"
            ))
            && self
                .project
                .as_ref()
                .is_none_or(|project| *project == container.project)
            && self
                .name
                .as_ref()
                .is_none_or(|name| container.name.contains(name.as_str()))
    }
}

/// The state of a host: what the store decided goes before what regions tell.
fn state_of(inner: &Inner, row: &HostRow, now: Option<&HostNow>) -> (&'static str, i64, String) {
    if row.revoked_us != 0 {
        return ("revoked", row.revoked_us, String::new());
    }
    let since = now.map_or(0, |host| host.since_us).max(0);
    let since = if since == 0 {
        row.last_seen_us.max(row.enrolled_us)
    } else {
        since
    };
    if !row.held.is_empty() {
        return ("held", since, row.held.clone());
    }
    if let Some(host) = now.filter(|host| host.presence == Presence::Returning) {
        return ("online", since, host.reason.to_string());
    }
    if !inner.region_is_online(&row.region) {
        let region_since = inner
            .regions
            .get(row.region.as_str())
            .map_or(0, |r| r.since_us);
        let since = if region_since == 0 {
            since
        } else {
            region_since
        };
        return (
            "unknown",
            since,
            format!("region {} is not connected", row.region),
        );
    }
    let Some(host) = now else {
        return (
            "offline",
            since,
            "not connected since the controller started".to_owned(),
        );
    };
    let reason = host.reason.to_string();
    match host.presence {
        Presence::Online | Presence::Returning => ("online", since, reason),
        Presence::Suspect => ("suspect", since, reason),
        Presence::Offline => ("offline", since, reason),
        Presence::Untold => ("unknown", since, "its region has not told yet".to_owned()),
    }
}

fn last_seen(row: &HostRow, now: Option<&HostNow>, live: bool) -> Option<jiff::Timestamp> {
    let picture = now
        .and_then(|host| host.picture.as_deref())
        .map_or(0, |p| p.as_of_us);
    let sample = now
        .and_then(|host| host.sample.as_deref())
        .map_or(0, |(at, _)| *at);
    let presence = now.filter(|_| live).map_or(0, |host| host.since_us);
    time_or_never(row.last_seen_us.max(picture).max(sample).max(presence))
}

fn facts_of(row: &HostRow, now: Option<&HostNow>) -> Option<api::HostFacts> {
    let mut facts = now
        .and_then(|host| host.facts.as_deref().cloned())
        .or_else(|| {
            (!row.facts.is_empty())
                .then(|| HostFacts::decode(&row.facts[..]).ok())
                .flatten()
        })?;
    // The inventory is newer than hello: an engine may have gone or come since.
    if let Some(engine) = now
        .and_then(|h| h.picture.as_deref())
        .and_then(|p| p.engine.as_deref())
    {
        facts.engine = Some(engine.clone());
    }
    Some(api::HostFacts {
        hostname: facts.hostname,
        os: facts.os,
        kernel: facts.kernel,
        arch: facts.arch,
        cpus: facts.cpus,
        memory_bytes: facts.memory_bytes,
        engine: facts.engine.map(engine).unwrap_or_default(),
        agent_version: facts.agent_version,
        policy: facts.policy,
        host_shell: facts.host_shell,
        versions: facts.versions.map(versions),
    })
}

fn versions(told: AgentVersions) -> api::AgentVersions {
    api::AgentVersions {
        last_return: (!told.returned_from.is_empty()).then_some(api::LastReturn {
            from: told.returned_from,
            to: told.returned_to,
            why: told.returned_why,
        }),
        started: told.started,
        previous: told.previous,
        on_trial: told.on_trial,
        safe_mode: told.safe_mode,
    }
}

fn engine(facts: EngineFacts) -> api::Engine {
    api::Engine {
        kind: facts.kind,
        version: facts.version,
        api_version: facts.api_version,
        error: facts.error,
        code: facts.code,
        live_restore: facts.live_restore,
        runtime: facts.runtime,
    }
}

fn counts(picture: &Picture) -> Counts {
    let mut counts = Counts::default();
    for entry in picture.entries() {
        let container = &entry.container;
        counts.all += 1;
        counts.running += u64::from(container.state == "running");
        counts.unwell +=
            u64::from(container.health == "unhealthy" || container.state == "restarting");
    }
    counts
}

fn show(row: &HostRow, id: HostId, picture: &Picture, entry: &Entry, live: bool) -> api::Container {
    let c = &entry.container;
    let made_by = c
        .labels
        .iter()
        .find(|label| label.key == "fairlead.command");
    api::Container {
        id: c.id.clone(),
        name: c.name.clone(),
        host: row.name.clone(),
        host_id: id.to_string(),
        region: row.region.clone(),
        image: c.image.clone(),
        image_id: c.image_id.clone(),
        command: c.command.clone(),
        state: c.state.clone(),
        health: c.health.clone(),
        created_at: time(c.created_us),
        started_at: time_or_never(c.started_us),
        finished_at: time_or_never(c.finished_us),
        exit_code: c.exit_code,
        oom_killed: c.oom_killed,
        restarts: c.restarts,
        restart_policy: c.restart_policy.clone(),
        ip: c.ip.clone(),
        ports: c.ports.iter().map(port).collect(),
        networks: c.networks.clone(),
        project: c.project.clone(),
        service: c.service.clone(),
        made_by: made_by.map(|label| label.value.clone()).unwrap_or_default(),
        memory_limit: u64::try_from(c.memory_limit).unwrap_or(0),
        metrics: entry
            .sample
            .as_deref()
            .map(|(at, s)| api::ContainerMetrics {
                at: time(*at),
                cpu_percent: f64::from(s.cpu_permille) / 10.0,
                memory_used: s.memory_used,
                memory_limit: s.memory_limit,
                network_rx: s.network_rx,
                network_tx: s.network_tx,
                pids: s.pids,
            }),
        as_of: time(picture.as_of_us),
        live,
    }
}

/// As docker writes it.
fn port(port: &PortMapping) -> String {
    let proto = if port.proto.is_empty() {
        "tcp"
    } else {
        &port.proto
    };
    if port.host_port == 0 {
        return format!("{}/{proto}", port.container_port);
    }
    let host = match port.host_ip.as_str() {
        "" => "0.0.0.0".to_owned(),
        ip if ip.contains(':') => format!("[{ip}]"),
        ip => ip.to_owned(),
    };
    format!("{host}:{}->{}/{proto}", port.host_port, port.container_port)
}
