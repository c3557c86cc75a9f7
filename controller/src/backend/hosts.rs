//! Hosts and containers within a caller's scope.

use fairlead_api::backend::ContainerQuery;
use fairlead_api::input::plain;
use fairlead_api::types::{Container, Host};
use fairlead_api::{ApiError, Caller};
use fairlead_identity::digest::sha256;
use fairlead_protocol::{codes, ids};
use fairlead_store::hosts::HostRow;

use super::{ControllerBackend, Note};
use crate::fleet::ContainerFilter;

/// There is no such host (for this caller).
pub(super) fn no_host(host: &str) -> ApiError {
    ApiError::new(
        codes::HOST_NOT_FOUND,
        format!("there is no host {:?}", plain(host)),
    )
    .hint("fairlead host ls")
}

impl ControllerBackend {
    /// Living hosts that the caller sees, by name.
    pub(super) async fn visible_hosts(&self, caller: &Caller) -> Result<Vec<HostRow>, ApiError> {
        let tenant = caller.tenant.clone();
        let rows = self.read(move |tx| tx.hosts(Some(&tenant))).await?;
        Ok(rows
            .into_iter()
            .filter(|row| row.revoked_us == 0 && is_visible(caller, row))
            .collect())
    }

    /// The visible hosts that a request may mean: those it names, or those known to have the container;
    /// all of them where that leaves it open (an id, an unknown name).
    pub(super) async fn meant_hosts(
        &self,
        caller: &Caller,
        host: Option<&str>,
        container: Option<&str>,
    ) -> Result<Vec<HostRow>, ApiError> {
        let container = container.map(|typed| typed.trim_start_matches('/'));
        let path = container.and_then(|typed| typed.split_once('/'));
        let names: Vec<&str> = host.into_iter().chain(path.map(|(host, _)| host)).collect();
        let rows = if names.is_empty() {
            let having = container.map(|name| self.parts.fleet.hosts_with(name));
            let having = having.unwrap_or_default();
            self.look(|tx| having.into_iter().map(|id| tx.host(id)).collect())?
        } else {
            self.look(|tx| {
                names
                    .iter()
                    .map(|name| tx.host_named(&caller.tenant, name))
                    .collect()
            })?
        };
        let rows: Vec<Option<HostRow>> = rows;
        let is_seen = |row: &HostRow| {
            row.tenant == caller.tenant && row.revoked_us == 0 && is_visible(caller, row)
        };
        let seen: Vec<HostRow> = rows
            .iter()
            .flatten()
            .filter(|row| is_seen(row))
            .cloned()
            .collect();
        let is_certain = if names.is_empty() {
            !seen.is_empty()
        } else {
            seen.len() == names.len()
        };
        if is_certain {
            return Ok(seen);
        }
        self.visible_hosts(caller).await
    }

    pub(super) async fn list_hosts(&self, caller: &Caller) -> Result<Vec<Host>, ApiError> {
        let rows = self.visible_hosts(caller).await?;
        Ok(rows.iter().map(|row| self.parts.fleet.host(row)).collect())
    }

    /// The visible host of that name, id or unique prefix of the id.
    pub(super) async fn one_host(&self, caller: &Caller, host: &str) -> Result<HostRow, ApiError> {
        pick(&self.visible_hosts(caller).await?, host)
    }

    pub(super) async fn end_host(&self, caller: &Caller, host: &str) -> Result<Host, ApiError> {
        let row = self.one_host(caller, host).await?;
        let Some(id) = row.id else {
            return Err(no_host(host));
        };
        let shown = self.parts.fleet.host(&row);
        let now_us = self.now_us();
        let entry = self.entry(
            caller,
            &Note::ok("host.revoke", format!("host {}", row.name)),
        );
        self.write(move |tx| {
            if tx.revoke_host(id, now_us)? {
                tx.append_audit(&entry, sha256)?;
            }
            Ok(())
        })
        .await?;
        self.parts.fleet.forget_host(id);
        // It is on disk: regions that are not told now are told when they connect.
        self.parts.dispatch.push_revocations().await?;
        self.note_event(&row, "host.revoked", &caller.actor()).await;
        Ok(shown)
    }

    pub(super) async fn end_certificate(
        &self,
        caller: &Caller,
        host: &str,
    ) -> Result<Host, ApiError> {
        let row = self.one_host(caller, host).await?;
        let serial = serial_of(&row).ok_or_else(|| {
            ApiError::new(
                codes::CERTIFICATE_REJECTED,
                format!("no certificate of host {} is known here yet", row.name),
            )
            .hint("wait until the host has connected once, or end its identity: fairlead host rm")
        })?;
        let now_us = self.now_us();
        let note = Note::ok("host.revoke-certificate", format!("host {}", row.name))
            .detail(format!("serial {serial}"));
        let entry = self.entry(caller, &note);
        self.write(move |tx| {
            tx.revoke_serial(&serial, now_us)?;
            tx.append_audit(&entry, sha256)
        })
        .await?;
        self.parts.dispatch.push_revocations().await?;
        self.note_event(&row, "host.certificate-revoked", &caller.actor())
            .await;
        Ok(self.parts.fleet.host(&row))
    }

    pub(super) async fn release_host(&self, caller: &Caller, host: &str) -> Result<Host, ApiError> {
        let mut row = self.one_host(caller, host).await?;
        let Some(id) = row.id else {
            return Err(no_host(host));
        };
        let note = Note::ok("host.approve", format!("host {}", row.name))
            .detail(format!("was held: {}", row.held));
        let entry = self.entry(caller, &note);
        self.write(move |tx| {
            tx.hold_host(id, "")?;
            tx.append_audit(&entry, sha256)
        })
        .await?;
        self.parts.dispatch.push_approval(&row).await?;
        row.held.clear();
        self.note_event(&row, "host.approved", &caller.actor())
            .await;
        Ok(self.parts.fleet.host(&row))
    }

    pub(super) async fn list_containers(
        &self,
        caller: &Caller,
        query: ContainerQuery,
    ) -> Result<Vec<Container>, ApiError> {
        let mut hosts = self.visible_hosts(caller).await?;
        if let Some(host) = &query.host {
            hosts = vec![pick(&hosts, host)?];
        }
        let filter = ContainerFilter {
            all: query.all,
            project: query.project,
            name: query.name,
        };
        Ok(self.parts.fleet.containers(&hosts, &filter))
    }

    /// An event about a host; what was done stands even when this cannot be written.
    pub(super) async fn note_event(&self, row: &HostRow, action: &str, detail: &str) {
        let recorded = self
            .parts
            .feed
            .record(&row.tenant, row.id, &row.region, action, detail)
            .await;
        if let Err(error) = recorded {
            tracing::warn!(error = %error, action, "an event could not be recorded");
        }
    }
}

/// Whether the caller sees that host.
pub(super) fn is_visible(caller: &Caller, row: &HostRow) -> bool {
    row.tenant == caller.tenant && caller.sees(&row.region, &row.labels)
}

/// The one of these hosts that is meant: a name goes before an id, an id before a prefix of one.
pub(super) fn pick<'a>(
    hosts: impl IntoIterator<Item = &'a HostRow> + Clone,
    host: &str,
) -> Result<HostRow, ApiError> {
    if let Some(row) = hosts.clone().into_iter().find(|row| row.name == host) {
        return Ok(row.clone());
    }
    if !ids::is_prefix(host) {
        return Err(no_host(host));
    }
    let begun: Vec<&HostRow> = hosts
        .into_iter()
        .filter(|row| row.id.is_some_and(|id| id.to_string().starts_with(host)))
        .collect();
    match begun[..] {
        [] => Err(no_host(host)),
        [one] => Ok(one.clone()),
        _ => {
            let mut names: Vec<&str> = begun.iter().map(|row| row.name.as_str()).collect();
            names.truncate(10);
            Err(ApiError::new(
                codes::AMBIGUOUS,
                format!(
                    "{:?} begins the ids of several hosts: {}",
                    plain(host),
                    names.join(", ")
                ),
            )
            .hint("use a name, or more of the id"))
        }
    }
}

/// Serial number of the newest certificate. In the controller's table the column `certificate`
/// holds it as text; the certificate itself stays in the region.
fn serial_of(row: &HostRow) -> Option<String> {
    let text = std::str::from_utf8(&row.certificate).ok()?;
    let is_serial = !text.is_empty()
        && text.len() <= 128
        && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    is_serial.then(|| text.to_owned())
}
