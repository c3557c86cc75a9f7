//! Copies of a living host: how they are told from it, and what they may ask for.
//!
//! The older link is challenged: an answer means that the newcomer is a copy. It is refused, and may ask for
//! an identity of its own on the connection on which it has just shown that it holds the host's key.
//!
//! The region only asks on: whether there is such an identity is the centre's word, and without the centre
//! the clone stays refused and comes again.

use std::time::Duration;

use fairlead_identity::authority::RequestedKey;
use fairlead_link::socket::Socket;
use fairlead_protocol::{
    CloneRequest, EnrolCheck, EnrolReply, HostId, LinkDown, LinkUp, Refused, codes, events, limits,
    link_down, link_up,
};
use tokio::sync::oneshot;

use crate::doors;
use crate::region::{Refusal, Region};
use crate::registry::Entry;
use crate::router::ToHost;

/// When a clone that was refused may come again.
pub(crate) const RETRY_MS: u32 = 60_000;
/// Clones that are heard at a time; the others are refused, and come again.
pub(crate) const PLACES: usize = 16;
/// Room for a challenge in the queue of a busy link.
const ROOM_LOOKED_FOR_EVERY: Duration = Duration::from_millis(50);

/// Whether a link answers a challenge in time.
pub(crate) async fn lives(older: &Entry) -> bool {
    let nonce = u64::from_le_bytes(fairlead_identity::random::bytes());
    let asked = async {
        loop {
            let (answered, answer) = oneshot::channel();
            if older.to_host.push(ToHost::Challenge { nonce, answered }) {
                return answer.await.is_ok();
            }
            if older.to_host.is_closed() {
                return false;
            }
            // A full queue, which is rare: of a link that does not move it stays full.
            tokio::time::sleep(ROOM_LOOKED_FOR_EVERY).await;
        }
    };
    tokio::time::timeout(limits::CHALLENGE_TIMEOUT, asked)
        .await
        .unwrap_or(false)
}

/// Records that a copy of a living host has come, and gives the words with which it is refused.
pub(crate) async fn noticed(region: &Region, host: HostId) -> Refusal {
    let detail = "two machines use one identity; the newcomer was refused. Where clones may, it waits under \
                  a name of its own for `fairlead host approve`; else run `fairlead-agent prepare-image` on \
                  it, and enrol it with a join token";
    region
        .record(host, events::HOST_CLONE, detail.to_owned())
        .await;
    (codes::CLONE, detail.to_owned())
}

/// Refuses a clone, and hears it out.
pub async fn serve(
    mut socket: Socket<LinkDown, LinkUp>,
    host: HostId,
    refusal: Refusal,
    retry_after_ms: u32,
    region: &Region,
) {
    let Ok(_place) = region.clone_places.try_acquire() else {
        return doors::refuse(&mut socket, refusal, retry_after_ms).await;
    };
    let (code, message) = refusal;
    let refused = Refused {
        code: code.to_owned(),
        message,
        retry_after_ms,
        may_ask_as_clone: true,
    };
    let refused = link_down::Kind::Refused(refused);
    let said = LinkDown {
        kind: Some(refused),
    };
    if socket.send(&said).await.is_err() {
        return;
    }
    let request = match socket.hear_message(limits::HELLO_TIMEOUT).await {
        Ok(LinkUp {
            kind: Some(link_up::Kind::Clone(request)),
        }) => request,
        // It is content with its refusal, or too old to know of more.
        _ => return socket.close().await,
    };
    let address = socket
        .remote
        .map(|remote| remote.ip().to_string())
        .unwrap_or_default();
    match admit(region, host, request, address).await {
        Ok(reply) => {
            tracing::warn!(%host, clone = reply.name, "a clone has an identity of its own");
            let enrolled = link_down::Kind::Enrolled(reply);
            // Lost, it is asked for again, with the same key.
            let _ = socket
                .send(&LinkDown {
                    kind: Some(enrolled),
                })
                .await;
            socket.close().await;
        }
        Err(refusal) => {
            tracing::info!(%host, code = refusal.0, "a clone gets no identity");
            doors::refuse(&mut socket, refusal, retry_after_ms).await;
        }
    }
}

async fn admit(
    region: &Region,
    host: HostId,
    request: CloneRequest,
    address: String,
) -> Result<EnrolReply, Refusal> {
    let key = RequestedKey::from_request(&request.csr_der)
        .map_err(|error| (codes::CERTIFICATE_REJECTED, error.to_string()))?;
    let check = EnrolCheck {
        key_hash: bytes::Bytes::copy_from_slice(&key.hash()),
        facts: request.facts,
        clone_of: host.to_wire(),
        address,
        ..EnrolCheck::default()
    };
    doors::certified(region, region.ask_verdict(check).await?, &key).await
}
