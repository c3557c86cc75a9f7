//! A container to be made: checked field by field, with docker's meaning.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fairlead_api::ApiError;
use fairlead_api::input::{invalid, text};
use fairlead_api::types::{ContainerSpec, Health, Mount, Port};
use fairlead_protocol as wire;
use fairlead_protocol::limits::{NAME_CHARS_MAX, TEXT_CHARS_MAX};

use super::convert::{
    SETTINGS_MAX, absolute, container_name, environment, image, platform, signal, user, words,
    workdir_of,
};
use super::names;

/// The engine takes no smaller memory limit.
const MEMORY_BYTES_MIN: i64 = 6 * 1024 * 1024;
/// Labels of this kind are ours.
const OUR_LABELS: &str = "fairlead.";

type Checked<T> = Result<T, ApiError>;

/// The wire's form of a spec.
pub(super) fn container(spec: &ContainerSpec) -> Checked<wire::ContainerSpec> {
    let name = if spec.name.is_empty() {
        names::generate()
    } else {
        spec.name.clone()
    };
    container_name(&name)?;
    sizes(spec)?;
    isolation(spec)?;
    if spec.labels.keys().any(|key| key.starts_with(OUR_LABELS)) {
        return Err(invalid(
            "labels that begin with \"fairlead.\" are Fairlead's own",
        ));
    }
    Ok(wire::ContainerSpec {
        name,
        image: image(&spec.image)?,
        command: words("command", &spec.command)?,
        entrypoint: words("entrypoint", spec.entrypoint.as_deref().unwrap_or_default())?,
        entrypoint_set: spec.entrypoint.is_some(),
        env: environment(&spec.env)?,
        labels: labels("labels", &spec.labels)?,
        ports: few("ports", &spec.ports)?
            .iter()
            .map(port)
            .collect::<Checked<_>>()?,
        mounts: few("mounts", &spec.mounts)?
            .iter()
            .map(mount)
            .collect::<Checked<_>>()?,
        network: plain("network", &spec.network)?,
        network_aliases: list("network_aliases", &spec.network_aliases)?,
        restart_policy: restart_policy(spec)?,
        restart_max: spec.restart_max,
        memory_bytes: spec.memory_bytes,
        memory_reservation_bytes: spec.memory_reservation_bytes,
        memory_swap_bytes: spec.memory_swap_bytes,
        nano_cpus: spec.nano_cpus,
        cpu_shares: spec.cpu_shares,
        cpuset_cpus: cpuset(&spec.cpuset_cpus)?,
        pids_limit: spec.pids_limit,
        user: user(&spec.user)?,
        workdir: workdir_of(&spec.workdir)?,
        hostname: plain("hostname", &spec.hostname)?,
        tty: spec.tty,
        stdin_open: spec.stdin_open,
        read_only: spec.read_only,
        init: spec.init,
        privileged: spec.privileged,
        cap_add: list("cap_add", &spec.cap_add)?,
        cap_drop: list("cap_drop", &spec.cap_drop)?,
        devices: list("devices", &spec.devices)?,
        security_opt: list("security_opt", &spec.security_opt)?,
        pid_mode: spec.pid_mode.clone(),
        ipc_mode: spec.ipc_mode.clone(),
        uts_mode: spec.uts_mode.clone(),
        userns_mode: spec.userns_mode.clone(),
        tmpfs: few("tmpfs", &spec.tmpfs)?
            .iter()
            .map(|path| absolute("tmpfs", path))
            .collect::<Checked<_>>()?,
        sysctls: labels("sysctls", &spec.sysctls)?,
        extra_hosts: list("extra_hosts", &spec.extra_hosts)?,
        dns: list("dns", &spec.dns)?,
        stop_signal: signal(&spec.stop_signal)?,
        stop_timeout_s: spec.stop_timeout_s,
        auto_remove: spec.auto_remove,
        health: spec.health.as_ref().map(health).transpose()?,
        log_driver: plain("log_driver", &spec.log_driver)?,
        log_options: labels("log_options", &spec.log_options)?,
        group_add: list("group_add", &spec.group_add)?,
        ulimits: list("ulimits", &spec.ulimits)?,
        shm_bytes: spec.shm_bytes,
        publish_all: spec.publish_all,
        platform: platform(&spec.platform)?,
        expose: list("expose", &spec.expose)?,
        pull: one_of("pull", &spec.pull, &["", "missing", "always", "never"])?,
        ip: address("ip", &spec.ip)?,
        mac_address: plain("mac_address", &spec.mac_address)?,
        dns_search: list("dns_search", &spec.dns_search)?,
        dns_options: list("dns_options", &spec.dns_options)?,
        domainname: plain("domainname", &spec.domainname)?,
        oom_score_adj: spec.oom_score_adj,
        oom_kill_disable: spec.oom_kill_disable,
        cgroup_parent: plain("cgroup_parent", &spec.cgroup_parent)?,
        runtime: plain("runtime", &spec.runtime)?,
    })
}

/// What of a spec reaches beyond its container, for the audit log; empty: nothing.
pub(super) fn reach(spec: &wire::ContainerSpec) -> String {
    const SENSITIVE: [&str; 7] = ["/", "/etc", "/proc", "/sys", "/dev", "/root", "/var/run"];
    let mut reaches = Vec::new();
    let mut note = |holds: bool, what: &str| {
        if holds {
            reaches.push(what.to_owned());
        }
    };
    note(spec.privileged, "privileged");
    note(spec.network == "host", "host network");
    note(spec.pid_mode == "host", "host processes");
    note(spec.ipc_mode == "host", "host ipc");
    note(spec.uts_mode == "host", "host name");
    note(spec.userns_mode == "host", "host users");
    note(!spec.devices.is_empty(), "devices");
    note(!spec.cap_add.is_empty(), "added capabilities");
    note(
        spec.security_opt.iter().any(|o| o.contains("unconfined")),
        "unconfined",
    );
    for bind in spec.mounts.iter().filter(|mount| mount.kind == "bind") {
        let source = bind.source.trim_end_matches('/');
        let source = if source.is_empty() { "/" } else { source };
        let is_sensitive = source.ends_with(".sock")
            || SENSITIVE.contains(&source)
            || SENSITIVE[1..]
                .iter()
                .any(|path| source.starts_with(&format!("{path}/")));
        if is_sensitive {
            reaches.push(format!("bind of {source}"));
        }
    }
    reaches.truncate(12);
    reaches.join(", ")
}

fn sizes(spec: &ContainerSpec) -> Checked<()> {
    let memory = [
        ("memory_bytes", spec.memory_bytes),
        ("memory_reservation_bytes", spec.memory_reservation_bytes),
    ];
    for (what, bytes) in memory {
        if bytes != 0 && bytes < MEMORY_BYTES_MIN {
            return Err(invalid(format!(
                "{what} must be 0 (none) or at least {MEMORY_BYTES_MIN}"
            )));
        }
    }
    if spec.memory_swap_bytes < -1 {
        return Err(invalid(
            "memory_swap_bytes must be -1 (unlimited), 0 or more",
        ));
    }
    if spec.memory_swap_bytes > 0 && spec.memory_swap_bytes < spec.memory_bytes {
        return Err(invalid(
            "memory_swap_bytes is memory and swap together: at least memory_bytes",
        ));
    }
    if spec.nano_cpus < 0 || spec.cpu_shares < 0 || spec.shm_bytes < 0 || spec.pids_limit < -1 {
        return Err(invalid("limits must not be negative"));
    }
    if !(-1000..=1000).contains(&spec.oom_score_adj) {
        return Err(invalid("oom_score_adj must be -1000 to 1000"));
    }
    Ok(())
}

fn isolation(spec: &ContainerSpec) -> Checked<()> {
    let of_container = |mode: &str| {
        mode.strip_prefix("container:")
            .is_some_and(|name| container_name(name).is_ok())
    };
    let check = |what: &str, mode: &str, words: &[&str], containers: bool| {
        if mode.is_empty() || words.contains(&mode) || (containers && of_container(mode)) {
            return Ok(());
        }
        Err(invalid(format!(
            "{what} {:?} is not known",
            fairlead_api::input::plain(mode)
        )))
    };
    check("pid_mode", &spec.pid_mode, &["host"], true)?;
    check(
        "ipc_mode",
        &spec.ipc_mode,
        &["host", "private", "shareable", "none"],
        true,
    )?;
    check("uts_mode", &spec.uts_mode, &["host"], false)?;
    check("userns_mode", &spec.userns_mode, &["host"], false)
}

fn restart_policy(spec: &ContainerSpec) -> Checked<String> {
    let policies = ["", "no", "always", "unless-stopped", "on-failure"];
    let policy = one_of("restart_policy", &spec.restart_policy, &policies)?;
    if spec.restart_max != 0 && policy != "on-failure" {
        return Err(invalid(
            "restart_max goes with restart_policy on-failure only",
        ));
    }
    if spec.auto_remove && !matches!(policy.as_str(), "" | "no") {
        return Err(invalid(
            "auto_remove and a restart policy contradict each other",
        ));
    }
    Ok(policy)
}

fn port(port: &Port) -> Checked<wire::PortMapping> {
    if port.container_port == 0 {
        return Err(invalid("ports: container_port must be 1 to 65535"));
    }
    Ok(wire::PortMapping {
        host_ip: address("ports: host_ip", &port.host_ip)?,
        host_port: u32::from(port.host_port),
        container_port: u32::from(port.container_port),
        proto: match one_of("ports: proto", &port.proto, &["", "tcp", "udp", "sctp"])?.as_str() {
            "" => "tcp".to_owned(),
            proto => proto.to_owned(),
        },
    })
}

fn mount(mount: &Mount) -> Checked<wire::MountSpec> {
    const PROPAGATION: [&str; 7] = [
        "", "private", "rprivate", "shared", "rshared", "slave", "rslave",
    ];
    let kind = one_of("mounts: kind", &mount.kind, &["bind", "volume", "tmpfs"])?;
    let source = match kind.as_str() {
        "bind" => absolute("mounts: source", &mount.source)?,
        "volume" if mount.source.is_empty() => String::new(),
        "volume" => {
            container_name(&mount.source)
                .map_err(|_| invalid("mounts: source is not a volume's name"))?;
            mount.source.clone()
        }
        _ if mount.source.is_empty() => String::new(),
        _ => return Err(invalid("mounts: a tmpfs has no source")),
    };
    Ok(wire::MountSpec {
        kind,
        source,
        target: absolute("mounts: target", &mount.target)?,
        read_only: mount.read_only,
        propagation: one_of("mounts: propagation", &mount.propagation, &PROPAGATION)?,
    })
}

fn health(health: &Health) -> Checked<wire::HealthSpec> {
    if health.command.contains('\0') || health.command.chars().count() > TEXT_CHARS_MAX {
        return Err(invalid(
            "health: command is too long or contains a NUL character",
        ));
    }
    if health.disabled && !health.command.is_empty() {
        return Err(invalid(
            "health: a command and disabled contradict each other",
        ));
    }
    Ok(wire::HealthSpec {
        disabled: health.disabled,
        command: health.command.clone(),
        interval_ms: health.interval_ms,
        timeout_ms: health.timeout_ms,
        start_period_ms: health.start_period_ms,
        retries: health.retries,
    })
}

fn labels(what: &str, map: &BTreeMap<String, String>) -> Checked<Vec<wire::Label>> {
    if map.len() > SETTINGS_MAX {
        return Err(invalid(format!(
            "{what} has more than {SETTINGS_MAX} members"
        )));
    }
    map.iter()
        .map(|(key, value)| {
            text(what, key, NAME_CHARS_MAX)?;
            if key.is_empty() || value.contains('\0') {
                return Err(invalid(format!("{what}: keys must not be empty")));
            }
            Ok(wire::Label {
                key: key.clone(),
                value: value.clone(),
            })
        })
        .collect()
}

fn few<'a, T>(what: &str, items: &'a [T]) -> Checked<&'a [T]> {
    if items.len() > SETTINGS_MAX {
        return Err(invalid(format!(
            "{what} has more than {SETTINGS_MAX} members"
        )));
    }
    Ok(items)
}

fn list(what: &str, items: &[String]) -> Checked<Vec<String>> {
    few(what, items)?
        .iter()
        .map(|item| {
            if item.is_empty() {
                return Err(invalid(format!("{what} has an empty member")));
            }
            text(what, item, TEXT_CHARS_MAX)?;
            Ok(item.clone())
        })
        .collect()
}

/// A word without white space, or nothing.
fn plain(what: &str, value: &str) -> Checked<String> {
    text(what, value, TEXT_CHARS_MAX)?;
    if value.chars().any(char::is_whitespace) {
        return Err(invalid(format!("{what} contains white space")));
    }
    Ok(value.to_owned())
}

fn one_of(what: &str, value: &str, words: &[&str]) -> Checked<String> {
    if words.contains(&value) {
        return Ok(value.to_owned());
    }
    let known: Vec<&str> = words
        .iter()
        .copied()
        .filter(|word| !word.is_empty())
        .collect();
    Err(invalid(format!(
        "{what} must be one of {}",
        known.join(", ")
    )))
}

fn address(what: &str, value: &str) -> Checked<String> {
    if value.is_empty() || value.parse::<IpAddr>().is_ok() {
        return Ok(value.to_owned());
    }
    Err(invalid(format!("{what} must be an IP address")))
}

fn cpuset(value: &str) -> Checked<String> {
    if value.len() <= NAME_CHARS_MAX
        && value
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
    {
        return Ok(value.to_owned());
    }
    Err(invalid(
        "cpuset_cpus must be numbers and ranges, for instance 0-1,3",
    ))
}
