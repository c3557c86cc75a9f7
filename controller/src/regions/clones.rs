//! Machines that are copies of a host: whether such a one gets an identity of its own, and which.
//!
//! A region asks for one after it has seen that the true host is alive and that the other holds the same
//! key. What a clone gets is held from its first day: whoever copied the disk has a row on the screen and
//! nothing else, until an admin approves it.

use fairlead_identity::digest::sha256;
use fairlead_protocol::{CloneGrant, EnrolCheck, EnrolVerdict, HostId, Message, codes, events};
use fairlead_store::audit::AuditEntry;
use fairlead_store::hosts::{HostRow, clone_token};
use fairlead_store::{StoreError, Tx};

use super::Centre;
use super::enrolment::{Refusal, record_of, unavailable};
use crate::authority::new_host_id;
use crate::config::Clones;

/// Clones of one host that may be let in within an hour, or wait for an approval.
const CLONES_MAX: u64 = 8;
const HOUR_US: i64 = 3_600_000_000;
/// Of the first host's name, what its clones keep.
const NAME_CHARS_MAX: usize = 63;

/// What a clone gave.
struct Asked {
    of: HostId,
    region: String,
    key_hash: Vec<u8>,
    address: String,
    hostname: String,
    facts: Vec<u8>,
    now_us: i64,
}

/// Judges a clone that a region has found; the same key asking again gets the same host.
pub(super) async fn host(centre: &Centre, region: &str, check: EnrolCheck) -> EnrolVerdict {
    let request = check.request;
    match admit(centre, region, check).await {
        Ok(verdict) => EnrolVerdict { request, ..verdict },
        Err((code, message)) => EnrolVerdict {
            request,
            code: code.to_owned(),
            message,
            ..EnrolVerdict::default()
        },
    }
}

async fn admit(centre: &Centre, region: &str, check: EnrolCheck) -> Result<EnrolVerdict, Refusal> {
    let odd = |what: &str| (codes::PROTOCOL_VIOLATION, what.to_owned());
    if centre.clones == Clones::Refuse {
        let message = "a living host uses this identity, and clones are refused here: run \
                       `fairlead-agent prepare-image` on this machine and enrol it with a join token";
        return Err((codes::CLONE, message.to_owned()));
    }
    if !centre.is_home(region, &check.clone_of) {
        return Err(odd("a clone of a host of another region"));
    }
    if check.key_hash.len() != 32 {
        return Err(odd("a clone without a key"));
    }
    let facts = check.facts.unwrap_or_default();
    let asked = Asked {
        of: HostId::from_wire(&check.clone_of).map_err(|_| odd("a clone of nobody"))?,
        region: region.to_owned(),
        key_hash: check.key_hash.to_vec(),
        address: plain(&check.address),
        hostname: plain(&facts.hostname),
        facts: facts.encode_to_vec(),
        now_us: centre.clock.now_us(),
    };
    let of = asked.of;
    let judged = centre.store.write(move |tx| take_in(tx, &asked)).await;
    let (row, is_new) = judged.map_err(|error| unavailable(&error))??;
    let host = row
        .id
        .ok_or((codes::INTERNAL, "a host without id".to_owned()))?;
    centre.settle_in(region, host);
    if is_new {
        tracing::warn!(region, name = row.name, reason = row.held, "a clone waits");
        let noted = centre
            .feed
            .record(
                &row.tenant,
                Some(host),
                region,
                events::HOST_HELD,
                &row.held,
            )
            .await;
        if let Err(error) = noted {
            tracing::error!(%host, %error, "an event could not be recorded");
        }
    }
    let grant = CloneGrant {
        of: of.to_wire(),
        host: host.to_wire(),
        key_hash: check.key_hash,
    };
    Ok(EnrolVerdict {
        host: Some(record_of(host, &row)),
        clone_grant: Some(centre.authority.signer().sign_grant(&grant)),
        ..EnrolVerdict::default()
    })
}

/// The clone's row, and whether it is new.
fn take_in(tx: &Tx<'_>, asked: &Asked) -> Result<Result<(HostRow, bool), Refusal>, StoreError> {
    let token_id = clone_token(asked.of);
    if let Some(known) = tx.host_by_key(&asked.key_hash, &token_id)? {
        return Ok(Ok((known, false)));
    }
    let first = match tx.host(asked.of)? {
        Some(first) if first.revoked_us == 0 => first,
        _ => {
            let message =
                "the identity that was copied has ended; enrol this machine with a join token";
            return Ok(Err((codes::REVOKED, message.to_owned())));
        }
    };
    if tx.hosts_waiting(&token_id, asked.now_us - HOUR_US)? >= CLONES_MAX {
        let message = format!(
            "{CLONES_MAX} clones of {} came within an hour or wait for an approval already: decide on them \
             with `fairlead host approve` or `fairlead host rm`",
            first.name
        );
        return Ok(Err((codes::CLONE, message)));
    }
    let base: String = first.name.chars().take(NAME_CHARS_MAX).collect();
    let name = tx.free_host_name(&first.tenant, &format!("{base}-clone"))?;
    let host = new_host_id();
    let row = HostRow {
        id: Some(host),
        name: name.clone(),
        tenant: first.tenant.clone(),
        region: asked.region.clone(),
        labels: first.labels.clone(),
        key_hash: asked.key_hash.clone(),
        token_id,
        enrolled_us: asked.now_us,
        held: format!(
            "a copy of {}, calls itself {:?}, asked from {}",
            first.name, asked.hostname, asked.address
        ),
        ..HostRow::default()
    };
    tx.insert_host(host, &row)?;
    tx.hold_host(host, &row.held)?;
    tx.host_seen(host, asked.now_us, 0, &asked.facts)?;
    let entry = AuditEntry {
        at_us: asked.now_us,
        tenant: first.tenant.clone(),
        actor: format!("a copy of host {}", first.name),
        source: asked.address.clone(),
        action: "host.enrol-clone".to_owned(),
        object: name,
        outcome: "ok".to_owned(),
        detail: "held until an admin approves it".to_owned(),
    };
    tx.append_audit(&entry, sha256)?;
    Ok(Ok((row, true)))
}

/// What a stranger says of itself, fit to be shown.
fn plain(text: &str) -> String {
    let fit: String = text
        .chars()
        .filter(|c| c.is_ascii_graphic() && *c != '"')
        .take(NAME_CHARS_MAX)
        .collect();
    if fit.is_empty() { "?".to_owned() } else { fit }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_store::Store;

    fn asked(of: HostId, key: u8, now_us: i64) -> Asked {
        Asked {
            of,
            region: "r".to_owned(),
            key_hash: vec![key; 32],
            address: "192.0.2.7".to_owned(),
            hostname: "web".to_owned(),
            facts: Vec::new(),
            now_us,
        }
    }

    #[tokio::test]
    async fn a_clone_is_held_under_a_name_of_its_own_and_there_are_not_many() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("c.db")).unwrap();
        store
            .write(|tx| {
                let first = HostId::from_bytes([1; 16]);
                let row = HostRow {
                    name: "web".to_owned(),
                    tenant: "t".to_owned(),
                    region: "r".to_owned(),
                    labels: [("tier".to_owned(), "front".to_owned())].into(),
                    ..HostRow::default()
                };
                tx.insert_host(first, &row)?;
                let now = 10 * HOUR_US;
                let (clone, is_new) = take_in(tx, &asked(first, 1, now))?.unwrap();
                assert!(is_new);
                assert_eq!((&clone.name[..], &clone.tenant[..]), ("web-clone", "t"));
                assert_eq!(clone.labels, row.labels);
                assert_ne!(clone.id, Some(first));
                let kept = tx.host(clone.id.unwrap())?.unwrap();
                assert!(kept.held.contains("a copy of web"), "{}", kept.held);
                // A lost answer costs nothing.
                let (again, is_new) = take_in(tx, &asked(first, 1, now))?.unwrap();
                assert!(!is_new && again.id == clone.id);
                for key in 2..=8 {
                    let (next, _) = take_in(tx, &asked(first, key, now))?.unwrap();
                    assert_eq!(next.name, format!("web-clone-{key}"));
                }
                let (code, _) = take_in(tx, &asked(first, 9, now + 2 * HOUR_US))?.unwrap_err();
                assert_eq!(code, codes::CLONE, "eight wait");
                // One place is free again; within the hour an ended one counts too.
                tx.revoke_host(clone.id.unwrap(), now)?;
                assert!(take_in(tx, &asked(first, 9, now))?.is_err());
                assert!(take_in(tx, &asked(first, 9, now + 2 * HOUR_US))?.is_ok());
                // Of who has left there is no copy to let in.
                tx.revoke_host(first, now)?;
                let (code, _) = take_in(tx, &asked(first, 10, now + 9 * HOUR_US))?.unwrap_err();
                assert_eq!(code, codes::REVOKED);
                Ok(())
            })
            .await
            .unwrap();
    }
}
