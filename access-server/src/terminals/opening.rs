//! Opening: a ticket comes back on a socket here. Its signature is looked at here; whether all that it stood for
//! still holds the controller is asked; the recording begins on this disk; only then is the controller asked to
//! sign the command that the host verifies, and the host to dial a stream that goes no further than here.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fairlead_identity::random;
use fairlead_identity::ticket::TicketError;
use fairlead_protocol::{
    Cancel, CommandId, HostId, OpenStream, State, StreamId, TerminalEnded, TerminalInfo,
    TerminalRefused, Ticket, codes, numbered, terminal_ask,
};
use fairlead_store::StoreError;
use fairlead_store::exchange::CENTRE;
use fairlead_webssh::message::End;
use fairlead_webssh::session::KEPT_ALONE;
use fairlead_webssh::{Admitted, Ended, Info, Opening, Pipe, Refused, Resumed, Shown};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Desk;
use crate::region::{Region, open_stream};
use crate::router;
use crate::streams::Arrived;

/// Frames under way in each direction of one stream: with frames of 32 KiB half a megabyte at most.
const FRAMES_MAX: usize = 8;
/// How long the end of a command whose stream broke is waited for, and how often the ledger is asked.
const OUTCOME_WITHIN: Duration = Duration::from_secs(3);
const OUTCOME_ASKED_EVERY: Duration = Duration::from_millis(100);
/// How often a host is asked again for the stream of a terminal that it holds.
const ASKED_AGAIN_EVERY: Duration = Duration::from_millis(100);
/// Who withdraws the command of a terminal that nobody has any more.
const BY: &str = "the terminal";

/// Where tickets are shown.
pub(super) struct Counter {
    region: Arc<Region>,
    desk: Arc<Desk>,
}

impl Counter {
    pub(super) fn new(region: &Arc<Region>, desk: &Arc<Desk>) -> Self {
        Self {
            region: Arc::clone(region),
            desk: Arc::clone(desk),
        }
    }

    /// Whether the region itself lets anybody into that host.
    fn is_reached(&self, host: HostId) -> Result<(), Refused> {
        if let Some((code, message)) = self.region.revoked(host, "") {
            return Err(Refused::new(code, message));
        }
        if self.region.registry.get(host).is_none() {
            let message = "the host is not connected";
            return Err(Refused::new(codes::HOST_OFFLINE, message));
        }
        Ok(())
    }

    /// Asks the host for the stream of its command.
    fn stream(&self, info: &Info) -> Result<Pipe, Refused> {
        let (region, host) = (&self.region, info.host_id);
        let id = StreamId::from_bytes(random::bytes());
        let Some(arrival) = region.streams.expect(id, host) else {
            let message = "too many streams are being opened in this region";
            return Err(Refused::new(codes::BUSY, message));
        };
        let open = OpenStream {
            id: id.to_wire(),
            host: host.to_wire(),
            command: info.session.to_wire(),
            ..OpenStream::default()
        };
        if !open_stream(region, open, host) {
            region.streams.forget(id);
            let message = "the host is not connected";
            return Err(Refused::new(codes::HOST_OFFLINE, message));
        }
        let (pipe, ends) = pipe();
        let region = Arc::clone(region);
        // Ends with the session, with the host's stream, or when the host does not dial in time.
        tokio::spawn(async move {
            if let Some(from_host) = region.streams.wait(id, arrival).await {
                carry(&region, id, host, from_host, ends).await;
            }
        });
        Ok(pipe)
    }

    /// A command whose terminal nobody has any more is not begun.
    async fn withdraw(&self, session: CommandId) {
        let found = self.region.ledger.write(move |tx| {
            let open = tx.withdraw_command(session, BY)?;
            Ok(tx.command(session)?.filter(|_| open).map(|row| row.host))
        });
        match found.await {
            Ok(Some(host)) => {
                let cancel = Cancel {
                    command: session.to_wire(),
                    by: BY.to_owned(),
                };
                router::withdraw(&self.region.registry, host, cancel);
            }
            // It has ended, or has not come yet: then its deadline is seconds away, and its stream never comes.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%session, %error, "a terminal's command was not withdrawn");
            }
        }
    }

    /// Writes down what the centre is to know for its audit log.
    async fn report(&self, kind: numbered::Kind) -> Result<(), StoreError> {
        let ledger = &self.region.ledger;
        ledger
            .write(move |tx| tx.send_later(CENTRE, kind).map(|_| ()))
            .await?;
        self.region.outbox_grew.notify_one();
        Ok(())
    }

    fn centre_now(&self) -> i64 {
        self.desk.centre_time(self.region.clock.now_us())
    }
}

/// The far ends of a [`Pipe`].
struct FarEnds {
    queues: (mpsc::Receiver<Bytes>, mpsc::Sender<Bytes>),
    cut: CancellationToken,
}

fn pipe() -> (Pipe, FarEnds) {
    let (to_agent, from_page) = mpsc::channel(FRAMES_MAX);
    let (to_page, from_agent) = mpsc::channel(FRAMES_MAX);
    let cut = CancellationToken::new();
    let ends = FarEnds {
        queues: (from_page, to_page),
        cut: cut.clone(),
    };
    let pipe = Pipe {
        to_agent,
        from_agent,
        cut,
    };
    (pipe, ends)
}

async fn carry(region: &Region, id: StreamId, host: HostId, from_host: Arrived, ends: FarEnds) {
    region.counters.streams_joined.increment();
    let believed = |host, serial: &str| region.revoked(host, serial).is_some();
    region
        .streams
        .carry(id, host, from_host, ends.queues, ends.cut, believed)
        .await;
}

/// The stream of a session that its host holds: asked for whenever the host is there, until it has dialled, or its
/// time is over.
async fn dialled_again(
    region: &Region,
    session: CommandId,
    host: HostId,
) -> Option<(StreamId, Arrived)> {
    let until = Instant::now() + KEPT_ALONE;
    while Instant::now() < until {
        if region.revoked(host, "").is_some() {
            return None;
        }
        let id = StreamId::from_bytes(random::bytes());
        if region.registry.get(host).is_some()
            && let Some(arrival) = region.streams.expect(id, host)
        {
            let open = OpenStream {
                id: id.to_wire(),
                host: host.to_wire(),
                command: session.to_wire(),
                ..OpenStream::default()
            };
            if !open_stream(region, open, host) {
                region.streams.forget(id);
            } else if let Some(from_host) = region.streams.wait(id, arrival).await {
                return Some((id, from_host));
            }
        }
        let row = region.ledger.look(|tx| tx.command(session));
        if row.is_ok_and(|row| row.is_none_or(|row| row.state.is_final())) {
            return None;
        }
        tokio::time::sleep(ASKED_AGAIN_EVERY).await;
    }
    None
}

/// What the centre says of a session, when it is the ticket's.
fn info_of(said: TerminalInfo, ticket: &Ticket, region: &str) -> Option<Info> {
    let same = said.token_id == ticket.token_id
        && said.tenant == ticket.tenant
        && said.host == ticket.host
        && said.container_id == ticket.container_id
        && said.exec_user == ticket.exec_user;
    same.then_some(())?;
    Some(Info {
        session: CommandId::from_wire(&ticket.session).ok()?,
        user: said.user,
        token_id: said.token_id,
        tenant: said.tenant,
        region: region.to_owned(),
        host_id: HostId::from_wire(&said.host).ok()?,
        host: said.host_name,
        container: said.container,
        container_id: said.container_id,
        exec_user: said.exec_user,
        size: (
            u16::try_from(said.columns).unwrap_or(80),
            u16::try_from(said.rows).unwrap_or(25),
        ),
    })
}

#[async_trait]
impl Opening for Counter {
    fn read(&self, text: &str) -> Result<Ticket, TicketError> {
        self.desk.read(text, &self.region)
    }

    async fn admit(&self, shown: &Shown) -> Result<Admitted, Refused> {
        let what = terminal_ask::What::Admit(shown.text.clone());
        let answer = self.desk.ask(&self.region, what).await?;
        let other = || Refused::new(codes::TICKET_REFUSED, "the ticket is for another terminal");
        let said = answer.info.ok_or_else(other)?;
        let until_us = said.until_us;
        let info = info_of(said, &shown.ticket, &self.region.name).ok_or_else(other)?;
        self.is_reached(info.host_id)?;
        Ok(Admitted {
            info,
            // What ends before its time the centre ends.
            token_ended: CancellationToken::new(),
            until_us,
        })
    }

    async fn begin(&self, info: &Info) -> Result<Pipe, Refused> {
        let what = terminal_ask::What::Begin(info.session.to_wire());
        let begun = match self.desk.ask(&self.region, what).await {
            // The order has come before the answer: the host has it.
            Ok(_) => self.stream(info),
            Err(refused) => Err(refused),
        };
        if begun.is_err() {
            self.withdraw(info.session).await;
        }
        begun
    }

    fn resume(&self, info: &Info) -> Resumed {
        let (pipe, ends) = pipe();
        let (region, session, host) = (Arc::clone(&self.region), info.session, info.host_id);
        // Ends with the session, with the host's stream, or when the host does not dial in time.
        tokio::spawn(async move {
            match dialled_again(&region, session, host).await {
                Some((id, from_host)) => carry(&region, id, host, from_host, ends).await,
                None if region.revoked(host, "").is_some() => ends.cut.cancel(),
                None => {}
            }
        });
        Resumed {
            pipe,
            // What ends before its time the centre ends.
            token_ended: CancellationToken::new(),
        }
    }

    async fn outcome(&self, session: CommandId) -> Option<End> {
        let until = Instant::now() + OUTCOME_WITHIN;
        loop {
            let row = self.region.ledger.look(|tx| tx.command(session));
            if let Some(row) = row.ok().flatten().filter(|row| row.state.is_final()) {
                let failed = row.state != State::Succeeded;
                return failed.then(|| End::new(&row.code, row.message));
            }
            if Instant::now() >= until {
                self.withdraw(session).await;
                return None;
            }
            tokio::time::sleep(OUTCOME_ASKED_EVERY).await;
        }
    }

    async fn refused(&self, ticket: Option<&Ticket>, from: &str, why: &Refused) {
        let Some(ticket) = ticket else {
            // Strangers write nothing into the audit log, which is kept for ever.
            tracing::warn!(
                from,
                code = why.code,
                "a socket without a good ticket was refused"
            );
            return;
        };
        let said = TerminalRefused {
            session: ticket.session.clone(),
            at_us: self.centre_now(),
            token_id: ticket.token_id.clone(),
            tenant: ticket.tenant.clone(),
            address: from.to_owned(),
            code: why.code.clone(),
            message: why.message.clone(),
        };
        if let Err(error) = self.report(numbered::Kind::TerminalRefused(said)).await {
            tracing::error!(from, code = why.code, %error, "a refusal could not be written down");
        }
    }

    async fn ended(&self, ended: &Ended) {
        let said = TerminalEnded {
            session: ended.info.session.to_wire(),
            at_us: self.centre_now(),
            why: ended.why(),
            lasted_s: ended.lasted.as_secs(),
            output: ended.output,
            input: ended.input,
            recording: ended.recording.clone(),
        };
        if let Err(error) = self.report(numbered::Kind::TerminalEnded(said)).await {
            let session = ended.info.session;
            tracing::error!(%session, %error, "the end of a terminal could not be written down");
        }
        self.desk.ended.notify_one();
    }
}
