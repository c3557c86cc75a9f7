//! The oracle itself: it never blames a correct run, and it finds what is planted.
//!
//! Histories come from a small correct executor (`simulated`) or are made by hand; no process runs
//! here. What real processes with planted defects do is in `planted`.

use fairlead_tests::oracle::history::{Act, Asked, Effect, History, Presence, Record, What};
use fairlead_tests::oracle::{Promise, Violation, judge, tell};
use proptest::prelude::*;

mod simulated;

use simulated::{Plan, simulate};

/// A run on one container, by hand.
struct Story {
    history: History,
}

impl Story {
    fn new(before: Presence) -> Self {
        let mut history = History {
            stamps_apart_us: 100_000,
            ..History::default()
        };
        history.before.insert("web".to_owned(), before);
        history.after.insert("web".to_owned(), before);
        history.orders.insert("region".to_owned(), Vec::new());
        Self { history }
    }

    /// A command that was asked, acknowledged, and ended so.
    fn asked(mut self, at_s: i64, id: &str, act: Act, end: &str, at_end_s: i64) -> Self {
        let (state, code) = end.split_once(' ').unwrap_or((end, ""));
        self.history.asked.push(Asked {
            id: id.to_owned(),
            client: 1,
            container: "web".to_owned(),
            act,
            asked_us: at_s * 1_000_000,
            acked_us: Some(at_s * 1_000_000 + 1_000),
            not_after_us: Some((at_s + 300) * 1_000_000),
        });
        self.history.records.push(Record {
            by: "controller".to_owned(),
            read_us: (at_end_s + 1_000) * 1_000_000,
            id: id.to_owned(),
            state: state.to_owned(),
            code: code.to_owned(),
            exit_code: None,
            finished_us: Some(at_end_s * 1_000_000),
            stamps: vec![
                ("engine_called".to_owned(), at_s * 1_000_000 + 2_000),
                ("engine_answered".to_owned(), at_end_s * 1_000_000 - 1_000),
            ],
        });
        let order = self.history.orders.entry("region".to_owned());
        order.or_default().push(id.to_owned());
        self
    }

    fn engine(mut self, at_s: i64, whats: &[What]) -> Self {
        for (number, what) in (0..).zip(whats) {
            self.history.effects.push(Effect {
                at_us: at_s * 1_000_000 + 10_000 * (number + 1),
                container: "web".to_owned(),
                what: what.clone(),
            });
        }
        self
    }

    fn marked(mut self, id: &str, times: usize) -> Self {
        self.history.marks.insert(id.to_owned(), times);
        self
    }

    fn after(mut self, presence: Presence) -> Self {
        self.history.after.insert("web".to_owned(), presence);
        self
    }

    fn change(mut self, change: impl FnOnce(&mut History)) -> Self {
        change(&mut self.history);
        self
    }

    #[track_caller]
    fn stands(self) {
        let found = judge(&self.history);
        assert!(found.is_empty(), "{}", tell(&found));
    }

    #[track_caller]
    fn breaks(self, promise: Promise, rule: &str, command: &str) {
        let found = judge(&self.history);
        let wanted = |v: &Violation| v.promise == promise && v.rule == rule && v.command == command;
        assert!(found.iter().any(wanted), "{}", tell(&found));
    }
}

fn kill(signal: u32, ends: bool) -> Act {
    Act::Kill { signal, ends }
}

/// A container whose life was: restarted, stopped, started, looked into.
fn a_good_day() -> Story {
    let exec = |id: &str| {
        let id = id.to_owned();
        [What::ExecStart(id.clone()), What::ExecDie(id, 0)]
    };
    Story::new(Presence::Running)
        .asked(10, "r", Act::Restart, "succeeded", 12)
        .asked(20, "s", Act::Stop, "succeeded", 22)
        .asked(30, "b", Act::Start, "succeeded", 32)
        .asked(40, "e", Act::Exec, "succeeded", 42)
        .engine(
            10,
            &[
                What::Kill(15),
                What::Die,
                What::Stop,
                What::Start,
                What::Restart,
            ],
        )
        .engine(20, &[What::Kill(15), What::Die, What::Stop])
        .engine(30, &[What::Start])
        .engine(40, &exec("e"))
        .marked("e", 1)
}

#[test]
fn a_good_day_stands() {
    a_good_day().stands();
}

#[test]
fn what_was_acknowledged_and_has_no_end_is_lost() {
    a_good_day()
        .change(|history| "running".clone_into(&mut history.records[1].state))
        .breaks(Promise::P1, "lost", "s");
    a_good_day()
        .change(|history| drop(history.records.remove(1)))
        .breaks(Promise::P1, "lost", "s");
}

#[test]
fn two_results_are_one_too_many() {
    a_good_day()
        .change(|history| {
            let mut other = history.records[1].clone();
            other.by = "host".to_owned();
            other.state = "failed".to_owned();
            history.records.push(other);
        })
        .breaks(Promise::P2, "two_results", "s");
    a_good_day()
        .change(|history| {
            let mut later = history.records[1].clone();
            later.finished_us = later.finished_us.map(|at| at + 1);
            history.records.push(later);
        })
        .breaks(Promise::P2, "two_results", "s");
}

#[test]
fn a_restart_that_was_done_twice_is_more_than_was_asked() {
    Story::new(Presence::Running)
        .asked(10, "r", Act::Restart, "succeeded", 12)
        .engine(10, &[What::Die, What::Start, What::Die, What::Start])
        .breaks(Promise::P2, "more_than_asked", "");
}

#[test]
fn a_stop_that_says_it_was_done_and_was_not_is_untrue() {
    Story::new(Presence::Running)
        .asked(10, "s", Act::Stop, "succeeded", 12)
        .breaks(Promise::P2, "untrue", "s");
}

#[test]
fn what_expired_did_nothing() {
    Story::new(Presence::Running)
        .asked(10, "s", Act::Stop, "expired deadline_passed", 12)
        .stands();
    Story::new(Presence::Running)
        .asked(10, "s", Act::Stop, "expired deadline_passed", 12)
        .engine(10, &[What::Die])
        .after(Presence::Stopped)
        .breaks(Promise::P2, "more_than_asked", "");
    Story::new(Presence::Running)
        .asked(10, "e", Act::Exec, "cancelled withdrawn", 12)
        .engine(10, &[What::ExecStart("e".to_owned())])
        .marked("e", 1)
        .breaks(Promise::P2, "untrue", "e");
}

#[test]
fn two_that_changed_places_are_out_of_order() {
    Story::new(Presence::Running)
        .asked(10, "s", Act::Stop, "succeeded", 20)
        .asked(10, "k", Act::Remove, "succeeded", 20)
        .asked(10, "r", Act::Run, "succeeded", 20)
        .asked(10, "b", Act::Restart, "succeeded", 20)
        .asked(10, "c", Act::Stop, "succeeded", 20)
        .engine(10, &[What::Die, What::Destroy])
        .engine(11, &[What::Create("r".to_owned()), What::Start])
        .engine(12, &[What::Die, What::Start])
        .after(Presence::Running)
        .breaks(Promise::P3, "out_of_order", "c");
}

#[test]
fn a_kill_within_the_grace_shares_the_end_of_the_process() {
    for (end, whats) in [
        // Within the grace: one end for two commands.
        ("succeeded", &[What::Kill(15), What::Kill(2), What::Die][..]),
        // Too late: the engine refused it.
        ("failed not_running", &[What::Kill(15), What::Die]),
    ] {
        Story::new(Presence::Running)
            .asked(10, "s", Act::Stop, "succeeded", 13)
            .asked(11, "k", kill(2, true), end, 12)
            .engine(11, whats)
            .after(Presence::Stopped)
            .stands();
    }
    // No stop before it: then it must have ended it.
    Story::new(Presence::Running)
        .asked(11, "k", kill(2, true), "succeeded", 12)
        .engine(11, &[What::Kill(2)])
        .breaks(Promise::P2, "untrue", "k");
}

#[test]
fn a_signal_that_was_sent_twice_or_never_is_noticed() {
    let day = |sent: usize| {
        Story::new(Presence::Running)
            .asked(11, "k", kill(10, false), "succeeded", 12)
            .engine(11, &vec![What::Kill(10); sent])
    };
    day(1).stands();
    day(2).breaks(Promise::P2, "doubled", "");
    day(0).breaks(Promise::P2, "untrue", "");
}

#[test]
fn a_process_that_ran_twice_is_doubled() {
    a_good_day()
        .marked("e", 2)
        .breaks(Promise::P2, "doubled", "e");
    a_good_day()
        .engine(41, &[What::ExecStart("e".to_owned())])
        .breaks(Promise::P2, "doubled", "e");
    a_good_day()
        .marked("e", 0)
        .breaks(Promise::P2, "untrue", "e");
}

#[test]
fn unknown_needs_a_cause() {
    let day = |whats: &[What]| {
        Story::new(Presence::Running)
            .asked(10, "e", Act::Exec, "unknown outcome_unknown", 20)
            .asked(11, "r", Act::Restart, "succeeded", 19)
            .engine(10, &[What::ExecStart("e".to_owned())])
            .engine(12, whats)
            .marked("e", 1)
    };
    day(&[What::Die, What::Start]).stands();
    Story::new(Presence::Running)
        .asked(10, "e", Act::Exec, "unknown outcome_unknown", 20)
        .engine(10, &[What::ExecStart("e".to_owned())])
        .breaks(Promise::P2, "unknown_without_cause", "e");
    Story::new(Presence::Running)
        .asked(10, "s", Act::Stop, "unknown outcome_unknown", 20)
        .breaks(Promise::P2, "unknown_without_cause", "s");
}

#[test]
fn a_process_does_not_overtake_what_changes_before_it() {
    Story::new(Presence::Running)
        .asked(10, "r", Act::Restart, "succeeded", 20)
        .asked(10, "e", Act::Exec, "succeeded", 11)
        .engine(10, &[What::ExecStart("e".to_owned())])
        .engine(15, &[What::Die, What::Start])
        .marked("e", 1)
        .breaks(Promise::P3, "overtaken", "e");
}

#[test]
fn two_at_work_on_one_lane_are_seen_by_their_stamps() {
    Story::new(Presence::Stopped)
        .asked(10, "a", Act::Stop, "succeeded", 20)
        .asked(11, "b", Act::Stop, "succeeded", 21)
        .breaks(Promise::P3, "side_by_side", "b");
}

#[test]
fn what_was_acknowledged_first_comes_first() {
    a_good_day()
        .change(|history| {
            if let Some(order) = history.orders.get_mut("region") {
                order.swap(0, 3);
            }
        })
        .breaks(Promise::P3, "order_of_acceptance", "e");
}

#[test]
fn nothing_begins_after_its_deadline() {
    a_good_day()
        .change(|history| history.asked[1].not_after_us = Some(19_000_000))
        .breaks(Promise::P2, "begun_too_late", "s");
}

#[test]
fn a_container_that_nobody_asked_for_is_noticed() {
    a_good_day()
        .engine(50, &[What::Create("x".to_owned())])
        .breaks(Promise::P2, "unasked", "x");
}

/// A change that makes a correct history one of a broken system; `false` where it cannot be made.
type Mutation = fn(&mut History, usize) -> bool;

/// One of those that fulfil a condition.
fn one<T>(items: &[T], pick: usize, fits: impl Fn(&T) -> bool) -> Option<usize> {
    let fitting: Vec<usize> = (0..items.len()).filter(|n| fits(&items[*n])).collect();
    (!fitting.is_empty()).then(|| fitting[pick % fitting.len()])
}

fn is_start(effect: &Effect) -> bool {
    matches!(effect.what, What::Start)
}

const MUTATIONS: [(&str, Mutation); 10] = [
    ("an acknowledged command without an end", |h, pick| {
        let Some(at) = one(&h.asked, pick, |a| a.acked_us.is_some()) else {
            return false;
        };
        let id = h.asked[at].id.clone();
        h.records.retain(|record| record.id != id);
        true
    }),
    ("a start too many", |h, pick| {
        let Some(at) = one(&h.effects, pick, is_start) else {
            return false;
        };
        let again = h.effects[at].clone();
        h.effects.insert(at, again);
        true
    }),
    ("a start too few", |h, pick| {
        let Some(at) = one(&h.effects, pick, is_start) else {
            return false;
        };
        h.effects.remove(at);
        true
    }),
    ("an end of a process too many", |h, pick| {
        let Some(at) = one(&h.effects, pick, |e| e.what == What::Die) else {
            return false;
        };
        let again = h.effects[at].clone();
        h.effects.insert(at, again);
        true
    }),
    ("a process that ran twice", |h, pick| {
        let exec = |e: &Effect| matches!(e.what, What::ExecStart(_));
        let Some(at) = one(&h.effects, pick, exec) else {
            return false;
        };
        let again = h.effects[at].clone();
        h.effects.push(again);
        true
    }),
    ("a mark too many", |h, pick| {
        let count = h.marks.len().max(1);
        let Some(mark) = h.marks.values_mut().nth(pick % count) else {
            return false;
        };
        *mark += 1;
        true
    }),
    ("another result later", |h, pick| {
        let Some(at) = one(&h.records, pick, Record::is_final) else {
            return false;
        };
        let mut other = h.records[at].clone();
        "failed".clone_into(&mut other.state);
        "engine_error".clone_into(&mut other.code);
        h.records.push(other);
        true
    }),
    ("a done one that says it expired", |h, pick| {
        let marks = h.marks.clone();
        let ran = |r: &Record| r.state == "succeeded" && marks.contains_key(&r.id);
        let Some(at) = one(&h.records, pick, ran) else {
            return false;
        };
        let id = h.records[at].id.clone();
        for record in h.records.iter_mut().filter(|record| record.id == id) {
            "expired".clone_into(&mut record.state);
            record.exit_code = None;
        }
        true
    }),
    (
        "an order that is not that of the acknowledgements",
        |h, _| {
            let Some(order) = h.orders.get_mut("region") else {
                return false;
            };
            if order.len() < 12 {
                return false;
            }
            order.reverse();
            true
        },
    ),
    ("a container that is not as it was left", |h, pick| {
        let count = h.after.len().max(1);
        let Some(presence) = h.after.values_mut().nth(pick % count) else {
            return false;
        };
        *presence = match presence {
            Presence::Running => Presence::Stopped,
            Presence::Stopped | Presence::Absent => Presence::Running,
        };
        true
    }),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever was asked and whenever the agent died: a correct run is never blamed.
    #[test]
    fn a_correct_run_is_never_blamed(plan in Plan::any()) {
        let history = simulate(&plan);
        let found = judge(&history);
        prop_assert!(found.is_empty(), "{}\n{:#?}", tell(&found), plan);
    }

    /// And each change that makes it a broken one is.
    #[test]
    fn each_broken_run_is_blamed(plan in Plan::any(), which in 0..MUTATIONS.len(), pick: usize) {
        let mut history = simulate(&plan);
        let (name, mutate) = MUTATIONS[which];
        prop_assume!(mutate(&mut history, pick));
        prop_assert!(!judge(&history).is_empty(), "{name}: not noticed\n{history:#?}");
    }
}
