//! Output that is kept: what a page has not shown yet, and some that it has, so that a page that was
//! reloaded gets its screen back and one whose connection broke goes on at the very byte.
//!
//! Counted from the session's first byte. The stream is read only while less than a window lies between
//! what was shown and what has come: a page that is slow, or away, makes the process wait.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::message::OUTPUT_WINDOW;

/// Output that was shown and is kept for a page that is loaded anew.
pub const HISTORY_BYTES: u64 = 256 * 1024;
/// Pieces shorter than this are put together: a process that writes byte by byte must not cost a buffer, and
/// whatever that buffer is part of, for each byte.
const SMALL_BYTES: usize = 4 * 1024;
/// Small pieces are put together up to this.
const TAIL_BYTES: usize = 16 * 1024;

/// What came, from `start` to `end`.
#[derive(Debug, Default)]
pub struct Backlog {
    pieces: VecDeque<Bytes>,
    /// What came last, in small pieces; behind `pieces`.
    tail: BytesMut,
    start: u64,
    end: u64,
    shown: u64,
}

impl Backlog {
    /// As it was frozen: what was kept, up to that byte, and what of it was shown.
    #[must_use]
    pub fn thawed(kept: &[u8], end: u64, shown: u64) -> Option<Self> {
        let start = end.checked_sub(kept.len() as u64)?;
        (start <= shown && shown <= end).then(|| Self {
            // Pieces of their own: what was shown can go bit by bit.
            pieces: kept
                .chunks(TAIL_BYTES)
                .map(Bytes::copy_from_slice)
                .collect(),
            tail: BytesMut::new(),
            start,
            end,
            shown,
        })
    }

    /// All that is kept.
    #[must_use]
    pub fn kept(&self) -> Bytes {
        let pieces = self.pieces.iter().map(|piece| &piece[..]);
        let all: Vec<&[u8]> = pieces.chain([&self.tail[..]]).collect();
        all.concat().into()
    }

    /// All before this byte has been shown.
    #[must_use]
    pub fn shown_until(&self) -> u64 {
        self.shown
    }

    /// One byte behind the newest.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The oldest byte that is kept.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Whether more may be read from the stream.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.end - self.shown < OUTPUT_WINDOW
    }

    /// More has come.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.end += piece.len() as u64;
        if piece.len() < SMALL_BYTES {
            self.tail.extend_from_slice(&piece);
            if self.tail.len() >= TAIL_BYTES {
                self.close_tail();
            }
        } else {
            self.close_tail();
            self.pieces.push_back(piece);
        }
        self.trim();
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.pieces.push_back(tail.freeze());
        }
    }

    /// All before this byte has been shown; `false` when it has not even come. Older news is no news.
    pub fn shown(&mut self, until: u64) -> bool {
        if until > self.end {
            return false;
        }
        self.shown = self.shown.max(until);
        self.trim();
        true
    }

    /// Another page goes on at `from` (absent: at the oldest byte that is kept). The byte it gets first,
    /// and whether some before it is lost.
    pub fn resume(&mut self, from: Option<u64>) -> (u64, bool) {
        let wanted = from.unwrap_or(self.start).min(self.end);
        let first = wanted.max(self.start);
        // It has shown what is before, and nothing after.
        self.shown = first;
        (first, from.is_some_and(|from| from != first))
    }

    /// Bytes from `at` on, at most `max`; empty at the end.
    #[must_use]
    pub fn read(&self, at: u64, max: usize) -> Bytes {
        let mut begins = self.start;
        for piece in &self.pieces {
            let ends = begins + piece.len() as u64;
            if at < ends {
                let skip = usize::try_from(at.saturating_sub(begins)).unwrap_or(usize::MAX);
                let rest = piece.slice(skip.min(piece.len())..);
                return rest.slice(..rest.len().min(max));
            }
            begins = ends;
        }
        let skip = usize::try_from(at.saturating_sub(begins)).unwrap_or(usize::MAX);
        let rest = &self.tail[skip.min(self.tail.len())..];
        Bytes::copy_from_slice(&rest[..rest.len().min(max)])
    }

    fn trim(&mut self) {
        while let Some(first) = self.pieces.front() {
            let ends = self.start + first.len() as u64;
            if ends + HISTORY_BYTES > self.shown {
                break;
            }
            self.start = ends;
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Come(u16),
        Show(u16),
        Reconnect,
        Reload,
        Restart,
        Read(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u16..40_000).prop_map(Step::Come),
            4 => (1u16..300).prop_map(Step::Come),
            2 => any::<u16>().prop_map(Step::Show),
            1 => Just(Step::Reconnect),
            1 => Just(Step::Reload),
            1 => Just(Step::Restart),
            4 => (1u16..33_000).prop_map(Step::Read),
        ]
    }

    fn byte(at: u64) -> u8 {
        (at.wrapping_mul(2_654_435_761) >> 13) as u8
    }

    proptest! {
        /// Whatever comes in which order: a page gets every byte once and in order, from where it went on,
        /// and no more is kept than window and history allow.
        #[test]
        fn nothing_is_lost_doubled_or_hoarded(steps in prop::collection::vec(step(), 1..200)) {
            let mut backlog = Backlog::default();
            let (mut next, mut have) = (0u64, 0u64);
            for step in steps {
                match step {
                    Step::Come(length) => {
                        if backlog.wants_more() {
                            let end = backlog.end();
                            let piece: Vec<u8> = (end..end + u64::from(length)).map(byte).collect();
                            backlog.push(piece.into());
                        }
                    }
                    Step::Show(part) => {
                        have = have.max(next.saturating_sub(u64::from(part)));
                        prop_assert!(backlog.shown(have));
                    }
                    Step::Reconnect => {
                        let (first, gap) = backlog.resume(Some(next));
                        prop_assert_eq!((first, gap), (next, false), "what was not shown is kept");
                        have = next;
                    }
                    Step::Reload => {
                        let (first, gap) = backlog.resume(None);
                        prop_assert_eq!((first, gap), (backlog.start(), false));
                        (next, have) = (first, first);
                    }
                    Step::Restart => {
                        let (kept, end) = (backlog.kept(), backlog.end());
                        prop_assert_eq!(kept.len() as u64, end - backlog.start());
                        let thawed = Backlog::thawed(&kept, end, backlog.shown_until());
                        backlog = thawed.unwrap();
                        // Its page comes back as after a lost connection.
                        prop_assert_eq!(backlog.resume(Some(next)), (next, false));
                        have = next;
                    }
                    Step::Read(max) => {
                        let piece = backlog.read(next, usize::from(max));
                        prop_assert!(piece.len() <= usize::from(max));
                        prop_assert_eq!(piece.is_empty(), next == backlog.end());
                        for got in &piece {
                            prop_assert_eq!(*got, byte(next));
                            next += 1;
                        }
                    }
                }
                let kept = backlog.end() - backlog.start();
                prop_assert!(kept <= OUTPUT_WINDOW + HISTORY_BYTES + 2 * 40_000);
            }
            prop_assert!(!backlog.shown(backlog.end() + 1), "what never came was never shown");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_not_thawed() {
        assert!(Backlog::thawed(b"abc", 7, 5).is_some());
        for (end, shown) in [(2, 2), (7, 8), (7, 3)] {
            assert!(Backlog::thawed(b"abc", end, shown).is_none());
        }
    }

    #[test]
    fn what_comes_byte_by_byte_costs_no_buffer_for_each() {
        let mut backlog = Backlog::default();
        let whole = Bytes::from(vec![b'x'; 64 * 1024]);
        for at in 0..whole.len() {
            // Each is part of a large buffer, which it would keep.
            backlog.push(whole.slice(at..=at));
        }
        assert_eq!(backlog.end(), 64 * 1024);
        assert!(backlog.pieces.len() <= 4, "{}", backlog.pieces.len());
        assert!(backlog.pieces.iter().all(|piece| piece.len() >= TAIL_BYTES));
    }
}
