//! Which host and which container a request is about.
//!
//! Everything here works on the hosts that the caller sees; others do not exist.

use fairlead_api::ApiError;
use fairlead_api::input::{invalid, plain};
use fairlead_api::types::Action;
use fairlead_protocol::codes;
use fairlead_store::hosts::HostRow;

use super::convert;
use super::hosts::{no_host, pick};
use crate::fleet::{Fleet, Resolved};

/// A request whose host and container are known.
pub(super) struct Aimed {
    pub(super) host: HostRow,
    pub(super) action: Action,
    /// The container was named by its id: it must still be that one.
    pub(super) must_be: Option<String>,
}

/// Which host and container are meant. Within this, a host that is not visible does not exist.
pub(super) fn aim(
    fleet: &Fleet,
    hosts: Vec<HostRow>,
    host: Option<&str>,
    mut action: Action,
) -> Result<Aimed, ApiError> {
    let named = host.map(|host| pick(&hosts, host)).transpose()?;
    let Some(container) = container_of(&mut action) else {
        let host = match named {
            Some(host) => host,
            None => the_only(hosts)?,
        };
        return Ok(Aimed {
            host,
            action,
            must_be: None,
        });
    };
    let mut named = named;
    let typed = container.trim_start_matches('/').to_owned();
    let mut wanted = typed.clone();
    if let Some((host, name)) = typed.split_once('/') {
        let by_path = pick(&hosts, host)?;
        if named.as_ref().is_some_and(|named| named.id != by_path.id) {
            return Err(invalid(
                "host and the container's HOST/ are two different hosts",
            ));
        }
        named = Some(by_path);
        name.clone_into(&mut wanted);
    }
    convert::container_name(&wanted)?;
    let candidates = named
        .as_ref()
        .map_or_else(|| hosts.clone(), |host| vec![host.clone()]);
    match fleet.resolve_container(&candidates, &wanted) {
        Resolved::Found {
            host,
            name,
            id,
            by_id,
        } => {
            *container = name;
            let host = candidates.into_iter().find(|row| row.id == Some(host));
            let host = host.ok_or_else(|| no_host(&typed))?;
            Ok(Aimed {
                host,
                action,
                must_be: by_id.then_some(id),
            })
        }
        Resolved::Ambiguous(all) => Err(ApiError::new(
            codes::AMBIGUOUS,
            format!(
                "{:?} means several containers: {}",
                plain(&typed),
                all.join(", ")
            ),
        )
        .hint("use HOST/NAME, or more of the id")),
        Resolved::NotFound => {
            // The picture may be older than the container: where the host is certain, it decides.
            if named.is_none() && candidates.len() != 1 {
                return Err(ApiError::new(
                    codes::CONTAINER_NOT_FOUND,
                    format!("no host is known to have a container {:?}", plain(&typed)),
                )
                .hint("fairlead ps -a; for one that was just made, use HOST/NAME"));
            }
            *container = wanted;
            let host = match named {
                Some(host) => host,
                None => the_only(hosts)?,
            };
            Ok(Aimed {
                host,
                action,
                must_be: None,
            })
        }
    }
}

fn the_only(mut hosts: Vec<HostRow>) -> Result<HostRow, ApiError> {
    match hosts.len() {
        1 => Ok(hosts.remove(0)),
        0 => Err(ApiError::new(codes::HOST_NOT_FOUND, "there is no host yet")
            .hint("fairlead join-token create, then install an agent")),
        count => Err(invalid(format!("there are {count} hosts: say which one"))
            .hint("fairlead host ls; then --host HOST")),
    }
}

/// The name of the existing container that an action is about, where it is about one.
pub(super) fn container_of(action: &mut Action) -> Option<&mut String> {
    match action {
        Action::Start { container }
        | Action::Stop { container, .. }
        | Action::Restart { container, .. }
        | Action::Kill { container, .. }
        | Action::Remove { container, .. }
        | Action::Exec { container, .. }
        | Action::Logs { container, .. }
        | Action::CopyIn { container, .. }
        | Action::CopyOut { container, .. } => Some(container),
        Action::Inspect {
            object,
            object_kind,
        } if matches!(&object_kind[..], "" | "container") => Some(object),
        Action::Inspect { .. }
        | Action::Run { .. }
        | Action::Create { .. }
        | Action::Pull { .. }
        | Action::List { .. }
        | Action::PruneImages { .. }
        | Action::RenewCertificate {}
        | Action::Ping {}
        | Action::UpgradeAgent { .. }
        | Action::UninstallAgent {} => None,
    }
}
