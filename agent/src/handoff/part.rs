//! The instance's part: what the supervisor says becomes what executor, observer and link do.
//!
//! One task, one word after the other, so that what a word brings about is done before the next one is heard.

use std::path::PathBuf;

use fairlead_daemon::files;
use fairlead_protocol::{HostId, InstanceId, Message, OpenStream};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::decide::Key;
use super::role::Role;
use super::words::{FromSupervisor, Peer, ToSupervisor};
use crate::executor::Request;
use crate::journal;
use crate::observe::Picture;
use crate::owner_log::OwnerLog;

/// Who this instance is, for the link; `turn` grows when the server is to be told anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Who it is.
    pub role: Role,
    /// How often that was to be told.
    pub turn: u64,
}

/// What an instance that yielded leaves to the next.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Share {
    /// Whose it is; names its journal.
    pub instance: String,
    /// What it has under way.
    pub flying: Vec<Flying>,
    /// Events of the engine up to this time have been told.
    pub events_until_us: i64,
}

/// A command under way elsewhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flying {
    /// Which instance has it; absent: the one that says so.
    #[serde(default)]
    pub at: Option<Key>,
    /// The signed command, encoded, base16.
    pub signed: String,
    /// Its lane, as it was resolved.
    pub lane: String,
    /// Whether it holds a place on that lane.
    pub held: bool,
}

/// What the task works with.
pub struct Part {
    /// Which instance this is to the supervisor.
    pub key: Key,
    /// Who it is at first.
    pub role: Role,
    /// This start.
    pub instance: InstanceId,
    /// The host.
    pub host: HostId,
    /// The handoff socket's directory.
    pub dir: PathBuf,
    /// The journals.
    pub journals: PathBuf,
    /// To the executor.
    pub executor: mpsc::Sender<Request>,
    /// To the supervisor.
    pub say: mpsc::Sender<ToSupervisor>,
    /// For the link.
    pub standing: watch::Sender<Standing>,
    /// For the observer.
    pub picture: Picture,
    /// For the machine's owner.
    pub owner_log: OwnerLog,
}

impl Part {
    /// Hears the supervisor until it cannot be heard any more.
    pub async fn run(mut self, mut heard: mpsc::Receiver<FromSupervisor>) {
        while let Some(word) = heard.recv().await {
            match word {
                FromSupervisor::Yield { epoch } => self.give_away(epoch).await,
                FromSupervisor::Grant { epoch, from } => self.own(epoch, from).await,
                FromSupervisor::Gone { key } => self.gone(key).await,
                FromSupervisor::Notice { in_s } => {
                    self.owner_log.agent(&format!(
                        "the streams of an earlier version of the agent end in {in_s} s"
                    ));
                }
                FromSupervisor::Peer(Peer::Released { id }) => {
                    if let Ok(id) = id.parse() {
                        self.tell(Request::Released { id }).await;
                    }
                }
                FromSupervisor::Peer(Peer::OpenStream { stream }) => {
                    let open = from_hex(&stream).and_then(|b| OpenStream::decode(&b[..]).ok());
                    if let Some(open) = open {
                        self.tell(Request::OpenStreamHere(open)).await;
                    }
                }
                FromSupervisor::Refused { .. }
                | FromSupervisor::Begun
                | FromSupervisor::Status(_) => {}
            }
        }
    }

    async fn tell(&self, request: Request) {
        // The executor goes only when the process does.
        let _ = self.executor.send(request).await;
    }

    fn share_path(&self, key: Key) -> PathBuf {
        self.dir.join(format!("share-{key}"))
    }

    /// The link is to say who this instance is.
    fn stand(&self) {
        let role = self.role;
        self.standing.send_modify(|standing| {
            *standing = Standing {
                role,
                turn: standing.turn + 1,
            };
        });
    }

    async fn give_away(&mut self, epoch: u64) {
        if !self.role.yields() {
            return;
        }
        let (answer, flying) = oneshot::channel();
        self.tell(Request::Yield { answer }).await;
        let Ok(flying) = flying.await else { return };
        let share = Share {
            instance: self.instance.to_string(),
            flying,
            events_until_us: self.picture.leave_events_to_another(),
        };
        // On disk it need not be: who reads it lives on the same machine, and as long.
        let written = serde_json::to_vec(&share)
            .map_err(std::io::Error::from)
            .and_then(|text| std::fs::write(self.share_path(self.key), text));
        if let Err(error) = written {
            // Without a word the supervisor ends this instance, and its journal tells the rest.
            tracing::error!(%error, "what is under way could not be left to the next instance");
            return;
        }
        let _ = self.say.send(ToSupervisor::Yielded { epoch }).await;
        self.tell(Request::Yielded { epoch }).await;
        self.stand();
        self.owner_log
            .agent("another instance of the agent has this machine from now on");
    }

    async fn own(&mut self, epoch: u64, from: Option<Key>) {
        if !self.role.granted(epoch) {
            return;
        }
        // The server may send at once; what it sends waits until it is known what is under way.
        self.stand();
        let share = from.and_then(|from| self.read_share(from));
        if from.is_some() && share.is_none() {
            tracing::error!(
                "what the instance before has under way is not known; it is waited for"
            );
        }
        let (dir, other) = (
            self.journals.clone(),
            share.as_ref().map(|s| s.instance.clone()),
        );
        let known = tokio::task::spawn_blocking(move || match other {
            Some(other) => journal::read_of(&dir, &other),
            None => Ok(journal::Known::default()),
        });
        let known = match known.await {
            Ok(Ok(known)) => known,
            Ok(Err(error)) => {
                tracing::error!(%error, "the journal of the instance before cannot be read");
                journal::Known::default()
            }
            Err(_) => return,
        };
        self.picture
            .take_events(share.as_ref().map_or(0, |share| share.events_until_us));
        let flying = share.map(|share| share.flying).unwrap_or_default();
        let flying = from
            .into_iter()
            .flat_map(|from| {
                let flying = flying.iter();
                flying.map(move |flying| (flying.at.unwrap_or(from), flying.clone()))
            })
            .collect();
        self.tell(Request::Own {
            epoch,
            flying,
            known,
        })
        .await;
        self.owner_log.agent(&format!(
            "this instance of the agent has the machine, epoch {epoch}"
        ));
    }

    fn read_share(&self, from: Key) -> Option<Share> {
        let read = files::read_if_there(&self.share_path(from));
        let bytes = read
            .inspect_err(|error| tracing::error!(%error, "what is under way cannot be read"))
            .ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    async fn gone(&mut self, key: Key) {
        let _ = std::fs::remove_file(self.share_path(key));
        let (dir, own, host) = (self.journals.clone(), self.instance, self.host);
        let dead = tokio::task::spawn_blocking(move || journal::of_the_dead(&dir, own, host)).await;
        match dead {
            Ok(Ok(dead)) => self.tell(Request::Gone { key, dead }).await,
            Ok(Err(error)) => {
                tracing::error!(%error, "the journal of an instance that is gone cannot be read");
            }
            Err(_) => return,
        }
        if self.role.owns() {
            // What it was to send may be lost with it: the server sends again what is open.
            self.stand();
        }
    }
}

/// Bytes from base16.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use fairlead_identity::digest::hex;

    use super::*;

    #[test]
    fn base16_goes_both_ways() {
        assert_eq!(hex(&[0, 0xab, 9]), "00ab09");
        assert_eq!(from_hex("00ab09"), Some(vec![0, 0xab, 9]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
