//! The kinds that make, change and end containers, and those that look: each effect is judged by the
//! engine itself.
//!
//! Holds: DESIGN §7 (kinds).

use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_api::types::{Action, ContainerSpec, Health, Mount, Port};
use fairlead_tests::engine::{self, Names, field};
use fairlead_tests::fleet::{Fleet, Options};
use fairlead_tests::ports;
use fairlead_tests::wait::wait_for;

use crate::acts::{kill, remove, restart, run, run_simulated, spec, start, stop};

const SOON: Duration = Duration::from_secs(30);

/// A container of which everything is said that a test can look up.
fn in_every_detail(name: &str, port: u16) -> ContainerSpec {
    let mut wanted = spec(name, &["sh", "-c", "echo up; sleep 3600"]);
    wanted.env = vec!["COLOUR=blue".to_owned()];
    wanted.labels = BTreeMap::from([("team".to_owned(), "red".to_owned())]);
    wanted.ports = vec![Port {
        host_ip: "127.0.0.1".to_owned(),
        host_port: port,
        container_port: 80,
        proto: "tcp".to_owned(),
    }];
    wanted.mounts = vec![Mount {
        kind: "tmpfs".to_owned(),
        target: "/scratch".to_owned(),
        ..Mount::default()
    }];
    wanted.restart_policy = "on-failure".to_owned();
    wanted.restart_max = 3;
    wanted.memory_bytes = 64 << 20;
    wanted.nano_cpus = 500_000_000;
    wanted.pids_limit = 50;
    wanted.user = "7:7".to_owned();
    wanted.workdir = "/tmp".to_owned();
    wanted.hostname = "inside".to_owned();
    wanted.read_only = true;
    wanted.init = false;
    wanted.cap_drop = vec!["ALL".to_owned()];
    wanted.extra_hosts = vec!["db:10.0.0.9".to_owned()];
    wanted.dns = vec!["10.0.0.53".to_owned()];
    wanted.stop_signal = "USR1".to_owned();
    wanted.stop_timeout_s = 7;
    wanted.ulimits = vec!["nofile=100:200".to_owned()];
    wanted.health = Some(Health {
        command: "true".to_owned(),
        interval_ms: 1000,
        timeout_ms: 2000,
        retries: 4,
        ..Health::default()
    });
    wanted
}

#[tokio::test]
async fn run_makes_exactly_what_was_asked_for() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let name = names.name("all");
    let port = ports::Port::claim();

    let wanted = in_every_detail(&name, port.number);

    let command = fleet.done(run(wanted)).await;

    let says = |format: &str| field(&name, format).unwrap();
    assert_eq!(command.container_id, engine::id(&name));
    assert!(engine::is_running(&name));
    let expected = [
        (
            "{{index .Config.Labels \"fairlead.command\"}}",
            command.id.as_str(),
        ),
        ("{{index .Config.Labels \"team\"}}", "red"),
        ("{{index .Config.Env 0}}", "COLOUR=blue"),
        (
            "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}",
            "on-failure 3",
        ),
        (
            "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}",
            "67108864 500000000 50",
        ),
        (
            "{{.Config.User}} {{.Config.WorkingDir}} {{.Config.Hostname}}",
            "7:7 /tmp inside",
        ),
        (
            "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}",
            "true [ALL]",
        ),
        (
            "{{.HostConfig.ExtraHosts}} {{.HostConfig.Dns}}",
            "[db:10.0.0.9] [10.0.0.53]",
        ),
        (
            "{{.Config.StopSignal}} {{.Config.StopTimeout}}",
            "SIGUSR1 7",
        ),
        (
            "{{(index .HostConfig.Ulimits 0).Name}} {{(index .HostConfig.Ulimits 0).Soft}} {{(index .HostConfig.Ulimits 0).Hard}}",
            "nofile 100 200",
        ),
        (
            "{{.Config.Healthcheck.Test}} {{.Config.Healthcheck.Retries}}",
            "[CMD-SHELL true] 4",
        ),
        (
            "{{(index .Mounts 0).Type}} {{(index .Mounts 0).Destination}}",
            "tmpfs /scratch",
        ),
        (
            "{{json .Config.Cmd}}",
            "[\"sh\",\"-c\",\"echo up; sleep 3600\"]",
        ),
    ];
    for (format, is) in expected {
        assert_eq!(says(format), is, "{format}");
    }
    let bound = says("{{json .HostConfig.PortBindings}}");
    assert!(
        bound.contains("80/tcp") && bound.contains(&port.number.to_string()),
        "{bound}"
    );

    // The fleet's picture follows.
    let seen = wait_for("the picture shows it healthy", SOON, async || {
        let all = fleet
            .api
            .containers("box")
            .await
            .map_err(|no| no.to_string())?;
        let mine = all
            .into_iter()
            .find(|c| c.name == name)
            .ok_or("not there")?;
        if mine.health == "healthy" {
            Ok(mine)
        } else {
            Err(format!("{mine:#?}"))
        }
    })
    .await;
    assert_eq!(
        (&seen.state[..], &seen.made_by[..]),
        ("running", &command.id[..])
    );
    assert_eq!(seen.memory_limit, 64 << 20);
    assert!(seen.live && !seen.ip.is_empty(), "{seen:#?}");
}

#[tokio::test]
async fn a_container_lives_as_it_is_told_to() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let name = names.name("life");
    let polite = [
        "sh",
        "-c",
        "trap 'exit 0' TERM; trap 'echo got-usr1' USR1; echo up; while :; do sleep 0.2; done",
    ];

    fleet
        .done(Action::Create {
            spec: Box::new(spec(&name, &polite)),
        })
        .await;
    assert_eq!(
        field(&name, "{{.State.Status}}").as_deref(),
        Some("created")
    );
    fleet.done(start(&name)).await;
    assert!(engine::is_running(&name));
    // What is so already is no failure, as with docker.
    fleet.done(start(&name)).await;
    assert_eq!(engine::count(&name, "start"), 1);

    // The trap must be in place before the signal comes.
    wait_for("it is up", SOON, async || {
        let said = engine::docker_says(&["logs", &name]);
        if said.contains("up") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    fleet.done(kill(&name, "USR1")).await;
    wait_for("the signal is heard", SOON, async || {
        let said = engine::docker_says(&["logs", &name]);
        if said.contains("got-usr1") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    assert!(engine::is_running(&name));

    fleet.done(restart(&name)).await;
    assert!(engine::is_running(&name));
    // Before that it would not hear the signal.
    wait_for("it is up again", SOON, async || {
        let said = engine::docker_says(&["logs", &name]);
        let ups = said.lines().filter(|line| *line == "up").count();
        (ups >= 2).then_some(()).ok_or(said)
    })
    .await;
    fleet.done(stop(&name)).await;
    assert_eq!(
        field(&name, "{{.State.Status}} {{.State.ExitCode}}").as_deref(),
        Some("exited 0")
    );
    fleet.done(stop(&name)).await;
    fleet.done(start(&name)).await;
    fleet.done(kill(&name, "")).await;
    wait_for("it is dead", SOON, async || {
        if engine::is_running(&name) {
            Err("it runs")
        } else {
            Ok(())
        }
        .map_err(str::to_owned)
    })
    .await;
    assert_eq!(field(&name, "{{.State.ExitCode}}").as_deref(), Some("137"));

    fleet.done(start(&name)).await;
    let refused = fleet.act(remove(&name, false)).await;
    assert_eq!(
        refused.state, "failed",
        "a running container is not removed unforced"
    );
    assert!(engine::is_running(&name));
    fleet.done(remove(&name, true)).await;
    assert_eq!(field(&name, "{{.Id}}"), None);
}

#[tokio::test]
async fn a_container_can_be_named_by_its_id_and_prefixes_of_it() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let id = engine::id(&web);
    // By its name one that is not known yet can be meant, by its id not: who may touch it goes by its name.
    fleet.api.knows("box", &web, SOON).await;
    for name in [&id[..], &id[..12]] {
        let command = fleet.done(restart(name)).await;
        assert_eq!(command.container_id, id);
    }
    assert_eq!(engine::count(&web, "restart"), 2);
}

#[tokio::test]
async fn looking_changes_nothing_and_tells_the_truth() {
    let fleet = Fleet::start(Options::docker()).await;
    let names = Names::new();
    let web = names.polite("web");
    let host = fleet.host();

    let object = |object: &str, kind: &str| Action::Inspect {
        object: object.to_owned(),
        object_kind: kind.to_owned(),
    };
    let inspected = fleet.done(object(&web, "")).await.output.unwrap();
    assert_eq!(inspected["Id"].as_str(), Some(&engine::id(&web)[..]));
    let image = fleet
        .done(object(engine::IMAGE, "image"))
        .await
        .output
        .unwrap();
    assert_eq!(image["Id"].as_str(), field(&web, "{{.Image}}").as_deref());
    let missing = fleet.act(object(&names.name("none"), "image")).await;
    assert_eq!(missing.code, "image_not_found");

    let listed = fleet.done(Action::List { all: true }).await.output.unwrap();
    assert!(listed.to_string().contains(&web), "{listed}");

    fleet.done(Action::Ping {}).await;

    let before = fleet.api.host(&host).await.unwrap();
    // Ends are whole seconds: one renewed in the second of the first ends with it.
    let asked = jiff::Timestamp::now().as_second();
    wait_for("the next second", SOON, async || {
        (jiff::Timestamp::now().as_second() > asked)
            .then_some(())
            .ok_or_else(String::new)
    })
    .await;
    fleet.done(Action::RenewCertificate {}).await;
    wait_for(
        "the new certificate is known at the centre",
        SOON,
        async || {
            let after = fleet.api.host(&host).await.map_err(|no| no.to_string())?;
            if after.certificate_expires_at > before.certificate_expires_at {
                Ok(())
            } else {
                Err(format!("{:?}", after.certificate_expires_at))
            }
        },
    )
    .await;
    // And the new one opens the link.
    fleet.hosts[0].kill_agent().await;
    fleet.done(Action::Ping {}).await;
    assert_eq!(engine::count(&web, "restart"), 0);
}

/// On the simulated engine: a prune on the real one would take other people's images.
#[tokio::test]
async fn images_are_pulled_and_pruned() {
    let fleet = Fleet::start(Options::simulated()).await;
    let pull = Action::Pull {
        image: "demo/web:1".to_owned(),
        platform: String::new(),
    };
    fleet.done(pull).await;
    fleet.done(run_simulated("web")).await;
    fleet.done(Action::PruneImages { all: true }).await;
    let inspect = Action::Inspect {
        object: "demo/web:1".to_owned(),
        object_kind: "image".to_owned(),
    };
    fleet.done(inspect).await;
}

#[tokio::test]
async fn what_somebody_does_by_hand_is_seen_and_said() {
    let names = Names::new();
    let own = names.by_hand(
        "db",
        &[
            "--label",
            "com.docker.compose.project=shop",
            "--label",
            "com.docker.compose.service=db",
        ],
        &["sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"],
    );
    let before = field(&own, "{{.Id}} {{.State.StartedAt}} {{.State.Pid}}");
    let fleet = Fleet::start(Options::docker()).await;

    let seen = wait_for(
        "the picture shows what was there before",
        SOON,
        async || {
            let all = fleet
                .api
                .containers("box")
                .await
                .map_err(|no| no.to_string())?;
            all.into_iter()
                .find(|c| c.name == own)
                .ok_or_else(|| "not there".to_owned())
        },
    )
    .await;
    assert_eq!((&seen.project[..], &seen.service[..]), ("shop", "db"));
    assert_eq!(seen.made_by, "");
    assert_eq!(
        field(&own, "{{.Id}} {{.State.StartedAt}} {{.State.Pid}}"),
        before,
        "unasked"
    );

    engine::docker_says(&["stop", "-t", "3", &own]);
    let cause = wait_for("the events say who did it", SOON, async || {
        let events = fleet.api.events().await.map_err(|no| no.to_string())?;
        let mine: Vec<_> = events.iter().filter(|e| e.container == own).collect();
        mine.iter()
            .find(|e| e.action == "container.die" || e.action == "container.stop")
            .map(|e| e.cause.clone())
            .ok_or_else(|| format!("{mine:#?}"))
    })
    .await;
    assert_eq!(cause, "by-hand");

    let started = fleet.done(start(&own)).await;
    let cause = wait_for("the events name the command", SOON, async || {
        let events = fleet.api.events().await.map_err(|no| no.to_string())?;
        events
            .iter()
            .find(|e| e.container == own && e.command == started.id)
            .map(|e| e.cause.clone())
            .ok_or_else(|| "no event of it".to_owned())
    })
    .await;
    assert_eq!(cause, "command");
}
