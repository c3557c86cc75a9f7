//! `docker run`'s command line, read with Docker's meaning into a container's spec.
//!
//! Pure but for the files and variables that Docker's flags name; those come in as [`Surroundings`].

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use fairlead_api::types::{ContainerSpec, Health};

use crate::exit::Failure;
use crate::quantities;
use table::{FLAGS, Shape};

mod table;
mod values;
#[cfg(test)]
mod tests;

pub(crate) use values::{Surroundings, env};

/// Id of the positional argument: image, command and its arguments.
const IMAGE_AND_COMMAND: &str = "image-and-command";

/// Whether `-d` was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detached {
    /// It was.
    Yes,
    /// It was not.
    No,
}

/// What was typed, by flag.
#[derive(Debug, Clone)]
pub(crate) struct RunFlags {
    values: BTreeMap<&'static str, Vec<String>>,
    image: String,
    command: Vec<String>,
}

impl clap::Args for RunFlags {
    fn augment_args(command: Command) -> Command {
        // -h is the host name, as in Docker.
        let mut command = command.disable_help_flag(true).arg(
            Arg::new("help")
                .long("help")
                .action(ArgAction::Help)
                .help("Print help"),
        );
        for flag in FLAGS {
            let mut arg = Arg::new(flag.long)
                .long(flag.long)
                .help(flag.text)
                .hide(flag.refused)
                .aliases(flag.aliases.iter().copied());
            if let Some(short) = flag.short {
                arg = arg.short(short);
            }
            arg = match flag.shape {
                Shape::Switch => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_name("BOOL")
                    .action(ArgAction::Append),
                Shape::One | Shape::Many => arg
                    .num_args(1)
                    .allow_hyphen_values(true)
                    .value_name("VALUE")
                    .action(ArgAction::Append),
            };
            command = command.arg(arg);
        }
        command.arg(
            Arg::new(IMAGE_AND_COMMAND)
                .required(true)
                .num_args(1..)
                .trailing_var_arg(true)
                .value_names(["IMAGE", "COMMAND"])
                .help("The image; then what it runs, with its own flags"),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for RunFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let strings = |id: &str| -> Vec<String> {
            matches
                .get_many::<String>(id)
                .into_iter()
                .flatten()
                .cloned()
                .collect()
        };
        let values = FLAGS
            .iter()
            .map(|flag| (flag.long, strings(flag.long)))
            .filter(|(_, values)| !values.is_empty())
            .collect();
        let mut words = strings(IMAGE_AND_COMMAND).into_iter();
        Ok(Self {
            values,
            image: words.next().unwrap_or_default(),
            command: words.collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl RunFlags {
    /// Whether `-d` was given.
    pub(crate) fn detached(&self) -> Detached {
        if self.switch("detach").unwrap_or(false) {
            Detached::Yes
        } else {
            Detached::No
        }
    }

    /// The file for the container's id, where one was asked for.
    pub(crate) fn cidfile(&self) -> Option<String> {
        self.values
            .get("cidfile")
            .and_then(|values| values.last())
            .cloned()
    }

    fn many(&self, long: &str) -> &[String] {
        self.values.get(long).map_or(&[], Vec::as_slice)
    }

    fn one(&self, long: &str) -> Option<&str> {
        self.many(long).last().map(String::as_str)
    }

    fn text(&self, long: &str) -> String {
        self.one(long).unwrap_or_default().to_owned()
    }

    fn switch(&self, long: &str) -> Result<bool, Failure> {
        match self.one(long) {
            None => Ok(false),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(other) => Err(Failure::usage(format!(
                "--{long}={other}: write true or false"
            ))),
        }
    }

    /// A value read by `read`; the type's default where the flag was not given.
    fn read<T: Default>(
        &self,
        long: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, Failure> {
        match self.one(long) {
            Some(text) => read(text).map_err(|e| Failure::usage(format!("--{long}: {e}"))),
            None => Ok(T::default()),
        }
    }

    fn number<T: Default + std::str::FromStr>(&self, long: &str) -> Result<T, Failure> {
        self.read(long, |text| {
            text.parse()
                .map_err(|_| format!("{text:?} is not a number here"))
        })
    }

    /// Each value read by `read`, one after the other.
    fn each<T>(
        &self,
        long: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, Failure> {
        self.many(long)
            .iter()
            .map(|text| read(text).map_err(|e| Failure::usage(format!("--{long}: {e}"))))
            .collect()
    }

    /// Names the first flag that was given and is not for Fairlead.
    fn refuse(&self, is_run: bool) -> Result<(), Failure> {
        let given = |long: &str| self.values.contains_key(long);
        if let Some(flag) = FLAGS.iter().find(|flag| flag.refused && given(flag.long)) {
            return Err(Failure::usage(format!(
                "--{} is not supported by Fairlead yet: {}",
                flag.long, flag.text
            )));
        }
        if is_run && self.detached() == Detached::No {
            for (long, short) in [("tty", 't'), ("interactive", 'i')] {
                if self.switch(long)? {
                    return Err(Failure::usage(format!(
                        "-{short} without -d is not supported by Fairlead yet: terminals come with \
                         `fairlead shell`"
                    ))
                    .hint(
                        "run it with -d (or -dit), then: fairlead exec -i NAME COMMAND, \
                         fairlead logs -f NAME",
                    ));
                }
            }
        }
        if given("disable-content-trust") && !self.switch("disable-content-trust")? {
            return Err(Failure::usage(
                "--disable-content-trust=false is not supported by Fairlead yet: Docker Content \
                 Trust is not checked",
            ));
        }
        if self.many("network").len() > 1 {
            return Err(Failure::usage(
                "several --network are not supported by Fairlead yet: give one",
            ));
        }
        Ok(())
    }

    /// The spec that was typed.
    pub(crate) fn spec(
        &self,
        is_run: bool,
        surroundings: &Surroundings<'_>,
    ) -> Result<ContainerSpec, Failure> {
        self.refuse(is_run)?;
        if self.image.is_empty() {
            return Err(Failure::usage("the image's name is empty"));
        }
        let mut spec = self.basics(surroundings)?;
        self.resources(&mut spec)?;
        self.isolation(&mut spec)?;
        self.network(&mut spec)?;
        self.storage(&mut spec)?;
        spec.health = self.health()?;
        Ok(spec)
    }

    fn basics(&self, surroundings: &Surroundings<'_>) -> Result<ContainerSpec, Failure> {
        let (restart_policy, restart_max) = self.read("restart", values::restart)?;
        let auto_remove = self.switch("rm")?;
        if auto_remove && !matches!(restart_policy.as_str(), "" | "no") {
            return Err(Failure::usage(
                "--rm and --restart exclude each other: what is removed cannot be restarted",
            ));
        }
        Ok(ContainerSpec {
            name: self.text("name"),
            image: self.image.clone(),
            command: self.command.clone(),
            // An empty one takes the image's away, as in Docker.
            entrypoint: self
                .one("entrypoint")
                .map(|program| vec![program.to_owned()]),
            env: values::env(self.many("env-file"), self.many("env"), surroundings)?,
            labels: values::labels(self.many("label-file"), self.many("label"), surroundings)?,
            restart_policy,
            restart_max,
            user: self.text("user"),
            group_add: self.many("group-add").to_vec(),
            workdir: self.text("workdir"),
            tty: self.switch("tty")?,
            stdin_open: self.switch("interactive")?,
            read_only: self.switch("read-only")?,
            init: self.switch("init")?,
            stop_signal: self.text("stop-signal"),
            stop_timeout_s: self.number("stop-timeout")?,
            auto_remove,
            log_driver: self.text("log-driver"),
            log_options: self
                .each("log-opt", values::key_value)?
                .into_iter()
                .collect(),
            platform: self.text("platform"),
            pull: self.read("pull", |text| match text {
                "always" | "missing" | "never" => Ok(text.to_owned()),
                _ => Err(format!("{text:?}: there are always, missing and never")),
            })?,
            runtime: self.text("runtime"),
            ..ContainerSpec::default()
        })
    }

    fn resources(&self, spec: &mut ContainerSpec) -> Result<(), Failure> {
        spec.memory_bytes = self.read("memory", quantities::size)?;
        spec.memory_reservation_bytes = self.read("memory-reservation", quantities::size)?;
        spec.memory_swap_bytes = self.read("memory-swap", |text| match text {
            "-1" => Ok(-1),
            text => quantities::size(text),
        })?;
        if spec.memory_swap_bytes > 0 && spec.memory_bytes == 0 {
            return Err(Failure::usage(
                "--memory-swap needs --memory: it is both together",
            ));
        }
        if spec.memory_swap_bytes > 0 && spec.memory_swap_bytes < spec.memory_bytes {
            return Err(Failure::usage(
                "--memory-swap is memory and swap together; it cannot be less than --memory",
            ));
        }
        spec.nano_cpus = self.read("cpus", quantities::nano_cpus)?;
        spec.cpu_shares = self.number("cpu-shares")?;
        spec.cpuset_cpus = self.text("cpuset-cpus");
        spec.pids_limit = self.number("pids-limit")?;
        spec.shm_bytes = self.read("shm-size", quantities::size)?;
        spec.ulimits = self.each("ulimit", values::ulimit)?;
        spec.oom_score_adj = self.number("oom-score-adj")?;
        if !(-1000..=1000).contains(&spec.oom_score_adj) {
            return Err(Failure::usage(
                "--oom-score-adj lies between -1000 and 1000",
            ));
        }
        spec.oom_kill_disable = self.switch("oom-kill-disable")?;
        spec.cgroup_parent = self.text("cgroup-parent");
        Ok(())
    }

    fn isolation(&self, spec: &mut ContainerSpec) -> Result<(), Failure> {
        spec.privileged = self.switch("privileged")?;
        spec.cap_add = self.many("cap-add").to_vec();
        spec.cap_drop = self.many("cap-drop").to_vec();
        spec.devices = self.each("device", values::device)?;
        spec.security_opt = self.each("security-opt", values::security_option)?;
        spec.pid_mode = self.text("pid");
        spec.ipc_mode = self.text("ipc");
        spec.uts_mode = self.text("uts");
        spec.userns_mode = self.text("userns");
        spec.sysctls = self
            .each("sysctl", values::key_value)?
            .into_iter()
            .collect();
        Ok(())
    }

    fn network(&self, spec: &mut ContainerSpec) -> Result<(), Failure> {
        if let Some(network) = self.one("network") {
            let network =
                values::network(network).map_err(|e| Failure::usage(format!("--network: {e}")))?;
            spec.network = network.name;
            spec.network_aliases = network.aliases;
            spec.ip = network.ip;
            spec.mac_address = network.mac_address;
        }
        spec.network_aliases
            .extend(self.many("network-alias").iter().cloned());
        if let Some(ip) = self.one("ip") {
            ip.parse::<std::net::Ipv4Addr>()
                .map_err(|_| Failure::usage(format!("--ip: {ip:?} is not an IPv4 address")))?;
            ip.clone_into(&mut spec.ip);
        }
        if let Some(mac) = self.one("mac-address") {
            mac.clone_into(&mut spec.mac_address);
        }
        spec.ports = self
            .each("publish", values::ports)?
            .into_iter()
            .flatten()
            .collect();
        spec.publish_all = self.switch("publish-all")?;
        spec.expose = self
            .each("expose", values::expose)?
            .into_iter()
            .flatten()
            .collect();
        spec.hostname = self.text("hostname");
        spec.domainname = self.text("domainname");
        spec.extra_hosts = self.each("add-host", values::extra_host)?;
        spec.dns = self.each("dns", |text| match text.parse::<std::net::IpAddr>() {
            Ok(address) => Ok(address.to_string()),
            Err(_) => Err(format!("{text:?} is not an address")),
        })?;
        spec.dns_search = self.many("dns-search").to_vec();
        spec.dns_options = self.many("dns-option").to_vec();
        Ok(())
    }

    fn storage(&self, spec: &mut ContainerSpec) -> Result<(), Failure> {
        spec.mounts = self.each("volume", values::volume)?;
        spec.tmpfs = self.each("tmpfs", values::tmpfs)?;
        for mount in self.each("mount", values::mount)? {
            match mount {
                values::Mounted::Mount(mount) => spec.mounts.push(mount),
                values::Mounted::Tmpfs(tmpfs) => spec.tmpfs.push(tmpfs),
            }
        }
        let mut targets: Vec<&str> = spec.mounts.iter().map(|m| m.target.as_str()).collect();
        targets.extend(spec.tmpfs.iter().filter_map(|t| t.split(':').next()));
        targets.sort_unstable();
        if let Some(pair) = targets.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Failure::usage(format!("{} is mounted twice", pair[0])));
        }
        Ok(())
    }

    fn health(&self) -> Result<Option<Health>, Failure> {
        let disabled = self.switch("no-healthcheck")?;
        let given = FLAGS
            .iter()
            .find(|flag| flag.long.starts_with("health-") && self.values.contains_key(flag.long));
        if disabled && let Some(flag) = given {
            return Err(Failure::usage(format!(
                "--no-healthcheck and --{} exclude each other",
                flag.long
            )));
        }
        if !disabled && given.is_none() {
            return Ok(None);
        }
        let ms = |long: &str| {
            self.read(long, |text| {
                let time: Duration = quantities::duration(text)?;
                match u32::try_from(time.as_millis()) {
                    Ok(0) if !time.is_zero() => Err("it is at least a millisecond".to_owned()),
                    Ok(ms) => Ok(ms),
                    Err(_) => Err(format!("{text:?} is too long")),
                }
            })
        };
        Ok(Some(Health {
            disabled,
            command: self.text("health-cmd"),
            interval_ms: ms("health-interval")?,
            timeout_ms: ms("health-timeout")?,
            start_period_ms: ms("health-start-period")?,
            retries: self.number("health-retries")?,
        }))
    }
}

/// Whether a path means the same on this machine and on the host.
fn is_absolute(path: &str) -> bool {
    Path::new(path).is_absolute()
}
