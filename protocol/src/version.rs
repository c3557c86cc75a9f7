//! Which versions of the protocol two programs speak, and which features they share.

/// The newest version this build speaks.
pub const NEWEST: u32 = 1;
/// The oldest version this build still speaks. N and N-2 work together.
pub const OLDEST: u32 = 1;
/// The WebSocket subprotocol of every Fairlead connection between daemons.
pub const SUBPROTOCOL: &str = "fairlead.v1";
/// Paths of the doors that an access server (and, for its regions, a controller) offers.
pub mod paths {
    /// Agents: the control link.
    pub const LINK: &str = "/v1/link";
    /// Machines without a certificate.
    pub const ENROL: &str = "/v1/enrol";
    /// Agents whose certificate has expired.
    pub const RENEW: &str = "/v1/renew";
    /// Access servers: the uplink.
    pub const UPLINK: &str = "/v1/uplink";
    /// A stream; the id follows the slash.
    pub const STREAM: &str = "/v1/stream/";
    /// Files of packages: for agents at their access server, for access servers at the controller.
    pub const PACKAGE: &str = "/v1/package";
}

/// What a dialler names in TLS (SNI): the kind of server, so that one port can pass raw connections on to
/// several by it. Certificates do not carry these names; who a server is, its role says.
pub mod sni {
    /// Access servers, as agents dial them: link, streams, enrolment, renewal.
    pub const AGENTS: &str = "agents.fairlead.internal";
    /// The controller, as access servers dial it: uplink, streams, a region's enrolment.
    pub const UPLINK: &str = "uplink.fairlead.internal";
}

/// The features this build of the agent knows. A command may require any of them.
pub const AGENT_FEATURES: &[&str] = &[
    "container",
    "image",
    "exec",
    "terminal",
    "logs",
    "copy",
    "certificate",
    "inventory",
    "metrics",
    "uninstall",
    HOST_CHECK,
    crate::command::HOST_SHELL,
    "upgrade",
];
/// What a restart of the engine would do can be asked.
pub const HOST_CHECK: &str = "host-check";

/// The features that an access server tells in its welcome.
pub const SERVER_FEATURES: &[&str] = &[HANDOFF];
/// Links of one host beside the link of the instance that owns it.
pub const HANDOFF: &str = "handoff";

/// The version both sides speak, or `None` when they have none in common.
#[must_use]
pub fn negotiate(their_min: u32, their_max: u32) -> Option<u32> {
    let version = NEWEST.min(their_max);
    (version >= OLDEST && version >= their_min && their_min <= their_max).then_some(version)
}

/// What is wrong with the version that the accepting side has chosen, in a sentence; `None` when we speak it.
#[must_use]
pub fn not_spoken(chosen: u32) -> Option<String> {
    (!(OLDEST..=NEWEST).contains(&chosen)).then(|| {
        format!(
            "the server chose version {chosen}, and this program speaks {OLDEST} to {NEWEST}: upgrade the older one"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_taken() {
        assert_eq!(negotiate(1, 1), Some(1));
        assert_eq!(negotiate(1, 9), Some(NEWEST));
        assert_eq!(negotiate(NEWEST + 1, NEWEST + 2), None);
        assert_eq!(negotiate(0, 0), None);
        assert_eq!(not_spoken(NEWEST), None);
        assert!(not_spoken(NEWEST + 1).is_some() && not_spoken(0).is_some());
        assert_eq!(
            negotiate(3, 1),
            None,
            "a peer whose range is upside down is refused"
        );
    }
}
