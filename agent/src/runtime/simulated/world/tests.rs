use fairlead_protocol::ContainerSpec;

use super::{Ends, Phase, Stop, World};
use crate::runtime::RuntimeError;

fn told(grace_s: Option<u32>, again: bool) -> Stop<'static> {
    Stop {
        grace_s,
        again,
        ends_after_us: 5,
        signal: "",
    }
}

const SECOND: i64 = 1_000_000;

fn world() -> World {
    let images = ["busybox:latest", "demo/web:1", "demo/stubborn:1"];
    let images = images
        .iter()
        .map(|name| ((*name).into(), format!("sha256:{name}")))
        .collect();
    World {
        images,
        ..World::default()
    }
}

fn made(world: &mut World, name: &str, image: &str, change: impl FnOnce(&mut ContainerSpec)) {
    let mut spec = ContainerSpec {
        name: name.into(),
        image: image.into(),
        ..Default::default()
    };
    change(&mut spec);
    let id = format!("{name}{:0>60}", 1);
    world.create(&spec, &[], id, 0).unwrap();
}

fn actions(world: &World) -> Vec<String> {
    world
        .events_from(0, 0)
        .into_iter()
        .map(|event| event.action)
        .collect()
}

#[test]
fn a_stop_takes_the_grace_of_the_stubborn_and_no_more() {
    let mut world = world();
    made(&mut world, "a", "demo/web:1", |_| {});
    made(&mut world, "b", "demo/stubborn:1", |_| {});
    world.start("a", 0).unwrap();
    world.start("b", 0).unwrap();
    assert_eq!(
        world.stop("a", told(None, false), 100).unwrap(),
        Ends::At(105)
    );
    assert_eq!(
        world.stop("b", told(Some(3), false), 100).unwrap(),
        Ends::At(100 + 3 * SECOND)
    );
    world.settle(105);
    assert_eq!(world.containers[0].exit_code, 0);
    assert!(world.containers[1].is_running());
    world.settle(100 + 3 * SECOND);
    assert_eq!(world.containers[1].exit_code, 137);
    assert_eq!(
        world.stop("b", told(None, false), 4 * SECOND).unwrap(),
        Ends::Now
    );
}

#[test]
fn a_restart_goes_on_without_its_caller() {
    let mut world = world();
    made(&mut world, "a", "demo/web:1", |_| {});
    world.start("a", 0).unwrap();
    world.stop("a", told(None, true), 100).unwrap();
    let json = serde_json::to_string(&world).unwrap();
    let mut later: World = serde_json::from_str(&json).unwrap();
    later.after_a_break();
    later.settle(SECOND);
    assert_eq!(later.containers[0].phase, Phase::Running);
    assert_eq!(later.containers[0].started_us(), 105);
    let expected = ["create", "start", "kill", "die", "stop", "start", "restart"];
    assert_eq!(actions(&later), expected);
}

#[test]
fn policies_start_again_with_growing_delays() {
    let mut world = world();
    made(&mut world, "a", "busybox", |spec| {
        spec.command = vec!["false".into()];
        spec.restart_policy = "on-failure".into();
        spec.restart_max = 3;
    });
    world.start("a", 0).unwrap();
    assert_eq!(
        world.containers[0].phase,
        Phase::Waiting { until_us: 100_000 }
    );
    world.settle(10 * SECOND);
    assert_eq!(world.containers[0].phase, Phase::Exited);
    assert_eq!(world.containers[0].restarts, 3);
    assert_eq!(world.containers[0].started_us(), 700_000);
}

#[test]
fn what_is_stopped_by_hand_stays_stopped() {
    let mut world = world();
    made(&mut world, "a", "busybox", |spec| {
        spec.command = vec!["sleep".into(), "1".into()];
        spec.restart_policy = "always".into();
    });
    world.start("a", 0).unwrap();
    world.settle(3 * SECOND);
    assert!(world.containers[0].restarts >= 2);
    world.stop("a", told(None, false), 3 * SECOND).unwrap();
    world.settle(60 * SECOND);
    assert_eq!(world.containers[0].phase, Phase::Exited);
}

#[test]
fn errors_are_those_of_an_engine() {
    use RuntimeError as E;
    let mut world = world();
    let mut spec = ContainerSpec {
        name: "a".into(),
        image: "nope".into(),
        ..Default::default()
    };
    assert!(matches!(
        world.create(&spec, &[], "1".repeat(64), 0),
        Err(E::NoSuchImage(_))
    ));
    spec.image = "busybox".into();
    spec.command = vec!["nonsense".into()];
    world.create(&spec, &[], "1".repeat(64), 0).unwrap();
    assert!(matches!(
        world.create(&spec, &[], "2".repeat(64), 0),
        Err(E::NameInUse(_))
    ));
    assert!(matches!(world.start("a", 0), Err(E::Engine(text)) if text.contains("nonsense")));
    assert!(matches!(world.kill("a", "", 0), Err(E::NotRunning(_))));
    assert!(matches!(world.find("b"), Err(E::NoSuchContainer(_))));
    assert!(matches!(world.find(""), Err(E::NoSuchContainer(_))));
    assert_eq!(world.find("1111").unwrap(), 0);
    made(&mut world, "w", "demo/web:1", |_| {});
    world.start("w", 0).unwrap();
    assert!(matches!(world.remove("w", false, 0), Err(E::Engine(_))));
    assert!(matches!(world.kill("w", "NOPE", 0), Err(E::Engine(_))));
    world.remove("w", true, 0).unwrap();
    assert!(world.find("w").is_err());
}

#[test]
fn a_container_that_is_to_be_removed_goes_when_it_ends() {
    let mut world = world();
    made(&mut world, "a", "busybox", |spec| {
        spec.command = vec!["sleep".into(), "1".into()];
        spec.auto_remove = true;
    });
    world.start("a", 0).unwrap();
    world.settle(2 * SECOND);
    assert!(world.containers.is_empty());
    assert_eq!(actions(&world), ["create", "start", "die", "destroy"]);
}

#[test]
fn a_taken_port_is_refused() {
    let mut world = world();
    for name in ["a", "b"] {
        made(&mut world, name, "demo/web:1", |spec| {
            let port = fairlead_protocol::PortMapping {
                host_port: 80,
                container_port: 80,
                ..Default::default()
            };
            spec.ports = vec![port];
        });
    }
    world.start("a", 0).unwrap();
    let refused = world.start("b", 0);
    assert!(matches!(refused, Err(RuntimeError::Engine(text)) if text.contains("80")));
}

#[test]
fn a_passed_health_check_is_told_once_for_each_run() {
    let mut world = world();
    made(&mut world, "web", "demo/web:1", |spec| {
        spec.health = Some(fairlead_protocol::HealthSpec {
            command: "true".into(),
            interval_ms: 1000,
            ..Default::default()
        });
    });
    world.start("web", 0).unwrap();
    let told = |world: &World| {
        let healthy = |action: &&String| *action == "health_status: healthy";
        actions(world).iter().filter(healthy).count()
    };
    let shown = |world: &World, now_us| world.containers[0].container(0, now_us).health;
    world.settle(SECOND - 1);
    assert_eq!(
        (told(&world), shown(&world, SECOND - 1).as_str()),
        (0, "starting")
    );
    world.settle(9 * SECOND);
    assert_eq!(
        (told(&world), shown(&world, 9 * SECOND).as_str()),
        (1, "healthy")
    );
    world
        .stop("web", self::told(None, true), 10 * SECOND)
        .unwrap();
    world.settle(20 * SECOND);
    assert_eq!(told(&world), 2);
}
