//! P3, P4, P5 on a machine with systemd: upgrades of the agent are nothing to its unit, a restart of the unit in the
//! middle of one leaves no orphan, and whenever the machine is rebooted or loses its power, it boots into a
//! version that works.

use fairlead_tests::hosts::{Hosts, TestHost};
use fairlead_tests::versions::Versions;
use fairlead_tests::wait::wait_for;

use crate::servers::{SOON, Servers, ran};

const STATUS: &str = "/var/lib/fairlead-agent/status.json";
/// How long a stop takes that is under way while something happens.
const GRACE_S: u32 = 15;
/// Short, so that the supervisor too becomes the new version.
const TRIAL_MS: u32 = 3_000;
/// Long: a machine that does much besides is slow, and not what is tested.
const YIELD_MS: u32 = 20_000;
/// A version that never proves itself: long enough to be rebooted meanwhile.
const NEVER: &str = "3.0.0";
const THERE_AND_BACK: [&str; 2] = ["1.1.0", "1.0.0"];

/// The servers, one host with an agent that the installer put there, and packages on its disk.
struct Scene {
    servers: Servers,
    vm: TestHost,
    versions: Versions,
}

impl Scene {
    async fn set(hosts: &Hosts) -> Self {
        let servers = Servers::install(hosts).await;
        let vm = hosts.start("vm").await;
        ran(&vm, &servers.line).await;
        servers.host_is("vm", "online").await;
        let versions = Versions::new();
        for version in THERE_AND_BACK {
            let package = versions.package(version);
            vm.copy_in(&package, &format!("/srv/packages/{version}"))
                .await;
        }
        let package = versions.pretender(NEVER, "exec sleep 600");
        vm.copy_in(&package, &format!("/srv/packages/{NEVER}"))
            .await;
        ran(
            &vm,
            &format!(
                "echo FAIRLEAD_UPGRADE_TRIAL_MS={TRIAL_MS} >> /etc/fairlead/agent.env; \
                 echo FAIRLEAD_UPGRADE_YIELD_MS={YIELD_MS} >> /etc/fairlead/agent.env; \
                 systemctl restart fairlead-agent"
            ),
        )
        .await;
        vm.make_image("web:1").await;
        let polite = "trap exit TERM; while :; do sleep 1 & wait; done";
        ran(
            &vm,
            &format!(
                "docker run -d --name web --restart always web:1 sh -c '{polite}'; \
                 docker run -d --name deaf --stop-timeout {GRACE_S} web:1 sleep 36000"
            ),
        )
        .await;
        servers.shows("deaf").await;
        servers.shows("web").await;
        let scene = Self {
            servers,
            vm,
            versions,
        };
        scene.settled().await;
        scene
    }

    fn upgrade(&self, version: &str) -> String {
        format!(
            "fairlead-agent upgrade --allow-older --to /srv/packages/{version} --trust {}",
            self.versions.trust()
        )
    }

    /// What the unit is: state, restarts, main process.
    async fn unit(&self) -> String {
        self.vm
            .says("systemctl show -p ActiveState -p NRestarts -p MainPID fairlead-agent | sort")
            .await
    }

    async fn status(&self) -> Result<serde_json::Value, String> {
        let said = self.vm.exec(&format!("cat {STATUS}")).await;
        serde_json::from_str(&said.stdout).map_err(|error| format!("{error}: {}", said.stderr))
    }

    /// Waits until one instance owns the host, and no other is there; its version.
    async fn settled(&self) -> String {
        let version = wait_for("one instance owns the host", SOON, async || {
            let status = self.status().await?;
            let all = status["instances"].as_array().cloned().unwrap_or_default();
            match (&status["phase"], &all[..]) {
                (phase, [only]) if phase == "steady" && only["pid"] == status["agent"] => {
                    // What is written may be of before a boot; the tool looks whether it still lives. An upgrade
                    // needs the link, and the region may not have noticed yet that the last one is gone.
                    let lives = self.vm.exec("fairlead-agent status").await;
                    let is_linked = lives.is_ok() && lives.stdout.contains("link      up since");
                    let version = only["version"].as_str().unwrap_or_default().to_owned();
                    is_linked.then_some(version).ok_or(lives.stdout)
                }
                _ => Err(status.to_string()),
            }
        })
        .await;
        self.servers.host_is("vm", "online").await;
        version
    }

    /// Processes of the agent, by pid.
    async fn processes(&self) -> Vec<String> {
        let said = self
            .vm
            .exec("pgrep -f 'fairlead-agent (run|supervise)( |$)'")
            .await;
        said.stdout.lines().map(str::to_owned).collect()
    }

    /// Begins a stop that takes its grace; what becomes of it is in a file of the servers' machine.
    async fn begin_stop(&self) {
        ran(
            &self.servers.host,
            "rm -f /tmp/stopped; setsid sh -c 'fairlead stop deaf >/tmp/said 2>&1; echo $? >/tmp/stopped' \
             >/dev/null 2>&1 &",
        )
        .await;
        wait_for("it is under way", SOON, async || {
            let said = self
                .servers
                .host
                .says("fairlead command ls --container deaf --state running")
                .await;
            if said.lines().any(|line| line.contains("running")) {
                return Ok(());
            }
            let told = self.servers.host.exec("cat /tmp/said").await;
            Err(format!("{said}\n{}", told.stdout))
        })
        .await;
    }

    /// The stop has ended, and is true of the engine; and it is started for the next one.
    async fn stopped(&self) {
        let code = wait_for("the stop has its end", SOON, async || {
            let said = self.servers.host.exec("cat /tmp/stopped").await;
            match said.stdout.trim() {
                "" => Err(said.stderr),
                code => Ok(code.to_owned()),
            }
        })
        .await;
        let said = self.servers.host.says("cat /tmp/said").await;
        assert_eq!(code, "0", "{said}");
        let runs = "docker container inspect --format '{{.State.Running}}' deaf";
        assert_eq!(self.vm.says(runs).await, "false", "{said}");
        ran(&self.servers.host, "fairlead start deaf").await;
    }

    /// Begins an upgrade, and runs `then` on the host as soon as the supervisor is in that phase.
    async fn in_phase(&self, version: &str, phase: &str, then: &str) {
        // On the host itself: a phase can be over before one has asked from here.
        let script = format!(
            "rm -f /tmp/upgraded; setsid sh -c '{} >/tmp/upgraded 2>&1' & \
             until grep -q '\"phase\": *\"{phase}\"' {STATUS}; do \
               grep -q . /tmp/upgraded && grep -q error: /tmp/upgraded && exit 9; \
             done; {then}",
            self.upgrade(version)
        );
        let said = self
            .vm
            .exec(&format!(
                "timeout 60 sh -c \"$(cat <<'END'\n{script}\nEND\n)\""
            ))
            .await;
        let upgraded = self.vm.exec("cat /tmp/upgraded").await.stdout;
        // Who is ended by what it begins has no good code.
        assert!(
            ![9, 124].contains(&said.code),
            "{}{}{upgraded}",
            said.stdout,
            said.stderr
        );
    }

    /// What a host that has booted must be.
    async fn works(&self, when: &str) -> String {
        let version = self.settled().await;
        let unit = self.unit().await;
        assert!(unit.contains("ActiveState=active"), "{when}: {unit}");
        let current = self.vm.says("readlink /opt/fairlead/current").await;
        assert!(current.ends_with(&version), "{when}: {current} {version}");
        ran(&self.servers.host, "fairlead restart web").await;
        println!("{when}: version {version}");
        version
    }
}

#[tokio::test]
async fn the_unit_notices_nothing_of_upgrades() {
    upgrades(4).await;
}

#[tokio::test]
#[ignore = "long: ./dev test --long"]
async fn long_the_unit_notices_nothing_of_upgrades() {
    upgrades(20).await;
}

async fn upgrades(rounds: usize) {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let scene = Scene::set(&hosts).await;
    let before = scene.unit().await;
    assert!(before.contains("NRestarts=0"), "{before}");
    // Under commands, one after the other, each of which leaves its number. One whose stream nobody opened has not
    // run, it says; so it is asked for again, and the numbers tell whether that was true.
    let asks = "n=0; while [ ! -e /tmp/enough ]; do n=$((n+1)); \
                until fairlead exec web sh -c \"echo $n >> /tmp/log\" >/tmp/said 2>&1; do \
                grep -q stream_not_attached /tmp/said || \
                { echo \"$n: $(cat /tmp/said)\" >> /tmp/failed; break; }; done; done; echo $n > /tmp/asked";
    scene
        .servers
        .host
        .write_file("/root/asks.sh", 0o755, asks.as_bytes())
        .await;
    ran(
        &scene.servers.host,
        "setsid sh /root/asks.sh >/dev/null 2>&1 &",
    )
    .await;
    for round in 0..rounds {
        let version = THERE_AND_BACK[round % 2];
        ran(&scene.vm, &scene.upgrade(version)).await;
        assert_eq!(scene.settled().await, version);
        assert_eq!(scene.unit().await, before, "after upgrade {round}");
    }
    ran(&scene.servers.host, "touch /tmp/enough").await;
    let asked = wait_for("the last one has ended", SOON, async || {
        let said = scene.servers.host.exec("cat /tmp/asked").await;
        said.stdout.trim().parse::<usize>().map_err(|_| said.stderr)
    })
    .await;
    let failed = scene.servers.host.exec("cat /tmp/failed").await;
    assert!(!failed.is_ok(), "{}", failed.stdout);
    let log = scene.vm.says("docker exec web cat /tmp/log").await;
    let told: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
    let wanted: Vec<usize> = (1..=asked).collect();
    assert_eq!(told, wanted, "each once, in order");

    // The supervisor becomes the last version too, as the same process, and the unit still notices nothing.
    let last = THERE_AND_BACK[(rounds - 1) % 2];
    wait_for("the supervisor is of that version", SOON, async || {
        let status = scene.status().await?;
        if status["supervisor_version"] == last {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .await;
    assert_eq!(scene.unit().await, before);
    println!(
        "{rounds} upgrades, {asked} commands: {}",
        before.replace('\n', " ")
    );
}

#[tokio::test]
async fn a_restart_of_the_unit_in_the_middle_of_a_drain_leaves_no_orphan() {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let scene = Scene::set(&hosts).await;
    scene.begin_stop().await;
    let pids = "pgrep -f 'fairlead-agent (run|supervise)( |$)' > /tmp/pids; systemctl restart fairlead-agent";
    scene.in_phase(THERE_AND_BACK[0], "draining", pids).await;
    let before = scene.vm.says("cat /tmp/pids").await;
    assert_eq!(
        before.lines().count(),
        3,
        "a supervisor and two agents: {before}"
    );
    scene.stopped().await;
    scene.works("systemctl restart in draining").await;
    let after = scene.processes().await;
    assert_eq!(after.len(), 2, "a supervisor and its agent: {after:?}");
    let left: Vec<_> = before
        .lines()
        .filter(|pid| after.iter().any(|now| now == pid))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // None is outside of the unit either.
    let in_unit = scene
        .vm
        .says("cat $(find /sys/fs/cgroup -path '*fairlead-agent.service/cgroup.procs' | head -n 1)")
        .await;
    for pid in &after {
        assert!(in_unit.lines().any(|line| line == pid), "{pid}: {in_unit}");
    }
    assert!(scene.unit().await.contains("NRestarts=0"));
}

/// How the machine goes.
#[derive(Debug, Clone, Copy)]
enum Going {
    Reboot,
    PowerCut,
}

/// When it goes.
#[derive(Debug, Clone, Copy)]
enum When {
    /// A version is trying to prove itself.
    Proving,
    /// One that never will.
    ProvingInVain,
    /// The old instance finishes what it had begun.
    Draining,
    /// The new version is on trial.
    OnTrial,
}

#[tokio::test]
async fn a_machine_that_goes_in_the_middle_of_an_upgrade_boots_into_a_version_that_works() {
    goes(&[
        (Going::PowerCut, When::ProvingInVain),
        (Going::Reboot, When::Draining),
        (Going::PowerCut, When::OnTrial),
    ])
    .await;
}

#[tokio::test]
#[ignore = "long: ./dev test --long"]
async fn long_a_machine_that_goes_in_the_middle_of_an_upgrade_boots_into_a_version_that_works() {
    let whens = [
        When::Proving,
        When::ProvingInVain,
        When::Draining,
        When::OnTrial,
    ];
    let all: Vec<(Going, When)> = [Going::Reboot, Going::PowerCut]
        .into_iter()
        .flat_map(|going| whens.map(|when| (going, when)))
        .collect();
    goes(&all).await;
}

async fn goes(times: &[(Going, When)]) {
    let Some(hosts) = Hosts::here().await else {
        return;
    };
    let scene = Scene::set(&hosts).await;
    let mut runs = scene.settled().await;
    for &(going, when) in times {
        // By itself as soon as it is in that phase; what is then done from here comes a moment later.
        let then = match going {
            Going::Reboot => "systemctl poweroff --no-block",
            Going::PowerCut => "true",
        };
        let next = THERE_AND_BACK[usize::from(runs == THERE_AND_BACK[0])];
        let mut allowed = vec![runs.clone(), next.to_owned()];
        let stops = matches!(when, When::Draining);
        match when {
            When::Proving => scene.in_phase(next, "proving", then).await,
            When::ProvingInVain => {
                scene.in_phase(NEVER, "proving", then).await;
                allowed.remove(1);
            }
            When::Draining => {
                scene.begin_stop().await;
                scene.in_phase(next, "draining", then).await;
            }
            When::OnTrial => {
                ran(&scene.vm, &scene.upgrade(next)).await;
                scene.vm.exec(then).await;
                allowed.remove(0);
            }
        }
        match going {
            Going::Reboot => scene.vm.reboot().await,
            Going::PowerCut => scene.vm.power_cut().await,
        }
        if stops {
            scene.stopped().await;
        } else {
            // It has no restart policy, so the boot has left it as it was.
            ran(&scene.servers.host, "fairlead start deaf").await;
        }
        runs = scene.works(&format!("{going:?} when {when:?}")).await;
        assert!(
            allowed.contains(&runs),
            "{going:?} {when:?}: {runs}, not {allowed:?}"
        );
    }
}
