//! All terminals over an orderly restart of their server: what goes to its disk, and what its next process makes
//! of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use fairlead_identity::ticket::NONCE_BYTES;
use fairlead_protocol::{FrozenTerminal, FrozenTerminals, SpentTicket, codes};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Open, PAGES_WAITING, Place, Resumed, Terminals};
use crate::message::End;
use crate::session::freezing::{Thawed, no_pipe, thawed_end, thawed_info, thawed_shared};
use crate::session::{Ended, Ends, Info, KEPT_ALONE, Kick, Session};

impl Terminals {
    /// Returns when the server drains and of the last session is known what becomes of it: it has told its page,
    /// its recording and the audit log how it ended, or is to be thawed in the server's next process.
    pub async fn drained(&self) -> Option<FrozenTerminals> {
        self.parts.shutdown.cancelled().await;
        self.sessions.close();
        self.sessions.wait().await;
        let terminals = std::mem::take(&mut *self.frozen());
        let spent = self.spent.all().into_iter();
        (!terminals.is_empty()).then(|| FrozenTerminals {
            terminals,
            spent: spent
                .map(|(nonce, not_after_us)| SpentTicket {
                    nonce: nonce.to_vec().into(),
                    not_after_us,
                })
                .collect(),
            ..FrozenTerminals::default()
        })
    }

    pub(super) fn frozen(&self) -> MutexGuard<'_, Vec<FrozenTerminal>> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server drains.
    pub(crate) fn is_leaving(&self) -> bool {
        self.parts.shutdown.is_cancelled()
    }

    /// Goes on with what was frozen `age` ago; how many sessions that are. Those that cannot go on have ended when
    /// this returns, or end at once.
    pub async fn thaw(self: &Arc<Self>, frozen: FrozenTerminals, age: Duration) -> usize {
        let now_us = (self.parts.now)();
        for ticket in frozen.spent {
            if let Ok(nonce) = <[u8; NONCE_BYTES]>::try_from(&ticket.nonce[..]) {
                self.spent.spend(nonce, ticket.not_after_us, now_us);
            }
        }
        let mut thawed = 0;
        for terminal in frozen.terminals {
            let Some(info) = thawed_info(&terminal) else {
                tracing::error!("a terminal that was frozen says not whose it was");
                continue;
            };
            // What the host holds is gone on with, or ended by the stream's end.
            let resumed = if terminal.over.is_none() {
                self.parts.opening.resume(&info)
            } else {
                Resumed {
                    pipe: no_pipe(),
                    token_ended: CancellationToken::new(),
                }
            };
            let session = info.session;
            match self.take_up(&terminal, info.clone(), resumed, age).await {
                Ok(()) => thawed += 1,
                Err(why) => {
                    tracing::error!(%session, why, "a terminal does not go on after the restart");
                    self.parts.opening.ended(&lost(&terminal, info, why)).await;
                }
            }
        }
        thawed
    }

    async fn take_up(
        self: &Arc<Self>,
        frozen: &FrozenTerminal,
        info: Info,
        resumed: Resumed,
        age: Duration,
    ) -> Result<(), String> {
        let shared = thawed_shared(frozen, info);
        let ends = Ends {
            token: resumed.token_ended,
            until_us: frozen.until_us,
            kick: Kick::default(),
            shutdown: self.parts.shutdown.clone(),
            room: self.room.clone(),
        };
        if let Some(why) = &frozen.ends {
            ends.kick.end(thawed_end(why));
        } else if age >= KEPT_ALONE {
            let late = "its server was away for longer than a minute";
            ends.kick.end(End::new(codes::TIMEOUT, late));
        }
        let (pages, coming) = mpsc::channel(PAGES_WAITING);
        let place: Place = self
            .take_place(Open {
                shared: Arc::clone(&shared),
                pages,
                kick: ends.kick.clone(),
            })
            .map_err(|refused| refused.message)?;
        let recording = frozen.recording.clone().unwrap_or_default();
        let recorder = self.parts.recordings.thaw(shared.info.session, &recording);
        let on = Thawed {
            shared,
            pipe: resumed.pipe,
            recorder: recorder.await.map_err(|error| error.to_string())?,
            pages: coming,
            ends,
            now: Arc::clone(&self.parts.now),
            age,
        };
        let task = Session::thawed(frozen, on);
        let task = task.ok_or_else(|| "what was kept of it does not fit together".to_owned())?;
        self.live(task, place);
        Ok(())
    }
}

/// One that cannot go on.
fn lost(frozen: &FrozenTerminal, info: Info, why: String) -> Ended {
    let shared = thawed_shared(frozen, info);
    Ended {
        info: shared.info.clone(),
        end: End::new(codes::INTERNAL, why),
        lasted: Duration::from_micros(
            frozen
                .typed_us
                .saturating_sub(frozen.started_us)
                .max(0)
                .unsigned_abs(),
        ),
        output: shared.output.load(Ordering::Relaxed),
        input: shared.input.load(Ordering::Relaxed),
        recording: String::new(),
    }
}
