//! The values of single flags, each with Docker's syntax.

use std::io;
use std::path::Path;

use fairlead_api::types::{Labels, Mount, Port};

use super::is_absolute;
use crate::exit::Failure;

/// What flags may name on this machine: variables and files.
pub(crate) struct Surroundings<'a> {
    /// Reads an environment variable.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
    /// Reads a text file.
    pub(crate) read: &'a dyn Fn(&Path) -> io::Result<String>,
}

/// A network with what belongs to it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    /// Its name or mode; empty: the engine's default.
    pub(crate) name: String,
    /// Names in it.
    pub(crate) aliases: Vec<String>,
    /// Fixed address.
    pub(crate) ip: String,
    /// Fixed MAC address.
    pub(crate) mac_address: String,
}

/// What `--mount` made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mounted {
    /// A bind or volume.
    Mount(Mount),
    /// `PATH[:OPTIONS]`.
    Tmpfs(String),
}

/// `KEY=VALUE`; a key alone has an empty value.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.trim().is_empty() {
        return Err(format!("{text:?} has no key"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The lines of a file of variables or labels, without comments.
fn lines(file: &str, surroundings: &Surroundings<'_>) -> Result<Vec<String>, Failure> {
    let text = (surroundings.read)(Path::new(file))
        .map_err(|e| Failure::usage(format!("cannot read {file}: {e}")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = line.split('=').next().unwrap_or_default();
        if key.is_empty() || key.trim_end().contains(char::is_whitespace) {
            return Err(Failure::usage(format!(
                "{file}, line {}: {key:?} is not a name",
                index + 1
            )));
        }
        lines.push(line.to_owned());
    }
    Ok(lines)
}

/// One variable: `KEY=VALUE`, or `KEY` with the value it has here; without one it is left out.
fn variable(text: &str, surroundings: &Surroundings<'_>) -> Result<Option<String>, Failure> {
    let key = text.split('=').next().unwrap_or_default();
    if key.is_empty() {
        return Err(Failure::usage(format!("-e: {text:?} has no name")));
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    Ok((surroundings.env)(key).map(|value| format!("{key}={value}")))
}

/// The variables of an `--env-file`.
fn env_file(file: &str, surroundings: &Surroundings<'_>) -> Result<Vec<String>, Failure> {
    lines(file, surroundings)?
        .iter()
        .filter_map(|line| variable(line.trim_end_matches('\r'), surroundings).transpose())
        .collect()
}

/// All variables: files first, so that flags win.
pub(crate) fn env(
    files: &[String],
    flags: &[String],
    surroundings: &Surroundings<'_>,
) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for file in files {
        all.extend(env_file(file, surroundings)?);
    }
    for text in flags {
        all.extend(variable(text, surroundings)?);
    }
    // The last one of a name counts; where it stands does not matter to anybody.
    let mut last: Vec<String> = Vec::new();
    for entry in all {
        let key = entry.split('=').next().unwrap_or_default();
        match last
            .iter_mut()
            .find(|other| other.split('=').next() == Some(key))
        {
            Some(slot) => *slot = entry,
            None => last.push(entry),
        }
    }
    Ok(last)
}

/// All labels: files first, so that flags win.
pub(crate) fn labels(
    files: &[String],
    flags: &[String],
    surroundings: &Surroundings<'_>,
) -> Result<Labels, Failure> {
    let mut labels = Labels::new();
    for file in files {
        for line in lines(file, surroundings)? {
            labels.extend(key_value(line.trim_end_matches('\r')));
        }
    }
    for text in flags {
        let (key, value) = key_value(text).map_err(|e| Failure::usage(format!("--label: {e}")))?;
        labels.insert(key, value);
    }
    Ok(labels)
}

/// `no`, `always`, `unless-stopped`, `on-failure[:N]`.
pub(crate) fn restart(text: &str) -> Result<(String, u32), String> {
    let (policy, max) = match text.split_once(':') {
        Some((policy, max)) => (
            policy,
            Some(
                max.parse()
                    .map_err(|_| format!("{max:?} is not a number of restarts"))?,
            ),
        ),
        None => (text, None),
    };
    match (policy, max) {
        ("on-failure", max) => Ok((policy.to_owned(), max.unwrap_or(0))),
        ("no" | "always" | "unless-stopped", None) => Ok((policy.to_owned(), 0)),
        ("no" | "always" | "unless-stopped", Some(_)) => Err(format!(
            "a number of restarts goes with on-failure, not with {policy}"
        )),
        _ => Err(format!(
            "{text:?}: there are no, always, unless-stopped and on-failure[:N]"
        )),
    }
}

/// A port or a range of ports.
fn range(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("{text:?} is not a port or a range of ports");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first: u16 = first.parse().map_err(|_| wrong())?;
    let last: u16 = last.parse().map_err(|_| wrong())?;
    if first == 0 || last < first {
        Err(wrong())
    } else {
        Ok((first, last))
    }
}

fn proto(text: &str) -> Result<(&str, String), String> {
    let (rest, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    match proto.to_ascii_lowercase().as_str() {
        "tcp" | "udp" | "sctp" => Ok((rest, proto.to_ascii_lowercase())),
        _ => Err(format!("{proto:?}: there are tcp, udp and sctp")),
    }
}

/// `[ADDRESS:][HOST-PORT:]PORT[/PROTO]`, with ranges.
pub(crate) fn ports(text: &str) -> Result<Vec<Port>, String> {
    let (rest, proto) = proto(text)?;
    // From the right: an IPv6 address has colons of its own, in brackets.
    let (front, container) = match rest.rsplit_once(':') {
        Some((front, container)) => (Some(front), container),
        None => (None, rest),
    };
    let (address, host) = match front {
        None => ("", ""),
        Some(front) => match front.rsplit_once(':') {
            Some((address, host)) if !front.ends_with(']') => (address, host),
            _ => ("", front),
        },
    };
    let address = match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(inner) => inner,
        None => address,
    };
    if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("{address:?} is not an address of the host"));
    }
    let (first, last) = range(container)?;
    let count = last - first;
    let host_first = if host.is_empty() {
        None
    } else {
        let (host_first, host_last) = range(host)?;
        if host_last - host_first != count {
            return Err(if count == 0 {
                format!("{text:?} means any free port of {host}; name one, or none")
            } else {
                format!("the ranges in {text:?} are of different lengths")
            });
        }
        Some(host_first)
    };
    Ok((0..=count)
        .map(|offset| Port {
            host_ip: address.to_owned(),
            host_port: host_first.map_or(0, |host| host + offset),
            container_port: first + offset,
            proto: proto.clone(),
        })
        .collect())
}

/// `PORT[-PORT][/PROTO]`, one by one.
pub(crate) fn expose(text: &str) -> Result<Vec<String>, String> {
    let (rest, proto) = proto(text)?;
    if rest.contains(':') {
        return Err(format!(
            "{text:?} names a port of the host; that is --publish"
        ));
    }
    let (first, last) = range(rest)?;
    Ok((first..=last)
        .map(|port| format!("{port}/{proto}"))
        .collect())
}

fn source_of(source: &str) -> Result<&'static str, String> {
    if is_absolute(source) {
        return Ok("bind");
    }
    if source.starts_with(['.', '~']) || source.contains('/') {
        return Err(format!(
            "{source:?} is relative, and the folder would be on the host: give an absolute path"
        ));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if source.chars().all(good) && source.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok("volume")
    } else {
        Err(format!(
            "{source:?} is neither a path nor the name of a volume"
        ))
    }
}

fn target(path: &str) -> Result<String, String> {
    if !is_absolute(path) {
        return Err(format!(
            "{path:?} must be absolute: it is a path in the container"
        ));
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return Err("nothing can be mounted over / of the container".to_owned());
    }
    Ok(trimmed.to_owned())
}

const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "shared", "rshared", "slave", "rslave",
];

/// `[SOURCE:]PATH[:OPTIONS]`
pub(crate) fn volume(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, path, options) = match parts.as_slice() {
        [path] => ("", *path, ""),
        [source, path] => (*source, *path, ""),
        [source, path, options] => (*source, *path, *options),
        _ => return Err(format!("{text:?} has too many colons")),
    };
    let kind = if source.is_empty() && parts.len() == 1 {
        "volume"
    } else {
        source_of(source)?
    };
    let mut mount = Mount {
        kind: kind.to_owned(),
        source: source.to_owned(),
        target: target(path)?,
        ..Mount::default()
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.read_only = true,
            // Docker takes the last three for macOS and ignores them on Linux.
            "rw" | "consistent" | "cached" | "delegated" => {}
            option if PROPAGATIONS.contains(&option) => option.clone_into(&mut mount.propagation),
            "z" | "Z" | "nocopy" => {
                return Err(format!(
                    "the option {option:?} is not supported by Fairlead yet"
                ));
            }
            _ => return Err(format!("{option:?} is not an option of a volume")),
        }
    }
    Ok(mount)
}

/// `PATH[:OPTIONS]`
pub(crate) fn tmpfs(text: &str) -> Result<String, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let path = target(path)?;
    Ok(if options.is_empty() {
        path
    } else {
        format!("{path}:{options}")
    })
}

/// `type=…,source=…,target=…`
pub(crate) fn mount(text: &str) -> Result<Mounted, String> {
    let mut mount = Mount {
        kind: "volume".to_owned(),
        ..Mount::default()
    };
    let mut tmpfs_options = Vec::new();
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field, None),
        };
        let value = |what: &str| value.ok_or_else(|| format!("{what} needs a value"));
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => value("type")?
                .to_ascii_lowercase()
                .clone_into(&mut mount.kind),
            "source" | "src" => value("source")?.clone_into(&mut mount.source),
            "target" | "dst" | "destination" => mount.target = target(value("target")?)?,
            "readonly" | "ro" => {
                mount.read_only = match value("").unwrap_or("true") {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    other => return Err(format!("readonly={other}: write true or false")),
                };
            }
            "bind-propagation" => value("bind-propagation")?.clone_into(&mut mount.propagation),
            "tmpfs-size" => {
                let bytes = crate::quantities::size(value("tmpfs-size")?)?;
                tmpfs_options.push(format!("size={bytes}"));
            }
            "tmpfs-mode" => tmpfs_options.push(format!("mode={}", value("tmpfs-mode")?)),
            "consistency" => {}
            other => {
                return Err(format!(
                    "the key {other:?} is not supported by Fairlead yet"
                ));
            }
        }
    }
    if mount.target.is_empty() {
        return Err("target is missing: where in the container?".to_owned());
    }
    if !mount.propagation.is_empty() && !PROPAGATIONS.contains(&mount.propagation.as_str()) {
        return Err(format!("{:?} is not a bind propagation", mount.propagation));
    }
    if mount.kind != "tmpfs" && !tmpfs_options.is_empty() {
        return Err("tmpfs-size and tmpfs-mode go with type=tmpfs".to_owned());
    }
    match mount.kind.as_str() {
        "bind" if is_absolute(&mount.source) => Ok(Mounted::Mount(mount)),
        "bind" => Err("source must be an absolute path of the host".to_owned()),
        "volume" if mount.source.is_empty() || source_of(&mount.source)? == "volume" => {
            Ok(Mounted::Mount(mount))
        }
        "volume" => Err(format!("{:?} is a path; that is type=bind", mount.source)),
        "tmpfs" if !mount.source.is_empty() => Err("a tmpfs has no source".to_owned()),
        "tmpfs" => {
            if mount.read_only {
                tmpfs_options.push("ro".to_owned());
            }
            let options = tmpfs_options.join(",");
            Ok(Mounted::Tmpfs(if options.is_empty() {
                mount.target
            } else {
                format!("{}:{options}", mount.target)
            }))
        }
        other => Err(format!("type={other}: there are bind, volume and tmpfs")),
    }
}

/// A network's name, or `name=…,alias=…,ip=…`.
pub(crate) fn network(text: &str) -> Result<Network, String> {
    if !text.contains('=') {
        let name = if text == "default" { "" } else { text };
        return Ok(Network {
            name: name.to_owned(),
            ..Network::default()
        });
    }
    let mut network = Network::default();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key {
            "name" => value.clone_into(&mut network.name),
            "alias" => network.aliases.push(value.to_owned()),
            "ip" => value.clone_into(&mut network.ip),
            "mac-address" => value.clone_into(&mut network.mac_address),
            other => {
                return Err(format!(
                    "the key {other:?} is not supported by Fairlead yet"
                ));
            }
        }
    }
    if network.name.is_empty() {
        Err("name= is missing".to_owned())
    } else {
        Ok(network)
    }
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`; the address may be `host-gateway`.
pub(crate) fn extra_host(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not NAME:ADDRESS");
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .ok_or_else(wrong)?;
    let address = address
        .strip_prefix('[')
        .and_then(|a| a.strip_suffix(']'))
        .unwrap_or(address);
    let good = address == "host-gateway" || address.parse::<std::net::IpAddr>().is_ok();
    if name.is_empty() || !good {
        Err(wrong())
    } else {
        Ok(format!("{name}:{address}"))
    }
}

/// `HOST[:CONTAINER[:rwm]]`
pub(crate) fn device(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let mode = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let good = match parts.as_slice() {
        [host] => is_absolute(host),
        [host, second] => is_absolute(host) && (is_absolute(second) || mode(second)),
        [host, container, third] => is_absolute(host) && is_absolute(container) && mode(third),
        _ => false,
    };
    if !good {
        return Err(format!(
            "{text:?} is not HOST[:CONTAINER[:rwm]] with absolute paths"
        ));
    }
    Ok(match parts.as_slice() {
        // Docker's short form: the mode alone.
        [host, second] if !is_absolute(second) => format!("{host}:{host}:{second}"),
        _ => text.to_owned(),
    })
}

/// A security option; those for which Docker's client reads a file are refused.
pub(crate) fn security_option(text: &str) -> Result<String, String> {
    let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (key, value) {
        ("seccomp", "unconfined" | "builtin") => Ok(text.to_owned()),
        ("seccomp", _) => {
            Err("a seccomp profile from a file is not supported by Fairlead yet".into())
        }
        ("systempaths", _) => Err("systempaths is not supported by Fairlead yet".to_owned()),
        ("no-new-privileges", _) => Ok(text.to_owned()),
        ("apparmor" | "label" | "credentialspec", value) if !value.is_empty() => {
            Ok(text.to_owned())
        }
        _ => Err(format!("{text:?} is not a security option")),
    }
}

const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `NAME=SOFT[:HARD]`; -1: unlimited.
pub(crate) fn ulimit(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not NAME=SOFT[:HARD]");
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    if !ULIMITS.contains(&name) {
        return Err(format!(
            "{name:?} is not a limit; there are {}",
            ULIMITS.join(", ")
        ));
    }
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (soft, Some(hard)),
        None => (limits, None),
    };
    let soft: i64 = soft.parse().map_err(|_| wrong())?;
    if let Some(hard) = hard {
        let hard: i64 = hard.parse().map_err(|_| wrong())?;
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(format!("{text:?}: the soft limit is above the hard one"));
        }
    }
    Ok(text.to_owned())
}
