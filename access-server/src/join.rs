//! How an access server becomes a region's: once, with a join token, at the controller's enrol door.
//!
//! Its three keys are made here and never leave: its own, that of the region's CA for agents, and that of
//! its https certificate. What the controller certified is kept in one file beside them.

use std::path::Path;

use fairlead_daemon::files;
use fairlead_identity::Root;
use fairlead_identity::authority::{Authority, PrivateKey};
use fairlead_identity::tls::{self, Credentials, Expected, Trust};
use fairlead_identity::token::JoinToken;
use fairlead_link::dial::Dialler;
use fairlead_link::socket::Socket;
use fairlead_protocol::{
    Message, RegionEnrolReply, RegionEnrolRequest, UplinkDown, UplinkUp, limits, uplink_down,
    uplink_up, version,
};
use rustls::pki_types::CertificateDer;

use crate::config::Config;

/// How long the controller may take to answer.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// Why this server serves no region.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A file cannot be used.
    #[error("cannot use {path}: {reason}")]
    File {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// Nothing to join with.
    #[error(
        "this access server has no keys of a region in its data directory, and no join token to get some: a \
         new one gets a token by `fairlead region add NAME` (a region's second time: --again), passed with \
         --token-file; did it work before, then its data directory is not mounted, or lost"
    )]
    NoToken,
    /// The token makes no sense.
    #[error(transparent)]
    Token(#[from] fairlead_identity::token::TokenError),
    /// The controller was not reached.
    #[error("cannot join")]
    Dial(#[from] fairlead_link::dial::DialError),
    /// The connection broke.
    #[error("cannot join")]
    Socket(#[from] fairlead_link::socket::SocketError),
    /// The controller said no.
    #[error("the controller refused: {message} ({code})")]
    Refused {
        /// Stable.
        code: String,
        /// In words.
        message: String,
    },
    /// Keys or certificates do not fit.
    #[error("cannot use the region's keys and certificates: {0}")]
    Keys(String),
}

/// What a joined server has.
pub struct Joined {
    /// The region's name.
    pub region: String,
    /// The installation's root.
    pub root: Root,
    /// For links and uplink.
    pub server: Credentials,
    /// Certifies agents.
    pub agents_ca: Authority,
    /// For https.
    pub web: Credentials,
}

struct Keys {
    server: PrivateKey,
    agents_ca: PrivateKey,
    web: PrivateKey,
}

/// Reads what was joined before, or joins.
///
/// # Errors
/// When neither works.
pub async fn join(config: &Config) -> Result<Joined, JoinError> {
    let keys = keys(&config.data_dir)?;
    let path = config.data_dir.join("certificates");
    let kept = files::read_if_there(&path).map_err(|error| file_error(&path, &error))?;
    let reply = match kept {
        Some(bytes) => {
            RegionEnrolReply::decode(&bytes[..]).map_err(|error| file_error(&path, &error))?
        }
        None => {
            let reply = ask(config, &keys).await?;
            files::replace(&path, &reply.encode_to_vec())
                .map_err(|error| file_error(&path, &error))?;
            tracing::info!(region = reply.region, "joined");
            reply
        }
    };
    joined(reply, &keys)
}

fn file_error(path: &Path, error: &dyn std::fmt::Display) -> JoinError {
    JoinError::File {
        path: path.display().to_string(),
        reason: error.to_string(),
    }
}

fn keys(dir: &Path) -> Result<Keys, JoinError> {
    files::private_dir(dir).map_err(|error| file_error(dir, &error))?;
    let key = |name: &str| {
        let path = dir.join(name);
        match files::read_if_there(&path).map_err(|error| file_error(&path, &error))? {
            Some(der) => PrivateKey::from_der(&der).map_err(|error| file_error(&path, &error)),
            None => {
                let key =
                    PrivateKey::generate().map_err(|error| JoinError::Keys(error.to_string()))?;
                files::replace(&path, &key.to_der()).map_err(|error| file_error(&path, &error))?;
                Ok(key)
            }
        }
    };
    Ok(Keys {
        server: key("server.key")?,
        agents_ca: key("agents-ca.key")?,
        web: key("web.key")?,
    })
}

async fn ask(config: &Config, keys: &Keys) -> Result<RegionEnrolReply, JoinError> {
    let path = config.token_file.as_ref().ok_or(JoinError::NoToken)?;
    let text = std::fs::read_to_string(path).map_err(|error| file_error(path, &error))?;
    let token: JoinToken = text.parse()?;
    let tls = tls::client(Trust::RootHash(token.ca_hash), Expected::Controller, None)
        .map_err(|error| JoinError::Keys(error.to_string()))?;
    let (mut socket, _): (Socket<UplinkUp, UplinkDown>, _) =
        Dialler::new(tls, None, version::sni::UPLINK)
            .messages(
                &config.controller,
                version::paths::ENROL,
                limits::LINK_MESSAGE_BYTES_MAX,
            )
            .await?;
    let request = |key: &PrivateKey| {
        key.request()
            .map(bytes::Bytes::from)
            .map_err(|error| JoinError::Keys(error.to_string()))
    };
    let enrol = RegionEnrolRequest {
        token_id: token.id,
        token_secret: token.secret,
        server_csr_der: request(&keys.server)?,
        agents_ca_csr_der: request(&keys.agents_ca)?,
        web_csr_der: request(&keys.web)?,
        server: config.name.clone(),
        agent_addresses: config.agent_addresses.clone(),
        public_url: config.public_url.clone(),
    };
    socket
        .send(&UplinkUp {
            kind: Some(uplink_up::Kind::Enrol(enrol)),
        })
        .await?;
    let answer = socket.hear_message(ANSWER_TIMEOUT).await?;
    socket.close().await;
    match answer.kind {
        Some(uplink_down::Kind::Enrolled(reply)) => Ok(reply),
        Some(uplink_down::Kind::Refused(refused)) => Err(JoinError::Refused {
            code: refused.code,
            message: refused.message,
        }),
        _ => Err(JoinError::Keys(
            "the controller answered with something else".to_owned(),
        )),
    }
}

fn joined(reply: RegionEnrolReply, keys: &Keys) -> Result<Joined, JoinError> {
    let chain = |certificates: &[bytes::Bytes]| -> Vec<CertificateDer<'static>> {
        certificates
            .iter()
            .map(|c| CertificateDer::from(c.to_vec()))
            .collect()
    };
    let server = chain(&reply.server_certificates);
    let root = server
        .last()
        .cloned()
        .ok_or_else(|| JoinError::Keys("no root".to_owned()))?;
    let root = Root::from_der(root).map_err(|error| JoinError::Keys(error.to_string()))?;
    let agents_ca = Authority::from_parts(
        &keys.agents_ca.to_der(),
        chain(&reply.agents_ca_certificates),
        root.domain(),
    )
    .map_err(|error| JoinError::Keys(error.to_string()))?;
    Ok(Joined {
        region: reply.region,
        server: Credentials {
            chain: server,
            key: keys.server.for_tls(),
        },
        agents_ca,
        web: Credentials {
            chain: chain(&reply.web_certificates),
            key: keys.web.for_tls(),
        },
        root,
    })
}
