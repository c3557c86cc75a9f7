//! A host whose agent takes itself off: its identity ends in the transaction that records that the agent
//! said so, and not before.

use fairlead_identity::digest::sha256;
use fairlead_protocol::{HostId, State, command};
use fairlead_store::audit::AuditEntry;
use fairlead_store::commands::CommandRow;
use fairlead_store::{StoreError, Tx};

use super::tell_revocations;

/// A host whose identity ended with its command.
#[derive(Debug, Clone)]
pub struct Departed {
    /// Which.
    pub host: HostId,
    /// Whose.
    pub tenant: String,
    /// Of which region.
    pub region: String,
    /// Who asked for it.
    pub actor: String,
    /// Regions for which the new list of revocations waits.
    pub regions: Vec<String>,
}

/// Ends the identity of the host of a command that ended like this, if it was to end with it.
///
/// # Errors
/// When the store cannot be written.
pub(super) fn depart(
    tx: &Tx<'_>,
    row: &CommandRow,
    state: State,
    now_us: i64,
) -> Result<Option<Departed>, StoreError> {
    let leaves = row.kind == command::UNINSTALL_AGENT && state == State::Succeeded;
    if !leaves || !tx.revoke_host(row.host, now_us)? {
        return Ok(None);
    }
    let name = tx
        .host(row.host)?
        .map_or_else(|| row.host.to_string(), |host| host.name);
    let entry = AuditEntry {
        at_us: now_us,
        tenant: row.tenant.clone(),
        actor: row.issuer.clone(),
        source: format!("region {}", row.region),
        action: "host.revoke".to_owned(),
        object: format!("host {name}"),
        outcome: "ok".to_owned(),
        detail: format!("its agent takes itself off, command {}", row.id),
    };
    tx.append_audit(&entry, sha256)?;
    let regions = tell_revocations(tx, now_us)?;
    Ok(Some(Departed {
        host: row.host,
        tenant: row.tenant.clone(),
        region: row.region.clone(),
        actor: row.issuer.clone(),
        regions,
    }))
}

#[cfg(test)]
mod tests {
    use fairlead_protocol::command::Kind;
    use fairlead_protocol::{
        Command, CommandId, Numbered, Ping, SignedCommand, Stage, Stamp, UninstallAgent, numbered,
    };
    use fairlead_store::audit::AuditFilter;
    use fairlead_store::hosts::HostRow;
    use fairlead_store::{DEFAULT_TENANT, Store};

    use super::*;

    fn asked(kind: Kind, host: HostId) -> CommandRow {
        let command = Command {
            id: CommandId::from_bytes([9; 16]).to_wire(),
            tenant: DEFAULT_TENANT.to_owned(),
            host: host.to_wire(),
            issuer: "ann (token t1)".to_owned(),
            kind: Some(kind),
            ..Command::default()
        };
        let stamp = Stamp::at(Stage::Accepted, 1);
        CommandRow::taken_in(&command, &SignedCommand::default(), "r", stamp).unwrap()
    }

    #[tokio::test]
    async fn an_identity_ends_once_with_the_agents_word_and_with_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.db")).unwrap();
        let host = HostId::from_bytes([1; 16]);
        store
            .write(move |tx| {
                tx.insert_region("r", DEFAULT_TENANT, 1)?;
                let row = HostRow {
                    name: "web-7".to_owned(),
                    tenant: DEFAULT_TENANT.to_owned(),
                    region: "r".to_owned(),
                    ..HostRow::default()
                };
                tx.insert_host(host, &row)?;
                let leaves = asked(Kind::UninstallAgent(UninstallAgent {}), host);
                let pings = asked(Kind::Ping(Ping {}), host);
                assert!(depart(tx, &pings, State::Succeeded, 5)?.is_none());
                for state in [State::Failed, State::Expired, State::Unknown] {
                    assert!(depart(tx, &leaves, state, 5)?.is_none(), "{state:?}");
                }
                assert!(tx.revoked_hosts()?.is_empty());

                let departed = depart(tx, &leaves, State::Succeeded, 6)?.unwrap();
                assert_eq!(departed.regions, ["r"]);
                assert_eq!(tx.revoked_hosts()?, [host]);
                let waiting = tx.waiting_for("r", 0, 10)?;
                assert!(
                    matches!(&waiting[..], [Numbered { kind: Some(numbered::Kind::Revocations(list)), .. }]
                        if list.hosts == [host.to_wire()]),
                    "{waiting:?}"
                );
                assert!(depart(tx, &leaves, State::Succeeded, 7)?.is_none(), "once");
                let rows = tx.audit(&AuditFilter {
                    tenant: DEFAULT_TENANT.to_owned(),
                    limit: 10,
                    ..AuditFilter::default()
                })?;
                assert_eq!(rows.len(), 1);
                assert_eq!(rows[0].entry.actor, "ann (token t1)");
                assert_eq!(rows[0].entry.object, "host web-7");
                Ok(())
            })
            .await
            .unwrap();
    }
}
