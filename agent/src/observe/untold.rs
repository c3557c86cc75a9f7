//! Events that the region does not have yet: kept in order until it has acknowledged each, told again when
//! it does not. When there are too many the oldest go, and one event in their place says how many.
//! Pure: no clock, no link.

use std::collections::VecDeque;

use bytes::Bytes;
use fairlead_protocol::HostEvent;

/// Events that are kept.
const EVENTS_MAX: usize = 1024;
/// The event that stands for those that went.
pub(super) const LOST: &str = "events.lost";

struct Kept {
    event: HostEvent,
    /// Sent on the present link.
    told: bool,
    /// How many others it stands for; 0: itself.
    lost: u64,
}

/// The queue.
#[derive(Default)]
pub(super) struct Untold {
    kept: VecDeque<Kept>,
    last_seq: u64,
}

impl Untold {
    /// Takes an event, and gives it its number and this id.
    pub(super) fn keep(&mut self, event: HostEvent, new_id: impl Fn() -> [u8; 16]) {
        self.make_room(&new_id);
        let event = self.numbered(event, &new_id);
        self.kept.push_back(Kept {
            event,
            told: false,
            lost: 0,
        });
    }

    fn numbered(&mut self, mut event: HostEvent, new_id: impl Fn() -> [u8; 16]) -> HostEvent {
        self.last_seq += 1;
        event.seq = self.last_seq;
        event.id = Bytes::copy_from_slice(&new_id());
        event
    }

    fn make_room(&mut self, new_id: impl Fn() -> [u8; 16]) {
        while self.kept.len() >= EVENTS_MAX {
            // One that the region may have is not changed any more: another takes its place.
            let grows = self.kept.front().is_some_and(|k| k.lost > 0 && !k.told);
            let Some(gone) = self.kept.remove(usize::from(grows)) else {
                return;
            };
            let lost = gone.lost.max(1);
            match self.kept.front_mut().filter(|_| grows) {
                Some(first) => {
                    first.lost += lost;
                    first.event.at_us = gone.event.at_us;
                    first.event.detail = in_words(first.lost);
                }
                None => {
                    let event = HostEvent {
                        at_us: gone.event.at_us,
                        action: LOST.to_owned(),
                        cause: "itself".to_owned(),
                        detail: in_words(lost),
                        ..HostEvent::default()
                    };
                    let event = self.numbered(event, &new_id);
                    self.kept.push_front(Kept {
                        event,
                        told: false,
                        lost,
                    });
                }
            }
        }
    }

    /// The region has that one.
    pub(super) fn acked(&mut self, seq: u64) {
        self.kept.retain(|kept| kept.event.seq != seq);
    }

    /// Nothing of it counts as told any more.
    pub(super) fn start_over(&mut self) {
        for kept in &mut self.kept {
            kept.told = false;
        }
    }

    /// Gives what has not been told to `send`, oldest first, until it takes no more.
    pub(super) fn tell(&mut self, mut send: impl FnMut(&HostEvent) -> bool) {
        for kept in self.kept.iter_mut().filter(|kept| !kept.told) {
            if !send(&kept.event) {
                return;
            }
            kept.told = true;
        }
    }
}

fn in_words(lost: u64) -> String {
    format!("{lost} events are missing here: more happened than is kept until the region has it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: usize) -> HostEvent {
        HostEvent {
            at_us: i64::try_from(n).unwrap(),
            action: "container.start".to_owned(),
            ..HostEvent::default()
        }
    }

    fn filled(count: usize) -> Untold {
        let mut untold = Untold::default();
        for n in 0..count {
            untold.keep(event(n), || [7; 16]);
        }
        untold
    }

    fn told(untold: &mut Untold, room: usize) -> Vec<HostEvent> {
        let mut told = Vec::new();
        untold.tell(|event| {
            if told.len() < room {
                told.push(event.clone());
                return true;
            }
            false
        });
        told
    }

    #[test]
    fn each_is_told_once_and_again_until_it_is_acknowledged() {
        let mut untold = filled(3);
        assert_eq!(told(&mut untold, 2).len(), 2);
        let rest = told(&mut untold, 9);
        assert_eq!(rest.iter().map(|e| e.seq).collect::<Vec<_>>(), [3]);
        untold.acked(2);
        assert_eq!(told(&mut untold, 9), []);
        untold.start_over();
        let again = told(&mut untold, 9);
        assert_eq!(again.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn the_gap_is_said_in_its_place() {
        let mut untold = filled(EVENTS_MAX);
        assert!(
            told(&mut untold, usize::MAX)
                .iter()
                .all(|e| e.action != LOST)
        );
        let mut untold = filled(EVENTS_MAX + 100);
        let all = told(&mut untold, usize::MAX);
        assert_eq!(all.len(), EVENTS_MAX);
        assert_eq!(all[0].action, LOST);
        assert!(
            all[0].detail.starts_with("101 events are missing"),
            "{}",
            all[0].detail
        );
        assert_eq!(all[0].at_us, 100, "when the last of them was");
        assert_eq!(all[1].at_us, 101);
        assert!(all[1..].iter().all(|e| e.action != LOST));
    }

    #[test]
    fn a_gap_that_was_told_is_not_changed_behind_the_regions_back() {
        let mut untold = filled(EVENTS_MAX + 10);
        let before = told(&mut untold, 1);
        untold.keep(event(5000), || [8; 16]);
        let after = told(&mut untold, 1);
        assert_eq!(after[0].action, LOST);
        assert_ne!(after[0].seq, before[0].seq);
        assert_eq!(untold.kept.len(), EVENTS_MAX);
    }
}
