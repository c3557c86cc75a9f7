//! Which command may begin: the pure part of the executor.
//!
//! Changing commands hold their lane one at a time, in the order of acceptance. The others wait for
//! the changing ones that were accepted before them on the lane, and never hold it. `kill` alone may
//! begin within the grace of a running stop or restart, when nothing else is before it, and one kill after
//! the other. Lanes run side by side, up to a bound.

use std::collections::{BTreeMap, HashMap};

use fairlead_planted::{self as planted, Defect};
use fairlead_protocol::CommandId;
use fairlead_protocol::command::Lane;

/// How a command behaves on its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Manner {
    /// Holds the lane while it acts.
    Changes,
    /// Holds the lane, and may be cut short by a kill: stop and restart.
    ChangesWithGrace,
    /// Holds the lane, and may begin within another's grace.
    Kills,
    /// Waits for changing ones before it, never holds.
    Looks,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    id: CommandId,
    manner: Manner,
    running: bool,
    /// In another instance.
    elsewhere: bool,
}

/// Every command that has been accepted and has not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lanes {
    /// Places in order of acceptance, per lane.
    lanes: HashMap<Lane, BTreeMap<u64, Place>>,
    at: HashMap<CommandId, (Lane, u64)>,
    next_place: u64,
    running: usize,
    running_max: usize,
}

impl Lanes {
    /// No commands; at most so many will run at a time.
    #[must_use]
    pub fn new(running_max: usize) -> Self {
        Self {
            lanes: HashMap::new(),
            at: HashMap::new(),
            next_place: 0,
            running: 0,
            running_max,
        }
    }

    /// Takes a command to the end of its lane. An id that is there already keeps its place.
    pub fn accept(&mut self, id: CommandId, lane: Lane, manner: Manner) {
        if self.at.contains_key(&id) {
            return;
        }
        let place = self.next_place;
        self.next_place += 1;
        self.at.insert(id, (lane.clone(), place));
        let places = self.lanes.entry(lane).or_default();
        places.insert(
            place,
            Place {
                id,
                manner,
                running: false,
                elsewhere: false,
            },
        );
    }

    /// A command that another instance has begun: it holds its place until it has finished there. How many
    /// may run side by side here it does not change.
    pub fn accept_running(&mut self, id: CommandId, lane: Lane, manner: Manner) {
        self.accept(id, lane, manner);
        if let Some((lane, place)) = self.at.get(&id)
            && let Some(found) = self
                .lanes
                .get_mut(lane)
                .and_then(|places| places.get_mut(place))
            && !found.running
        {
            found.running = true;
            found.elsewhere = true;
        }
    }

    /// A command that counted as running keeps its place and may begin (again).
    pub fn give_back(&mut self, id: CommandId) {
        if let Some((lane, place)) = self.at.get(&id)
            && let Some(found) = self
                .lanes
                .get_mut(lane)
                .and_then(|places| places.get_mut(place))
            && std::mem::take(&mut found.running)
            && !std::mem::take(&mut found.elsewhere)
        {
            self.running -= 1;
        }
    }

    /// Everything that has not begun is given up, but for what is to be kept; in order of acceptance.
    pub fn give_up_waiting(&mut self, keep: impl Fn(CommandId) -> bool) -> Vec<CommandId> {
        let mut waiting: Vec<(u64, CommandId)> = self
            .lanes
            .values()
            .flat_map(|places| places.iter().filter(|(_, found)| !found.running))
            .filter(|(_, found)| !keep(found.id))
            .map(|(place, found)| (*place, found.id))
            .collect();
        waiting.sort_unstable();
        for (_, id) in &waiting {
            self.finish(*id);
        }
        waiting.into_iter().map(|(_, id)| id).collect()
    }

    /// Everything that may begin now, in order of acceptance; it counts as running from here.
    pub fn begin(&mut self) -> Vec<CommandId> {
        let mut ready: Vec<(u64, CommandId)> = self
            .lanes
            .values()
            .flat_map(|places| {
                places
                    .iter()
                    .filter(|(place, _)| may_begin(places, **place))
                    .map(|(place, found)| (*place, found.id))
            })
            .collect();
        ready.sort_unstable();
        ready.truncate(self.running_max.saturating_sub(self.running));
        for (place, id) in &ready {
            if let Some((lane, _)) = self.at.get(id)
                && let Some(found) = self
                    .lanes
                    .get_mut(lane)
                    .and_then(|places| places.get_mut(place))
            {
                found.running = true;
                self.running += 1;
            }
        }
        ready.into_iter().map(|(_, id)| id).collect()
    }

    /// A command has finished (or was withdrawn): its place is free.
    pub fn finish(&mut self, id: CommandId) {
        let Some((lane, place)) = self.at.remove(&id) else {
            return;
        };
        if let Some(places) = self.lanes.get_mut(&lane) {
            let counted = |found: Place| found.running && !found.elsewhere;
            if places.remove(&place).is_some_and(counted) {
                self.running -= 1;
            }
            if places.is_empty() {
                self.lanes.remove(&lane);
            }
        }
    }

    /// Whether the command has been accepted and has not finished.
    #[must_use]
    pub fn holds(&self, id: CommandId) -> bool {
        self.at.contains_key(&id)
    }

    /// Whether the command has begun.
    #[must_use]
    pub fn is_running(&self, id: CommandId) -> bool {
        self.at.get(&id).is_some_and(|(lane, place)| {
            self.lanes
                .get(lane)
                .and_then(|places| places.get(place))
                .is_some_and(|p| p.running)
        })
    }

    /// The changing command that one waits for, nearest first.
    #[must_use]
    pub fn waits_for(&self, id: CommandId) -> Option<CommandId> {
        let (lane, place) = self.at.get(&id)?;
        let before = self.lanes.get(lane)?.range(..*place);
        before
            .rev()
            .find(|(_, found)| found.manner != Manner::Looks)
            .map(|(_, found)| found.id)
    }

    /// How many have been accepted and have not finished.
    #[must_use]
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }
}

fn may_begin(places: &BTreeMap<u64, Place>, place: u64) -> bool {
    let Some(own) = places.get(&place) else {
        return false;
    };
    if own.running {
        return false;
    }
    if planted::is(Defect::LaneIgnored) {
        return true;
    }
    let mut changing = places
        .range(..place)
        .map(|(_, p)| p)
        .filter(|p| p.manner != Manner::Looks);
    match own.manner {
        // Running ones that merely look do not hold the lane against a changing one.
        Manner::Changes | Manner::ChangesWithGrace | Manner::Looks => changing.next().is_none(),
        // Of two kills the second waits: the engine's answer to the first says what there is to kill.
        Manner::Kills => changing.all(|p| p.running && p.manner == Manner::ChangesWithGrace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> CommandId {
        CommandId::from_bytes([n; 16])
    }

    fn lane(n: u8) -> Lane {
        Lane::Container(format!("c{n}"))
    }

    #[test]
    fn changing_ones_take_turns_and_looking_ones_wait_only_for_those_before_them() {
        let mut lanes = Lanes::new(10);
        lanes.accept(id(1), lane(1), Manner::Looks);
        lanes.accept(id(2), lane(1), Manner::Changes);
        lanes.accept(id(3), lane(1), Manner::Looks);
        lanes.accept(id(4), lane(1), Manner::Changes);
        assert_eq!(
            lanes.begin(),
            [id(1), id(2)],
            "a running look does not hold the lane"
        );
        assert_eq!(lanes.begin(), []);
        lanes.finish(id(2));
        assert_eq!(lanes.begin(), [id(3), id(4)]);
    }

    #[test]
    fn a_kill_may_begin_within_the_grace_but_not_past_others() {
        let mut lanes = Lanes::new(10);
        lanes.accept(id(1), lane(1), Manner::ChangesWithGrace);
        lanes.accept(id(2), lane(1), Manner::Kills);
        assert_eq!(lanes.begin(), [id(1)], "the stop itself has to run first");
        lanes.accept(id(3), lane(1), Manner::Kills);
        assert_eq!(lanes.begin(), [id(2)]);
        assert_eq!(lanes.begin(), [], "kills take turns too");
        lanes.finish(id(2));
        assert_eq!(lanes.begin(), [id(3)]);

        let mut lanes = Lanes::new(10);
        lanes.accept(id(1), lane(1), Manner::ChangesWithGrace);
        lanes.accept(id(2), lane(1), Manner::Changes);
        lanes.accept(id(3), lane(1), Manner::Kills);
        assert_eq!(lanes.begin(), [id(1)]);
        assert_eq!(lanes.begin(), [], "the start before it would be overtaken");
    }

    #[test]
    fn what_runs_elsewhere_holds_its_place_and_what_waits_is_given_up() {
        let mut lanes = Lanes::new(10);
        lanes.accept_running(id(1), lane(1), Manner::ChangesWithGrace);
        lanes.accept(id(2), lane(1), Manner::Changes);
        lanes.accept(id(3), lane(2), Manner::Changes);
        assert_eq!(lanes.begin(), [id(3)]);
        assert!(lanes.is_running(id(1)));
        lanes.give_back(id(1));
        assert_eq!(lanes.begin(), [id(1)], "in the place that it had");
        assert_eq!(lanes.give_up_waiting(|_| false), [id(2)]);
        assert!(!lanes.holds(id(2)) && lanes.holds(id(1)) && lanes.holds(id(3)));
        lanes.finish(id(1));
        lanes.finish(id(3));
        assert!(lanes.is_empty());
        assert_eq!(lanes.running, 0);

        let mut lanes = Lanes::new(1);
        lanes.accept_running(id(1), lane(1), Manner::Changes);
        lanes.accept(id(2), lane(2), Manner::Changes);
        assert_eq!(
            lanes.begin(),
            [id(2)],
            "what runs elsewhere leaves room here"
        );
        lanes.finish(id(1));
        assert_eq!(lanes.running, 1);
    }

    #[test]
    fn a_withdrawn_command_frees_its_place() {
        let mut lanes = Lanes::new(10);
        lanes.accept(id(1), lane(1), Manner::Changes);
        lanes.accept(id(2), lane(1), Manner::Changes);
        lanes.accept(id(3), lane(1), Manner::Changes);
        assert_eq!(lanes.begin(), [id(1)]);
        assert_eq!(lanes.waits_for(id(3)), Some(id(2)));
        lanes.finish(id(2));
        lanes.finish(id(1));
        assert_eq!(lanes.begin(), [id(3)]);
    }

    proptest! {
        /// Whatever is accepted and finished in whatever order: no two changing commands of a lane
        /// run together (but for a kill within a grace), changing ones begin in order, everything
        /// begins in the end.
        #[test]
        fn lanes_are_exclusive_ordered_and_live(
            commands in prop::collection::vec((0u8..3, 0u8..4), 1..40),
            finish in prop::collection::vec(0usize..100, 0..200),
        ) {
            let mut lanes = Lanes::new(6);
            let mut running: Vec<(usize, u8, u8)> = Vec::new();
            let mut last_begun: HashMap<u8, usize> = HashMap::new();
            let mut begun = 0;
            for (n, (lane_no, manner)) in commands.iter().enumerate() {
                let manner = [Manner::Changes, Manner::ChangesWithGrace, Manner::Kills, Manner::Looks]
                    [usize::from(*manner)];
                lanes.accept(id(u8::try_from(n).unwrap()), lane(*lane_no), manner);
            }
            let mut finish = finish.into_iter().chain(std::iter::repeat(0));
            while begun < commands.len() || !running.is_empty() {
                for started in lanes.begin() {
                    begun += 1;
                    let n = usize::from(started.as_bytes()[0]);
                    let (lane_no, manner) = commands[n];
                    if manner != 3 {
                        for (_, other_lane, other) in &running {
                            if *other_lane == lane_no && *other != 3 {
                                prop_assert!(manner == 2 && *other == 1);
                            }
                        }
                        let before = last_begun.insert(lane_no, n);
                        prop_assert!(before.is_none_or(|before| before < n));
                    }
                    running.push((n, lane_no, manner));
                }
                prop_assert!(running.len() <= 6);
                prop_assert!(!running.is_empty(), "something always runs while something waits");
                let (n, ..) = running.remove(finish.next().unwrap() % running.len());
                lanes.finish(id(u8::try_from(n).unwrap()));
            }
            prop_assert!(lanes.is_empty());
        }
    }
}
