//! What flows between a client and its host's stream, so that it can go on at the same byte on another stream of the
//! same command: at the controller for its clients, and in a client for itself. No clock, no channel.

use std::collections::VecDeque;
use std::ops::ControlFlow::{self, Break, Continue};

use bytes::{Buf, Bytes, BytesMut};

use super::{CAN_BE_HELD, Channel, Position, frame, parse};
use crate::limits::STREAM_CHUNK_BYTES;

/// Input that was passed on and is not known to be taken; a host hears twice as much ahead of its process.
const UNTAKEN_MAX: usize = 512 * 1024;

/// Who is at this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// It knows nothing of holding: that is done for it here.
    Plain,
    /// It keeps its input itself, and comes back after a [`Channel::Held`] that it or who is before it asked for.
    Keeps,
}

/// What has flowed, and what the next stream has to begin with.
#[derive(Debug)]
pub struct Flow {
    client: Client,
    /// Waits for the client.
    pub up: Option<Bytes>,
    /// Waits for the host.
    pub down: VecDeque<Bytes>,
    output: u64,
    taken: u64,
    /// Input from `taken` on.
    untaken: BytesMut,
    /// The host has said something.
    heard: bool,
    /// The host has said whether it can be held.
    began: Option<bool>,
    keeps: bool,
    /// The client itself has asked for it.
    holds: bool,
    resize: Option<Bytes>,
    input_ended: bool,
}

impl Flow {
    /// Of a stream that has not begun.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            up: None,
            down: VecDeque::new(),
            output: 0,
            taken: 0,
            untaken: BytesMut::new(),
            heard: false,
            began: None,
            keeps: false,
            holds: false,
            resize: None,
            input_ended: false,
        }
    }

    /// The client goes on there with what the process before has kept.
    pub fn go_on_at(&mut self, word: &Bytes) {
        let at = parse(word.clone()).and_then(|(_, said)| Position::parse(&said));
        let at = at.unwrap_or_default();
        (self.output, self.taken) = (at.output, at.input);
    }

    /// The first word on the next stream.
    #[must_use]
    pub fn resume(&self) -> Bytes {
        frame(Channel::Resume, &self.position().to_bytes())
    }

    fn position(&self) -> Position {
        Position {
            output: self.output,
            input: self.taken,
        }
    }

    /// What a host says that holds it here.
    #[must_use]
    pub fn held(&self) -> Bytes {
        frame(Channel::Held, &self.position().to_bytes())
    }

    /// Whether the host has said its first word.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.heard
    }

    /// Whether the client has asked to be held.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// Whether the client may say more.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.down.is_empty() && self.untaken.len() < UNTAKEN_MAX
    }

    /// What the host has not taken is said again.
    pub fn begin_again(&mut self) {
        self.down.clear();
        if self.keeps {
            self.down.push_back(frame(Channel::Keep, &[]));
        }
        self.down.extend(self.resize.clone());
        let untaken = self.untaken.chunks(STREAM_CHUNK_BYTES);
        self.down
            .extend(untaken.map(|data| frame(Channel::Input, data)));
        if self.input_ended {
            self.down.push_back(frame(Channel::InputEnd, &[]));
        }
    }

    /// Whether more can be kept while there is no stream. A client that keeps what it says stops earlier by itself.
    #[must_use]
    pub fn may_keep(&self) -> bool {
        self.untaken.len() < 2 * UNTAKEN_MAX
    }

    /// The client has said that while there is no stream: it is said when it begins again.
    pub fn keep(&mut self, word: Bytes) {
        self.on_client(word);
        self.down.clear();
    }

    /// The client has said that.
    pub fn on_client(&mut self, word: Bytes) {
        match parse(word.clone()) {
            Some((Channel::Input, data)) if self.began != Some(false) => {
                self.untaken.extend_from_slice(&data);
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
    pub fn on_host(&mut self, heard: Bytes) -> ControlFlow<()> {
        self.heard = true;
        match parse(heard.clone()) {
            Some((Channel::Begun, said)) => {
                let is_first = self.began.is_none();
                self.began = Some(said == CAN_BE_HELD);
                if said != CAN_BE_HELD {
                    self.untaken = BytesMut::new();
                }
                match self.client {
                    _ if !is_first => return Continue(()),
                    Client::Keeps => {}
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
        let Ok(more) = usize::try_from(more) else {
            return false;
        };
        if more > self.untaken.len() {
            return false;
        }
        self.taken = until;
        self.untaken.advance(more);
        true
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(flow.held(), at(Channel::Held, 5, 4));
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
        assert_eq!(flow.untaken.len(), 0);
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
        let mut flow = Flow::new(Client::Keeps);
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
