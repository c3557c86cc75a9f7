//! A simulated container in the words of the inventory, of `inspect`, and of the metrics.

use fairlead_protocol::{Container, ContainerSample, Label};

use super::world::{Phase, Simulated};

impl Simulated {
    pub(super) fn state(&self) -> &'static str {
        match self.phase {
            Phase::Created => "created",
            Phase::Running | Phase::Ending { .. } => "running",
            Phase::Waiting { .. } => "restarting",
            Phase::Exited => "exited",
        }
    }

    fn health(&self, now_us: i64) -> &'static str {
        match self.healthy_at() {
            Some(at_us) if at_us <= now_us => "healthy",
            Some(_) => "starting",
            None => "",
        }
    }

    pub(super) fn container(&self, index: usize, now_us: i64) -> Container {
        let spec = self.spec();
        let label = |key: &str| self.labels.get(key).cloned().unwrap_or_default();
        let mut ports = spec.ports.clone();
        for port in &mut ports {
            if port.proto.is_empty() {
                "tcp".clone_into(&mut port.proto);
            }
        }
        let network = match spec.network.as_str() {
            "" | "default" => "bridge",
            other => other,
        };
        let own_ip = self.is_running() && !matches!(network, "host" | "none");
        let ip = if own_ip {
            format!("172.30.{}.{}", (index / 250) % 250, index % 250 + 2)
        } else {
            String::new()
        };
        let mut words = spec.entrypoint.clone();
        words.extend(spec.command.iter().cloned());
        Container {
            id: self.id.clone(),
            name: self.name.clone(),
            image: spec.image,
            image_id: self.image_id.clone(),
            state: self.state().to_owned(),
            health: self.health(now_us).to_owned(),
            created_us: self.created_us,
            started_us: self.started_us(),
            finished_us: self.finished_us(),
            exit_code: i32::try_from(self.exit_code).unwrap_or(0),
            oom_killed: false,
            restarts: self.restarts,
            ip,
            ports,
            project: label("com.docker.compose.project"),
            service: label("com.docker.compose.service"),
            labels: self
                .labels
                .iter()
                .filter(|(key, _)| key.starts_with("fairlead."))
                .map(|(key, value)| Label {
                    key: key.clone(),
                    value: value.clone(),
                })
                .collect(),
            command: words.join(" "),
            restart_policy: match spec.restart_policy.as_str() {
                "" => "no".to_owned(),
                other => other.to_owned(),
            },
            memory_limit: spec.memory_bytes,
            networks: vec![network.to_owned()],
        }
    }

    /// As far as it makes sense, in the form of Docker's own `inspect`.
    pub(super) fn inspect_json(&self, container: &Container) -> String {
        let spec = self.spec();
        let time = |us: i64| {
            let never = "0001-01-01T00:00:00Z".to_owned();
            if us == 0 {
                return never;
            }
            jiff::Timestamp::from_microsecond(us).map_or(never, |time| time.to_string())
        };
        serde_json::json!({
            "Id": self.id,
            "Name": format!("/{}", self.name),
            "Created": time(self.created_us),
            "Image": self.image_id,
            "RestartCount": self.restarts,
            "State": {
                "Status": self.state(),
                "Running": self.is_running(),
                "Paused": false,
                "Restarting": self.state() == "restarting",
                "OOMKilled": false,
                "ExitCode": self.exit_code,
                "StartedAt": time(container.started_us),
                "FinishedAt": time(container.finished_us),
            },
            "Config": {
                "Hostname": self.hostname(),
                "User": spec.user,
                "Tty": spec.tty,
                "OpenStdin": spec.stdin_open,
                "Env": spec.env,
                "Cmd": spec.command,
                "Entrypoint": spec.entrypoint,
                "Image": spec.image,
                "WorkingDir": spec.workdir,
                "Labels": self.labels,
                "StopSignal": spec.stop_signal,
            },
            "HostConfig": {
                "NetworkMode": spec.network,
                "RestartPolicy": {
                    "Name": container.restart_policy,
                    "MaximumRetryCount": spec.restart_max,
                },
                "AutoRemove": spec.auto_remove,
                "Memory": spec.memory_bytes,
                "NanoCpus": spec.nano_cpus,
                "Privileged": spec.privileged,
                "ReadonlyRootfs": spec.read_only,
                "CapAdd": spec.cap_add,
                "CapDrop": spec.cap_drop,
            },
            "NetworkSettings": { "IPAddress": container.ip },
            "Simulated": true,
        })
        .to_string()
    }

    pub(super) fn hostname(&self) -> String {
        let spec = self.spec();
        if spec.hostname.is_empty() {
            self.id[..12].to_owned()
        } else {
            spec.hostname
        }
    }

    /// Made-up numbers that look like a small service's: steady, a little different for each
    /// container, and moving slowly. They measure nothing.
    pub(super) fn sample(&self, now_us: i64) -> ContainerSample {
        let seed = self
            .id
            .bytes()
            .fold(7_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
        let up_s = u64::try_from((now_us - self.started_us()) / 1_000_000).unwrap_or(0);
        let wave = ((up_s + seed % 60) as f64 / 60.0 * std::f64::consts::TAU).sin() + 1.0;
        let spec = self.spec();
        let memory = (16 + seed % 48) * 1024 * 1024 + (wave * 1e6) as u64;
        let limit = u64::try_from(spec.memory_bytes).unwrap_or(0);
        ContainerSample {
            id: self.id.clone(),
            cpu_permille: u32::try_from(seed % 40).unwrap_or(0) + (wave * 30.0) as u32,
            memory_used: if limit > 0 { memory.min(limit) } else { memory },
            memory_limit: limit,
            network_rx: up_s * (900 + seed % 500),
            network_tx: up_s * (2100 + seed % 900),
            pids: 1 + u32::try_from(seed % 4).unwrap_or(0),
        }
    }
}
