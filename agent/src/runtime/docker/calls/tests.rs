//! All that an engine can be asked for, by its API's versions up to the newest that is known here, and what
//! of it may be asked.

use super::*;

/// Each call of the engine's API, 1.24 to 1.53. A path whose variable is filled in.
const API: &[(&str, &str)] = &[
    ("GET", "/_ping"),
    ("HEAD", "/_ping"),
    ("GET", "/version"),
    ("GET", "/info"),
    ("GET", "/events"),
    ("POST", "/auth"),
    ("GET", "/system/df"),
    ("GET", "/containers/json"),
    ("POST", "/containers/create"),
    ("GET", "/containers/web/json"),
    ("GET", "/containers/web/top"),
    ("GET", "/containers/web/logs"),
    ("GET", "/containers/web/changes"),
    ("GET", "/containers/web/export"),
    ("GET", "/containers/web/stats"),
    ("POST", "/containers/web/resize"),
    ("POST", "/containers/web/start"),
    ("POST", "/containers/web/stop"),
    ("POST", "/containers/web/restart"),
    ("POST", "/containers/web/kill"),
    ("POST", "/containers/web/update"),
    ("POST", "/containers/web/rename"),
    ("POST", "/containers/web/pause"),
    ("POST", "/containers/web/unpause"),
    ("POST", "/containers/web/attach"),
    ("GET", "/containers/web/attach/ws"),
    ("POST", "/containers/web/wait"),
    ("POST", "/containers/web/copy"),
    ("DELETE", "/containers/web"),
    ("HEAD", "/containers/web/archive"),
    ("GET", "/containers/web/archive"),
    ("PUT", "/containers/web/archive"),
    ("POST", "/containers/prune"),
    ("POST", "/containers/web/checkpoints"),
    ("POST", "/containers/web/exec"),
    ("POST", "/exec/0a1b/start"),
    ("POST", "/exec/0a1b/resize"),
    ("GET", "/exec/0a1b/json"),
    ("GET", "/images/json"),
    ("POST", "/build"),
    ("POST", "/build/prune"),
    ("POST", "/build/cancel"),
    ("POST", "/images/create"),
    ("GET", "/images/r.example:5000/team/web:1/json"),
    ("GET", "/images/web@sha256:0a/json"),
    ("GET", "/images/web/history"),
    ("GET", "/images/web/attestations"),
    ("POST", "/images/web/push"),
    ("POST", "/images/web/tag"),
    ("DELETE", "/images/web"),
    ("GET", "/images/search"),
    ("POST", "/images/prune"),
    ("GET", "/images/web/get"),
    ("GET", "/images/get"),
    ("POST", "/images/load"),
    ("POST", "/commit"),
    ("GET", "/networks"),
    ("GET", "/networks/n"),
    ("DELETE", "/networks/n"),
    ("POST", "/networks/create"),
    ("POST", "/networks/n/connect"),
    ("POST", "/networks/n/disconnect"),
    ("POST", "/networks/prune"),
    ("GET", "/volumes"),
    ("POST", "/volumes/create"),
    ("GET", "/volumes/v"),
    ("PUT", "/volumes/v"),
    ("DELETE", "/volumes/v"),
    ("POST", "/volumes/prune"),
    ("GET", "/swarm"),
    ("POST", "/swarm/init"),
    ("POST", "/swarm/join"),
    ("POST", "/swarm/leave"),
    ("POST", "/swarm/update"),
    ("GET", "/swarm/unlockkey"),
    ("POST", "/swarm/unlock"),
    ("GET", "/nodes"),
    ("GET", "/nodes/n"),
    ("DELETE", "/nodes/n"),
    ("POST", "/nodes/n/update"),
    ("GET", "/services"),
    ("POST", "/services/create"),
    ("GET", "/services/s"),
    ("DELETE", "/services/s"),
    ("POST", "/services/s/update"),
    ("GET", "/services/s/logs"),
    ("GET", "/tasks"),
    ("GET", "/tasks/t"),
    ("GET", "/tasks/t/logs"),
    ("GET", "/secrets"),
    ("POST", "/secrets/create"),
    ("GET", "/secrets/s"),
    ("DELETE", "/secrets/s"),
    ("POST", "/secrets/s/update"),
    ("GET", "/configs"),
    ("POST", "/configs/create"),
    ("GET", "/configs/c"),
    ("DELETE", "/configs/c"),
    ("POST", "/configs/c/update"),
    ("GET", "/plugins"),
    ("GET", "/plugins/privileges"),
    ("POST", "/plugins/pull"),
    ("POST", "/plugins/create"),
    ("GET", "/plugins/p/json"),
    ("DELETE", "/plugins/p"),
    ("POST", "/plugins/p/enable"),
    ("POST", "/plugins/p/disable"),
    ("POST", "/plugins/p/upgrade"),
    ("POST", "/plugins/p/push"),
    ("POST", "/plugins/p/set"),
    ("GET", "/distribution/web/json"),
    ("POST", "/session"),
    ("POST", "/grpc"),
];

fn is_allowed((method, path): &(&str, &str)) -> bool {
    is_listed(&method.parse().unwrap(), path)
}

#[test]
fn s08_of_all_that_an_engine_can_do_only_what_a_command_needs_is_asked() {
    let asked: Vec<_> = API.iter().filter(|call| is_allowed(call)).collect();
    // Each line of the list stands for something that is there, and for nothing besides.
    for line in LISTED {
        let meant = asked.iter().filter(|(method, path)| {
            let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
            line.0 == *method && fits(&parts, line.1.trim_start_matches('/'))
        });
        assert!(meant.count() >= 1, "{line:?}");
    }
    assert_eq!(asked.len(), LISTED.len() + 1, "two images: {asked:#?}");
    for dangerous in [
        "plugins", "swarm", "build", "session", "grpc", "update", "volumes",
    ] {
        let seen = asked.iter().any(|(_, path)| path.contains(dangerous));
        assert!(!seen, "{dangerous}");
    }
}

#[test]
fn s08_no_name_makes_another_call_of_one() {
    for call in [
        ("GET", "/containers/../images/json"),
        ("GET", "/containers/./json"),
        ("GET", "/containers//json"),
        ("GET", "/containers/a%2Fb/json"),
        ("GET", "/containers/a b/json"),
        ("GET", "/containers/a/b/json"),
        ("POST", "/containers/a/../../plugins/pull"),
        ("GET", "/images/../containers/web/json"),
        ("GET", "/images/web/../../plugins/p/json"),
        ("GET", "/images/json"),
        ("GET", "/images//json"),
        ("DELETE", "/containers/web/"),
        ("DELETE", "/containers/"),
        ("POST", "/containers/web/json"),
        ("PUT", "/containers/create"),
        ("GET", "containers/json"),
        ("GET", ""),
        ("GET", "/"),
    ] {
        assert!(!is_allowed(&call), "{call:?}");
    }
}
