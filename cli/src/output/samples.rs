//! API values for tests.

use fairlead_api::types::{Command, Container};

/// A restart that has succeeded.
pub(crate) fn command() -> Command {
    serde_json::from_value(serde_json::json!({
        "id": "7q3k9m2x7q3k9m2x7q3k9m2x70", "kind": "restart", "target": "demo-web", "host": "box",
        "host_id": "h", "region": "local", "issuer": "admin", "state": "succeeded",
        "is_final": true, "waiting_for": "", "code": "", "message": "", "exit_code": null,
        "container_id": "c", "issued_at": "2026-11-20T14:00:00Z",
        "not_after": "2026-11-20T14:05:00Z", "finished_at": "2026-11-20T14:00:00.418Z",
        "overhead_ms": 2.1, "engine_ms": 416.0, "timeline": []
    }))
    .unwrap()
}

/// A running container with a health check.
pub(crate) fn container() -> Container {
    serde_json::from_value(serde_json::json!({
        "id": "c0ffee", "name": "demo-web", "host": "box", "host_id": "h", "region": "local",
        "image": "demo:1", "image_id": "sha256:1", "command": "httpd", "state": "running",
        "health": "healthy", "created_at": "2026-11-20T13:00:00Z",
        "started_at": "2026-11-20T13:59:48Z", "finished_at": null, "exit_code": 0,
        "oom_killed": false, "restarts": 0, "restart_policy": "no", "ip": "172.17.0.4",
        "ports": ["0.0.0.0:8080->80/tcp"], "networks": ["bridge"], "project": "", "service": "",
        "made_by": "", "memory_limit": 67_108_864, "metrics": {
            "at": "2026-11-20T14:00:00Z", "cpu_percent": 0.1, "memory_used": 1_048_576,
            "memory_limit": 67_108_864, "network_rx": 0, "network_tx": 0, "pids": 1
        }, "as_of": "2026-11-20T14:00:00Z", "live": true
    }))
    .unwrap()
}
