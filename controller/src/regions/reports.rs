//! What a region reports: written to the store, and what follows from it in memory.

use std::sync::Arc;

use fairlead_identity::digest::sha256;
use fairlead_protocol::{CommandId, HostId, Numbered, events, numbered};
use fairlead_store::audit::AuditEntry;
use fairlead_store::{DEFAULT_TENANT, StoreError, Tx};

use super::{Centre, terminals};
use crate::dispatch::{Departed, Dispatch, Recorded};

/// Of a region's reason, what is shown.
const REASON_CHARS_MAX: usize = 200;

/// What a report meant, once it is on disk.
enum Taken {
    Nothing,
    Finished(Box<Recorded>),
    Event(i64),
}

/// Records what reports say, in one transaction with the taking of their numbers.
pub(super) async fn take(
    centre: &Arc<Centre>,
    region: &str,
    reports: Vec<Numbered>,
) -> Result<(), StoreError> {
    let (dispatch, of) = (Arc::clone(&centre.dispatch), region.to_owned());
    let mut clones = Vec::new();
    let terminals_ended: Vec<CommandId> = reports.iter().filter_map(terminals::has_ended).collect();
    let judged: Vec<(Numbered, bool)> = reports
        .into_iter()
        .filter(|report| !is_about_itself(centre, region, report))
        .map(|report| {
            let home = match &report.kind {
                Some(numbered::Kind::Event(said)) => centre.is_home(region, &said.host),
                Some(numbered::Kind::Certified(said)) => centre.is_home(region, &said.host),
                _ => true,
            };
            if home && let Some(clone) = clone_refused(&report) {
                clones.push(clone);
            }
            (report, home)
        })
        .collect();
    if judged.is_empty() {
        return Ok(());
    }
    let taken = centre
        .store
        .write(move |tx| {
            let mut taken = Vec::new();
            for (report, home) in &judged {
                let is_ahead =
                    report.seq == 0 && matches!(report.kind, Some(numbered::Kind::Result(_)));
                if (is_ahead || tx.take_from(&of, report.seq)?) && *home {
                    taken.push(record(tx, &dispatch, &of, report)?);
                }
            }
            Ok(taken)
        })
        .await?;
    for (host, at_us) in clones {
        centre.fleet.clone_refused(region, host, at_us);
    }
    for session in terminals_ended {
        centre.desk.ended(region, session);
    }
    for outcome in taken {
        match outcome {
            Taken::Nothing => {}
            Taken::Event(seq) => centre.feed.announce(seq),
            Taken::Finished(recorded) => {
                centre.metrics.command_finished(recorded.state);
                if let Some(departed) = &recorded.departed {
                    has_departed(centre, departed).await;
                }
                centre.dispatch.on_recorded(recorded.id);
            }
        }
    }
    Ok(())
}

/// Takes the region's word of its own disk and clock, which has no number and is kept nowhere.
fn is_about_itself(centre: &Centre, region: &str, report: &Numbered) -> bool {
    let said = match &report.kind {
        Some(numbered::Kind::Event(said)) if report.seq == 0 => said.event.as_ref(),
        _ => None,
    };
    let Some(said) = said else {
        return false;
    };
    let reason: String = said.detail.chars().take(REASON_CHARS_MAX).collect();
    match said.action.as_str() {
        events::REGION_STORAGE => centre.fleet.region_trouble(region, &reason),
        events::REGION_CLOCK => centre.fleet.region_clock(region, &reason),
        _ => return false,
    }
    true
}

/// A host's identity ended with its command: what follows from it in memory, and the event.
async fn has_departed(centre: &Centre, departed: &Departed) {
    centre.fleet.forget_host(departed.host);
    centre.dispatch.on_departed(departed);
    let Departed {
        host,
        tenant,
        region,
        actor,
        ..
    } = departed;
    let noted = centre
        .feed
        .record(tenant, Some(*host), region, "host.revoked", actor);
    if let Err(error) = noted.await {
        tracing::warn!(%host, %error, "the event of a host's leaving could not be recorded");
    }
}

fn clone_refused(report: &Numbered) -> Option<(HostId, i64)> {
    match &report.kind {
        Some(numbered::Kind::Event(said)) => {
            let event = said.event.as_ref()?;
            let host = HostId::from_wire(&said.host).ok()?;
            (event.action == events::HOST_CLONE).then_some((host, event.at_us))
        }
        _ => None,
    }
}

/// Records what one report says.
fn record(
    tx: &Tx<'_>,
    dispatch: &Dispatch,
    region: &str,
    report: &Numbered,
) -> Result<Taken, StoreError> {
    match &report.kind {
        Some(numbered::Kind::Result(said)) => {
            let Some(result) = &said.result else {
                return Ok(Taken::Nothing);
            };
            let recorded = dispatch.record_result(tx, region, &said.host, result)?;
            Ok(recorded.map_or(Taken::Nothing, |recorded| {
                Taken::Finished(Box::new(recorded))
            }))
        }
        Some(numbered::Kind::Event(said)) => {
            let Some(event) = &said.event else {
                return Ok(Taken::Nothing);
            };
            let host = HostId::from_wire(&said.host).ok();
            let seq = tx.insert_event(DEFAULT_TENANT, host, region, event)?;
            if event.action == events::HOST_LEFT
                && let Some(host) = host
                && tx.revoke_host(host, event.at_us.max(1))?
            {
                let entry = AuditEntry {
                    at_us: event.at_us,
                    tenant: DEFAULT_TENANT.to_owned(),
                    actor: "the host's owner".to_owned(),
                    action: "host.leave".to_owned(),
                    object: format!("host {host}"),
                    outcome: "ok".to_owned(),
                    detail: event.detail.clone(),
                    source: format!("region {region}"),
                };
                tx.append_audit(&entry, sha256)?;
            }
            if event.action == events::HOST_HELD
                && let Some(host) = host
            {
                tx.hold_host(host, &event.detail)?;
            }
            Ok(seq.map_or(Taken::Nothing, Taken::Event))
        }
        Some(numbered::Kind::Certified(said)) => {
            if let Ok(host) = HostId::from_wire(&said.host) {
                // The certificate itself stays in the region; here its serial is what counts, for
                // revoking it.
                let serial = said.serial.as_bytes();
                tx.host_certified(host, said.counter, &[], serial, said.not_after_us)?;
            }
            Ok(Taken::Nothing)
        }
        Some(numbered::Kind::TerminalEnded(said)) => {
            terminals::ended(tx, region, said).map(|()| Taken::Nothing)
        }
        Some(numbered::Kind::TerminalRefused(said)) => {
            terminals::refused(tx, region, said).map(|()| Taken::Nothing)
        }
        // What flows the other way, or a kind of a later version: taken, so that it does not come
        // again.
        _ => Ok(Taken::Nothing),
    }
}
