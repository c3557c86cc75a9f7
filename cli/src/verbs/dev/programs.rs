//! The daemons' programs, their ports, and how each is called.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::args::Dev;
use crate::config;
use crate::exit::{Exit, Failure};

/// Which port is whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ports {
    pub(super) api: u16,
    pub(super) uplink: u16,
    pub(super) region: u16,
    pub(super) agents: u16,
}

impl Ports {
    /// A row from `first` on.
    pub(super) fn from(first: u16) -> Self {
        Self {
            api: first,
            uplink: first + 1,
            region: first + 2,
            agents: first + 3,
        }
    }
}

/// A daemon's program: beside this one, else wherever PATH has it.
pub(super) fn program(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|e| Failure::local("cannot find out where this program is", &e))?;
    let beside = own.with_file_name(name);
    if beside.is_file() {
        return Ok(beside);
    }
    let path = config::process_env("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| {
            Failure::new(
                Exit::Failed,
                format!("there is no {name} beside `fairlead` or in PATH"),
            )
        })
}

/// `--flag value` pairs as arguments.
fn arguments(verb: &str, pairs: &[(&str, OsString)]) -> Vec<OsString> {
    let mut arguments = vec![OsString::from(verb)];
    for (flag, value) in pairs {
        arguments.push(format!("--{flag}").into());
        arguments.push(value.clone());
    }
    arguments
}

fn loopback(port: u16) -> OsString {
    format!("127.0.0.1:{port}").into()
}

fn https(port: u16) -> OsString {
    format!("https://localhost:{port}").into()
}

pub(super) fn controller_arguments(dir: &Path, ports: Ports) -> Vec<OsString> {
    arguments(
        "run",
        &[
            ("data-dir", dir.join("controller").into()),
            ("listen", loopback(ports.api)),
            ("uplink-listen", loopback(ports.uplink)),
            ("uplink-address", loopback(ports.uplink)),
            ("public-url", https(ports.api)),
            ("web-name", "localhost".into()),
            ("web-name", "127.0.0.1".into()),
        ],
    )
}

pub(super) fn access_server_arguments(
    dir: &Path,
    ports: Ports,
    token: Option<&PathBuf>,
) -> Vec<OsString> {
    let mut pairs = vec![
        ("data-dir", dir.join("access-server").into()),
        ("controller", loopback(ports.uplink)),
        ("name", "a1".into()),
        ("agent-listen", loopback(ports.agents)),
        ("agent-address", loopback(ports.agents)),
        ("listen", loopback(ports.region)),
        ("public-url", https(ports.region)),
    ];
    pairs.extend(token.map(|file| ("token-file", file.into())));
    arguments("run", &pairs)
}

pub(super) fn agent_arguments(
    dir: &Path,
    ports: Ports,
    args: &Dev,
    token: Option<&PathBuf>,
) -> Vec<OsString> {
    let mut pairs = vec![
        ("state-dir", dir.join("agent").into()),
        ("address", loopback(ports.agents)),
        ("engine", OsString::from(&args.engine)),
        ("policy", dir.join("policy.toml").into()),
        // Often enough to be watched.
        ("metrics-every-s", "5".into()),
    ];
    pairs.extend(
        args.host_name
            .as_ref()
            .map(|name| ("host-name", OsString::from(name))),
    );
    pairs.extend(token.map(|file| ("token-file", file.into())));
    arguments("supervise", &pairs)
}
