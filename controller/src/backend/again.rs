//! A client's stream over several of its host's: where the access server between restarts in order, the host holds what
//! flows (`fairlead_protocol::stream`), and here its stream is asked for again and goes on at the same byte. One that was
//! lost before it began is asked for again as well. The client notices a pause. May use: the commands in the store, and
//! what opens their streams.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_api::ClientStream;
use fairlead_protocol::stream::flow::{Client, Flow};
use fairlead_protocol::stream::{Channel, frame, is_hold};
use fairlead_protocol::{CommandId, limits};
use fairlead_store::Store;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ControllerBackend;
use super::dispatch::Dispatching;

/// Frames under way in each direction.
const FRAMES_MAX: usize = 8;
/// How often it is looked whether a command has ended whose stream has not begun.
const LOOKED_AT_EVERY: Duration = Duration::from_millis(500);
/// How often a host is asked again for what it holds.
const ASKED_AGAIN_EVERY: Duration = Duration::from_millis(100);
/// One that does not begin is asked less and less often.
const ASKED_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// For how long: a host holds no longer.
const ASKED_AGAIN_FOR: Duration = Duration::from_secs(60);

/// Whose stream it is.
struct Of {
    store: Store,
    dispatch: Arc<dyn Dispatching>,
    command: CommandId,
    /// Who goes on with it was there before, at this process or the one before: when it has gone, the host is told.
    was_here: bool,
    is_session: bool,
}

impl Of {
    fn has_ended(&self) -> bool {
        let row = self.store.look(|tx| tx.command(self.command));
        matches!(row, Ok(Some(row)) if row.state.is_final())
    }

    /// Ends when the command has ended and its stream has had the time to come: a host that has no stream to dial
    /// says nothing of it.
    async fn never_begins(&self) {
        let mut ended = false;
        loop {
            tokio::time::sleep(LOOKED_AT_EVERY).await;
            let is_final = self.has_ended();
            if ended && is_final {
                return;
            }
            ended = is_final;
        }
    }
}

impl ControllerBackend {
    /// One stream for a client of that command. Without a `first` one the client's first word says where it goes on.
    pub(super) fn lasting(
        &self,
        command: CommandId,
        client: Client,
        first: Option<ClientStream>,
        is_session: bool,
    ) -> ClientStream {
        let of = Of {
            was_here: first.is_some() || is_session,
            is_session,
            store: self.parts.store.clone(),
            dispatch: Arc::clone(&self.parts.dispatch),
            command,
        };
        let (to_agent, from_client) = mpsc::channel(FRAMES_MAX);
        let (to_client, from_agent) = mpsc::channel(FRAMES_MAX);
        let cut = CancellationToken::new();
        let ends = Ends {
            from_client,
            to_client,
            cut: cut.clone(),
        };
        // Ends with the client, with the host's stream, or when the host does not dial in time.
        tokio::spawn(ends.serve(of, Flow::new(client), first));
        ClientStream {
            to_agent,
            from_agent,
            cut,
        }
    }
}

/// The client's ends.
struct Ends {
    from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<Bytes>,
    cut: CancellationToken,
}

/// Why nothing passes any more.
enum Left {
    Over,
    Held,
    /// The stream was lost before the host has said a word on it.
    Unbegun,
}

impl Ends {
    async fn serve(mut self, of: Of, mut flow: Flow, first: Option<ClientStream>) {
        let mut stream = if let Some(first) = first {
            first
        } else {
            // Where there is no position, the host ends it.
            let word = self.from_client.recv().await;
            let nowhere = || frame(Channel::Resume, &[]);
            let word = word.unwrap_or_else(nowhere);
            if is_hold(&word) {
                // It comes again.
                return;
            }
            flow.go_on_at(&word);
            let until = Instant::now() + ASKED_AGAIN_FOR;
            match self.goes_on(&of, &mut flow, Some(word), until).await {
                Some(stream) => stream,
                None => return,
            }
        };
        let mut begins_until = None;
        let mut pause = ASKED_AGAIN_EVERY / 2;
        loop {
            let (word, until) = match self.pass(&of, &mut flow, &mut stream).await {
                Left::Over => return,
                // A host waits no longer for the first one, however often its link goes and comes.
                Left::Unbegun => {
                    pause = (pause * 2).min(ASKED_AT_LEAST_EVERY);
                    let until = Instant::now() + limits::STREAM_DIAL_TIMEOUT + ASKED_AGAIN_FOR;
                    (None, *begins_until.get_or_insert(until))
                }
                Left::Held => {
                    pause = ASKED_AGAIN_EVERY;
                    tracing::info!(command = %of.command, "a stream is held: its access server restarts");
                    (Some(flow.resume()), Instant::now() + ASKED_AGAIN_FOR)
                }
            };
            let was_held = word.is_some();
            if !was_held && of.has_ended() {
                return;
            }
            // The server between is not back before, and a host that holds for no reason is not asked in a circle.
            tokio::time::sleep(pause).await;
            match self.goes_on(&of, &mut flow, word, until).await {
                Some(next) => stream = next,
                None if was_held => {
                    return tracing::warn!(command = %of.command, "a held stream did not go on here");
                }
                None => return,
            }
        }
    }

    /// Both ways on one of the host's streams.
    async fn pass(&mut self, of: &Of, flow: &mut Flow, stream: &mut ClientStream) -> Left {
        let mut never = std::pin::pin!(of.never_begins());
        loop {
            tokio::select! {
                biased;
                () = &mut never, if !flow.has_begun() => return Left::Over,
                () = stream.cut.cancelled() => {
                    self.cut.cancel();
                    return Left::Over;
                }
                () = self.to_client.closed() => return Left::Over,
                place = self.to_client.reserve(), if flow.up.is_some() => {
                    if let (Ok(place), Some(frame)) = (place, flow.up.take()) {
                        place.send(frame);
                    }
                }
                heard = stream.from_agent.recv(), if flow.up.is_none() => match heard {
                    Some(heard) => if flow.on_host(heard).is_break() {
                        return Left::Held;
                    },
                    None if flow.has_begun() => return Left::Over,
                    None => return Left::Unbegun,
                },
                place = stream.to_agent.reserve(), if !flow.down.is_empty() => match place {
                    Ok(place) => if let Some(frame) = flow.down.pop_front() {
                        place.send(frame);
                    },
                    // It may still have something to say.
                    Err(_) => flow.down.clear(),
                },
                word = self.from_client.recv(), if flow.has_room() => match word {
                    Some(word) => flow.on_client(word),
                    None => return Left::Over,
                },
            }
        }
    }

    /// The stream on which the host has answered that first word; without a word, one on which nothing has been said.
    /// It is asked for whenever the region is there, until the host's time is over. `None` as well when this server
    /// restarts meanwhile: it goes on at the next one.
    async fn goes_on(
        &mut self,
        of: &Of,
        flow: &mut Flow,
        word: Option<Bytes>,
        until: Instant,
    ) -> Option<ClientStream> {
        // What was asked of a stream that is lost.
        if flow.holds() {
            return self.is_held(of, flow).await;
        }
        while Instant::now() < until {
            // One that only says that it has something to go on with holds nothing up by having gone.
            if self.to_client.is_closed() && (!of.was_here || word.is_none()) {
                return None;
            }
            let row = of.store.look(|tx| tx.command(of.command)).ok().flatten()?;
            if row.state.is_final() {
                return None;
            }
            let opened = tokio::select! {
                opened = of.dispatch.open_stream(&row) => opened.ok(),
                () = asked_to_hold(&mut self.from_client, flow) => return self.is_held(of, flow).await,
            };
            if let Some(mut stream) = opened {
                let Some(word) = &word else {
                    flow.begin_again();
                    return Some(stream);
                };
                let word = match (self.to_client.is_closed(), of.was_here) {
                    (false, _) => word.clone(),
                    // Nobody goes on with it: the host learns that at once, and not when its time is over.
                    (true, true) => frame(Channel::Resume, &[]),
                    // What is held there may be another's.
                    (true, false) => return None,
                };
                if stream.to_agent.send(word).await.is_ok()
                    && let Some(said) = stream.from_agent.recv().await
                {
                    flow.begin_again();
                    // It begins with a word that holds nothing.
                    let _ = flow.on_host(said);
                    return Some(stream);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(ASKED_AGAIN_EVERY) => {}
                () = asked_to_hold(&mut self.from_client, flow) => return self.is_held(of, flow).await,
            }
        }
        None
    }

    /// The host holds it already; or it has not begun, and a client that is told nothing attaches again by itself.
    async fn is_held(&self, of: &Of, flow: &Flow) -> Option<ClientStream> {
        if flow.has_begun() || !of.was_here || of.is_session {
            let _ = self.to_client.send(flow.held()).await;
        }
        None
    }
}

/// Until the client is to be held as well; what it says before is kept. It waits when it may go on.
async fn asked_to_hold(from_client: &mut mpsc::Receiver<Bytes>, flow: &mut Flow) {
    while flow.may_keep()
        && let Some(word) = from_client.recv().await
    {
        if is_hold(&word) {
            return;
        }
        flow.keep(word);
    }
    std::future::pending::<()>().await;
}
