//! All terminals of a server: opened by a ticket, come back to, listed, ended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use fairlead_identity::ticket::{NONCE_BYTES, TicketError};
use fairlead_protocol::{CommandId, FrozenTerminal, HostId, Ticket, codes};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::message::{End, Hello};
use crate::recording::file::{Recorder, Recordings};
use crate::recording::{About, Header};
use crate::session::freezing::Room;
use crate::session::{
    Ended, Ends, Finished, FromPage, Info, Kick, Page, Pipe, Session, Shared, ToPage,
};
use crate::tickets::Spent;
use crate::{Now, Origins};

mod freezing;

/// Terminals at a time.
pub const TERMINALS_MAX: usize = 512;
/// Of one host: less than half of the commands that an agent carries out at a time.
pub const PER_HOST_MAX: usize = 24;
/// Of one API token.
pub const PER_TOKEN_MAX: usize = 64;
/// Pages that come to one session at a time.
const PAGES_WAITING: usize = 2;
/// Messages on their way to a page, and from it.
const MESSAGES_WAITING: usize = 4;

/// Why no terminal is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Stable code.
    pub code: String,
    /// For people.
    pub message: String,
}

impl Refused {
    /// A refusal.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
        }
    }
}

/// A ticket, and the text that it was read from.
pub struct Shown {
    /// What it says.
    pub ticket: Ticket,
    /// As it came.
    pub text: String,
}

/// A terminal that may be begun.
pub struct Admitted {
    /// Whose it is, and where.
    pub info: Info,
    /// Fires when the API token ends.
    pub token_ended: CancellationToken,
    /// When the API token ends by itself, for who is not told; 0: never.
    pub until_us: i64,
}

/// A terminal that goes on after its server's restart.
pub struct Resumed {
    /// The stream, once the host has dialled it.
    pub pipe: Pipe,
    /// Fires when the API token ends.
    pub token_ended: CancellationToken,
}

/// The server behind: makes tickets, opens streams, keeps the audit log.
#[async_trait]
pub trait Opening: Send + Sync + 'static {
    /// The ticket in that text.
    ///
    /// # Errors
    /// When it opens nothing.
    fn read(&self, ticket: &str) -> Result<Ticket, TicketError>;
    /// Asks everything again for the session that was promised with this ticket. Nothing begins by it.
    ///
    /// # Errors
    /// When the bearer may not (any more).
    async fn admit(&self, shown: &Shown) -> Result<Admitted, Refused>;
    /// Begins an admitted session, once, down to the host. Called when its recording has begun.
    async fn begin(&self, info: &Info) -> Result<Pipe, Refused>;
    /// Another stream for a session that the host holds. It is asked for until its time is over, whether somebody
    /// waits for it or not: what the host holds is to be gone on with, or to be ended.
    fn resume(&self, info: &Info) -> Resumed;
    /// What became of a session's command whose stream ended without a word.
    async fn outcome(&self, session: CommandId) -> Option<End>;
    /// A good ticket's bearer (or somebody without one) was refused.
    async fn refused(&self, ticket: Option<&Ticket>, from: &str, why: &Refused);
    /// A session has ended.
    async fn ended(&self, ended: &Ended);
}

/// What terminals need.
pub struct Parts {
    /// The server behind.
    pub opening: Arc<dyn Opening>,
    /// Who may open a socket.
    pub origins: Origins,
    /// Where recordings lie.
    pub recordings: Recordings,
    /// Time.
    pub now: Now,
    /// Fires when the server drains.
    pub shutdown: CancellationToken,
}

struct Open {
    shared: Arc<Shared>,
    pages: mpsc::Sender<Page>,
    kick: Kick,
}

/// All terminals.
pub struct Terminals {
    pub(crate) parts: Parts,
    open: Mutex<HashMap<CommandId, Open>>,
    spent: Spent,
    sessions: TaskTracker,
    room: Room,
    frozen: Mutex<Vec<FrozenTerminal>>,
}

/// A page's end of a session.
pub(crate) struct Attachment {
    pub(crate) to_session: mpsc::Sender<FromPage>,
    pub(crate) from_session: mpsc::Receiver<ToPage>,
}

impl Terminals {
    /// No terminals.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            room: Room::default(),
            frozen: Mutex::default(),
            parts,
            open: Mutex::default(),
            spent: Spent::default(),
            sessions: TaskTracker::new(),
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<CommandId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where recordings lie.
    #[must_use]
    pub fn recordings(&self) -> &Recordings {
        &self.parts.recordings
    }

    /// The origins that are let in.
    #[must_use]
    pub fn origins(&self) -> &Origins {
        &self.parts.origins
    }

    /// Those that are open.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Shared>> {
        let open = self.open();
        open.values().map(|open| Arc::clone(&open.shared)).collect()
    }

    /// One that is open.
    #[must_use]
    pub fn find(&self, session: CommandId) -> Option<Arc<Shared>> {
        let open = self.open();
        open.get(&session).map(|open| Arc::clone(&open.shared))
    }

    /// Ends one, with what its page is told; whether it was there.
    pub fn end(&self, session: CommandId, why: End) -> bool {
        let open = self.open();
        let found = open.get(&session);
        if let Some(open) = found {
            open.kick.end(why);
        }
        found.is_some()
    }

    /// Whether there is room for one more.
    ///
    /// # Errors
    /// When there is none.
    pub fn room(&self, host: HostId, token_id: &str) -> Result<(), Refused> {
        room(&self.open(), host, token_id)
    }

    /// A page with its first message: opens the session, or comes back to it.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        hello: Hello,
        origin: &str,
        from: &str,
    ) -> Result<Attachment, Refused> {
        let ticket = match self.parts.opening.read(&hello.ticket) {
            Ok(ticket) => ticket,
            Err(error) => {
                let why = Refused::new(codes::TICKET_REFUSED, error.to_string());
                self.parts.opening.refused(None, from, &why).await;
                return Err(why);
            }
        };
        let shown = Shown {
            ticket,
            text: hello.ticket.clone(),
        };
        let entered = self.with(&shown, &hello, origin).await;
        if let Err(why) = &entered {
            let ticket = Some(&shown.ticket);
            self.parts.opening.refused(ticket, from, why).await;
        }
        entered
    }

    async fn with(
        self: &Arc<Self>,
        shown: &Shown,
        hello: &Hello,
        origin: &str,
    ) -> Result<Attachment, Refused> {
        let ticket = &shown.ticket;
        let refuse = |why: &str| Err(Refused::new(codes::TICKET_REFUSED, why));
        if ticket.origin != origin {
            return refuse("the ticket is another page's");
        }
        let Ok(nonce) = <[u8; NONCE_BYTES]>::try_from(&ticket.nonce[..]) else {
            return refuse("this is not a ticket");
        };
        // The next process is asked with another one.
        if self.is_leaving() {
            return Err(leaving());
        }
        let now_us = (self.parts.now)();
        if !self.spent.spend(nonce, ticket.not_after_us, now_us) {
            return refuse("the ticket was used before");
        }
        self.spent.tidy(now_us);
        let Ok(session) = CommandId::from_wire(&ticket.session) else {
            return refuse("this is not a ticket");
        };
        let (to_session, from_page) = mpsc::channel(MESSAGES_WAITING);
        let (to_page, from_session) = mpsc::channel(MESSAGES_WAITING);
        let page = Page {
            to: to_page,
            from: from_page,
            size: (hello.columns, hello.rows),
            go_on_at: hello.from,
        };
        let there = {
            let open = self.open();
            open.get(&session)
                .map(|open| (is_of(ticket, &open.shared.info), open.pages.clone()))
        };
        match there {
            Some((false, _)) => return refuse("the ticket is for another terminal"),
            Some((true, pages)) => {
                let ended = |_| match self.is_leaving() {
                    true => leaving(),
                    false => Refused::new(codes::TERMINAL_NOT_FOUND, "the terminal has just ended"),
                };
                pages.send(page).await.map_err(ended)?;
            }
            None => self.begin(shown, session, page).await?,
        }
        Ok(Attachment {
            to_session,
            from_session,
        })
    }

    async fn begin(
        self: &Arc<Self>,
        shown: &Shown,
        session: CommandId,
        page: Page,
    ) -> Result<(), Refused> {
        let Admitted {
            info,
            token_ended,
            until_us,
        } = self.parts.opening.admit(shown).await?;
        let started_us = (self.parts.now)();
        let header = header(&info, started_us);
        let shared = Arc::new(Shared {
            info,
            started_us,
            has_page: AtomicBool::new(true),
            output: AtomicU64::new(0),
            input: AtomicU64::new(0),
            typed_us: AtomicI64::new(started_us),
        });
        let ends = Ends {
            token: token_ended,
            until_us,
            kick: Kick::default(),
            shutdown: self.parts.shutdown.clone(),
            room: self.room.clone(),
        };
        let (pages, coming) = mpsc::channel(PAGES_WAITING);
        // The queue is empty and its other end is here.
        let _ = pages.try_send(page);
        let place = self.take_place(Open {
            shared: Arc::clone(&shared),
            pages,
            kick: ends.kick.clone(),
        })?;
        // No recorder, no shell: the host is asked when the first line is on the disk.
        let recorder = self.recorder(session, header, started_us).await?;
        let pipe = match self.parts.opening.begin(&shared.info).await {
            Ok(pipe) => pipe,
            Err(refused) => {
                recorder.discard().await;
                return Err(refused);
            }
        };
        let now = Arc::clone(&self.parts.now);
        let task = Session::new(shared, pipe, recorder, coming, ends, now);
        self.live(task, place);
        Ok(())
    }

    /// Ends with the shell, by one of its ends, when nobody comes back to it, or with the server.
    fn live(self: &Arc<Self>, task: Session, place: Place) {
        let all = Arc::clone(self);
        self.sessions.spawn(async move {
            let opening = &all.parts.opening;
            let outcome = opening.outcome(place.session);
            let finished = Box::pin(task.run(outcome)).await;
            drop(place);
            match finished {
                Finished::Ended(ended) => opening.ended(&ended).await,
                Finished::Frozen(frozen) => all.frozen().push(*frozen),
            }
        });
    }

    /// Takes the session's place in the list; it is free again when what is returned is dropped.
    fn take_place(self: &Arc<Self>, entry: Open) -> Result<Place, Refused> {
        let info = &entry.shared.info;
        let session = info.session;
        let mut open = self.open();
        room(&open, info.host_id, &info.token_id)?;
        if open.contains_key(&session) {
            let why = "the terminal is being opened already";
            return Err(Refused::new(codes::TICKET_REFUSED, why));
        }
        open.insert(session, entry);
        Ok(Place {
            terminals: Arc::clone(self),
            session,
        })
    }

    async fn recorder(
        &self,
        session: CommandId,
        header: Header,
        now_us: i64,
    ) -> Result<Recorder, Refused> {
        let begun = self.parts.recordings.begin(session, header, now_us).await;
        begun.map_err(|error| {
            tracing::error!(%session, %error, "a terminal cannot be recorded, and is not opened");
            Refused::new(
                codes::STORAGE_UNAVAILABLE,
                format!("it cannot be recorded: {error}; without a recording there is no terminal"),
            )
        })
    }
}

/// The place of one session among those that are open.
struct Place {
    terminals: Arc<Terminals>,
    session: CommandId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.terminals.open().remove(&self.session);
    }
}

fn room(open: &HashMap<CommandId, Open>, host: HostId, token_id: &str) -> Result<(), Refused> {
    let of = |same: &dyn Fn(&Info) -> bool| open.values().filter(|o| same(&o.shared.info)).count();
    let busy = |where_: &str, max: usize| {
        Err(Refused::new(
            codes::BUSY,
            format!("{max} terminals are open {where_}: close one"),
        ))
    };
    if open.len() >= TERMINALS_MAX {
        busy("at this server", TERMINALS_MAX)
    } else if of(&|info| info.host_id == host) >= PER_HOST_MAX {
        busy("on this host", PER_HOST_MAX)
    } else if of(&|info| info.token_id == token_id) >= PER_TOKEN_MAX {
        busy("with this API token", PER_TOKEN_MAX)
    } else {
        Ok(())
    }
}

fn leaving() -> Refused {
    Refused::new(codes::BUSY, "the server is restarting")
}

/// Whether the ticket was made for this very terminal and by whom it belongs to.
fn is_of(ticket: &Ticket, info: &Info) -> bool {
    ticket.token_id == info.token_id
        && ticket.tenant == info.tenant
        && ticket.host[..] == info.host_id.as_bytes()[..]
        && ticket.container_id == info.container_id
        && ticket.exec_user == info.exec_user
}

fn header(info: &Info, now_us: i64) -> Header {
    Header {
        version: 2,
        width: info.size.0,
        height: info.size.1,
        timestamp: now_us.div_euclid(1_000_000),
        title: format!("{}/{}", info.host, info.container),
        fairlead: About {
            session: info.session.to_string(),
            user: info.user.clone(),
            token_id: info.token_id.clone(),
            tenant: info.tenant.clone(),
            region: info.region.clone(),
            host: info.host.clone(),
            host_id: info.host_id.to_string(),
            container: info.container.clone(),
            container_id: info.container_id.clone(),
        },
    }
}
