//! Enrolment: how a machine with a join token becomes a host.
//!
//! The server's root is found by the hash in the token and checked before the secret is sent. The key
//! is made here and never leaves. It is on disk before the request, so that asking again after a lost
//! answer asks for the same host.

use std::path::Path;

use fairlead_identity::tls::{self, Expected, Trust};
use fairlead_identity::token::{JoinToken, TokenError};
use fairlead_link::backoff::{Backoff, Last, random_share};
use fairlead_link::dial::{DialError, Dialler};
use fairlead_link::proxy::Proxy;
use fairlead_link::socket::{Socket, SocketError};
use fairlead_protocol::version::{paths, sni};
use fairlead_protocol::{
    EnrolReply, EnrolRequest, HostFacts, LinkDown, LinkUp, codes, limits, link_down, link_up,
};

use crate::config::Config;
use crate::identity::{Identity, IdentityError, IdentityFiles};

/// Attempts while servers cannot be reached, before the supervisor is left to try again.
const ATTEMPTS_MAX: u32 = 8;
/// How long the answer may take: the region asks the centre.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Why the machine is not a host.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Nothing to enrol with.
    #[error(
        "this machine is not enrolled and has no join token: make one with `fairlead join-token \
         create` and pass it as FAIRLEAD_JOIN_TOKEN or --token-file"
    )]
    NoToken,
    /// The token's file cannot be read.
    #[error("cannot read the join token from {path}: {reason}")]
    TokenFile {
        /// Which.
        path: String,
        /// In the system's words.
        reason: String,
    },
    /// The token makes no sense.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No address.
    #[error("no access server is named: pass --address HOST:PORT or FAIRLEAD_ADDRESS")]
    NoAddress,
    /// Nobody was reached.
    #[error("cannot enrol: {0}{code}", code = in_brackets(.0))]
    Dial(DialError),
    /// The connection broke.
    #[error("cannot enrol: {0}")]
    Socket(SocketError),
    /// The server said no.
    #[error("the server refused to enrol this machine: {message} ({code})")]
    Refused {
        /// Stable.
        code: String,
        /// In words.
        message: String,
    },
    /// The identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The server's answer makes no sense.
    #[error("the server's answer cannot be used: {0}")]
    Answer(String),
}

impl EnrolError {
    /// Whether trying again later may help without anybody's doing.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Dial(
                DialError::Tls { .. } | DialError::Address(_) | DialError::ProxyAuth { .. },
            ) => false,
            Self::Dial(_) | Self::Socket(_) => true,
            Self::Refused { code, .. } => [
                codes::BUSY,
                codes::REGION_OFFLINE,
                codes::STORAGE_UNAVAILABLE,
            ]
            .contains(&code.as_str()),
            _ => false,
        }
    }
}

fn in_brackets(error: &DialError) -> String {
    error
        .code()
        .map_or_else(String::new, |code| format!(" ({code})"))
}

/// The join token, from file or environment.
fn token(config: &Config) -> Result<JoinToken, EnrolError> {
    let text = match &config.token_file {
        Some(path) => std::fs::read_to_string(path).map_err(|error| EnrolError::TokenFile {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?,
        None => std::env::var("FAIRLEAD_JOIN_TOKEN").map_err(|_| EnrolError::NoToken)?,
    };
    Ok(text.parse()?)
}

/// Enrols this machine, trying the addresses in turn.
///
/// # Errors
/// When it is not enrolled in the end.
pub async fn enrol(
    config: &Config,
    files: &IdentityFiles,
    facts: HostFacts,
    proxy: Option<Proxy>,
) -> Result<Identity, EnrolError> {
    let token = token(config)?;
    if config.addresses.is_empty() {
        return Err(EnrolError::NoAddress);
    }
    let tls = tls::client(
        Trust::RootHash(token.ca_hash),
        Expected::AnyAccessServer,
        None,
    )
    .map_err(|error| EnrolError::Answer(error.to_string()))?;
    let dialler = Dialler::new(tls, None, sni::AGENTS).through(proxy);
    let mut backoff = Backoff::default();
    let mut attempt = 0;
    loop {
        let address = &config.addresses[attempt as usize % config.addresses.len()];
        let error = match ask(&dialler, address, &token, files, &facts).await {
            Ok(identity) => {
                files.save(&identity)?;
                if let Some(path) = &config.token_file {
                    use_up(path);
                }
                return Ok(identity);
            }
            Err(error) => error,
        };
        attempt += 1;
        if !error.may_pass() || attempt >= ATTEMPTS_MAX {
            return Err(error);
        }
        tracing::warn!(address, %error, "enrolment is tried again");
        tokio::time::sleep(backoff.next_wait(Last::NotTaken, random_share(), None)).await;
    }
}

/// The token has done its work: whoever reads the file later shall find nothing to use.
fn use_up(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(
            path = %path.display(), %error,
            "the join token has been used, and its file cannot be removed: remove it"
        );
    }
}

async fn ask(
    dialler: &Dialler,
    address: &str,
    token: &JoinToken,
    files: &IdentityFiles,
    facts: &HostFacts,
) -> Result<Identity, EnrolError> {
    let key = files.next_key()?;
    let csr = key
        .request()
        .map_err(|error| EnrolError::Answer(error.to_string()))?;
    let (mut socket, shown): (Socket<LinkUp, LinkDown>, _) = dialler
        .messages(address, paths::ENROL, limits::LINK_MESSAGE_BYTES_MAX)
        .await
        .map_err(|error| name_ca_mismatch(error, token))?;
    let request = EnrolRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        csr_der: csr.into(),
        facts: Some(facts.clone()),
        sealing_key: bytes::Bytes::new(),
    };
    socket
        .send(&LinkUp {
            kind: Some(link_up::Kind::Enrol(request)),
        })
        .await
        .map_err(EnrolError::Socket)?;
    let answer = socket
        .hear_message(ANSWER_TIMEOUT)
        .await
        .map_err(EnrolError::Socket)?;
    socket.close().await;
    let reply: EnrolReply = match answer.kind {
        Some(link_down::Kind::Enrolled(reply)) => reply,
        Some(link_down::Kind::Refused(refused)) => {
            return Err(EnrolError::Refused {
                code: refused.code,
                message: refused.message,
            });
        }
        _ => return Err(EnrolError::Answer("neither yes nor no".to_owned())),
    };
    let identity = Identity::new(reply, key.to_der()).map_err(EnrolError::Answer)?;
    // The root that we were given must be the one that we checked.
    if identity.root.hash() == token.ca_hash && !shown.is_empty() {
        Ok(identity)
    } else {
        Err(EnrolError::Answer(
            "it names another CA than the token".to_owned(),
        ))
    }
}

/// A wrong CA is the one TLS failure that a person can do something about.
fn name_ca_mismatch(error: DialError, token: &JoinToken) -> EnrolError {
    match error {
        DialError::Tls { address, reason } if reason.contains("the token names") => {
            EnrolError::Refused {
                code: codes::CA_MISMATCH.to_owned(),
                message: format!(
                    "{address} is not the installation that the token {} belongs to, or somebody \
                     is in between; the secret was not sent ({reason})",
                    token.id
                ),
            }
        }
        other => EnrolError::Dial(other),
    }
}
