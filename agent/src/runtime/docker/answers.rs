//! The engine's answers, as far as they are read, and what they are in Fairlead's words.
//!
//! Own structures instead of bollard's: a state or field that is new (or Podman's) must not make a
//! whole list unreadable, and what is not needed is not kept in memory.

use std::collections::BTreeMap;

use fairlead_protocol::{Container, EngineFacts, Label, PortMapping};
use serde::{Deserialize, Deserializer};

use super::errors::clean;
use crate::runtime::{EngineEvent, EngineState};

/// Labels of ours begin with this; only they travel with the inventory.
const OWN_LABEL_PREFIX: &str = "fairlead.";
/// Marks what a command of ours made.
pub(super) const COMMAND_LABEL: &str = "fairlead.command";
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// Go writes `null` for an empty list or map.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct VersionAnswer {
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) version: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) components: Vec<Component>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Component {
    pub(super) name: String,
    pub(super) version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct InfoAnswer {
    pub(super) live_restore_enabled: bool,
    docker_root_dir: String,
    driver: String,
    cgroup_driver: String,
    cgroup_version: String,
    #[serde(deserialize_with = "null_is_empty")]
    warnings: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    swarm: SwarmAnswer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct SwarmAnswer {
    local_node_state: String,
}

impl InfoAnswer {
    /// With the facts that are known already.
    pub(super) fn state(self, facts: EngineFacts) -> EngineState {
        // An engine says which version from 20.10 on; before that there was only one.
        let version = match &self.cgroup_version[..] {
            "" => "1",
            version => version,
        };
        EngineState {
            data_dir: self.docker_root_dir,
            storage: clean(&self.driver),
            cgroups: clean(&format!("cgroup v{version}, {}", self.cgroup_driver)),
            swarm: matches!(&self.swarm.local_node_state[..], "active" | "locked"),
            warnings: self.warnings.iter().map(|line| clean(line)).collect(),
            facts,
        }
    }
}

/// A row of the list call.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Row {
    pub(super) id: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) names: Vec<String>,
    pub(super) image: String,
    #[serde(rename = "ImageID")]
    pub(super) image_id: String,
    pub(super) command: String,
    pub(super) created: i64,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) ports: Vec<RowPort>,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) labels: BTreeMap<String, String>,
    pub(super) state: String,
    pub(super) status: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) network_settings: Networks,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RowPort {
    #[serde(rename = "IP")]
    ip: String,
    private_port: u32,
    public_port: u32,
    #[serde(rename = "Type")]
    proto: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Networks {
    #[serde(deserialize_with = "null_is_empty")]
    networks: BTreeMap<String, Endpoint>,
    #[serde(deserialize_with = "null_is_empty")]
    ports: BTreeMap<String, Option<Vec<Binding>>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Endpoint {
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "GlobalIPv6Address")]
    ipv6_address: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Binding {
    host_ip: String,
    host_port: String,
}

/// What is read of an inspected container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inspected {
    pub(super) id: String,
    name: String,
    image: String,
    created: String,
    path: String,
    #[serde(deserialize_with = "null_is_empty")]
    args: Vec<String>,
    restart_count: u32,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) state: State,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) config: Config,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) host_config: Host,
    #[serde(deserialize_with = "null_is_empty")]
    network_settings: Networks,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct State {
    pub(super) status: String,
    pub(super) running: bool,
    pub(super) pid: i64,
    pub(super) exit_code: i64,
    #[serde(rename = "OOMKilled")]
    pub(super) oom_killed: bool,
    started_at: String,
    finished_at: String,
    #[serde(deserialize_with = "null_is_empty")]
    health: Health,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Health {
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    image: String,
    pub(super) tty: bool,
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) labels: BTreeMap<String, String>,
    pub(super) stop_timeout: Option<i64>,
    #[serde(deserialize_with = "null_is_empty")]
    healthcheck: HealthTest,
    #[serde(deserialize_with = "null_is_empty")]
    shell: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HealthTest {
    #[serde(deserialize_with = "null_is_empty")]
    test: Vec<String>,
}

impl Config {
    /// The words of the health check's exec, as the engine's events show them; empty: none.
    fn probe(&self) -> String {
        match self.healthcheck.test.split_first() {
            Some((how, words)) if how == "CMD" => words.join(" "),
            Some((how, words)) if how == "CMD-SHELL" => {
                let shell = match self.shell.as_slice() {
                    [] => "/bin/sh -c".to_owned(),
                    own => own.join(" "),
                };
                format!("{shell} {}", words.join(" "))
            }
            _ => String::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Host {
    pub(super) network_mode: String,
    pub(super) auto_remove: bool,
    pub(super) memory: i64,
    #[serde(deserialize_with = "null_is_empty")]
    restart_policy: Restart,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Restart {
    name: String,
}

/// What the list call does not say and an inspect does.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Depth {
    pub(super) image: String,
    pub(super) health: String,
    pub(super) probe: String,
    pub(super) started_us: i64,
    pub(super) finished_us: i64,
    pub(super) exit_code: i32,
    pub(super) oom_killed: bool,
    pub(super) restarts: u32,
    pub(super) restart_policy: String,
    pub(super) memory_limit: i64,
    pub(super) pid: u32,
    pub(super) host_network: bool,
}

impl Inspected {
    pub(super) fn depth(&self) -> Depth {
        let health = match self.state.health.status.as_str() {
            "none" => String::new(),
            status => status.to_owned(),
        };
        Depth {
            image: self.config.image.clone(),
            health,
            probe: self.config.probe(),
            started_us: time_us(&self.state.started_at),
            finished_us: time_us(&self.state.finished_at),
            exit_code: i32::try_from(self.state.exit_code).unwrap_or(i32::MAX),
            oom_killed: self.state.oom_killed,
            restarts: self.restart_count,
            restart_policy: match self.host_config.restart_policy.name.as_str() {
                "" => "no".to_owned(),
                name => name.to_owned(),
            },
            memory_limit: self.host_config.memory.max(0),
            pid: u32::try_from(self.state.pid).unwrap_or(0),
            host_network: self.host_config.network_mode == "host",
        }
    }

    /// The container as in the inventory.
    pub(super) fn container(&self) -> Container {
        let mut command = self.path.clone();
        for argument in &self.args {
            command.push(' ');
            command.push_str(argument);
        }
        let mut container = Container {
            id: self.id.clone(),
            name: self.name.trim_start_matches('/').to_owned(),
            image: self.config.image.clone(),
            image_id: self.image.clone(),
            state: state_word(&self.state.status),
            created_us: time_us(&self.created),
            ip: self.network_settings.first_ip(),
            ports: self.network_settings.mappings(),
            networks: self.network_settings.names(),
            command,
            ..Container::default()
        };
        labelled(&mut container, &self.config.labels);
        deepened(&mut container, &self.depth());
        container
    }
}

impl Row {
    /// The container as in the inventory, completed with what an inspect said.
    pub(super) fn container(&self, depth: &Depth) -> Container {
        let mut ports: Vec<PortMapping> = self
            .ports
            .iter()
            .map(|port| PortMapping {
                host_ip: port.ip.clone(),
                host_port: port.public_port,
                container_port: port.private_port,
                proto: port.proto.clone(),
            })
            .collect();
        sort_ports(&mut ports);
        let image = if depth.image.is_empty() {
            &self.image
        } else {
            &depth.image
        };
        let mut container = Container {
            id: self.id.clone(),
            name: self.name(),
            image: image.clone(),
            image_id: self.image_id.clone(),
            state: state_word(&self.state),
            created_us: self.created.saturating_mul(1_000_000),
            ip: self.network_settings.first_ip(),
            ports,
            networks: self.network_settings.names(),
            command: self.command.clone(),
            ..Container::default()
        };
        labelled(&mut container, &self.labels);
        deepened(&mut container, depth);
        container
    }

    /// Its own name: links show up as names with a second slash.
    fn name(&self) -> String {
        self.names
            .iter()
            .map(|name| name.trim_start_matches('/'))
            .find(|name| !name.contains('/'))
            .unwrap_or_default()
            .to_owned()
    }
}

impl Networks {
    fn first_ip(&self) -> String {
        let v4 = self
            .networks
            .values()
            .map(|e| &e.ip_address)
            .find(|ip| !ip.is_empty());
        let v6 = || {
            self.networks
                .values()
                .map(|e| &e.ipv6_address)
                .find(|ip| !ip.is_empty())
        };
        v4.or_else(v6).cloned().unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        self.networks.keys().cloned().collect()
    }

    fn mappings(&self) -> Vec<PortMapping> {
        let mut ports = Vec::new();
        for (key, bindings) in &self.ports {
            let (port, proto) = key.split_once('/').unwrap_or((key, "tcp"));
            let mapping = |host_ip: &str, host_port: &str| PortMapping {
                host_ip: host_ip.to_owned(),
                host_port: host_port.parse().unwrap_or(0),
                container_port: port.parse().unwrap_or(0),
                proto: proto.to_owned(),
            };
            match bindings {
                Some(bindings) if !bindings.is_empty() => {
                    ports.extend(bindings.iter().map(|b| mapping(&b.host_ip, &b.host_port)));
                }
                _ => ports.push(mapping("", "")),
            }
        }
        sort_ports(&mut ports);
        ports
    }
}

/// The engine lists ports in no order; an order keeps a container equal to itself.
fn sort_ports(ports: &mut Vec<PortMapping>) {
    ports.sort_by(|a, b| {
        let key = |p: &PortMapping| (p.container_port, p.host_port);
        (key(a), &a.proto, &a.host_ip).cmp(&(key(b), &b.proto, &b.host_ip))
    });
    ports.dedup();
}

fn labelled(container: &mut Container, labels: &BTreeMap<String, String>) {
    container.project = labels.get(COMPOSE_PROJECT).cloned().unwrap_or_default();
    container.service = labels.get(COMPOSE_SERVICE).cloned().unwrap_or_default();
    container.labels = labels
        .iter()
        .filter(|(key, _)| key.starts_with(OWN_LABEL_PREFIX))
        .map(|(key, value)| Label {
            key: key.clone(),
            value: value.clone(),
        })
        .collect();
}

fn deepened(container: &mut Container, depth: &Depth) {
    container.health.clone_from(&depth.health);
    container.started_us = depth.started_us;
    container.finished_us = depth.finished_us;
    container.exit_code = depth.exit_code;
    container.oom_killed = depth.oom_killed;
    container.restarts = depth.restarts;
    container.restart_policy.clone_from(&depth.restart_policy);
    container.memory_limit = depth.memory_limit;
}

/// Podman has more states than Docker; each has its nearest.
fn state_word(state: &str) -> String {
    match state {
        "configured" | "initialized" => "created",
        "stopped" => "exited",
        "stopping" => "running",
        other => other,
    }
    .to_owned()
}

/// Microseconds since 1970 of the engine's RFC 3339; 0 for its "never" (year 1) and for nonsense.
pub(super) fn time_us(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>()
        .map_or(0, |time| time.as_microsecond().max(0))
}

/// An event as the engine tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EventLine {
    #[serde(rename = "Type")]
    object: String,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    time: i64,
    #[serde(rename = "timeNano")]
    time_nano: i64,
    /// Podman's and old engines' place for the action.
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(deserialize_with = "null_is_empty")]
    attributes: BTreeMap<String, String>,
}

impl EventLine {
    pub(super) fn event(mut self) -> EngineEvent {
        let mut take = |key: &str| self.actor.attributes.remove(key).unwrap_or_default();
        let (name, image, command_label) = (take("name"), take("image"), take(COMMAND_LABEL));
        let detail = ["exitCode", "signal", "oldName"]
            .into_iter()
            .map(take)
            .find(|value| !value.is_empty())
            .unwrap_or_default();
        let at_us = if self.time_nano != 0 {
            self.time_nano / 1000
        } else {
            self.time.saturating_mul(1_000_000)
        };
        let action = if self.action.is_empty() {
            self.status
        } else {
            self.action
        };
        EngineEvent {
            at_us,
            object: self.object,
            action,
            id: self.actor.id,
            name,
            image,
            detail,
            command_label,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_states_and_nulls_are_read() {
        let row: Row = serde_json::from_str(
            r#"{"Id":"1","Names":["/a/link","/web"],"Ports":null,"Labels":null,"State":"initialized",
                "NetworkSettings":{"Networks":{"b":{"IPAddress":""},"c":{"IPAddress":"10.1.1.1"}}},"New":7}"#,
        )
        .unwrap();
        let container = row.container(&Depth::default());
        assert_eq!(container.state, "created");
        assert_eq!(container.name, "web");
        assert_eq!(container.ip, "10.1.1.1");
        assert_eq!(container.networks, ["b", "c"]);
    }

    #[test]
    fn never_is_zero() {
        assert_eq!(time_us("0001-01-01T00:00:00Z"), 0);
        assert_eq!(time_us("nonsense"), 0);
        assert_eq!(time_us("1970-01-01T00:00:01.000002999Z"), 1_000_002);
        assert_eq!(time_us("1970-01-01T01:00:01+01:00"), 1_000_000);
    }

    #[test]
    fn events_are_read() {
        let line = r#"{"status":"die","id":"1f","from":"img","Type":"container","Action":"die",
            "Actor":{"ID":"1f","Attributes":{"exitCode":"3","image":"img","name":"web","fairlead.command":"c1"}},
            "scope":"local","time":5,"timeNano":5000001000}"#;
        let event = serde_json::from_str::<EventLine>(line).unwrap().event();
        let expected = EngineEvent {
            at_us: 5_000_001,
            object: "container".into(),
            action: "die".into(),
            id: "1f".into(),
            name: "web".into(),
            image: "img".into(),
            detail: "3".into(),
            command_label: "c1".into(),
        };
        assert_eq!(event, expected);
    }
}
