//! Which permission each route needs: one table, and nothing is served that is not in it.
//!
//! The guard looks every request up here before its handler runs; a route without a row is refused,
//! and a test compares the table with the routes that exist. The OpenAPI description carries the
//! same words as `x-permission`.

use axum::http::Method;

use crate::types::{Action, Permission};

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: open to everybody who can connect.
    Nothing,
    /// Any good API token.
    Token,
    /// That permission.
    Permission(Permission),
    /// Any good API token here; the handler asks for what the command's kind needs.
    KindOfCommand,
}

impl Need {
    /// As in `x-permission` of the OpenAPI description.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Token => "any-token",
            Self::Permission(permission) => permission.name(),
            Self::KindOfCommand => "by-kind-of-command",
        }
    }
}

/// One route.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its method.
    pub method: Method,
    /// Its path, as axum and OpenAPI write it.
    pub path: &'static str,
    /// What it asks.
    pub need: Need,
    /// What a refusal is called in the audit log.
    pub action: &'static str,
    /// Whether a request that carries an `Origin` (a browser's) is refused.
    pub browsers_refused: bool,
}

const fn rule(method: Method, path: &'static str, need: Need, action: &'static str) -> Rule {
    Rule {
        method,
        path,
        need,
        action,
        browsers_refused: false,
    }
}

const READ: Need = Need::Permission(Permission::Read);
const SHELL: Need = Need::Permission(Permission::Shell);
const UPGRADE: Need = Need::Permission(Permission::Upgrade);
const ADMIN: Need = Need::Permission(Permission::Admin);

const TABLE: &[Rule] = &[
    rule(Method::GET, "/healthz", Need::Nothing, "healthz"),
    rule(Method::GET, "/readyz", Need::Nothing, "readyz"),
    rule(Method::GET, "/metrics", Need::Nothing, "metrics"),
    rule(
        Method::GET,
        "/api/v1/openapi.json",
        Need::Nothing,
        "openapi",
    ),
    rule(Method::POST, "/api/v1/setup", Need::Nothing, "setup.claim"),
    rule(Method::GET, "/api/v1/whoami", Need::Token, "whoami"),
    rule(Method::GET, "/api/v1/status", READ, "status"),
    rule(Method::GET, "/api/v1/hosts", READ, "host.list"),
    rule(Method::GET, "/api/v1/hosts/{host}", READ, "host.show"),
    rule(Method::DELETE, "/api/v1/hosts/{host}", ADMIN, "host.revoke"),
    rule(
        Method::POST,
        "/api/v1/hosts/{host}/revoke-certificate",
        ADMIN,
        "host.revoke-certificate",
    ),
    rule(
        Method::POST,
        "/api/v1/hosts/{host}/approve",
        ADMIN,
        "host.approve",
    ),
    rule(Method::GET, "/api/v1/containers", READ, "container.list"),
    rule(
        Method::POST,
        "/api/v1/commands",
        Need::KindOfCommand,
        "command",
    ),
    rule(Method::GET, "/api/v1/commands", READ, "command.list"),
    rule(Method::GET, "/api/v1/commands/{id}", READ, "command.show"),
    rule(
        Method::POST,
        "/api/v1/commands/{id}/cancel",
        Need::KindOfCommand,
        "command.cancel",
    ),
    rule(
        Method::GET,
        "/api/v1/commands/{id}/watch",
        READ,
        "command.watch",
    ),
    Rule {
        method: Method::GET,
        path: "/api/v1/commands/{id}/stream",
        need: Need::KindOfCommand,
        action: "command.stream",
        browsers_refused: true,
    },
    rule(
        Method::GET,
        "/api/v1/commands/{id}/archive",
        Need::KindOfCommand,
        "command.stream",
    ),
    rule(
        Method::PUT,
        "/api/v1/commands/{id}/archive",
        Need::KindOfCommand,
        "command.stream",
    ),
    rule(Method::POST, "/api/v1/terminals", SHELL, "terminal.ask"),
    rule(Method::GET, "/api/v1/terminals", SHELL, "terminal.list"),
    rule(
        Method::POST,
        "/api/v1/terminals/{id}/ticket",
        SHELL,
        "terminal.return",
    ),
    rule(
        Method::DELETE,
        "/api/v1/terminals/{id}",
        SHELL,
        "terminal.end",
    ),
    rule(Method::GET, "/api/v1/recordings", ADMIN, "recording.list"),
    rule(
        Method::GET,
        "/api/v1/recordings/{id}",
        ADMIN,
        "recording.read",
    ),
    rule(Method::GET, "/api/v1/packages", READ, "package.list"),
    rule(
        Method::GET,
        "/api/v1/agent/versions",
        READ,
        "agent.versions",
    ),
    Rule {
        method: Method::PUT,
        path: "/api/v1/agent/versions/{version}/files/{file}",
        need: ADMIN,
        action: "agent.push",
        browsers_refused: true,
    },
    rule(
        Method::POST,
        "/api/v1/agent/rollouts",
        UPGRADE,
        "agent.upgrade",
    ),
    rule(
        Method::GET,
        "/api/v1/agent/rollouts",
        READ,
        "agent.rollouts",
    ),
    rule(
        Method::GET,
        "/api/v1/agent/rollouts/{id}",
        READ,
        "agent.rollout",
    ),
    rule(
        Method::POST,
        "/api/v1/agent/rollouts/{id}/pause",
        UPGRADE,
        "agent.upgrade-pause",
    ),
    rule(
        Method::POST,
        "/api/v1/agent/rollouts/{id}/resume",
        UPGRADE,
        "agent.upgrade-resume",
    ),
    rule(
        Method::POST,
        "/api/v1/agent/rollouts/{id}/abort",
        UPGRADE,
        "agent.upgrade-abort",
    ),
    rule(Method::GET, "/api/v1/events", READ, "event.list"),
    rule(Method::GET, "/api/v1/events/stream", READ, "event.follow"),
    rule(Method::GET, "/api/v1/audit", ADMIN, "audit.list"),
    rule(
        Method::POST,
        "/api/v1/join-tokens",
        ADMIN,
        "join-token.create",
    ),
    rule(Method::GET, "/api/v1/join-tokens", ADMIN, "join-token.list"),
    rule(
        Method::DELETE,
        "/api/v1/join-tokens/{id}",
        ADMIN,
        "join-token.revoke",
    ),
    rule(
        Method::POST,
        "/api/v1/api-tokens",
        ADMIN,
        "api-token.create",
    ),
    rule(Method::GET, "/api/v1/api-tokens", ADMIN, "api-token.list"),
    rule(
        Method::DELETE,
        "/api/v1/api-tokens/{id}",
        ADMIN,
        "api-token.revoke",
    ),
    rule(Method::POST, "/api/v1/regions", ADMIN, "region.create"),
    rule(Method::GET, "/api/v1/regions", READ, "region.list"),
    rule(Method::GET, "/api/v1/regions/{name}", READ, "region.show"),
];

/// Every route there is.
#[must_use]
pub fn table() -> &'static [Rule] {
    TABLE
}

/// The row of a route; `HEAD` is a `GET` whose body is not sent.
#[must_use]
pub fn rule_of(method: &Method, path: &str) -> Option<&'static Rule> {
    let method = if method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    table()
        .iter()
        .find(|rule| rule.method == *method && rule.path == path)
}

impl Permission {
    /// Every permission there is.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Operate,
        Self::Exec,
        Self::Shell,
        Self::HostShell,
        Self::Copy,
        Self::Upgrade,
        Self::Admin,
    ];

    /// Its name in JSON, CLI and store.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Exec => "exec",
            Self::Shell => "shell",
            Self::HostShell => "host-shell",
            Self::Copy => "copy",
            Self::Upgrade => "upgrade",
            Self::Admin => "admin",
        }
    }

    /// The permission of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|permission| permission.name() == name)
    }

    /// What a command of that kind needs; unknown kinds need `admin`.
    #[must_use]
    pub fn for_kind(kind: &str) -> Self {
        match kind {
            "logs" | "inspect" | "list" | "ping" => Self::Read,
            "exec" => Self::Exec,
            fairlead_protocol::command::HOST_SHELL => Self::HostShell,
            "copy-in" | "copy-out" => Self::Copy,
            "upgrade-agent" => Self::Upgrade,
            "run" | "create" | "start" | "stop" | "restart" | "kill" | "remove" | "pull"
            | "prune-images" => Self::Operate,
            _ => Self::Admin,
        }
    }
}

impl Action {
    /// The kind's name, as in `fairlead_protocol::command::Kind::name`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Restart { .. } => "restart",
            Self::Kill { .. } => "kill",
            Self::Remove { .. } => "remove",
            Self::Pull { .. } => "pull",
            Self::Inspect { .. } => "inspect",
            Self::Exec { .. } => "exec",
            Self::Logs { .. } => "logs",
            Self::CopyIn { .. } => "copy-in",
            Self::CopyOut { .. } => "copy-out",
            Self::List { .. } => "list",
            Self::PruneImages { .. } => "prune-images",
            Self::RenewCertificate {} => "renew-certificate",
            Self::Ping {} => "ping",
            Self::UpgradeAgent { .. } => fairlead_protocol::command::UPGRADE_AGENT,
            Self::UninstallAgent {} => fairlead_protocol::command::UNINSTALL_AGENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s29_every_route_has_exactly_one_rule_and_every_rule_a_route() {
        let described = crate::openapi::document();
        let mut routes = std::collections::BTreeSet::new();
        for (path, item) in &described.paths.paths {
            let operations = [
                (Method::GET, &item.get),
                (Method::POST, &item.post),
                (Method::PUT, &item.put),
                (Method::PATCH, &item.patch),
                (Method::DELETE, &item.delete),
            ];
            for (method, operation) in operations {
                if operation.is_some() {
                    assert!(
                        rule_of(&method, path).is_some(),
                        "{method} {path} has no rule"
                    );
                    routes.insert(format!("{method} {path}"));
                }
            }
        }
        for rule in table() {
            let route = format!("{} {}", rule.method, rule.path);
            assert!(routes.contains(&route), "no such route: {route}");
        }
        assert_eq!(routes.len(), table().len(), "a rule is there twice");
    }

    #[test]
    fn only_these_routes_are_open_without_a_token() {
        let open: Vec<&str> = table()
            .iter()
            .filter(|r| r.need == Need::Nothing)
            .map(|r| r.path)
            .collect();
        assert_eq!(
            open,
            [
                "/healthz",
                "/readyz",
                "/metrics",
                "/api/v1/openapi.json",
                "/api/v1/setup"
            ]
        );
    }

    #[test]
    fn names_round_trip_and_an_unknown_kind_needs_admin() {
        for permission in Permission::ALL {
            assert_eq!(Permission::from_name(permission.name()), Some(permission));
        }
        assert_eq!(Permission::for_kind("renew-certificate"), Permission::Admin);
        assert_eq!(Permission::for_kind("uninstall-agent"), Permission::Admin);
        assert_eq!(Permission::for_kind("something new"), Permission::Admin);
        assert_eq!(Permission::for_kind("logs"), Permission::Read);
    }
}
