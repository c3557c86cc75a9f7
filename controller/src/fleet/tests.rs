//! Presence, pictures in parts, names.

use fairlead_protocol::{Container, ContainerSample, MetricsPart};
use fairlead_store::hosts::HostRow;

use super::*;

const H1: HostId = HostId::from_bytes([1; 16]);
const H2: HostId = HostId::from_bytes([2; 16]);

fn row(id: HostId, name: &str) -> HostRow {
    HostRow {
        id: Some(id),
        name: name.to_owned(),
        tenant: "t".to_owned(),
        region: "r".to_owned(),
        enrolled_us: 5,
        ..HostRow::default()
    }
}

fn presence(id: HostId, state: &str) -> HostPresence {
    HostPresence {
        host: id.to_wire(),
        state: state.to_owned(),
        since_us: 10,
        ..Default::default()
    }
}

fn container(id: &str, name: &str) -> Container {
    Container {
        id: id.to_owned(),
        name: name.to_owned(),
        state: "running".to_owned(),
        ..Container::default()
    }
}

fn part(full: bool, last: bool, upserts: Vec<Container>, removed: &[&str]) -> InventoryPart {
    InventoryPart {
        generation: 1,
        full,
        last,
        upserts,
        removed: removed.iter().map(ToString::to_string).collect(),
        as_of_us: 20,
        engine: None,
    }
}

fn tell(fleet: &Fleet, id: HostId, part: InventoryPart) {
    fleet.apply_inventory(&HostInventory {
        host: id.to_wire(),
        part: Some(part),
    });
}

fn names(fleet: &Fleet) -> Vec<String> {
    let filter = ContainerFilter {
        all: true,
        ..ContainerFilter::default()
    };
    let shown = fleet.containers(&[row(H1, "one"), row(H2, "two")], &filter);
    shown
        .into_iter()
        .map(|c| format!("{}/{}", c.host, c.name))
        .collect()
}

#[test]
fn a_host_is_unknown_while_its_region_is_away_and_offline_when_not_mentioned() {
    let fleet = Fleet::new();
    let state = |fleet: &Fleet| fleet.host_state(&row(H1, "one")).0;
    assert_eq!(state(&fleet), "unknown");
    fleet.region_online("r", "s", "v", 9);
    fleet.apply_presence("r", &presence(H1, "online"));
    fleet.presence_complete("r");
    assert_eq!(state(&fleet), "online");
    fleet.apply_presence("r", &presence(H1, "suspect"));
    assert_eq!(state(&fleet), "suspect");
    fleet.region_offline("r", 30);
    assert_eq!(fleet.host_state(&row(H1, "one")).1, 30);
    assert_eq!(state(&fleet), "unknown");
    fleet.region_online("r", "s", "v", 40);
    assert_eq!(
        state(&fleet),
        "unknown",
        "its region has not told of it yet"
    );
    fleet.presence_complete("r");
    assert_eq!(state(&fleet), "offline");
    let held = HostRow {
        held: "counter went back".to_owned(),
        ..row(H1, "one")
    };
    assert_eq!(fleet.host_state(&held).0, "held");
    let revoked = HostRow {
        revoked_us: 3,
        ..held
    };
    assert_eq!(fleet.host_state(&revoked).0, "revoked");
}

#[test]
fn nobody_is_down_while_a_server_is_restarted_and_who_is_not_back_in_time_is() {
    let fleet = Fleet::new();
    let state = |id| fleet.host_state(&row(id, "one")).0;
    fleet.region_online("r", "s", "v", 9);
    fleet.apply_presence("r", &presence(H1, "online"));
    fleet.apply_presence("r", &presence(H2, "offline"));
    fleet.presence_complete("r");
    fleet.region_restarts("r", 30, 100);
    assert_eq!((state(H1), state(H2)), ("online", "unknown"));
    assert!(fleet.region("r").is_returning);
    fleet.region_online("r", "s", "v", 40);
    assert!(!fleet.region("r").is_returning);
    // The first that the region says of its hosts is that none is there yet.
    fleet.presence_complete("r");
    assert_eq!((state(H1), state(H2)), ("online", "offline"));
    assert!(fleet.give_up_waiting(99).is_empty());
    assert_eq!(state(H1), "online");
    assert!(fleet.give_up_waiting(100).is_empty());
    let (state_now, since_us, reason) = fleet.host_state(&row(H1, "one"));
    assert_eq!((state_now, since_us), ("offline", 100));
    assert!(reason.starts_with("not back"), "{reason}");
    fleet.apply_presence("r", &presence(H1, "online"));
    assert_eq!(state(H1), "online");
    assert!(fleet.give_up_waiting(1_000).is_empty());
    assert_eq!(state(H1), "online");

    // An access server that does not return at all leaves its hosts unknown, as any that is away.
    fleet.region_restarts("r", 1_000, 1_100);
    assert!(fleet.give_up_waiting(1_099).is_empty());
    assert_eq!(fleet.give_up_waiting(1_100), ["r".into()]);
    assert!(fleet.give_up_waiting(1_101).is_empty(), "it is said once");
    assert_eq!(state(H1), "unknown");
    assert!(!fleet.region("r").is_returning);
}

#[test]
fn a_controller_expects_whom_the_one_before_it_has_seen() {
    let before = Fleet::new();
    for region in ["r", "away"] {
        before.region_online(region, "s", "v", 9);
    }
    before.apply_presence("r", &presence(H1, "online"));
    before.apply_presence("away", &presence(H2, "online"));
    before.region_offline("away", 20);
    assert_eq!(before.connected(), [H1]);
    let fleet = Fleet::new();
    fleet.expect_back(&[(H1, "r".to_owned())], 30, 100);
    let state = || fleet.host_state(&row(H1, "one")).0;
    assert_eq!(state(), "online");
    assert!(fleet.region("r").is_returning);
    assert_eq!(fleet.connected(), [H1], "also when it ends again at once");
    fleet.region_online("r", "s", "v", 40);
    fleet.presence_complete("r");
    assert!(fleet.give_up_waiting(100).is_empty());
    assert_eq!(state(), "offline");
}

#[test]
fn a_whole_picture_replaces_the_last_only_when_it_is_complete() {
    let fleet = Fleet::new();
    fleet.apply_presence("r", &presence(H1, "online"));
    tell(
        &fleet,
        H1,
        part(
            true,
            true,
            vec![container("aa", "a"), container("bb", "b")],
            &[],
        ),
    );
    assert_eq!(names(&fleet), ["one/a", "one/b"]);
    tell(
        &fleet,
        H1,
        part(true, false, vec![container("cc", "c")], &[]),
    );
    assert_eq!(
        names(&fleet),
        ["one/a", "one/b"],
        "the new picture is not complete"
    );
    tell(
        &fleet,
        H1,
        part(false, true, vec![container("dd", "d")], &[]),
    );
    assert_eq!(names(&fleet), ["one/c", "one/d"]);
    tell(
        &fleet,
        H1,
        part(false, true, vec![container("ee", "e")], &["cc"]),
    );
    assert_eq!(names(&fleet), ["one/d", "one/e"]);
    assert_eq!(fleet.picture(H1).unwrap().upserts.len(), 2);
    assert_eq!(fleet.take_unsaved(10).len(), 1);
    assert!(fleet.take_unsaved(10).is_empty());
}

#[test]
fn measurements_stay_with_what_runs_and_go_with_what_stopped() {
    let fleet = Fleet::new();
    fleet.apply_presence("r", &presence(H1, "online"));
    tell(
        &fleet,
        H1,
        part(
            true,
            true,
            vec![container("aa", "a"), container("bb", "b")],
            &[],
        ),
    );
    let samples = ["aa", "bb", "unknown"].map(|id| ContainerSample {
        id: id.to_owned(),
        cpu_permille: 15,
        ..ContainerSample::default()
    });
    fleet.apply_metrics(&HostMetrics {
        host: H1.to_wire(),
        part: Some(MetricsPart {
            at_us: 7,
            host: None,
            containers: samples.to_vec(),
        }),
    });
    let stopped = Container {
        state: "exited".to_owned(),
        ..container("bb", "b")
    };
    tell(
        &fleet,
        H1,
        part(true, true, vec![container("aa", "a"), stopped], &[]),
    );
    let filter = ContainerFilter {
        all: true,
        ..ContainerFilter::default()
    };
    let shown = fleet.containers(&[row(H1, "one")], &filter);
    assert!((shown[0].metrics.as_ref().unwrap().cpu_percent - 1.5).abs() < 1e-9);
    assert!(shown[1].metrics.is_none());
}

#[test]
fn names_go_before_ids_and_several_are_listed() {
    let fleet = Fleet::new();
    for id in [H1, H2] {
        fleet.apply_presence("r", &presence(id, "online"));
    }
    let one = vec![
        container("beef01", "web"),
        container("cafe01", "db"),
        container("abcd", "x"),
    ];
    let two = vec![container("beef02", "web"), container("0001", "cafe")];
    tell(&fleet, H1, part(true, true, one, &[]));
    tell(&fleet, H2, part(true, true, two, &[]));
    let both = [row(H1, "one"), row(H2, "two")];
    let found = |hosts: &[HostRow], text: &str| match fleet.resolve_container(hosts, text) {
        Resolved::Found { name, by_id, .. } => format!("{name} {by_id}"),
        Resolved::NotFound => "none".to_owned(),
        Resolved::Ambiguous(list) => list.join(" "),
    };
    assert_eq!(found(&both, "web"), "one/web two/web");
    assert_eq!(found(&both[..1], "web"), "web false");
    assert_eq!(found(&both, "beef"), "one/web two/web");
    assert_eq!(found(&both, "beef02"), "web true");
    assert_eq!(
        found(&both, "cafe"),
        "cafe false",
        "a name, though an id begins so too"
    );
    assert_eq!(found(&both, "abc"), "none", "three digits are too few");
    assert_eq!(found(&[], "web"), "none", "no host in scope, nothing found");
}

#[test]
fn saved_pictures_do_not_replace_what_was_told_since() {
    let fleet = Fleet::new();
    fleet.apply_presence("r", &presence(H1, "online"));
    tell(
        &fleet,
        H1,
        part(true, true, vec![container("aa", "new")], &[]),
    );
    let old = part(true, true, vec![container("bb", "old")], &[]);
    fleet.load_pictures(vec![
        (H1, "r".to_owned(), old.clone()),
        (H2, "r".to_owned(), old),
    ]);
    assert_eq!(names(&fleet), ["one/new", "two/old"]);
    fleet.forget_host(H2);
    assert_eq!(names(&fleet), ["one/new"]);
}

#[test]
fn containers_are_shown_as_they_were_while_the_engine_does_not_answer() {
    let fleet = Fleet::new();
    fleet.region_online("r", "s", "v", 9);
    fleet.apply_presence("r", &presence(H1, "online"));
    fleet.presence_complete("r");
    tell(
        &fleet,
        H1,
        part(true, true, vec![container("a", "web")], &[]),
    );
    let shown = || {
        let shown = fleet.containers(&[row(H1, "one")], &ContainerFilter::default());
        shown
            .first()
            .map(|c| (c.live, c.as_of.as_microsecond()))
            .unwrap()
    };
    assert_eq!(shown(), (true, 20));
    let with = |error: &str, as_of_us| InventoryPart {
        as_of_us,
        engine: Some(fairlead_protocol::EngineFacts {
            error: error.to_owned(),
            ..Default::default()
        }),
        ..part(false, true, Vec::new(), &[])
    };
    tell(&fleet, H1, with("no socket", 50));
    assert_eq!(shown(), (false, 20), "as of when it last answered");
    tell(&fleet, H1, with("", 80));
    assert_eq!(shown(), (true, 80));
}
