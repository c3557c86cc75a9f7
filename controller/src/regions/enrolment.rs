//! Who may join: access servers at the enrol door, hosts on a region's word. Join tokens are judged
//! here and nowhere else.

use fairlead_identity::digest::sha256;
use fairlead_identity::roles::is_name;
use fairlead_identity::token::secret_hash;
use fairlead_link::socket::Socket;
use fairlead_protocol::{
    EnrolCheck, EnrolVerdict, HostId, HostRecord, Label, Refused, RegionEnrolReply,
    RegionEnrolRequest, UplinkDown, UplinkUp, codes, limits, uplink_down, uplink_up,
};
use fairlead_store::audit::AuditEntry;
use fairlead_store::hosts::HostRow;
use fairlead_store::tokens::JoinTokenRow;
use fairlead_store::{DEFAULT_TENANT, StoreError, Tx};

use super::Centre;
use crate::authority::new_host_id;

pub(super) type Refusal = (&'static str, String);

/// Addresses that one region's agents are given.
const AGENT_ADDRESSES_MAX: usize = 8;

/// What a refusal of a token means, and what to do.
fn in_words(code: &'static str) -> String {
    match code {
        codes::TOKEN_EXPIRED => "the join token's time is over; make a new one with `fairlead \
                                 join-token create`",
        codes::TOKEN_USED_UP => "the join token has let in as many machines as it may; make a new \
                                 one with `fairlead join-token create`",
        codes::TOKEN_REVOKED => "the join token was revoked; make a new one with `fairlead \
                                 join-token create`",
        codes::TOKEN_FOREIGN => "the join token is for another region or another kind of machine; \
                                 make one for this region with `fairlead join-token create --region`",
        _ => "the join token is not known here: it was mistyped, or is of another installation",
    }
    .to_owned()
}

pub(super) fn unavailable(error: &StoreError) -> Refusal {
    tracing::error!(%error, "the store did not answer");
    (
        codes::STORAGE_UNAVAILABLE,
        "the controller's store cannot be written now".to_owned(),
    )
}

fn audit(
    tx: &Tx<'_>,
    at_us: i64,
    action: &str,
    object: &str,
    token: &str,
) -> Result<(), StoreError> {
    let entry = AuditEntry {
        at_us,
        tenant: DEFAULT_TENANT.to_owned(),
        actor: format!("join token {token}"),
        source: String::new(),
        action: action.to_owned(),
        object: object.to_owned(),
        outcome: "ok".to_owned(),
        detail: String::new(),
    };
    tx.append_audit(&entry, sha256).map(|_| ())
}

// === access servers

/// An access server asks to serve a region.
pub(super) async fn region(mut socket: Socket<UplinkDown, UplinkUp>, centre: &Centre) {
    let request = match socket.hear_message(limits::HELLO_TIMEOUT).await {
        Ok(UplinkUp {
            kind: Some(uplink_up::Kind::Enrol(request)),
        }) => request,
        _ => return socket.close().await,
    };
    let kind = match admit_region(request, centre).await {
        Ok(reply) => uplink_down::Kind::Enrolled(reply),
        Err((code, message)) => {
            tracing::info!(code, "an access server was refused");
            uplink_down::Kind::Refused(Refused {
                code: code.to_owned(),
                message,
                ..Refused::default()
            })
        }
    };
    // The peer may have left; it will ask again.
    let _ = socket.send(&UplinkDown { kind: Some(kind) }).await;
    socket.close().await;
}

async fn admit_region(
    request: RegionEnrolRequest,
    centre: &Centre,
) -> Result<RegionEnrolReply, Refusal> {
    if !is_name(&request.server) {
        let message = "an access server's name has lower-case letters, digits and dashes";
        return Err((codes::INVALID_REQUEST, message.to_owned()));
    }
    if request.agent_addresses.len() > AGENT_ADDRESSES_MAX {
        let message = format!("a region has {AGENT_ADDRESSES_MAX} addresses at most");
        return Err((codes::INVALID_REQUEST, message));
    }
    let is_long = |text: &String| text.len() > limits::NAME_CHARS_MAX;
    if is_long(&request.token_id)
        || is_long(&request.public_url)
        || request.agent_addresses.iter().any(is_long)
    {
        return Err((codes::INVALID_REQUEST, "a field is too long".to_owned()));
    }
    let now_us = centre.clock.now_us();
    let hash = secret_hash(&request.token_secret);
    let token_id = request.token_id.clone();
    let judged = centre
        .store
        .read(move |tx| tx.check_join_token(&token_id, &hash, "access-server", None, now_us))
        .await
        .map_err(|error| unavailable(&error))?;
    let region = judged.map_err(|code| (code, in_words(code)))?.region;
    let requests = [
        &request.server_csr_der[..],
        &request.agents_ca_csr_der[..],
        &request.web_csr_der[..],
    ];
    let certified = centre
        .authority
        .certify_region(
            &region,
            &request.server,
            requests,
            &web_names(&request.public_url),
        )
        .map_err(|error| (codes::CERTIFICATE_REJECTED, error.to_string()))?;
    let name = region.clone();
    let used = centre
        .store
        .write(move |tx| {
            let used =
                tx.consume_join_token(&request.token_id, &hash, "access-server", None, now_us)?;
            if used.is_ok() {
                tx.region_joined(
                    &name,
                    &request.server,
                    &request.agent_addresses,
                    &request.public_url,
                )?;
                audit(tx, now_us, "region.join", &name, &request.token_id)?;
            }
            Ok(used.map(|_| ()))
        })
        .await
        .map_err(|error| unavailable(&error))?;
    used.map_err(|code| (code, in_words(code)))?;
    tracing::info!(region, "an access server joined");
    let wire = |chain: Vec<rustls::pki_types::CertificateDer<'static>>| {
        chain
            .iter()
            .map(|c| bytes::Bytes::copy_from_slice(c))
            .collect()
    };
    Ok(RegionEnrolReply {
        region,
        server_certificates: wire(certified.server),
        agents_ca_certificates: wire(certified.agents_ca),
        web_certificates: wire(certified.web),
        domain: centre.authority.root.domain().to_owned(),
    })
}

/// The host in the region's https address, and the loopback names when it is this machine.
fn web_names(url: &str) -> Vec<String> {
    let rest = url.strip_prefix("https://").unwrap_or(url);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let mut names = vec![host.to_owned()];
    if host == "localhost" {
        names.push("127.0.0.1".to_owned());
    }
    names.retain(|name| !name.is_empty());
    names
}

// === hosts

/// Judges a host's join token for a region; the same key asking again gets the same host.
pub(super) async fn host(centre: &Centre, region: &str, check: EnrolCheck) -> EnrolVerdict {
    let request = check.request;
    match admit_host(centre, region, check).await {
        Ok((host, record)) => {
            centre.settle_in(region, host);
            EnrolVerdict {
                request,
                host: Some(record),
                ..EnrolVerdict::default()
            }
        }
        Err((code, message)) => EnrolVerdict {
            request,
            code: code.to_owned(),
            message,
            ..EnrolVerdict::default()
        },
    }
}

async fn admit_host(
    centre: &Centre,
    region: &str,
    check: EnrolCheck,
) -> Result<(HostId, HostRecord), Refusal> {
    let hash: [u8; 32] = check.token_hash[..]
        .try_into()
        .map_err(|_| (codes::TOKEN_MALFORMED, in_words(codes::TOKEN_UNKNOWN)))?;
    let now_us = centre.clock.now_us();
    let region = region.to_owned();
    // What is plainly wrong costs no write: anybody may knock.
    let first = centre
        .store
        .look(|tx| tx.check_join_token(&check.token_id, &hash, "host", Some(&region), now_us))
        .map_err(|error| unavailable(&error))?;
    let hopeless = [
        codes::TOKEN_UNKNOWN,
        codes::TOKEN_REVOKED,
        codes::TOKEN_FOREIGN,
    ];
    if let Err(code) = first
        && hopeless.contains(&code)
    {
        return Err((code, in_words(code)));
    }
    let judged = centre
        .store
        .write(move |tx| {
            let token = &check.token_id;
            let again = tx
                .host_by_key(&check.key_hash, token)?
                .filter(|h| h.region == region);
            if let Some(known) = again {
                let judged = tx.check_join_token(token, &hash, "host", Some(&region), now_us)?;
                // Its use was counted when it first asked, so what is over does not matter now.
                let passed = [codes::TOKEN_USED_UP, codes::TOKEN_EXPIRED];
                return Ok(match judged {
                    Err(code) if !passed.contains(&code) => Err(code),
                    _ => Ok(known),
                });
            }
            let used = tx.consume_join_token(token, &hash, "host", Some(&region), now_us)?;
            match used {
                Ok(token) => new_host(tx, &token, &region, &check, now_us).map(Ok),
                Err(code) => Ok(Err(code)),
            }
        })
        .await
        .map_err(|error| unavailable(&error))?;
    let row = judged.map_err(|code| (code, in_words(code)))?;
    let host = row
        .id
        .ok_or((codes::INTERNAL, "a host without id".to_owned()))?;
    Ok((host, record_of(host, &row)))
}

fn new_host(
    tx: &Tx<'_>,
    token: &JoinTokenRow,
    region: &str,
    check: &EnrolCheck,
    now_us: i64,
) -> Result<HostRow, StoreError> {
    let host = new_host_id();
    let hostname = check
        .facts
        .as_ref()
        .map_or("", |facts| facts.hostname.as_str());
    let name = tx.free_host_name(&token.tenant, &host_name(hostname))?;
    let row = HostRow {
        id: Some(host),
        name: name.clone(),
        tenant: token.tenant.clone(),
        region: region.to_owned(),
        labels: token.labels.clone().into_iter().collect(),
        key_hash: check.key_hash.to_vec(),
        sealing_key: check.sealing_key.to_vec(),
        token_id: token.id.clone(),
        enrolled_us: now_us,
        ..HostRow::default()
    };
    tx.insert_host(host, &row)?;
    audit(tx, now_us, "host.enrol", &name, &token.id)?;
    Ok(row)
}

pub(super) fn record_of(host: HostId, row: &HostRow) -> HostRecord {
    HostRecord {
        host: host.to_wire(),
        name: row.name.clone(),
        tenant: row.tenant.clone(),
        labels: row
            .labels
            .iter()
            .map(|(key, value)| Label {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        key_hash: row.key_hash.clone().into(),
        approved: false,
        held: row.held.clone(),
    }
}

/// A machine's own name, made fit for `HOST/NAME`.
fn host_name(hostname: &str) -> String {
    let fit: String = hostname
        .to_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '.' {
                c
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    let fit = fit.trim_matches(['-', '.']);
    if fit.is_empty() {
        "host".to_owned()
    } else {
        fit.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_made_fit() {
        assert_eq!(host_name("Web-01.example.com"), "web-01.example.com");
        assert_eq!(host_name("a/b\u{1b}[31m"), "a-b--31m");
        assert_eq!(host_name("///"), "host");
    }

    #[test]
    fn the_certificate_names_what_people_dial() {
        assert_eq!(web_names("https://sz.example.com:7500"), ["sz.example.com"]);
        assert_eq!(
            web_names("https://localhost:7402"),
            ["localhost", "127.0.0.1"]
        );
        assert_eq!(web_names("https://[::1]:7402"), ["::1"]);
    }
}
