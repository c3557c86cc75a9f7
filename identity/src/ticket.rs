//! Tickets: permission to open one terminal, once, within seconds.
//!
//! A ticket is made by the API after it has asked who is there and what that caller may do, and travels in
//! the first message of the terminal's socket, never in a URL. It is bound to the API token that asked, the
//! session (and with it the command that the host verifies), the host, the container's id, the user in the
//! container and the page's origin. Reading one tells who made it and until when it is good; that it is
//! spent only once is the business of whoever takes it in (`webssh`).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use fairlead_protocol::{Message, SignedTicket, Ticket};
use rustls_pki_types::UnixTime;

use crate::signing::{Keys, Signer};

/// How long a ticket is good.
pub const LIFE: Duration = Duration::from_secs(30);
/// No ticket is longer, written out.
pub const TEXT_BYTES_MAX: usize = 2048;
/// Bytes of its nonce.
pub const NONCE_BYTES: usize = 16;
/// How far the clocks of those who make and take tickets may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(5);
/// What a ticket's signature stands behind.
const WORDS: &[u8] = b"fairlead terminal ticket 1\0";

/// Why a ticket opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It is none.
    #[error("this is not a ticket")]
    Unreadable,
    /// It was made with another key, or altered.
    #[error("the ticket was not made here, or was altered")]
    Wrong,
    /// Its time is over.
    #[error("the ticket's time is over")]
    Expired,
}

/// The ticket, signed and written out.
#[must_use]
pub fn write(signer: &Signer, ticket: &Ticket) -> String {
    let bytes = ticket.encode_to_vec();
    let signed = SignedTicket {
        signature: signer.sign_as(WORDS, &bytes).into(),
        key_id: Bytes::copy_from_slice(&signer.key_id()),
        ticket: bytes.into(),
    };
    URL_SAFE_NO_PAD.encode(signed.encode_to_vec())
}

/// The ticket inside, when this signer made it and its time is not over.
///
/// # Errors
/// When it opens nothing.
pub fn read(signer: &Signer, text: &str, now_us: i64) -> Result<Ticket, TicketError> {
    read_with(text, now_us, |signed| {
        signed.key_id[..] == signer.key_id()
            && signer.signed_as(WORDS, &signed.ticket, &signed.signature)
    })
}

/// The same for who does not make tickets: when one of these keys, which their certificates vouch for, made it.
///
/// # Errors
/// When it opens nothing.
pub fn read_known(keys: &Keys, text: &str, now_us: i64) -> Result<Ticket, TicketError> {
    let now_s = now_us.max(0).unsigned_abs() / 1_000_000;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
    read_with(text, now_us, |signed| {
        let said = [WORDS, &signed.ticket[..]].concat();
        keys.check(&signed.key_id, &said, &signed.signature, now)
            .is_ok()
    })
}

fn read_with(
    text: &str,
    now_us: i64,
    is_ours: impl Fn(&SignedTicket) -> bool,
) -> Result<Ticket, TicketError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(TicketError::Unreadable);
    }
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| TicketError::Unreadable)?;
    let signed = SignedTicket::decode(&bytes[..]).map_err(|_| TicketError::Unreadable)?;
    if !is_ours(&signed) {
        return Err(TicketError::Wrong);
    }
    let ticket = Ticket::decode(&signed.ticket[..]).map_err(|_| TicketError::Unreadable)?;
    if ticket.not_after_us < now_us {
        return Err(TicketError::Expired);
    }
    // One that claims to be good for longer than tickets are is none of ours.
    let longest = i64::try_from((LIFE + CLOCKS_APART).as_micros()).unwrap_or(i64::MAX);
    if ticket.nonce.len() != NONCE_BYTES || ticket.not_after_us > now_us.saturating_add(longest) {
        return Err(TicketError::Wrong);
    }
    Ok(ticket)
}
