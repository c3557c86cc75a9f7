use fairlead_protocol::{CommandId, HostEvent};

use super::EventLog;
use crate::runtime::EngineEvent;

const SECOND: i64 = 1_000_000;

/// A story of one container: time in seconds, action, detail, whether a command of ours acts.
type Story<'a> = &'a [(i64, &'a str, &'a str, bool)];

fn event(at_s: i64, action: &str, detail: &str) -> EngineEvent {
    EngineEvent {
        at_us: at_s * SECOND,
        object: "container".into(),
        action: action.into(),
        id: "1f".into(),
        name: "web".into(),
        image: "nginx".into(),
        detail: detail.into(),
        command_label: String::new(),
    }
}

fn ours() -> CommandId {
    CommandId::from_bytes([7; 16])
}

fn told(story: Story<'_>) -> Vec<String> {
    let mut log = EventLog::new();
    story
        .iter()
        .filter_map(|(at, action, detail, acting)| {
            log.report(&event(*at, action, detail), acting.then(ours))
        })
        .map(|e| format!("{} {}", e.action.trim_start_matches("container."), e.cause))
        .collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn stories() {
    let stories: &[(&str, Story<'_>, &[&str])] = &[
        (
            "our restart",
            &[
                (1, "kill", "15", true),
                (2, "die", "0", true),
                (2, "stop", "", true),
                (2, "start", "", true),
                (2, "restart", "", true),
            ],
            &[
                "kill command",
                "die command",
                "stop command",
                "start command",
                "restart command",
            ],
        ),
        (
            "our stop, told late",
            &[
                (1, "kill", "15", true),
                (2, "die", "0", false),
                (2, "stop", "", false),
            ],
            &["kill command", "die command", "stop command"],
        ),
        (
            "docker restart by hand",
            &[
                (1, "kill", "15", false),
                (2, "die", "0", false),
                (2, "stop", "", false),
                (2, "start", "", false),
                (2, "restart", "", false),
            ],
            &[
                "kill by-hand",
                "die by-hand",
                "stop by-hand",
                "start by-hand",
                "restart by-hand",
            ],
        ),
        (
            "docker kill by hand",
            &[(1, "kill", "9", false), (1, "die", "137", false)],
            &["kill by-hand", "die by-hand"],
        ),
        (
            "crash and policy",
            &[
                (1, "start", "", false),
                (9, "die", "1", false),
                (10, "start", "", false),
            ],
            &["start by-hand", "die itself", "start engine"],
        ),
        (
            "crash after a reload by hand",
            &[(1, "kill", "1", false), (2, "die", "1", false)],
            &["kill by-hand", "die itself"],
        ),
        (
            "crash long after a restart of ours",
            &[
                (1, "kill", "15", true),
                (2, "die", "0", true),
                (2, "start", "", true),
                (400, "die", "139", false),
                (401, "start", "", false),
            ],
            &[
                "kill command",
                "die command",
                "start command",
                "die itself",
                "start engine",
            ],
        ),
        (
            "out of memory",
            &[
                (1, "oom", "", false),
                (1, "die", "137", false),
                (2, "start", "", false),
            ],
            &["oom engine", "die engine", "start engine"],
        ),
        (
            "started by hand the day after",
            &[(1, "die", "0", false), (90_000, "start", "", false)],
            &["die itself", "start by-hand"],
        ),
        (
            "created and removed by hand",
            &[(1, "create", "", false), (2, "destroy", "", false)],
            &["create by-hand", "destroy by-hand"],
        ),
        (
            "run --rm by hand",
            &[
                (1, "create", "", false),
                (1, "start", "", false),
                (3, "die", "0", false),
                (3, "destroy", "", false),
            ],
            &[
                "create by-hand",
                "start by-hand",
                "die itself",
                "destroy engine",
            ],
        ),
        (
            "our forced remove",
            &[
                (1, "kill", "9", true),
                (1, "die", "137", false),
                (1, "destroy", "", false),
            ],
            &["kill command", "die command", "destroy command"],
        ),
        (
            "renamed and paused by hand",
            &[
                (1, "rename", "/old", false),
                (2, "pause", "", false),
                (3, "unpause", "", true),
            ],
            &["rename by-hand", "pause by-hand", "unpause command"],
        ),
        (
            "health",
            &[
                (1, "health_status: healthy", "", false),
                (2, "health_status: healthy", "", false),
                (3, "health_status: unhealthy", "", false),
            ],
            &["health itself", "health itself"],
        ),
        (
            "exec by hand",
            &[
                (1, "exec_create: sh", "", false),
                (1, "exec_start: sh", "", false),
                (2, "exec_die", "", false),
            ],
            &["exec by-hand"],
        ),
        (
            "exec of ours",
            &[
                (1, "exec_create: sh", "", true),
                (1, "exec_start: sh", "", true),
            ],
            &[],
        ),
        (
            "noise",
            &[
                (1, "attach", "", false),
                (1, "resize", "", false),
                (1, "archive-path", "", false),
            ],
            &[],
        ),
    ];
    for (name, story, expected) in stories {
        assert_eq!(told(story), *expected, "{name}");
    }
}

#[test]
fn the_label_speaks_for_the_creation_only() {
    let mut log = EventLog::new();
    let labelled = |at, action| EngineEvent {
        command_label: ours().to_string(),
        ..event(at, action, "")
    };
    let created = log.report(&labelled(1, "create"), None).unwrap();
    assert_eq!(
        (created.cause.as_str(), &created.command),
        ("command", &ours().to_wire())
    );
    let stopped = log.report(&labelled(500, "kill"), None).unwrap();
    assert_eq!(
        (stopped.cause.as_str(), stopped.command.len()),
        ("by-hand", 0)
    );
}

#[test]
fn what_is_told_late_still_names_its_command() {
    let mut log = EventLog::new();
    log.report(&event(1, "kill", "15"), Some(ours())).unwrap();
    for action in ["die", "stop", "start", "restart"] {
        let late = log.report(&event(2, action, ""), None).unwrap();
        let expected = ("command", &ours().to_wire());
        assert_eq!((late.cause.as_str(), &late.command), expected, "{action}");
    }
    log.report(&event(100, "kill", "15"), Some(ours())).unwrap();
    log.report(&event(101, "die", "0"), Some(ours())).unwrap();
    let by_hand = log.report(&event(110, "start", ""), None).unwrap();
    assert_eq!(
        (by_hand.cause.as_str(), by_hand.command.len()),
        ("by-hand", 0)
    );
}

#[test]
fn fields_are_filled() {
    let mut log = EventLog::new();
    let told = log.report(&event(5, "die", "3"), None).unwrap();
    let expected = HostEvent {
        at_us: 5 * SECOND,
        action: "container.die".into(),
        container: "web".into(),
        container_id: "1f".into(),
        image: "nginx".into(),
        cause: "itself".into(),
        detail: "exit code 3".into(),
        ..HostEvent::default()
    };
    assert_eq!(told, expected);
    let exec = log
        .report(&event(6, "exec_start: sh -c \u{1b}[31mx", ""), None)
        .unwrap();
    assert_eq!(exec.detail, "sh -c [31mx");
    let pulled = EngineEvent {
        object: "image".into(),
        name: "nginx:1".into(),
        ..event(7, "pull", "")
    };
    let pulled = log.report(&pulled, None).unwrap();
    assert_eq!(
        (pulled.action.as_str(), pulled.image.as_str()),
        ("image.pull", "nginx:1")
    );
    assert_eq!(
        (pulled.cause.as_str(), pulled.container.as_str()),
        ("by-hand", "")
    );
    let network = EngineEvent {
        object: "network".into(),
        ..event(8, "connect", "")
    };
    assert_eq!(log.report(&network, None), None);
}
