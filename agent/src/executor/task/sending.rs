//! What the actor says: streams, progress, results. All of it to the present link's bounded queue.

use bytes::Bytes;
use fairlead_link::socket::StreamSocket;
use fairlead_protocol::stream::{Channel, parse};
use fairlead_protocol::{
    CommandId, CommandResult, LinkUp, OpenStream, Progress, ResultPart, Stamp, State, StreamId,
    StreamRefused, codes, limits, link_up,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{EARLY_STREAMS_MAX, Executor, SEND_AGAIN_AFTER};
use crate::executor::StreamDialler;
use crate::executor::surroundings::News;

impl Executor {
    /// The server asks for a stream: the command that it serves, once verified, gives the right to it.
    pub(super) fn open_stream(&mut self, open: OpenStream) {
        let (Ok(stream_id), Ok(id)) = (
            StreamId::from_wire(&open.id),
            CommandId::from_wire(&open.command),
        ) else {
            return self.refuse_stream(open.id, codes::PROTOCOL_VIOLATION, "ids are 16 bytes");
        };
        if open.host[..] != self.parts.host.as_bytes()[..] {
            return self.refuse_stream(open.id, codes::NO_STREAM, "the stream is for another host");
        }
        let slot = self
            .stream_slots
            .remove(&id)
            .or_else(|| self.another_slot(id));
        let Some(slot) = slot else {
            let ended = self.parts.journal.entry(id).is_some()
                || self.fleeting.get(id).is_some()
                || self.lanes.holds(id);
            if ended || self.early_streams.len() >= EARLY_STREAMS_MAX {
                return self.refuse_stream(open.id, codes::NO_STREAM, "the command has no stream");
            }
            // The command itself is on its way: only it, once verified, gives the right to a stream.
            self.early_streams.push((open, Instant::now()));
            return;
        };
        let Some(link) = &self.link else { return };
        let streams = link.streams.clone();
        let news = self.around.news.clone();
        // The task ends by itself: dialling has a deadline, and the socket goes to the job.
        tokio::spawn(async move {
            let StreamDialler {
                dialler,
                address,
                server,
            } = streams;
            let dialled = match dialler.stream(&address, stream_id, &server).await {
                Ok(socket) if open.speaks_first => spoken_to(socket).await,
                Ok(socket) => Ok(socket),
                Err(error) => Err(error.to_string()),
            };
            match dialled {
                Ok(socket) => drop(slot.send(socket)),
                Err(error) => {
                    tracing::warn!(command = %id, error, "stream could not be opened");
                    // The server may have ended in between, and whoever asked for it asks again.
                    let _ = news.send(News::AwaitsStream { id, slot }).await;
                }
            }
        });
    }

    /// For a command that has not had its turn: what was dialled for it before may be a stream of a server that has
    /// gone, and who asks last is there.
    fn another_slot(&mut self, id: CommandId) -> Option<oneshot::Sender<StreamSocket>> {
        let stream = self.live.get_mut(&id)?.stream.as_mut()?;
        let (slot, next) = oneshot::channel();
        *stream = next;
        Some(slot)
    }

    pub(super) fn refuse_stream(&mut self, id: Bytes, code: &str, message: &str) {
        let refused = StreamRefused {
            id,
            code: code.to_owned(),
            message: message.to_owned(),
        };
        self.send(link_up::Kind::StreamRefused(refused));
    }

    /// Sends what may be lost; `false` when there is no link or its queue is full.
    pub(super) fn send(&self, kind: link_up::Kind) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.outbound.try_send(LinkUp { kind: Some(kind) }).is_ok())
    }

    pub(super) fn send_progress(&mut self, id: CommandId, extra: Option<Stamp>) {
        let Some(live) = self.live.get(&id) else {
            return;
        };
        let running = self.lanes.is_running(id) && live.begun;
        let waiting_for = if live.waiting_for.is_empty() && !running {
            self.lanes
                .waits_for(id)
                .map(|other| format!("{} is held by command {}", live.lane, other.short()))
                .unwrap_or_default()
        } else {
            live.waiting_for.clone()
        };
        let progress = Progress {
            command: id.to_wire(),
            state: if running {
                State::Running
            } else {
                State::Delivered
            }
            .into(),
            stamps: live.stamps.iter().cloned().chain(extra).collect(),
            waiting_for,
        };
        self.send(link_up::Kind::Progress(progress));
    }

    /// Sends a result, its body in parts before it. What does not fit is sent again later.
    pub(super) fn send_result(&mut self, result: &CommandResult) {
        if let Ok(id) = CommandId::from_wire(&result.command) {
            self.sent.insert(id, Instant::now());
        }
        self.transmit(result);
    }

    /// Sends a result once: it is not kept here.
    pub(super) fn transmit(&self, result: &CommandResult) {
        let Some(connection) = self.link.as_ref().map(|link| link.connection) else {
            return;
        };
        let mut last = result.clone();
        last.connection = connection;
        if result.body.len() > limits::RESULT_PART_BYTES {
            last.body = Bytes::new();
            for (index, data) in result.body.chunks(limits::RESULT_PART_BYTES).enumerate() {
                let part = ResultPart {
                    command: result.command.clone(),
                    offset: u32::try_from(index * limits::RESULT_PART_BYTES).unwrap_or(u32::MAX),
                    data: Bytes::copy_from_slice(data),
                };
                if !self.send(link_up::Kind::ResultPart(part)) {
                    return;
                }
            }
        }
        self.send(link_up::Kind::Result(last));
    }

    pub(in crate::executor) fn send_unacked(&mut self) {
        let fleeting = self.fleeting.all();
        for result in self.parts.journal.unacked().iter().chain(&fleeting) {
            let Ok(id) = CommandId::from_wire(&result.command) else {
                continue;
            };
            let lately = |sent: &Instant| sent.elapsed() < SEND_AGAIN_AFTER;
            if !self.sent.get(&id).is_some_and(lately) {
                self.send_result(result);
            }
        }
    }
}

/// The stream, once who asked for it has it too: until then a server between may end and take it along, and what had
/// begun would have no reader.
async fn spoken_to(mut socket: StreamSocket) -> Result<StreamSocket, String> {
    match tokio::time::timeout(limits::STREAM_DIAL_TIMEOUT, socket.hear()).await {
        Ok(Ok(Some(word))) => match parse(word) {
            Some((Channel::Input, data)) if data.is_empty() => Ok(socket),
            _ => Err("its server restarts".to_owned()),
        },
        Ok(Ok(None)) => Err("it was closed before a word was said".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("nobody said a word".to_owned()),
    }
}
