//! The doors for machines that are not (or no longer) known: enrol and renew. One message in, one
//! out.

use fairlead_identity::authority::RequestedKey;
use fairlead_identity::token::secret_hash;
use fairlead_link::socket::Socket;
use fairlead_protocol::{
    EnrolCheck, EnrolReply, EnrolRequest, EnrolVerdict, HostId, HostRecord, Leave, Left, LinkDown,
    LinkUp, Message, Refused, RenewReply, RenewRequest, codes, events, limits, link_down, link_up,
};
use fairlead_store::hosts::HostRow;

use crate::clones;
use crate::region::{Refusal, Region, unavailable};

type Agent = Socket<LinkDown, LinkUp>;

/// Why a door is closed to a peer that proved something else than it needs.
pub fn closed(expired: bool) -> Refusal {
    if expired {
        let message = "this certificate has expired: renew it at the renew door";
        (codes::CERTIFICATE_EXPIRED, message.to_owned())
    } else {
        let message = "this door is not for the certificate that was shown (or not shown)";
        (codes::CERTIFICATE_REJECTED, message.to_owned())
    }
}

/// Says no and closes.
pub async fn refuse(socket: &mut Agent, (code, message): Refusal, retry_after_ms: u32) {
    let refused = Refused {
        code: code.to_owned(),
        message,
        retry_after_ms,
        ..Refused::default()
    };
    // The peer is sent away; whether it hears why is its own affair.
    let _ = socket
        .send(&LinkDown {
            kind: Some(link_down::Kind::Refused(refused)),
        })
        .await;
    socket.close().await;
}

/// A machine without a certificate asks to become a host.
pub async fn enrol(mut socket: Agent, region: &Region) {
    let request = match socket.hear_message(limits::HELLO_TIMEOUT).await {
        Ok(LinkUp {
            kind: Some(link_up::Kind::Enrol(request)),
        }) => request,
        Ok(_) => {
            let message = "at this door only enrolment is heard".to_owned();
            return refuse(&mut socket, (codes::PROTOCOL_VIOLATION, message), 0).await;
        }
        Err(error) => {
            tracing::debug!(%error, "a stranger left before it asked");
            return;
        }
    };
    match admit(request, region).await {
        Ok(reply) => {
            let _ = socket
                .send(&LinkDown {
                    kind: Some(link_down::Kind::Enrolled(reply)),
                })
                .await;
            socket.close().await;
        }
        Err(refusal) => {
            tracing::info!(remote = ?socket.remote, code = refusal.0, "enrolment refused");
            let passing = [
                codes::REGION_OFFLINE,
                codes::STORAGE_UNAVAILABLE,
                codes::BUSY,
            ];
            let after = if passing.contains(&refusal.0) {
                2000
            } else {
                0
            };
            refuse(&mut socket, refusal, after).await;
        }
    }
}

async fn admit(request: EnrolRequest, region: &Region) -> Result<EnrolReply, Refusal> {
    let key = RequestedKey::from_request(&request.csr_der)
        .map_err(|error| (codes::CERTIFICATE_REJECTED, error.to_string()))?;
    if request.token_id.len() > limits::NAME_CHARS_MAX {
        return Err((
            codes::TOKEN_MALFORMED,
            "the token's id is too long".to_owned(),
        ));
    }
    let check = EnrolCheck {
        request: 0,
        token_id: request.token_id,
        token_hash: bytes::Bytes::copy_from_slice(&secret_hash(&request.token_secret)),
        key_hash: bytes::Bytes::copy_from_slice(&key.hash()),
        facts: request.facts,
        sealing_key: request.sealing_key,
        ..EnrolCheck::default()
    };
    certified(region, region.ask_verdict(check).await?, &key).await
}

/// Takes the machine in that the centre has let in, and certifies its key.
///
/// # Errors
/// A refusal, in words: the centre's own, or one of the ledger's.
pub async fn certified(
    region: &Region,
    mut verdict: EnrolVerdict,
    key: &RequestedKey,
) -> Result<EnrolReply, Refusal> {
    let clone_grant = verdict.clone_grant.take();
    let record = granted(verdict)?;
    let host =
        HostId::from_wire(&record.host).map_err(|error| (codes::INTERNAL, error.to_string()))?;
    let row = host_row(&record, &region.name, region.clock.now_us());
    let held = record.held.clone();
    region
        .ledger
        .write(move |tx| {
            tx.insert_host(host, &row)?;
            if held.is_empty() {
                Ok(())
            } else {
                tx.hold_host(host, &held)
            }
        })
        .await
        .map_err(|error| unavailable(&error))?;
    let certified = region.certify(host, key, 1).await?;
    region
        .record(host, "host.enrolled", format!("as {}", record.name))
        .await;
    tracing::info!(%host, name = record.name, "host enrolled");
    Ok(EnrolReply {
        host: record.host,
        name: record.name,
        tenant: record.tenant,
        region: region.name.clone(),
        certificates: certified.certificates,
        certificate_counter: certified.counter,
        addresses: region.addresses.clone(),
        command_keys: Some(region.command_keys().borrow().clone()),
        clone_grant,
    })
}

fn granted(verdict: EnrolVerdict) -> Result<HostRecord, Refusal> {
    match verdict.host {
        Some(record) => Ok(record),
        None => {
            let known = codes::ALL.iter().find(|code| **code == verdict.code);
            Err((
                known.copied().unwrap_or(codes::TOKEN_UNKNOWN),
                verdict.message,
            ))
        }
    }
}

/// A host as the ledger keeps it.
pub fn host_row(record: &HostRecord, region: &str, enrolled_us: i64) -> HostRow {
    HostRow {
        id: None,
        name: record.name.clone(),
        tenant: record.tenant.clone(),
        region: region.to_owned(),
        labels: record
            .labels
            .iter()
            .map(|l| (l.key.clone(), l.value.clone()))
            .collect(),
        key_hash: record.key_hash.to_vec(),
        enrolled_us,
        ..HostRow::default()
    }
}

/// A host whose certificate has expired asks for the next.
pub async fn renew(mut socket: Agent, host: HostId, region: &Region) {
    let request = match socket.hear_message(limits::HELLO_TIMEOUT).await {
        Ok(LinkUp {
            kind: Some(link_up::Kind::Renew(request)),
        }) => request,
        Ok(LinkUp {
            kind: Some(link_up::Kind::Leave(Leave {})),
        }) => return leave(socket, host, region).await,
        Ok(_) => {
            let message = "at this door only renewal and leaving are heard".to_owned();
            return refuse(&mut socket, (codes::PROTOCOL_VIOLATION, message), 0).await;
        }
        Err(_) => return,
    };
    // The true host renews on its link, so who asks here beside a living one is a copy, mostly an old one.
    if let Some(linked) = region.registry.get(host)
        && clones::lives(&linked).await
    {
        let refusal = clones::noticed(region, host).await;
        return clones::serve(socket, host, refusal, clones::RETRY_MS, region).await;
    }
    match renewed(region, host, &request).await {
        Ok(reply) => {
            let _ = socket
                .send(&LinkDown {
                    kind: Some(link_down::Kind::Renewed(reply)),
                })
                .await;
            socket.close().await;
        }
        Err(refusal) => refuse(&mut socket, refusal, 0).await,
    }
}

/// A machine's owner gives its identity up.
async fn leave(mut socket: Agent, host: HostId, region: &Region) {
    if let Err(error) = region.give_up(host).await {
        return refuse(&mut socket, unavailable(&error), 0).await;
    }
    tracing::info!(%host, "a host left");
    let _ = socket
        .send(&LinkDown {
            kind: Some(link_down::Kind::Left(Left {})),
        })
        .await;
    socket.close().await;
}

/// The next certificate for a host.
///
/// The counter tells copies apart: whoever asks with the present counter gets the next certificate;
/// the same key asking again gets the same answer again; a higher counter than ours means that *we*
/// forgot something, and is adopted; a lower one with another key means that somebody renews with a copy
/// of an older state, and the host is held until an admin has looked.
///
/// # Errors
/// A refusal, in words.
pub async fn renewed(
    region: &Region,
    host: HostId,
    request: &RenewRequest,
) -> Result<RenewReply, Refusal> {
    let key = RequestedKey::from_request(&request.csr_der)
        .map_err(|error| (codes::CERTIFICATE_REJECTED, error.to_string()))?;
    let known = region
        .ledger
        .read(move |tx| tx.host(host))
        .await
        .map_err(|error| unavailable(&error))?
        .unwrap_or_default();
    if !known.held.is_empty() {
        return Err((codes::HELD, held_message(&known.held)));
    }
    if known.certificate_key_hash == key.hash()
        && let Ok(answer) = RenewReply::decode(&known.certificate[..])
    {
        return Ok(answer);
    }
    if request.counter < known.certificate_counter {
        let reason = format!(
            "its certificate counter went back from {} to {}: a copy of its older state is in use",
            known.certificate_counter, request.counter
        );
        return Err(hold(region, host, reason).await);
    }
    region.certify(host, &key, request.counter + 1).await
}

fn held_message(reason: &str) -> String {
    format!("this host is held: {reason}; an admin decides with `fairlead host approve`")
}

/// Holds a host until an admin approves it.
pub async fn hold(region: &Region, host: HostId, reason: String) -> Refusal {
    tracing::error!(%host, reason, "host is held");
    let kept = reason.clone();
    if let Err(error) = region
        .ledger
        .write(move |tx| tx.hold_host(host, &kept))
        .await
    {
        return unavailable(&error);
    }
    region.record(host, events::HOST_HELD, reason.clone()).await;
    (codes::HELD, held_message(&reason))
}
