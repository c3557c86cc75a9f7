//! Roles in certificates: the URIs, and which intermediate may certify which.
//!
//! ```text
//! root                         fairlead://DOMAIN/ca/root
//! ├── servers                  fairlead://DOMAIN/ca/servers
//! │   ├── controller           fairlead://DOMAIN/controller
//! │   └── access server        fairlead://DOMAIN/region/R/access-server/NAME
//! ├── agents of region R       fairlead://DOMAIN/ca/region/R/agents      (key held by the region)
//! │   └── agent                fairlead://DOMAIN/region/R/host/HOSTID
//! ├── command keys             fairlead://DOMAIN/ca/command-keys
//! │   └── controller's key     fairlead://DOMAIN/command-key
//! └── web                      fairlead://DOMAIN/ca/web
//!     └── https certificates   fairlead://DOMAIN/web/NAME
//! ```
//! X.509 name constraints are not used: webpki refuses URI constraints. Instead the verifier
//! compares the intermediate's URI with the leaf's (`Role::certified_by`).

use fairlead_protocol::HostId;
use std::fmt;

/// The scheme of all identities.
const SCHEME: &str = "fairlead://";

/// What a certificate says its holder is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// The controller.
    Controller,
    /// An access server of a region.
    AccessServer {
        /// The region's name.
        region: String,
        /// The server's name, unique in the region.
        name: String,
    },
    /// The agent of a host.
    Agent {
        /// The host's region.
        region: String,
        /// The host.
        host: HostId,
    },
    /// A key that may sign commands for every host.
    CommandKey,
    /// An https server; never a peer of the control plane.
    Web {
        /// What it is called.
        name: String,
    },
    /// The root.
    Root,
    /// Intermediate for controllers and access servers.
    ServersCa,
    /// Intermediate for the agents of one region.
    AgentsCa {
        /// The region's name.
        region: String,
    },
    /// Intermediate for command keys.
    CommandKeysCa,
    /// Intermediate for https certificates.
    WebCa,
}

impl Role {
    /// The intermediate that alone may certify this role; `None` for roots and intermediates,
    /// which only the root certifies.
    #[must_use]
    pub fn certified_by(&self) -> Option<Self> {
        match self {
            Self::Controller | Self::AccessServer { .. } => Some(Self::ServersCa),
            Self::Agent { region, .. } => Some(Self::AgentsCa {
                region: region.clone(),
            }),
            Self::CommandKey => Some(Self::CommandKeysCa),
            Self::Web { .. } => Some(Self::WebCa),
            Self::Root
            | Self::ServersCa
            | Self::AgentsCa { .. }
            | Self::CommandKeysCa
            | Self::WebCa => None,
        }
    }

    /// The URI of this role in an installation.
    #[must_use]
    pub fn uri(&self, domain: &str) -> String {
        format!("{SCHEME}{domain}/{self}")
    }

    /// Domain and role of a URI; `None` when it is not exactly one of ours.
    #[must_use]
    pub fn parse(uri: &str) -> Option<(String, Self)> {
        let (domain, path) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        if domain.is_empty() || !domain.bytes().all(is_name_byte_or_dot) {
            return None;
        }
        let parts: Vec<&str> = path.split('/').collect();
        let role = match parts.as_slice() {
            ["controller"] => Self::Controller,
            ["command-key"] => Self::CommandKey,
            ["web", name] if is_name(name) => Self::Web {
                name: (*name).to_owned(),
            },
            ["region", region, "access-server", name] if is_name(region) && is_name(name) => {
                Self::AccessServer {
                    region: (*region).to_owned(),
                    name: (*name).to_owned(),
                }
            }
            ["region", region, "host", host] if is_name(region) => Self::Agent {
                region: (*region).to_owned(),
                host: host.parse().ok()?,
            },
            ["ca", "root"] => Self::Root,
            ["ca", "servers"] => Self::ServersCa,
            ["ca", "command-keys"] => Self::CommandKeysCa,
            ["ca", "web"] => Self::WebCa,
            ["ca", "region", region, "agents"] if is_name(region) => Self::AgentsCa {
                region: (*region).to_owned(),
            },
            _ => return None,
        };
        Some((domain.to_owned(), role))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("controller"),
            Self::AccessServer { region, name } => {
                write!(f, "region/{region}/access-server/{name}")
            }
            Self::Agent { region, host } => write!(f, "region/{region}/host/{host}"),
            Self::CommandKey => f.write_str("command-key"),
            Self::Web { name } => write!(f, "web/{name}"),
            Self::Root => f.write_str("ca/root"),
            Self::ServersCa => f.write_str("ca/servers"),
            Self::AgentsCa { region } => write!(f, "ca/region/{region}/agents"),
            Self::CommandKeysCa => f.write_str("ca/command-keys"),
            Self::WebCa => f.write_str("ca/web"),
        }
    }
}

fn is_name_byte_or_dot(byte: u8) -> bool {
    byte == b'.' || is_name_byte(byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

/// Whether the text can name a region or an access server: lower-case letters, digits and dashes,
/// at most 63, no dash at either end.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(is_name_byte)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_role_round_trips() {
        let host = HostId::from_bytes([7; 16]);
        for role in [
            Role::Controller,
            Role::AccessServer {
                region: "hz".into(),
                name: "a1".into(),
            },
            Role::Agent {
                region: "hz".into(),
                host,
            },
            Role::CommandKey,
            Role::Web {
                name: "controller".into(),
            },
            Role::Root,
            Role::ServersCa,
            Role::AgentsCa {
                region: "hz".into(),
            },
            Role::CommandKeysCa,
            Role::WebCa,
        ] {
            let uri = role.uri("fleet.example.com");
            assert_eq!(
                Role::parse(&uri),
                Some(("fleet.example.com".into(), role)),
                "{uri}"
            );
        }
    }

    #[test]
    fn look_alikes_are_refused() {
        for uri in [
            "fairlead://d/controller/",
            "fairlead://d//controller",
            "fairlead:///controller",
            "FAIRLEAD://d/controller",
            "fairlead://d/region//host/00000000000000000000000000",
            "fairlead://d/region/a/../b/host/00000000000000000000000000",
            "fairlead://d@e/controller",
            "https://d/controller",
            "",
        ] {
            assert_eq!(Role::parse(uri), None, "{uri}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_means_itself(uri in "fairlead://[a-z.]{0,5}/[a-z0-9/-]{0,40}") {
            if let Some((domain, role)) = Role::parse(&uri) {
                prop_assert_eq!(role.uri(&domain), uri);
            }
        }
    }
}
