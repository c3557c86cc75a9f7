//! How single fields of the spec are written for the engine, each with its own errors.

use std::collections::HashMap;

use bollard::models::{
    DeviceMapping, EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, NetworkingConfig, PortBinding,
    PortMap, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use fairlead_protocol::{HealthSpec, Label, MountSpec, PortMapping};

use crate::runtime::RuntimeError;
use crate::runtime::docker::transport::ApiVersion;

/// From here on a MAC address belongs to the endpoint, before to the container.
pub(super) const API_ENDPOINT_MAC: ApiVersion = ApiVersion::new(1, 44);
/// What an image's own entrypoint is cleared with.
const NO_ENTRYPOINT: &str = "";

/// An error that names the field.
pub(super) fn wrong(field: &str, why: &str) -> RuntimeError {
    RuntimeError::Engine(format!("the field {field} cannot be used: {why}"))
}

pub(super) fn one_of(field: &str, value: &str, allowed: &[&str]) -> Result<(), RuntimeError> {
    if allowed.contains(&value) {
        Ok(())
    } else {
        Err(wrong(
            field,
            &format!("{value:?} is not one of {}", allowed.join(", ")),
        ))
    }
}

pub(super) fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn some_true(value: bool) -> Option<bool> {
    value.then_some(true)
}

pub(super) fn some_number(value: i64) -> Option<i64> {
    (value != 0).then_some(value)
}

pub(super) fn some_list<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

pub(super) fn some_map<T>(map: HashMap<String, T>) -> Option<HashMap<String, T>> {
    (!map.is_empty()).then_some(map)
}

pub(super) fn map_of(
    field: &str,
    labels: &[Label],
) -> Result<HashMap<String, String>, RuntimeError> {
    if labels.iter().any(|label| label.key.is_empty()) {
        return Err(wrong(field, "a key is empty"));
    }
    Ok(labels
        .iter()
        .map(|label| (label.key.clone(), label.value.clone()))
        .collect())
}

pub(super) fn entrypoint_of(
    given: &[String],
    set: bool,
) -> Result<Option<Vec<String>>, RuntimeError> {
    match (set, given.is_empty()) {
        (false, true) => Ok(None),
        (false, false) => Err(wrong("entrypoint", "it is given but not marked as set")),
        // `--entrypoint ""` means: none, not the image's.
        (true, true) => Ok(Some(vec![NO_ENTRYPOINT.to_owned()])),
        (true, false) => Ok(Some(given.to_vec())),
    }
}

/// Binds as `-v` writes them (a missing directory is made, as Docker does), and all other mounts.
pub(super) fn mounts_of(mounts: &[MountSpec]) -> Result<(Vec<String>, Vec<Mount>), RuntimeError> {
    let (mut binds, mut others) = (Vec::new(), Vec::new());
    for mount in mounts {
        let MountSpec {
            kind,
            source,
            target,
            read_only,
            propagation,
        } = mount;
        if !target.starts_with('/') {
            return Err(wrong(
                "mounts.target",
                &format!("{target:?} is not absolute"),
            ));
        }
        if kind != "bind" && !propagation.is_empty() {
            return Err(wrong("mounts.propagation", "only binds have one"));
        }
        match kind.as_str() {
            "bind" if !source.starts_with('/') => {
                return Err(wrong(
                    "mounts.source",
                    &format!("{source:?} is not absolute"),
                ));
            }
            "bind" if source.contains(':') || target.contains(':') => {
                // The short form has no way to write a colon; the long one does not make a
                // missing directory.
                others.push(Mount {
                    typ: Some(MountType::BIND),
                    source: Some(source.clone()),
                    target: Some(target.clone()),
                    read_only: some_true(*read_only),
                    bind_options: propagation_of(propagation)?,
                    ..Mount::default()
                });
            }
            "bind" => {
                propagation_of(propagation)?;
                let options: Vec<&str> = [if *read_only { "ro" } else { "" }, propagation]
                    .into_iter()
                    .filter(|option| !option.is_empty())
                    .collect();
                let separator = if options.is_empty() { "" } else { ":" };
                binds.push(format!("{source}:{target}{separator}{}", options.join(",")));
            }
            "volume" if source.contains('/') => {
                return Err(wrong("mounts.source", "a volume's name has no slash"));
            }
            "volume" => others.push(Mount {
                typ: Some(MountType::VOLUME),
                source: some_text(source),
                target: Some(target.clone()),
                read_only: some_true(*read_only),
                ..Mount::default()
            }),
            "tmpfs" if !source.is_empty() => {
                return Err(wrong("mounts.source", "a tmpfs has none"));
            }
            "tmpfs" => others.push(Mount {
                typ: Some(MountType::TMPFS),
                target: Some(target.clone()),
                read_only: some_true(*read_only),
                ..Mount::default()
            }),
            other => {
                let why = format!("{other:?} is not one of bind, volume, tmpfs");
                return Err(wrong("mounts.kind", &why));
            }
        }
    }
    Ok((binds, others))
}

pub(super) fn propagation_of(text: &str) -> Result<Option<MountBindOptions>, RuntimeError> {
    use MountBindOptionsPropagationEnum as P;
    let propagation = match text {
        "" => return Ok(None),
        "private" => P::PRIVATE,
        "rprivate" => P::RPRIVATE,
        "shared" => P::SHARED,
        "rshared" => P::RSHARED,
        "slave" => P::SLAVE,
        "rslave" => P::RSLAVE,
        other => {
            return Err(wrong(
                "mounts.propagation",
                &format!("{other:?} is unknown"),
            ));
        }
    };
    Ok(Some(MountBindOptions {
        propagation: Some(propagation),
        ..MountBindOptions::default()
    }))
}

pub(super) fn ports_of(
    ports: &[PortMapping],
    expose: &[String],
) -> Result<(PortMap, Vec<String>), RuntimeError> {
    let mut bindings = PortMap::new();
    let mut exposed = Vec::new();
    for PortMapping {
        host_ip,
        host_port,
        container_port,
        proto,
    } in ports
    {
        let proto = proto_of("ports.proto", proto)?;
        let port = port_of("ports.container_port", *container_port)?;
        if *host_port > u32::from(u16::MAX) {
            return Err(wrong("ports.host_port", &format!("{host_port} is no port")));
        }
        let key = format!("{port}/{proto}");
        let host_port = if *host_port == 0 {
            String::new()
        } else {
            host_port.to_string()
        };
        let binding = PortBinding {
            host_ip: Some(host_ip.clone()),
            host_port: Some(host_port),
        };
        bindings
            .entry(key.clone())
            .or_default()
            .get_or_insert_default()
            .push(binding);
        exposed.push(key);
    }
    for item in expose {
        let (range, proto) = item.split_once('/').unwrap_or((item, ""));
        let proto = proto_of("expose", proto)?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let port = text
                .parse()
                .map_err(|_| wrong("expose", &format!("{item:?} is no port")))?;
            port_of("expose", port)
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong("expose", &format!("{item:?} ends before it begins")));
        }
        exposed.extend((first..=last).map(|port| format!("{port}/{proto}")));
    }
    exposed.sort();
    exposed.dedup();
    Ok((bindings, exposed))
}

pub(super) fn proto_of<'a>(field: &str, proto: &'a str) -> Result<&'a str, RuntimeError> {
    one_of(field, proto, &["", "tcp", "udp", "sctp"])?;
    Ok(if proto.is_empty() { "tcp" } else { proto })
}

pub(super) fn port_of(field: &str, port: u32) -> Result<u16, RuntimeError> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(wrong(field, &format!("{port} is no port"))),
    }
}

pub(super) fn restart_of(policy: &str, max: u32) -> Result<Option<RestartPolicy>, RuntimeError> {
    let name = match policy {
        "" | "no" => RestartPolicyNameEnum::NO,
        "always" => RestartPolicyNameEnum::ALWAYS,
        "unless-stopped" => RestartPolicyNameEnum::UNLESS_STOPPED,
        "on-failure" => RestartPolicyNameEnum::ON_FAILURE,
        other => return Err(wrong("restart_policy", &format!("{other:?} is unknown"))),
    };
    if max > 0 && policy != "on-failure" {
        return Err(wrong("restart_max", "it belongs to on-failure only"));
    }
    let maximum_retry_count = some_number(i64::from(max));
    Ok((!policy.is_empty()).then_some(RestartPolicy {
        name: Some(name),
        maximum_retry_count,
    }))
}

/// `HOST[:CONTAINER[:rwm]]`; as with Docker, the second part may be the permissions.
pub(super) fn device_of(text: &str) -> Result<DeviceMapping, RuntimeError> {
    let is_mode = |part: &str| !part.is_empty() && part.bytes().all(|b| b"rwm".contains(&b));
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, mode) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, mode] if is_mode(mode) => (*host, *host, *mode),
        [host, container] => (*host, *container, "rwm"),
        [host, container, mode] if is_mode(mode) => (*host, *container, *mode),
        _ => {
            return Err(wrong(
                "devices",
                &format!("{text:?} is not HOST[:CONTAINER[:rwm]]"),
            ));
        }
    };
    if !host.starts_with('/') || !container.starts_with('/') {
        return Err(wrong("devices", &format!("{text:?} is not a path")));
    }
    Ok(DeviceMapping {
        path_on_host: Some(host.to_owned()),
        path_in_container: Some(container.to_owned()),
        cgroup_permissions: Some(mode.to_owned()),
    })
}

pub(super) fn security_of(options: &[String]) -> Result<Vec<String>, RuntimeError> {
    for option in options {
        let profile = option
            .strip_prefix("seccomp=")
            .or_else(|| option.strip_prefix("seccomp:"));
        // The engine takes the profile itself; a path would be one on the operator's machine.
        if profile.is_some_and(|p| !["unconfined", "builtin"].contains(&p) && !p.starts_with('{')) {
            return Err(wrong(
                "security_opt",
                "a seccomp profile must be given as JSON",
            ));
        }
    }
    Ok(options.to_vec())
}

pub(super) fn tmpfs_of(tmpfs: &[String]) -> Result<HashMap<String, String>, RuntimeError> {
    tmpfs
        .iter()
        .map(|text| {
            let (path, options) = text.split_once(':').unwrap_or((text, ""));
            if path.starts_with('/') {
                Ok((path.to_owned(), options.to_owned()))
            } else {
                Err(wrong("tmpfs", &format!("{path:?} is not absolute")))
            }
        })
        .collect()
}

pub(super) fn log_of(
    driver: &str,
    options: &[Label],
) -> Result<Option<HostConfigLogConfig>, RuntimeError> {
    if driver.is_empty() && options.is_empty() {
        return Ok(None);
    }
    Ok(Some(HostConfigLogConfig {
        typ: Some(driver.to_owned()),
        config: Some(map_of("log_options", options)?),
    }))
}

/// `NAME=SOFT[:HARD]`; -1 is without limit.
pub(super) fn ulimit_of(text: &str) -> Result<ResourcesUlimits, RuntimeError> {
    let parse = || {
        let (name, values) = text.split_once('=')?;
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        (!name.is_empty()).then_some(())?;
        Some(ResourcesUlimits {
            name: Some(name.to_owned()),
            soft: Some(soft.parse().ok()?),
            hard: Some(hard.parse().ok()?),
        })
    };
    parse().ok_or_else(|| wrong("ulimits", &format!("{text:?} is not NAME=SOFT[:HARD]")))
}

pub(super) fn health_of(health: &HealthSpec) -> Result<HealthConfig, RuntimeError> {
    let HealthSpec {
        disabled,
        command,
        interval_ms,
        timeout_ms,
        start_period_ms,
        retries,
    } = health;
    let numbers = [interval_ms, timeout_ms, start_period_ms, retries];
    let set = !command.is_empty() || numbers.into_iter().any(|number| *number > 0);
    if *disabled && set {
        return Err(wrong("health", "it cannot be switched off and set at once"));
    }
    let nanoseconds = |ms: u32| some_number(i64::from(ms) * 1_000_000);
    Ok(HealthConfig {
        test: if *disabled {
            Some(vec!["NONE".to_owned()])
        } else {
            some_text(command).map(|command| vec!["CMD-SHELL".to_owned(), command])
        },
        interval: nanoseconds(*interval_ms),
        timeout: nanoseconds(*timeout_ms),
        start_period: nanoseconds(*start_period_ms),
        retries: some_number(i64::from(*retries)),
        start_interval: None,
    })
}

pub(super) fn endpoint_of(
    network: &str,
    aliases: &[String],
    ip: &str,
    mac_address: &str,
    version: ApiVersion,
) -> Result<Option<NetworkingConfig>, RuntimeError> {
    let user_defined = !matches!(network, "" | "default" | "bridge" | "host" | "none")
        && !network.starts_with("container:");
    if !aliases.is_empty() && !user_defined {
        return Err(wrong(
            "network_aliases",
            "only networks made by users have them",
        ));
    }
    if !ip.is_empty() && !user_defined {
        return Err(wrong("ip", "only networks made by users take one"));
    }
    let endpoint_mac = !mac_address.is_empty() && version >= API_ENDPOINT_MAC;
    if aliases.is_empty() && ip.is_empty() && !endpoint_mac {
        return Ok(None);
    }
    let ipam_config = if ip.is_empty() {
        None
    } else {
        let mut config = EndpointIpamConfig::default();
        match ip.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => config.ipv4_address = Some(ip.to_owned()),
            Ok(std::net::IpAddr::V6(_)) => config.ipv6_address = Some(ip.to_owned()),
            Err(_) => return Err(wrong("ip", &format!("{ip:?} is no address"))),
        }
        Some(config)
    };
    let settings = EndpointSettings {
        aliases: some_list(aliases.to_vec()),
        ipam_config,
        mac_address: endpoint_mac.then(|| mac_address.to_owned()),
        ..EndpointSettings::default()
    };
    let name = if network.is_empty() {
        "default"
    } else {
        network
    };
    let endpoints_config = Some(HashMap::from([(name.to_owned(), settings)]));
    Ok(Some(NetworkingConfig { endpoints_config }))
}
