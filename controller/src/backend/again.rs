//! A client's stream over several of its host's: where the access server between restarts in order, the host holds what
//! flows (`fairlead_protocol::stream`), and here its stream is asked for again and goes on at the same byte. The client
//! notices a pause. May use: the commands in the store, and what opens their streams.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fairlead_api::ClientStream;
use fairlead_protocol::CommandId;
use fairlead_protocol::stream::{CAN_BE_HELD, Channel, Position, frame, parse};
use fairlead_store::Store;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ControllerBackend;
use super::dispatch::Dispatching;

/// Frames under way in each direction.
const FRAMES_MAX: usize = 8;
/// Input that was passed on and is not known to be taken; a host hears twice as much ahead of its process.
const UNTAKEN_MAX: usize = 512 * 1024;
/// How often a host is asked again for what it holds.
const ASKED_AGAIN_EVERY: Duration = Duration::from_millis(100);
/// For how long: a host holds no longer.
const ASKED_AGAIN_FOR: Duration = Duration::from_secs(60);

/// Whose stream it is.
struct Of {
    store: Store,
    dispatch: Arc<dyn Dispatching>,
    command: CommandId,
}

/// Who is at this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// Of the API: it knows nothing of holding.
    Plain,
    /// A terminal's session, which holds for a restart of this process.
    Session,
}

impl ControllerBackend {
    /// One stream for a client of that command; see [`lasting`].
    pub(super) fn lasting(
        &self,
        command: CommandId,
        client: Client,
        first: Option<ClientStream>,
    ) -> ClientStream {
        let of = Of {
            store: self.parts.store.clone(),
            dispatch: Arc::clone(&self.parts.dispatch),
            command,
        };
        lasting(of, client, first)
    }
}

/// One stream for the client. Without a `first` one the client's first word says where it goes on.
fn lasting(of: Of, client: Client, first: Option<ClientStream>) -> ClientStream {
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
            flow.go_on_at(&word);
            match self.dialled(&of, &mut flow, word).await {
                Some(stream) => stream,
                None => return,
            }
        };
        while matches!(self.pass(&mut flow, &mut stream).await, Left::Held) {
            tracing::info!(command = %of.command, "a stream is held: its access server restarts");
            let word = flow.resume();
            // The server between is not back before, and a host that holds for no reason is not asked in a circle.
            tokio::time::sleep(ASKED_AGAIN_EVERY).await;
            match self.dialled(&of, &mut flow, word).await {
                Some(next) => stream = next,
                None => return tracing::warn!(command = %of.command, "a held stream did not go on"),
            }
        }
    }

    /// Both ways on one of the host's streams.
    async fn pass(&mut self, flow: &mut Flow, stream: &mut ClientStream) -> Left {
        loop {
            tokio::select! {
                biased;
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
                    None => return Left::Over,
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

    /// The stream on which the host has answered that first word. It is asked for whenever the region is there, until
    /// the host's time is over.
    async fn dialled(&self, of: &Of, flow: &mut Flow, word: Bytes) -> Option<ClientStream> {
        let until = Instant::now() + ASKED_AGAIN_FOR;
        while Instant::now() < until {
            let row = of.store.look(|tx| tx.command(of.command)).ok().flatten()?;
            if row.state.is_final() {
                return None;
            }
            if let Ok(mut stream) = of.dispatch.open_stream(&row).await {
                // Nobody goes on with it: the host learns that at once, and not when its time is over.
                let word = if self.to_client.is_closed() {
                    frame(Channel::Resume, &[])
                } else {
                    word.clone()
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
            tokio::time::sleep(ASKED_AGAIN_EVERY).await;
        }
        None
    }
}

/// What has flowed, and what the next stream has to begin with. No clock, no channel.
struct Flow {
    client: Client,
    /// Waits for the client.
    up: Option<Bytes>,
    /// Waits for the host.
    down: VecDeque<Bytes>,
    output: u64,
    taken: u64,
    /// Input from `taken` on.
    untaken: VecDeque<Bytes>,
    untaken_bytes: usize,
    /// The host has said whether it can be held.
    began: Option<bool>,
    keeps: bool,
    /// The client itself has asked for it.
    holds: bool,
    resize: Option<Bytes>,
    input_ended: bool,
}

impl Flow {
    fn new(client: Client) -> Self {
        Self {
            client,
            up: None,
            down: VecDeque::new(),
            output: 0,
            taken: 0,
            untaken: VecDeque::new(),
            untaken_bytes: 0,
            began: None,
            keeps: false,
            holds: false,
            resize: None,
            input_ended: false,
        }
    }

    /// The client goes on there with what the process before has kept.
    fn go_on_at(&mut self, word: &Bytes) {
        let at = parse(word.clone()).and_then(|(_, said)| Position::parse(&said));
        let at = at.unwrap_or_default();
        (self.output, self.taken) = (at.output, at.input);
    }

    /// The first word on the next stream.
    fn resume(&self) -> Bytes {
        let at = Position {
            output: self.output,
            input: self.taken,
        };
        frame(Channel::Resume, &at.to_bytes())
    }

    /// Whether the client may say more.
    fn has_room(&self) -> bool {
        self.down.is_empty() && self.untaken_bytes < UNTAKEN_MAX
    }

    /// What the host has not taken is said again.
    fn begin_again(&mut self) {
        self.down.clear();
        if self.keeps {
            self.down.push_back(frame(Channel::Keep, &[]));
        }
        self.down.extend(self.resize.clone());
        let untaken = self.untaken.iter();
        self.down
            .extend(untaken.map(|data| frame(Channel::Input, data)));
        if self.input_ended {
            self.down.push_back(frame(Channel::InputEnd, &[]));
        }
    }

    fn on_client(&mut self, word: Bytes) {
        match parse(word.clone()) {
            Some((Channel::Input, data)) if self.began != Some(false) => {
                self.untaken_bytes += data.len();
                self.untaken.push_back(data);
            }
            Some((Channel::InputEnd, _)) => self.input_ended = true,
            Some((Channel::Resize, _)) => self.resize = Some(word.clone()),
            Some((Channel::Keep, _)) => self.keeps = true,
            Some((Channel::Hold, _)) => self.holds = true,
            _ => {}
        }
        self.down.push_back(word);
    }

    /// Breaks when the host holds it.
    fn on_host(&mut self, heard: Bytes) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        match parse(heard.clone()) {
            Some((Channel::Begun, said)) => {
                let is_first = self.began.is_none();
                self.began = Some(said == CAN_BE_HELD);
                if said != CAN_BE_HELD {
                    self.untaken.clear();
                    self.untaken_bytes = 0;
                }
                match self.client {
                    _ if !is_first => return Continue(()),
                    Client::Session => {}
                    Client::Plain => {
                        if said == CAN_BE_HELD {
                            self.keeps = true;
                            self.down.push_front(frame(Channel::Keep, &[]));
                        }
                        self.up = Some(frame(Channel::Begun, &[]));
                        return Continue(());
                    }
                }
            }
            Some((Channel::Output | Channel::ErrorOutput, data)) => {
                self.output += data.len() as u64;
            }
            Some((Channel::Taken, said)) => {
                if let Some(at) = Position::parse(&said) {
                    self.take(at.input);
                }
                if self.client == Client::Plain {
                    return Continue(());
                }
            }
            Some((Channel::Held, said)) if !self.holds => {
                let at = Position::parse(&said).filter(|at| at.output == self.output);
                if at.is_some_and(|at| self.take(at.input)) {
                    return Break(());
                }
                // Somebody counts wrongly: it ends as a stream that broke.
                return Continue(());
            }
            _ => {}
        }
        self.up = Some(heard);
        Continue(())
    }

    /// The process has taken so much; whether that can be.
    fn take(&mut self, until: u64) -> bool {
        let Some(more) = until.checked_sub(self.taken) else {
            return false;
        };
        let Ok(mut more) = usize::try_from(more) else {
            return false;
        };
        if more > self.untaken_bytes {
            return false;
        }
        self.taken = until;
        self.untaken_bytes -= more;
        while let Some(first) = self.untaken.front_mut() {
            if first.len() > more {
                let _ = first.split_to(more);
                break;
            }
            more -= first.len();
            self.untaken.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow::{Break, Continue};

    use super::*;

    fn input(data: &'static [u8]) -> Bytes {
        frame(Channel::Input, data)
    }

    fn at(channel: Channel, output: u64, input: u64) -> Bytes {
        frame(channel, &Position { output, input }.to_bytes())
    }

    #[test]
    fn what_was_not_taken_is_said_again_in_the_order_in_which_it_was_said() {
        let mut flow = Flow::new(Client::Plain);
        let begun = frame(Channel::Begun, CAN_BE_HELD);
        assert_eq!(flow.on_host(begun.clone()), Continue(()));
        assert_eq!(flow.up.take(), Some(frame(Channel::Begun, &[])));
        assert_eq!(flow.down.pop_front(), Some(frame(Channel::Keep, &[])));
        for word in [input(b"abc"), input(b"defg"), frame(Channel::InputEnd, &[])] {
            assert!(flow.has_room());
            flow.on_client(word);
            flow.down.clear();
        }
        let _ = flow.on_host(frame(Channel::Output, b"12"));
        let _ = flow.on_host(frame(Channel::ErrorOutput, b"345"));
        assert_eq!(flow.on_host(at(Channel::Taken, 0, 2)), Continue(()));
        assert_eq!(flow.on_host(at(Channel::Held, 5, 4)), Break(()));
        assert_eq!(flow.resume(), at(Channel::Resume, 5, 4));
        flow.begin_again();
        flow.up = None;
        let _ = flow.on_host(begun);
        assert_eq!(flow.up, None, "the client has heard that it began");
        let keep = frame(Channel::Keep, &[]);
        let end = frame(Channel::InputEnd, &[]);
        assert_eq!(flow.down, [keep, input(b"efg"), end]);
    }

    #[test]
    fn a_host_that_counts_wrongly_holds_nothing() {
        let mut flow = Flow::new(Client::Plain);
        let _ = flow.on_host(frame(Channel::Begun, CAN_BE_HELD));
        flow.on_client(input(b"abc"));
        for wrong in [
            at(Channel::Held, 1, 0),
            at(Channel::Held, 0, 4),
            frame(Channel::Held, b"?"),
        ] {
            assert_eq!(flow.on_host(wrong), Continue(()));
        }
        assert_eq!(flow.on_host(at(Channel::Held, 0, 3)), Break(()));
        assert_eq!(flow.on_host(at(Channel::Held, 0, 2)), Continue(()));
    }

    #[test]
    fn nothing_is_kept_for_a_host_that_cannot_hold_and_not_too_much_for_one_that_can() {
        let mut flow = Flow::new(Client::Plain);
        flow.on_client(input(b"before it has begun"));
        let _ = flow.on_host(frame(Channel::Begun, &[]));
        let big = Bytes::from(vec![0; UNTAKEN_MAX]);
        flow.on_client(frame(Channel::Input, &big));
        assert_eq!(flow.untaken_bytes, 0);
        let mut flow = Flow::new(Client::Plain);
        let _ = flow.on_host(frame(Channel::Begun, CAN_BE_HELD));
        flow.on_client(frame(Channel::Input, &big));
        flow.down.clear();
        assert!(!flow.has_room());
        let _ = flow.on_host(at(Channel::Taken, 0, 1));
        assert!(flow.has_room());
    }

    #[test]
    fn a_session_hears_all_of_it_and_may_hold_by_itself() {
        let mut flow = Flow::new(Client::Session);
        let begun = frame(Channel::Begun, CAN_BE_HELD);
        let _ = flow.on_host(begun.clone());
        assert_eq!((flow.up.take(), flow.down.len()), (Some(begun), 0));
        flow.on_client(frame(Channel::Keep, &[]));
        flow.on_client(input(b"ab"));
        let taken = at(Channel::Taken, 0, 1);
        let _ = flow.on_host(taken.clone());
        assert_eq!(flow.up.take(), Some(taken));
        flow.on_client(frame(Channel::Hold, &[]));
        let held = at(Channel::Held, 0, 2);
        assert_eq!(flow.on_host(held.clone()), Continue(()));
        assert_eq!(flow.up, Some(held));
    }
}
