//! This machine is a copy of another: it gets an identity of its own, and forgets what it was.
//!
//! A server that refuses the link because the true host is alive lets the copy ask on that connection. Here
//! the answer is believed only with the controller's signed word for this very key, because an access server
//! alone must not be able to make a host give up who it is. The new identity lies in a folder of its own,
//! `clone`, until the next instance takes it into use: whenever the power fails, the machine is the one or
//! the other. The term of ownership and the floor of time go on growing; the owner's log goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fairlead_daemon::files;
use fairlead_daemon::shutdown::Shutdown;
use fairlead_identity::authority::PrivateKey;
use fairlead_identity::signing::Verifier;
use fairlead_link::socket::Socket;
use fairlead_protocol::{CloneRequest, EnrolReply, LinkDown, LinkUp, link_down, link_up};

use crate::config::Config;
use crate::connection::{Connection, LinkEnd, refused_or_odd};
use crate::executor;
use crate::identity::{Identity, IdentityError, IdentityFiles};
use crate::owner_log::OwnerLog;

/// How long the answer may take: the region asks the centre.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("clone")
}

/// Asks for an identity of its own where the link was refused. With one on disk this instance ends, and the
/// next one is that host.
pub(crate) async fn ask(
    connection: &Connection,
    mut socket: Socket<LinkUp, LinkDown>,
    shutdown: &Shutdown,
) -> LinkEnd {
    match asked(connection, &mut socket).await {
        Ok(own) => {
            tracing::warn!(
                name = own.enrolment.name,
                "this machine is a copy; it is a host of its own from now on"
            );
            shutdown.cancel();
            LinkEnd::Shutdown
        }
        Err(end) => end,
    }
}

async fn asked(
    connection: &Connection,
    socket: &mut Socket<LinkUp, LinkDown>,
) -> Result<Identity, LinkEnd> {
    let unusable = |reason: String| LinkEnd::Identity(format!("no identity of its own: {reason}"));
    let folder = folder(&connection.state_dir);
    files::private_dir(&folder).map_err(|error| unusable(error.to_string()))?;
    let files = IdentityFiles::new(&folder);
    // On disk before it is asked for, so that an answer that was lost is asked for again.
    let key = files
        .next_key()
        .map_err(|error| unusable(error.to_string()))?;
    let csr = key.request().map_err(|error| unusable(error.to_string()))?;
    let request = CloneRequest {
        csr_der: csr.into(),
        facts: Some(connection.facts.gather().await),
    };
    socket
        .send(&LinkUp {
            kind: Some(link_up::Kind::Clone(request)),
        })
        .await?;
    let answer = socket.hear_message(ANSWER_TIMEOUT).await?;
    let reply = match answer.kind {
        Some(link_down::Kind::Enrolled(reply)) => reply,
        other => return Err(refused_or_odd(other)),
    };
    let copied = connection.identity.lock().await.clone();
    let now = executor::unix(connection.time.now_us());
    let own = believed(&copied, reply, &key, now).map_err(unusable)?;
    files
        .save(&own)
        .map_err(|error| unusable(error.to_string()))?;
    Ok(own)
}

/// The identity in a reply, when the controller itself has granted it to this key.
fn believed(
    copied: &Identity,
    reply: EnrolReply,
    key: &PrivateKey,
    now: rustls::pki_types::UnixTime,
) -> Result<Identity, String> {
    let tenant = &copied.enrolment.tenant;
    let mut verifier = Verifier::new(copied.root.clone(), copied.host, tenant);
    for keys in [&copied.enrolment.command_keys, &reply.command_keys] {
        // A key that is not the installation's verifies nothing.
        let _ = verifier.learn(&keys.clone().unwrap_or_default(), now);
    }
    let signed = reply
        .clone_grant
        .as_ref()
        .ok_or("the controller's word is missing")?;
    let grant = verifier
        .verify_grant(signed, now)
        .map_err(|error| format!("the controller's word is not good: {error}"))?;
    if grant.host != reply.host || grant.key_hash[..] != key.public_hash()[..] {
        return Err("the controller's word is about another machine".to_owned());
    }
    copied.of_its_own(reply, key)
}

/// Whether an identity waits to be taken into use.
#[must_use]
pub fn has_own(state_dir: &Path) -> bool {
    folder(state_dir).join("identity").exists()
}

/// Takes it into use, and drops what was the other host's. May be broken off and begun again at any point.
///
/// # Errors
/// When files cannot be read, written or removed.
pub fn take_own(config: &Config, owner_log: &OwnerLog) -> Result<(), IdentityError> {
    let (state_dir, folder) = (&config.state_dir, folder(&config.state_dir));
    let Some(own) = IdentityFiles::new(&folder).load()? else {
        return Ok(());
    };
    let failed = |path: &Path, error: &std::io::Error| IdentityError::File {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    // What was asked of the other host is not this one's; it is the true one that answers for it.
    let journals = config.journal_dir();
    std::fs::remove_dir_all(&journals)
        .and_then(|()| files::private_dir(&journals))
        .map_err(|error| failed(&journals, &error))?;
    let present = IdentityFiles::new(state_dir);
    let copied = present.load().ok().flatten();
    present.save(&own)?;
    std::fs::remove_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    let of = copied.map_or_else(String::new, |copied| copied.enrolment.name);
    owner_log.agent(&format!(
        "this machine is a copy of {of}; from now on it is {}, once an admin of Fairlead approves",
        own.enrolment.name
    ));
    Ok(())
}
