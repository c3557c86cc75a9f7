use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn first() -> Versions {
    Versions {
        current: "1".to_owned(),
        ..Versions::default()
    }
}

/// One instance runs, since second 0.
fn running() -> Decider {
    let mut decider = Decider::new(Times::default(), 0, first());
    let started = decider.on(s(0), Event::Tick);
    assert!(matches!(
        started[..],
        [Action::StartOwner {
            key: 1,
            epoch: 1,
            ..
        }]
    ));
    decider
}

fn ended(key: Key) -> Event {
    Event::Ended {
        key,
        how: "it died".to_owned(),
        needs_help: false,
    }
}

/// Version 2 has the host since second 10, and version 1 has ended.
fn upgraded() -> Decider {
    let mut decider = running();
    decider.on(s(9), Event::Upgrade("2".to_owned()));
    assert_eq!(decider.on(s(10), Event::Proved(2)), [Action::Reserve(2)]);
    assert_eq!(decider.on(s(10), Event::Reserved), [Action::Yield(1, 2)]);
    assert_eq!(
        decider.on(s(10), Event::Yielded(1, 2)),
        [Action::Grant {
            key: 2,
            epoch: 2,
            from: Some(1)
        }]
    );
    let done = decider.on(s(10), Event::CommandsDone(1, 2));
    assert!(matches!(done[..], [Action::Commit(_)]));
    assert_eq!(decider.on(s(10), Event::Committed), []);
    decider.on(s(10), ended(1));
    decider.on(s(10), Event::Heard(2));
    decider
}

#[test]
fn a_version_that_cannot_be_kept_running_makes_room_and_then_there_is_safe_mode() {
    let mut decider = upgraded();
    let mut now = s(11);
    let mut owner = 2;
    let mut run = Vec::new();
    for _ in 0..9 {
        decider.on(now, ended(owner));
        now += s(31);
        for action in decider.on(now, Event::Tick) {
            if let Action::StartOwner {
                key,
                version,
                epoch,
            } = action
            {
                owner = key;
                run.push((version, decider.versions().safe));
                assert!(
                    epoch > 3,
                    "the epoch that was kept for a return is not used"
                );
            }
        }
    }
    let all: Vec<(&str, bool)> = run.iter().map(|(v, safe)| (&v[..], *safe)).collect();
    let (two, one, safe) = (("2", false), ("1", false), ("1", true));
    assert_eq!(all, [two, two, two, one, one, one, safe, safe, safe]);
    let returned = decider.versions().returned.clone().unwrap();
    assert_eq!((&returned.from[..], &returned.to[..]), ("2", "1"));
}

#[test]
fn a_version_on_trial_may_not_be_silent_and_one_that_lives_is_believed() {
    let mut decider = upgraded();
    assert_eq!(decider.on(s(14), Event::Tick), []);
    assert_eq!(decider.on(s(16), Event::Tick), [Action::Kill(2)]);

    let mut decider = upgraded();
    decider.on(s(609), Event::Heard(2));
    assert_eq!(decider.on(s(609), Event::Tick), []);
    let believed = decider.on(s(610), Event::Tick);
    assert!(matches!(&believed[..], [Action::Commit(v)] if v.tries_left.is_none()));
    assert_eq!(decider.on(s(610), Event::NotCommitted), []);
    assert_eq!(
        decider.on(s(611), Event::Tick).len(),
        1,
        "it is tried again"
    );
    assert_eq!(decider.on(s(611), Event::Committed), [Action::Believed]);
    assert_eq!(
        decider.on(s(9999), Event::Tick),
        [],
        "the machine may be busy"
    );
}

#[test]
fn a_candidate_that_does_not_prove_itself_is_ended_and_the_owner_never_knows() {
    let mut decider = running();
    let begun = decider.on(s(9), Event::Upgrade("2".to_owned()));
    assert_eq!(begun.last(), Some(&Action::Answer(Ok(()))));
    assert_eq!(
        decider.on(s(10), Event::Upgrade("3".to_owned())),
        [Action::Answer(Err(Refused::UnderWay))]
    );
    assert_eq!(decider.on(s(68), Event::Tick), []);
    let over = decider.on(s(69), Event::Tick);
    assert!(matches!(over[..], [Action::Note(_), Action::Kill(2)]));
    assert_eq!(decider.owner(), Some(1));
    assert_eq!(decider.versions().current, "1");
    assert!(
        decider.versions().tries_left.is_none(),
        "nobody is on trial"
    );
}

#[test]
fn the_oldest_of_too_many_that_only_stream_gets_notice() {
    let mut decider = running();
    let mut now = s(10);
    let mut noticed = Vec::new();
    for version in 2..6u32 {
        let (old, new) = (version - 1, version);
        decider.on(now, Event::Upgrade(version.to_string()));
        decider.on(now, Event::Proved(new));
        decider.on(now, Event::Reserved);
        let epoch = decider.epoch() - 1;
        decider.on(now, Event::Yielded(old, epoch));
        decider.on(now, Event::CommandsDone(old, epoch));
        noticed.extend(decider.on(now, Event::Committed));
        now += s(10);
    }
    assert_eq!(noticed, [Action::Notice(1), Action::Notice(2)]);
    decider.on(s(639), Event::Heard(5));
    let left = decider.on(s(639), Event::Tick);
    assert_eq!(left, [Action::Leave(1)], "ten minutes later");
    let left = decider.on(s(649), Event::Tick);
    assert!(
        left.contains(&Action::Kill(1)) && left.contains(&Action::Leave(2)),
        "{left:?}"
    );
}

#[test]
fn an_owner_that_does_not_yield_is_ended_and_its_journal_tells_the_rest() {
    let mut decider = running();
    decider.on(s(9), Event::Upgrade("2".to_owned()));
    decider.on(s(10), Event::Proved(2));
    decider.on(s(10), Event::Reserved);
    assert_eq!(decider.on(s(12), Event::Tick), [Action::Kill(1)]);
    assert_eq!(decider.on(s(12), Event::Tick), [], "once");
    let given = decider.on(s(12), ended(1));
    let grant = Action::Grant {
        key: 2,
        epoch: 2,
        from: None,
    };
    assert_eq!(given[..2], [Action::Gone { tell: 2, gone: 1 }, grant]);
    assert!(matches!(given[2], Action::Commit(_)));
}
