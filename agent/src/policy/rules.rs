//! The rules of a policy file, and whether a command breaks one.

use fairlead_protocol::ContainerSpec;
use fairlead_protocol::command::Kind;
use serde::Deserialize;

use super::names::{could_be_id, image_allowed, matches};
use super::paths::reached;

/// What gives a container power over its host when it is bound.
const SENSITIVE_PATHS: &[&str] = &[
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/opt/fairlead",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/fairlead-access-server",
    "/var/lib/fairlead-agent",
    "/var/lib/fairlead-controller",
    "/var/run",
    "/var/run/docker.sock",
    "/var/spool/cron",
];
/// Security options that leave the engine's own profiles in force.
const CONFINING_OPTIONS: &[&str] = &[
    "no-new-privileges",
    "no-new-privileges=true",
    "no-new-privileges:true",
    "seccomp=builtin",
    "apparmor=docker-default",
];

/// The file's keys. An unknown one is an error: a rule that was meant must not be passed over.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rules {
    forbid_privileged: bool,
    forbid_host_namespaces: bool,
    forbid_sensitive_binds: bool,
    sensitive_paths: Vec<String>,
    forbid_devices: bool,
    allowed_capabilities: Option<Vec<String>>,
    forbid_unconfined: bool,
    forbid_host_tuning: bool,
    forbid_exec: bool,
    forbid_shell: bool,
    allow_host_shell: bool,
    forbid_copy: bool,
    forbid_uninstall: bool,
    forbid_upgrade: bool,
    allowed_images: Option<Vec<String>>,
    allowed_containers: Option<Vec<String>>,
    denied_containers: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            forbid_privileged: false,
            forbid_host_namespaces: false,
            forbid_sensitive_binds: false,
            sensitive_paths: SENSITIVE_PATHS
                .iter()
                .map(|path| (*path).to_owned())
                .collect(),
            forbid_devices: false,
            allowed_capabilities: None,
            forbid_unconfined: false,
            forbid_host_tuning: false,
            forbid_exec: false,
            forbid_shell: false,
            allow_host_shell: false,
            forbid_copy: false,
            forbid_uninstall: false,
            forbid_upgrade: false,
            allowed_images: None,
            allowed_containers: None,
            denied_containers: Vec::new(),
        }
    }
}

/// Why there is no shell on a host whose owner has not said that there may be.
pub(super) fn no_host_shell(path: &dyn std::fmt::Display) -> String {
    format!(
        "the host's owner has not allowed shells on the host itself: that takes allow_host_shell = true in \
         {path}, and neither forbid_shell nor forbid_exec"
    )
}

/// What is forbidden, and by which key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) key: &'static str,
    pub(super) what: String,
}

fn found(key: &'static str, what: impl Into<String>) -> Option<Found> {
    Some(Found {
        key,
        what: what.into(),
    })
}

/// A capability's name as the engine understands it.
fn capability(name: &str) -> String {
    let upper = name.trim().to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

impl Rules {
    /// What is wrong with the rules, beyond their form.
    pub(super) fn problem(&self) -> Option<String> {
        self.sensitive_paths
            .iter()
            .find(|path| !path.starts_with('/'))
            .map(|path| format!("sensitive_paths: {path:?} is not absolute"))
    }

    pub(super) fn forbids(&self, kind: &Kind, container: Option<&str>) -> Option<Found> {
        match kind {
            Kind::Run(k) => self.spec(k.spec.as_ref()?),
            Kind::Create(k) => self.spec(k.spec.as_ref()?),
            Kind::Pull(k) => self.image(&k.image),
            Kind::Inspect(k) if !k.means_container() => None,
            Kind::Exec(k) => {
                let name = || self.container(&k.container, container);
                if self.forbid_exec {
                    found("forbid_exec", "exec")
                } else if self.forbid_shell && k.tty {
                    found("forbid_shell", "exec with a terminal")
                } else if self.forbid_privileged && k.privileged {
                    found("forbid_privileged", "a privileged exec")
                } else if k.privileged {
                    self.privileged_by_other_rules("a privileged exec")
                        .or_else(name)
                } else {
                    name()
                }
            }
            Kind::CopyIn(_) | Kind::CopyOut(_) if self.forbid_copy => {
                found("forbid_copy", "copying files")
            }
            Kind::CopyIn(_)
            | Kind::CopyOut(_)
            | Kind::Start(_)
            | Kind::Stop(_)
            | Kind::Restart(_)
            | Kind::Kill(_)
            | Kind::Remove(_)
            | Kind::Inspect(_)
            | Kind::Logs(_) => self.container(kind.target(), container),
            Kind::UninstallAgent(_) if self.forbid_uninstall => {
                found("forbid_uninstall", "taking the agent off this host")
            }
            Kind::UpgradeAgent(_) if self.forbid_upgrade => {
                found("forbid_upgrade", "upgrading the agent from the centre")
            }
            Kind::List(_)
            | Kind::PruneImages(_)
            | Kind::RenewCertificate(_)
            | Kind::Ping(_)
            | Kind::UpgradeAgent(_)
            | Kind::UninstallAgent(_)
            | Kind::HostShell(_) => None,
        }
    }

    /// Whether there may be shells on the host itself.
    pub(super) fn allows_host_shell(&self) -> bool {
        self.allow_host_shell && !self.forbid_shell && !self.forbid_exec
    }

    /// Privileged means every capability, every device and no profile.
    fn privileged_by_other_rules(&self, what: &str) -> Option<Found> {
        if self.forbid_devices {
            found("forbid_devices", format!("{what}, which has every device"))
        } else if self.forbid_unconfined {
            found("forbid_unconfined", format!("{what}, which has no profile"))
        } else {
            let listed = self.allowed_capabilities.as_ref()?;
            let all = listed.iter().any(|name| capability(name) == "ALL");
            (!all).then(|| Found {
                key: "allowed_capabilities",
                what: format!("{what}, which has every capability"),
            })
        }
    }

    fn container(&self, target: &str, name: Option<&str>) -> Option<Found> {
        if self.allowed_containers.is_none() && self.denied_containers.is_empty() {
            return None;
        }
        let key = if self.denied_containers.is_empty() {
            "allowed_containers"
        } else {
            "denied_containers"
        };
        match name {
            Some(name) => self.name(name),
            None if could_be_id(target) => found(
                key,
                format!("{target:?} could be an id; name the container by its name"),
            ),
            None => self.name(target),
        }
    }

    fn name(&self, name: &str) -> Option<Found> {
        let name = name.trim_start_matches('/');
        if self
            .denied_containers
            .iter()
            .any(|pattern| matches(pattern, name))
        {
            return found("denied_containers", format!("the container {name}"));
        }
        let allowed = self.allowed_containers.as_ref()?;
        if allowed.iter().any(|pattern| matches(pattern, name)) {
            return None;
        }
        found("allowed_containers", format!("the container {name}"))
    }

    fn image(&self, image: &str) -> Option<Found> {
        let allowed = self.allowed_images.as_ref()?;
        if image_allowed(image, allowed) {
            return None;
        }
        found("allowed_images", format!("the image {image}"))
    }

    fn spec(&self, spec: &ContainerSpec) -> Option<Found> {
        // A container without a name gets one from the engine, which no pattern can know.
        self.container(&spec.name, Some(&spec.name))
            .or_else(|| self.image(&spec.image))
            .or_else(|| self.privileges(spec))
            .or_else(|| self.namespaces(spec))
            .or_else(|| self.binds(spec))
            .or_else(|| self.tuning(spec))
    }

    fn privileges(&self, spec: &ContainerSpec) -> Option<Found> {
        if spec.privileged {
            if self.forbid_privileged {
                return found("forbid_privileged", "a privileged container");
            }
            let other = self.privileged_by_other_rules("a privileged container");
            if other.is_some() {
                return other;
            }
        }
        if self.forbid_devices && !spec.devices.is_empty() {
            return found("forbid_devices", format!("the device {}", spec.devices[0]));
        }
        if let Some(allowed) = &self.allowed_capabilities {
            let allowed: Vec<String> = allowed.iter().map(|name| capability(name)).collect();
            let all = allowed.iter().any(|name| name == "ALL");
            let beyond = spec
                .cap_add
                .iter()
                .find(|name| !allowed.contains(&capability(name)));
            if let (false, Some(name)) = (all, beyond) {
                return found("allowed_capabilities", format!("the capability {name}"));
            }
        }
        if self.forbid_unconfined {
            let confining = |option: &&String| {
                CONFINING_OPTIONS.contains(&option.trim().to_ascii_lowercase().as_str())
            };
            if let Some(option) = spec.security_opt.iter().find(|option| !confining(option)) {
                let shown: String = option.chars().take(60).collect();
                return found("forbid_unconfined", format!("the security option {shown}"));
            }
        }
        None
    }

    fn namespaces(&self, spec: &ContainerSpec) -> Option<Found> {
        let modes = [
            ("network", &spec.network),
            ("pid", &spec.pid_mode),
            ("ipc", &spec.ipc_mode),
            ("uts", &spec.uts_mode),
            ("userns", &spec.userns_mode),
        ];
        for (space, mode) in modes {
            let mode = mode.trim();
            if self.forbid_host_namespaces && mode.eq_ignore_ascii_case("host") {
                return found(
                    "forbid_host_namespaces",
                    format!("the host's {space} namespace"),
                );
            }
            // To join a container's namespace is to reach into that container.
            if let Some(other) = mode.strip_prefix("container:") {
                let refused = self.container(other, None);
                if refused.is_some() {
                    return refused;
                }
            }
        }
        // The host's network has an id, too.
        if self.forbid_host_namespaces && could_be_id(&spec.network) {
            let what = format!(
                "the network {:?} could be an id; name it by its name",
                spec.network
            );
            return found("forbid_host_namespaces", what);
        }
        None
    }

    fn binds(&self, spec: &ContainerSpec) -> Option<Found> {
        if !self.forbid_sensitive_binds {
            return None;
        }
        for mount in &spec.mounts {
            let source = mount.source.as_str();
            match mount.kind.as_str() {
                "tmpfs" => {}
                // A volume has a name, and a name has no slash: else it is a path after all.
                "volume" if !source.contains('/') => {}
                _ if !source.starts_with('/') => {
                    let what = format!("the bind of {source:?}, which is not absolute");
                    return found("forbid_sensitive_binds", what);
                }
                _ => {
                    if let Some(path) = reached(source, &self.sensitive_paths) {
                        let what = format!("the bind of {source} (it reaches {path})");
                        return found("forbid_sensitive_binds", what);
                    }
                }
            }
        }
        None
    }

    fn tuning(&self, spec: &ContainerSpec) -> Option<Found> {
        if !self.forbid_host_tuning {
            return None;
        }
        let broken = if !spec.cgroup_parent.is_empty() {
            "cgroup_parent"
        } else if !spec.runtime.is_empty() {
            "runtime"
        } else if spec.oom_kill_disable {
            "oom_kill_disable"
        } else if spec.oom_score_adj < 0 {
            "a negative oom_score_adj"
        } else {
            return None;
        };
        found("forbid_host_tuning", broken)
    }

    pub(super) fn summary(&self) -> String {
        let flags = [
            (self.forbid_privileged, "privileged containers"),
            (self.forbid_host_namespaces, "the host's namespaces"),
            (self.forbid_sensitive_binds, "binds of sensitive paths"),
            (self.forbid_devices, "devices"),
            (self.forbid_unconfined, "containers without profiles"),
            (
                self.forbid_host_tuning,
                "cgroup parents, runtimes and OOM settings",
            ),
            (self.forbid_exec, "exec"),
            (
                self.forbid_shell && !self.forbid_exec,
                "exec with a terminal",
            ),
            (self.forbid_copy, "copying files"),
            (self.forbid_uninstall, "taking the agent off it"),
            (self.forbid_upgrade, "upgrading the agent from the centre"),
        ];
        let mut parts: Vec<String> = flags
            .iter()
            .filter(|(set, _)| *set)
            .map(|(_, text)| (*text).to_owned())
            .collect();
        let listed = |what: &str, list: &[String]| match list {
            [] => format!("all {what}"),
            list => format!("{what} other than {}", list.join(", ")),
        };
        if let Some(allowed) = &self.allowed_capabilities {
            parts.push(listed("added capabilities", allowed));
        }
        if let Some(allowed) = &self.allowed_images {
            parts.push(listed("images", allowed));
        }
        if let Some(allowed) = &self.allowed_containers {
            parts.push(listed("containers", allowed));
        }
        if !self.denied_containers.is_empty() {
            parts.push(format!(
                "the containers {}",
                self.denied_containers.join(", ")
            ));
        }
        parts.join("; ")
    }
}
