//! What was typed: received from pages, passed on, taken by the process. Where the host can hold the terminal it
//! says what was taken; what it has not taken yet is kept here, for the stream on which it goes on.

use bytes::{Bytes, BytesMut};
use fairlead_protocol::limits::STREAM_CHUNK_BYTES;

use crate::message::INPUT_WINDOW;

/// Input that was passed on and is not known to be taken. The host says so in steps that are far smaller.
pub(super) const UNTAKEN_MAX: usize = 64 * 1024;

/// One direction of a terminal.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// All that came from pages.
    received: u64,
    /// Of it, the end: what was not passed on.
    waiting: BytesMut,
    /// What the process has taken, as the host said.
    taken: u64,
    /// From there on what was passed on before; empty unless it is kept.
    passed: BytesMut,
    /// How much of `passed` went into the present stream.
    sent: usize,
    keeps: bool,
}

/// It said that what was never sent was taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotSent;

impl Input {
    /// As it was frozen.
    pub(super) fn thawed(
        received: u64,
        taken: u64,
        passed_until: u64,
        rest: &[u8],
    ) -> Option<Self> {
        let passed = usize::try_from(passed_until.checked_sub(taken)?).ok()?;
        let whole = received.checked_sub(taken)? == rest.len() as u64;
        if !whole || passed > rest.len() {
            return None;
        }
        let (passed, waiting) = rest.split_at(passed);
        Some(Self {
            received,
            waiting: waiting.into(),
            taken,
            passed: passed.into(),
            sent: 0,
            keeps: true,
        })
    }

    /// From here on what was passed on is kept until the host says that it was taken. Nothing was passed on yet.
    pub(super) fn keep(&mut self) {
        self.keeps = true;
    }

    /// Whether that is so.
    pub(super) fn is_kept(&self) -> bool {
        self.keeps
    }

    /// A page sends more; `false` when that is more than it may.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> bool {
        if self.waiting.len() as u64 + bytes.len() as u64 > INPUT_WINDOW {
            return false;
        }
        self.received += bytes.len() as u64;
        self.waiting.extend_from_slice(bytes);
        true
    }

    /// All that came from pages.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// So much of it was passed on, or would be again from here.
    pub(super) fn passed(&self) -> u64 {
        self.received - self.waiting.len() as u64
    }

    /// What the process has taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The stream has ended: what waits goes nowhere.
    pub(super) fn drop_waiting(&mut self) {
        self.waiting.clear();
    }

    /// Whether there is something to be passed on, and it may be.
    pub(super) fn has_next(&self) -> bool {
        self.sent < self.passed.len()
            || (!self.waiting.is_empty() && (!self.keeps || self.passed.len() < UNTAKEN_MAX))
    }

    /// The next piece for the host, and how much of it is passed on for the first time.
    pub(super) fn next(&mut self) -> (Bytes, usize) {
        if self.sent < self.passed.len() {
            let until = self.passed.len().min(self.sent + STREAM_CHUNK_BYTES);
            let piece = Bytes::copy_from_slice(&self.passed[self.sent..until]);
            self.sent = until;
            return (piece, 0);
        }
        let room = if self.keeps {
            UNTAKEN_MAX.saturating_sub(self.passed.len())
        } else {
            usize::MAX
        };
        let length = self.waiting.len().min(STREAM_CHUNK_BYTES).min(room);
        let piece = self.waiting.split_to(length).freeze();
        if self.keeps {
            self.passed.extend_from_slice(&piece);
            self.sent = self.passed.len();
        }
        (piece, length)
    }

    /// The host says that all before this byte was taken. Older news is no news.
    pub(super) fn was_taken(&mut self, until: u64) -> Result<(), NotSent> {
        let more = until.saturating_sub(self.taken);
        let more = usize::try_from(more).map_err(|_| NotSent)?;
        if more > self.sent {
            return Err(NotSent);
        }
        let _ = self.passed.split_to(more);
        self.sent -= more;
        self.taken += more as u64;
        Ok(())
    }

    /// All that the process has not taken.
    pub(super) fn rest(&self) -> Bytes {
        [&self.passed[..], &self.waiting[..]].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Type(u16),
        Pass,
        Take(u16),
        Tell,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1u16..3000).prop_map(Step::Type),
            1 => (20_000u16..65_535).prop_map(Step::Type),
            4 => Just(Step::Pass),
            4 => any::<u16>().prop_map(Step::Take),
            2 => Just(Step::Tell),
            1 => Just(Step::Restart),
        ]
    }

    fn byte(at: u64) -> u8 {
        (at.wrapping_mul(2_654_435_761) >> 11) as u8
    }

    proptest! {
        /// However often the server restarts, and whatever was on its way then: the process takes every byte
        /// once and in order, and what is kept is bounded.
        #[test]
        fn every_byte_is_taken_once(steps in prop::collection::vec(step(), 1..200)) {
            let mut input = Input::default();
            input.keep();
            let (mut under_way, mut process) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Type(length) => {
                        let at = input.received();
                        let bytes: Vec<u8> = (at..at + u64::from(length)).map(byte).collect();
                        // A page keeps what is not taken in, and sends it again.
                        let _ = input.receive(&bytes);
                    }
                    Step::Pass => if input.has_next() {
                        let (piece, _) = input.next();
                        prop_assert!(!piece.is_empty());
                        under_way.extend_from_slice(&piece);
                    },
                    Step::Take(length) => {
                        let length = under_way.len().min(length.into());
                        process.extend(under_way.drain(..length));
                    }
                    Step::Tell => prop_assert_eq!(input.was_taken(process.len() as u64), Ok(())),
                    Step::Restart => {
                        // What the host has not taken it forgets.
                        under_way.clear();
                        prop_assert_eq!(input.was_taken(process.len() as u64), Ok(()));
                        let (received, taken) = (input.received(), input.taken());
                        let thawed = Input::thawed(received, taken, input.passed(), &input.rest());
                        let passed = input.passed();
                        input = thawed.unwrap();
                        prop_assert_eq!((input.received(), input.passed()), (received, passed));
                    }
                }
                prop_assert!(input.rest().len() <= UNTAKEN_MAX + INPUT_WINDOW as usize);
            }
            input.was_taken(process.len() as u64).unwrap();
            while input.has_next() || !under_way.is_empty() {
                process.append(&mut under_way);
                input.was_taken(process.len() as u64).unwrap();
                if input.has_next() {
                    under_way.extend_from_slice(&input.next().0);
                }
            }
            let whole: Vec<u8> = (0..input.received()).map(byte).collect();
            prop_assert!(process == whole);
        }
    }

    #[test]
    fn what_was_never_sent_was_never_taken_and_what_does_not_fit_is_not_thawed() {
        let mut input = Input::default();
        input.keep();
        assert!(input.receive(b"abcdef"));
        assert_eq!(input.was_taken(1), Err(NotSent));
        assert_eq!(&input.next().0[..], b"abcdef");
        assert_eq!(input.was_taken(4), Ok(()));
        assert_eq!(&input.rest()[..], b"ef");
        assert!(Input::thawed(6, 4, 6, b"ef").is_some());
        for (received, taken, passed) in [(6, 7, 6), (6, 4, 7), (6, 3, 6), (6, 4, 3)] {
            assert!(Input::thawed(received, taken, passed, b"ef").is_none());
        }
    }
}
