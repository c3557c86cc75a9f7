use std::collections::BTreeMap;

use fairlead_protocol::{
    Container, EngineFacts, InventoryPart, Label, LinkUp, Message, PortMapping, limits, link_up,
};
use proptest::prelude::*;

use super::{Inventory, apply, cut, fitted};

fn container() -> impl Strategy<Value = Container> {
    let text = || prop_oneof![8 => "[a-zé]{0,12}", 1 => "[aé☃]{0,900}"];
    let port =
        (text(), any::<u16>(), any::<u16>()).prop_map(|(host_ip, host, inner)| PortMapping {
            host_ip,
            host_port: host.into(),
            container_port: inner.into(),
            proto: "tcp".into(),
        });
    (
        "[a-f]{1,3}",
        (text(), text(), text(), text()),
        proptest::collection::vec(port, 0..40),
        proptest::collection::vec((text(), text()), 0..12),
        proptest::collection::vec(text(), 0..10),
        any::<[i64; 3]>(),
    )
        .prop_map(
            |(id, (name, image, command, project), ports, labels, networks, times)| Container {
                id,
                name,
                image,
                command,
                project,
                ports,
                labels: labels
                    .into_iter()
                    .map(|(key, value)| Label { key, value })
                    .collect(),
                networks,
                created_us: times[0],
                started_us: times[1],
                memory_limit: times[2],
                ..Container::default()
            },
        )
}

fn picture() -> impl Strategy<Value = Vec<Container>> {
    proptest::collection::vec(container(), 0..30)
}

/// As it travels.
fn message_len(part: &InventoryPart) -> usize {
    LinkUp {
        kind: Some(link_up::Kind::Inventory(part.clone())),
    }
    .encoded_len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn parts_lead_from_one_picture_to_the_next(
        pictures in proptest::collection::vec((picture(), any::<bool>()), 1..5),
        error in "[é]{0,400}",
    ) {
        let engine = EngineFacts { error, ..EngineFacts::default() };
        let mut inventory = Inventory::new();
        let mut theirs = BTreeMap::new();
        let mut generation = 0;
        for (now, start_over) in pictures {
            if start_over {
                inventory.start_over();
            }
            let parts = inventory.parts(&now, &engine, i64::MAX);
            for (index, part) in parts.iter().enumerate() {
                prop_assert!(message_len(part) <= limits::LINK_MESSAGE_BYTES_MAX);
                prop_assert_eq!(part.generation, generation + 1);
                prop_assert_eq!(part.last, index + 1 == parts.len());
                prop_assert_eq!(part.engine.is_some(), index == 0);
                prop_assert!(!part.full || index == 0);
                apply(&mut theirs, part);
            }
            if !parts.is_empty() {
                generation += 1;
            }
            let expected: BTreeMap<String, Container> =
                now.iter().map(|c| (c.id.clone(), fitted(c))).collect();
            prop_assert_eq!(&theirs, &expected);
            prop_assert!(inventory.parts(&now, &engine, 0).is_empty(), "nothing new, nothing said");
        }
    }

    #[test]
    fn cuts_end_where_characters_end(text in "[aé☃𝄞]{0,40}", at in 0usize..100) {
        let short = cut(&text, at);
        prop_assert!(text.starts_with(&short) && short.len() <= at);
        prop_assert!(text.len() <= at || short.len() + 4 > at);
    }
}

#[test]
fn the_first_picture_is_whole_even_when_empty() {
    let mut inventory = Inventory::new();
    let parts = inventory.parts(&[], &EngineFacts::default(), 7);
    assert_eq!(parts.len(), 1);
    assert!(parts[0].full && parts[0].last);
    assert_eq!((parts[0].generation, parts[0].as_of_us), (1, 7));
    assert!(inventory.parts(&[], &EngineFacts::default(), 8).is_empty());
    let gone = EngineFacts {
        error: "it is away".into(),
        ..EngineFacts::default()
    };
    assert_eq!(
        inventory.parts(&[], &gone, 8).len(),
        1,
        "the engine's facts are news, too"
    );
    inventory.start_over();
    let again = inventory.parts(&[], &EngineFacts::default(), 9);
    assert!(again[0].full && again[0].generation == 3);
}

#[test]
fn the_largest_container_fits_beside_the_engine() {
    let long = "x".repeat(10_000);
    let container = Container {
        id: long.clone(),
        name: long.clone(),
        image: long.clone(),
        image_id: long.clone(),
        state: long.clone(),
        health: long.clone(),
        ip: long.clone(),
        project: long.clone(),
        service: long.clone(),
        command: long.clone(),
        restart_policy: long.clone(),
        networks: vec![long.clone(); 100],
        ports: vec![
            PortMapping {
                host_ip: long.clone(),
                host_port: u32::MAX,
                container_port: u32::MAX,
                proto: long.clone()
            };
            100
        ],
        labels: vec![
            Label {
                key: long.clone(),
                value: long.clone()
            };
            100
        ],
        created_us: i64::MIN,
        started_us: i64::MIN,
        finished_us: i64::MIN,
        exit_code: i32::MIN,
        oom_killed: true,
        restarts: u32::MAX,
        memory_limit: i64::MIN,
    };
    let engine = EngineFacts {
        kind: long.clone(),
        version: long.clone(),
        api_version: long.clone(),
        error: long.clone(),
        code: long.clone(),
        live_restore: true,
        runtime: long,
    };
    let parts = Inventory::new().parts(&[container], &engine, i64::MAX);
    assert_eq!(parts.len(), 2, "the engine's facts first, if need be alone");
    assert!(
        parts
            .iter()
            .all(|part| message_len(part) <= limits::LINK_MESSAGE_BYTES_MAX)
    );
}
