//! One test host: booted, asked, written to, rebooted, cut off from its power, frozen, cloned.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::network::Relay;
use super::run::{Output, docker, docker_now, docker_says, docker_with};
use super::{BOOT_WITHIN, Ground};
use crate::wait::wait_for;

/// A machine. Removed, with its disk and all that its engine held, when dropped.
#[derive(Debug)]
pub struct TestHost {
    pub(super) ground: Arc<Ground>,
    /// Of its container, in this machine's engine.
    pub(super) container: String,
    name: String,
    also: Vec<String>,
    address: Ipv4Addr,
    /// A clone starts from an image of its own.
    own_image: Option<String>,
    pub(super) relays: Vec<Relay>,
}

/// Not all: CAP_SYS_RESOURCE is missing on many a development machine, and an agent must do without.
const CAPABILITIES: [&str; 4] = ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "MKNOD"];

/// Where its engine keeps everything. A volume, because overlay2 does not work on overlay2.
const ENGINE_FOLDER: &str = "/var/lib/docker";

impl TestHost {
    pub(super) async fn start(ground: &Arc<Ground>, name: &str, also: &[&str]) -> Self {
        let also = also.iter().map(|&name| name.to_owned()).collect();
        let host = Self::create(ground, name, also, None).await;
        host.power_on().await;
        host
    }

    async fn create(
        ground: &Arc<Ground>,
        name: &str,
        also: Vec<String>,
        own_image: Option<String>,
    ) -> Self {
        let last = ground.next_address.fetch_add(1, Ordering::Relaxed);
        let [a, b, c, _] = ground.gateway.octets();
        let host = Self {
            ground: Arc::clone(ground),
            container: format!("{}-{name}", ground.prefix),
            name: name.to_owned(),
            also,
            address: Ipv4Addr::new(a, b, c, last),
            own_image,
            relays: Vec::new(),
        };
        let address = host.address.to_string();
        let mut arguments = vec!["create", "--name", &host.container, "--hostname", name];
        arguments.extend(["--label", &ground.label, "--cgroupns", "private"]);
        arguments.extend(["--network", &ground.network, "--ip", &address]);
        for alias in [&host.name].into_iter().chain(&host.also) {
            arguments.extend(["--network-alias", alias]);
        }
        for capability in CAPABILITIES {
            arguments.extend(["--cap-add", capability]);
        }
        arguments.extend(["--security-opt", "seccomp=unconfined"]);
        arguments.extend(["--security-opt", "apparmor=unconfined"]);
        // What systemd tells from: no udev, no kernel modules, no hardware.
        arguments.extend(["-e", "container=docker"]);
        arguments.extend(["--tmpfs", "/run:mode=755", "--tmpfs", "/run/lock"]);
        arguments.extend(["-v", ENGINE_FOLDER]);
        let image = host.own_image.as_deref().unwrap_or(&ground.image);
        arguments.extend([image, "/sbin/test-host-init"]);
        docker_says(&arguments).await;
        host
    }

    /// Its hostname.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its container in this machine's engine, for what has no method here.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// Its address, which it keeps for life.
    #[must_use]
    pub fn ip(&self) -> Ipv4Addr {
        self.address
    }

    /// Where it reaches what listens on this machine.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.ground.gateway
    }

    /// `sh -c COMMAND` in it, as root.
    ///
    /// # Panics
    /// When it hangs for minutes.
    pub async fn exec(&self, command: &str) -> Output {
        docker(&["exec", &self.container, "sh", "-c", command]).await
    }

    /// The same with an input.
    ///
    /// # Panics
    /// When it hangs for minutes.
    pub async fn exec_with_input(&self, command: &str, input: &[u8]) -> Output {
        docker_with(&["exec", "-i", &self.container, "sh", "-c", command], input).await
    }

    /// What it printed, trimmed.
    ///
    /// # Panics
    /// When it fails.
    pub async fn says(&self, command: &str) -> String {
        let output = self.exec(command).await;
        assert!(
            output.is_ok(),
            "on {}: {command}: code {}\n{}{}",
            self.name,
            output.code,
            output.stdout,
            output.stderr
        );
        output.stdout.trim().to_owned()
    }

    /// Writes a file; its folder is made.
    ///
    /// # Panics
    /// When that fails.
    pub async fn write_file(&self, path: &str, mode: u32, content: &[u8]) {
        let command = format!(
            "mkdir -p \"$(dirname '{path}')\" && cat > '{path}' && chmod {mode:o} '{path}'"
        );
        let output = self.exec_with_input(&command, content).await;
        assert!(output.is_ok(), "{path}: {}", output.stderr);
    }

    /// Copies a file or a folder of this machine to `to`, owned by root, modes kept.
    ///
    /// # Panics
    /// When that fails.
    pub async fn copy_in(&self, from: &Path, to: &str) {
        let mut tar = tar::Builder::new(Vec::new());
        let name = to.trim_start_matches('/');
        let appended = if from.is_dir() {
            tar.append_dir_all(name, from)
        } else {
            tar.append_path_with_name(from, name)
        };
        appended.unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        let archive = tar.into_inner().expect("an archive in memory");
        // Not `docker cp`, which writes below what is mounted on /run.
        let unpack = "tar -C / --no-same-owner --keep-directory-symlink -x";
        let output = self.exec_with_input(unpack, &archive).await;
        assert!(output.is_ok(), "{to}: {}", output.stderr);
    }

    /// Gives its engine an image with busybox in it.
    ///
    /// # Panics
    /// When that fails.
    pub async fn make_image(&self, reference: &str) {
        self.says(&format!(
            "set -e; at=$(mktemp -d); mkdir $at/bin $at/tmp $at/etc $at/root; cp /bin/busybox $at/bin/; \
             for a in $(busybox --list); do [ $a = busybox ] || ln -s busybox $at/bin/$a; done; \
             tar -C $at -c . | docker import - {reference}; rm -r $at"
        ))
        .await;
    }

    /// Waits until it has booted with all its units, engine included.
    ///
    /// # Panics
    /// When it does not, or a unit failed: with that unit's words.
    pub async fn has_booted(&self) {
        let state = wait_for(&format!("{} boots", self.name), BOOT_WITHIN, async || {
            // Answers when the boot is over; until then its bus may not be there to be asked.
            let asked = self.exec("systemctl is-system-running --wait").await;
            match asked.stdout.trim() {
                "" | "offline" | "unknown" | "initializing" | "starting" => Err(asked.stderr),
                state => Ok(state.to_owned()),
            }
        })
        .await;
        if state != "running" {
            let failed = self
                .exec("systemctl --failed --no-legend; journalctl -b -p 4 -n 40")
                .await;
            panic!("{} is {state}:\n{}", self.name, failed.stdout);
        }
        self.says("docker version --format '{{.Server.Version}}'")
            .await;
    }

    /// Whether it is on.
    pub async fn is_on(&self) -> bool {
        let format = "{{.State.Running}}";
        docker_says(&["container", "inspect", "--format", format, &self.container]).await == "true"
    }

    /// `reboot`, as its owner says it: services are stopped in order, and started again.
    ///
    /// # Panics
    /// When it does not come back.
    pub async fn reboot(&self) {
        self.shut_down().await;
        self.power_on().await;
    }

    /// `poweroff`: services are stopped in order.
    ///
    /// # Panics
    /// When it does not leave.
    pub async fn shut_down(&self) {
        // The command itself is ended by what it starts.
        self.exec("systemctl poweroff").await;
        self.is_off().await;
    }

    async fn is_off(&self) {
        wait_for(&format!("{} leaves", self.name), BOOT_WITHIN, async || {
            if self.is_on().await {
                Err("it is on".to_owned())
            } else {
                Ok(())
            }
        })
        .await;
    }

    /// Switches it on and waits until it has booted. What `cut_network` and `slow_network` did is over:
    /// its firewall is made anew at each boot.
    ///
    /// # Panics
    /// When it does not boot.
    pub async fn power_on(&self) {
        let began = Instant::now();
        docker_says(&["start", &self.container]).await;
        self.has_booted().await;
        let boots = &self.ground.boots;
        boots
            .lock()
            .expect("nobody panics with it")
            .push(began.elapsed());
    }

    /// The plug is pulled and put back.
    ///
    /// # Panics
    /// When it does not boot.
    pub async fn power_cut(&self) {
        self.pull_plug().await;
        self.power_on().await;
    }

    /// The plug is pulled: every process in it ends at once, none is asked, `/run` is gone, and its peers
    /// hear nothing (no FIN, no RST). Its container's leases, locks and sockets must be cleaned up by
    /// whoever boots next.
    ///
    /// What this does not prove: that a file was fsynced. The kernel is this machine's and lives on, so
    /// what was written is there afterwards, synced or not.
    ///
    /// # Panics
    /// When it is off or frozen.
    pub async fn pull_plug(&self) {
        self.cut_network().await;
        docker_says(&["kill", &self.container]).await;
        self.is_off().await;
    }

    /// Stops all its processes, those of its containers too, in the midst of whatever they do. Nothing
    /// can be asked of it until `thaw`.
    ///
    /// # Panics
    /// When it is off or frozen.
    pub async fn freeze(&self) {
        docker_says(&["pause", &self.container]).await;
    }

    /// Lets them go on.
    ///
    /// # Panics
    /// When it is not frozen.
    pub async fn thaw(&self) {
        docker_says(&["unpause", &self.container]).await;
    }

    /// A second machine with a copy of its disk as it is at this moment, its engine's part included,
    /// booted. The copy has everything that was meant to be unique: machine id, keys, state. Only
    /// hostname and address are its own.
    ///
    /// The disk of a running machine is copied while that is frozen, so the copy is of one moment; what a
    /// program had not yet written is not on it.
    ///
    /// # Panics
    /// When it is frozen, or the clone does not boot.
    pub async fn clone_disk(&self, name: &str) -> Self {
        let running = self.is_on().await;
        if running {
            self.freeze().await;
        }
        let image = format!("fairlead-test-host-clone:{}-{name}", self.ground.prefix);
        let label = format!("LABEL {}", self.ground.label);
        docker_says(&[
            "commit",
            "--pause=false",
            "-c",
            &label,
            &self.container,
            &image,
        ])
        .await;
        let clone = Self::create(&self.ground, name, Vec::new(), Some(image)).await;
        let from = format!("{}:/from:ro", self.engine_volume().await);
        let to = format!("{}:/to", clone.engine_volume().await);
        // With the marks of overlay2, which are extended attributes and device nodes.
        let copy = "tar -C /from --xattrs --xattrs-include='*' -c . | tar -C /to --xattrs --xattrs-include='*' -x";
        docker_says(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--cap-add",
            "SYS_ADMIN",
            "--label",
            &self.ground.label,
            "-v",
            &from,
            "-v",
            &to,
            &self.ground.image,
            "sh",
            "-c",
            copy,
        ])
        .await;
        if running {
            self.thaw().await;
        }
        clone.power_on().await;
        clone
    }

    async fn engine_volume(&self) -> String {
        let format = format!(
            "{{{{range .Mounts}}}}{{{{if eq .Destination \"{ENGINE_FOLDER}\"}}}}{{{{.Name}}}}{{{{end}}}}{{{{end}}}}"
        );
        docker_says(&["container", "inspect", "--format", &format, &self.container]).await
    }

    pub(super) fn known_as(&self) -> impl Iterator<Item = &str> {
        [self.name.as_str()]
            .into_iter()
            .chain(self.also.iter().map(String::as_str))
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        docker_now(&["rm", "-f", "-v", &self.container]);
        if let Some(image) = &self.own_image {
            docker_now(&["image", "rm", image]);
        }
    }
}
