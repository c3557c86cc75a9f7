use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn rollout(sizes: &[usize]) -> Rollout {
    let members = sizes.iter().enumerate().flat_map(|(wave, size)| {
        (0..*size).map(move |n| Member {
            host: format!("{wave}-{n}"),
            wave,
            step: Step::Waiting,
            since_us: 0,
            attempt: 0,
            detail: String::new(),
            forgiven: false,
        })
    });
    Rollout {
        version: "2".to_owned(),
        manifest: String::new(),
        allow_older: false,
        begun_us: 0,
        between_us: 600 * SECOND_US,
        silent_us: 120 * SECOND_US,
        wave: 0,
        waves: sizes.len(),
        phase: Phase::Upgrading,
        since_us: 0,
        members: members.collect(),
    }
}

/// Hosts as a rollout sees them.
#[derive(Clone, Default)]
struct World(BTreeMap<String, View>);

impl World {
    fn of(rollout: &Rollout) -> Self {
        let view = View {
            exists: true,
            online: true,
            version: "1".to_owned(),
            ..View::default()
        };
        let hosts = rollout.members.iter();
        Self(
            hosts
                .map(|member| (member.host.clone(), view.clone()))
                .collect(),
        )
    }

    fn at(&mut self, host: &str) -> &mut View {
        self.0.get_mut(host).unwrap()
    }

    fn tick(&mut self, rollout: &mut Rollout, now_s: i64) -> Vec<String> {
        let asked = rollout.tick(now_s * SECOND_US, |member| self.0[&member.host].clone());
        let asked: Vec<String> = asked
            .into_iter()
            .map(|index| rollout.members[index].host.clone())
            .collect();
        for host in &asked {
            self.at(host).command = Some(Answer::Open);
        }
        asked
    }

    fn done(&mut self, host: &str) {
        let view = self.at(host);
        view.command = Some(Answer::Done(0));
        "2".clone_into(&mut view.version);
    }
}

#[test]
fn waves_are_shares_of_all_hosts_behind_the_canaries() {
    assert_eq!(Rollout::sizes(100, 1, &[5, 25, 100]), [1, 4, 20, 75]);
    assert_eq!(Rollout::sizes(3, 1, &[5, 25, 100]), [1, 2]);
    assert_eq!(Rollout::sizes(1, 1, &[5, 25, 100]), [1]);
    assert_eq!(Rollout::sizes(10, 0, &[100]), [10]);
    assert_eq!(Rollout::sizes(10, 3, &[10]), [3, 7], "nobody is forgotten");
    assert_eq!(Rollout::sizes(0, 1, &[100]), Vec::<usize>::new());
}

#[test]
fn one_canary_then_waves_with_a_time_in_between() {
    let mut rollout = rollout(&[1, 2]);
    let mut world = World::of(&rollout);
    assert_eq!(world.tick(&mut rollout, 0), ["0-0"]);
    assert!(world.tick(&mut rollout, 5).is_empty(), "it is asked once");
    world.done("0-0");
    assert!(world.tick(&mut rollout, 10).is_empty());
    assert_eq!(rollout.phase.name(), "between");
    assert!(world.tick(&mut rollout, 609).is_empty());
    assert_eq!(world.tick(&mut rollout, 610), ["1-0", "1-1"]);
    world.done("1-0");
    world.done("1-1");
    world.tick(&mut rollout, 620);
    world.tick(&mut rollout, 1_219);
    assert_eq!(rollout.phase.name(), "between", "the last is watched too");
    world.tick(&mut rollout, 1_220);
    assert_eq!(rollout.phase, Phase::Finished);
}

#[test]
fn a_canary_that_fails_halts_it_and_somebody_may_go_on() {
    let mut rollout = rollout(&[1, 2]);
    let mut world = World::of(&rollout);
    world.tick(&mut rollout, 0);
    world.at("0-0").command = Some(Answer::Failed("it hung".to_owned()));
    assert!(world.tick(&mut rollout, 10).is_empty());
    let Phase::Halted { why } = &rollout.phase else {
        panic!("{:?}", rollout.phase);
    };
    assert!(
        why.contains("1 of 1 hosts of wave 1") && why.contains("it hung"),
        "{why}"
    );
    assert!(
        world.tick(&mut rollout, 9_000).is_empty(),
        "by itself it stays halted"
    );
    assert!(rollout.resume(9_000 * SECOND_US));
    // Nobody has shown that the version works, and nobody of that wave is left to show it.
    world.tick(&mut rollout, 9_001);
    assert_eq!(rollout.phase.name(), "between");
    assert_eq!(world.tick(&mut rollout, 9_601), ["1-0", "1-1"]);
}

#[test]
fn a_version_that_a_host_goes_back_from_is_noticed_while_it_is_watched() {
    let mut rollout = rollout(&[1, 1]);
    let mut world = World::of(&rollout);
    world.tick(&mut rollout, 0);
    world.done("0-0");
    world.tick(&mut rollout, 10);
    let view = world.at("0-0");
    "1".clone_into(&mut view.version);
    view.returned = Some(("2".to_owned(), "it ended 4 times".to_owned()));
    world.tick(&mut rollout, 60);
    assert_eq!(rollout.phase.name(), "halted");
    assert_eq!(rollout.members[0].step, Step::Failed);
    assert!(rollout.members[0].detail.contains("4 times"));
}

#[test]
fn what_a_host_said_before_its_command_ended_is_neither_a_success_nor_a_return() {
    let mut rollout = rollout(&[1, 1]);
    let mut world = World::of(&rollout);
    // It returned from the version once, and is asked again.
    world.at("0-0").returned = Some(("2".to_owned(), "it hung".to_owned()));
    world.tick(&mut rollout, 0);
    world.at("0-0").command = Some(Answer::Done(5 * SECOND_US));
    world.tick(&mut rollout, 6);
    assert_eq!(rollout.members[0].step, Step::Asked, "it has not said so");
    assert_eq!(rollout.phase, Phase::Upgrading);
    let (mut other, mut elsewhere) = (rollout.clone(), world.clone());
    "2".clone_into(&mut world.at("0-0").version);
    world.tick(&mut rollout, 7);
    assert_eq!(rollout.members[0].step, Step::Done);
    elsewhere.tick(&mut other, 64);
    assert_eq!(other.members[0].step, Step::Asked);
    elsewhere.tick(&mut other, 65);
    assert_eq!(other.members[0].detail, "it went back to 1: it hung");
    assert_eq!(other.phase.name(), "halted");
}

#[test]
fn who_goes_silent_halts_it_and_who_is_away_is_asked_when_it_returns() {
    let mut rollout = rollout(&[1, 1]);
    let mut world = World::of(&rollout);
    world.at("1-0").online = false;
    world.tick(&mut rollout, 0);
    world.done("0-0");
    world.tick(&mut rollout, 10);
    world.tick(&mut rollout, 610);
    world.tick(&mut rollout, 1_210);
    assert_eq!(rollout.phase.name(), "trailing");
    world.at("1-0").online = true;
    assert_eq!(world.tick(&mut rollout, 90_000), ["1-0"]);
    let view = world.at("1-0");
    (view.online, view.since_us) = (false, 90_010 * SECOND_US);
    world.tick(&mut rollout, 90_100);
    assert_eq!(rollout.members[1].step, Step::Asked);
    world.tick(&mut rollout, 90_131);
    assert_eq!(rollout.members[1].step, Step::Silent);
    assert_eq!(rollout.phase.name(), "halted");
}

#[test]
fn what_was_not_taken_is_asked_again_and_what_was_too_late_later() {
    let mut rollout = rollout(&[1]);
    let mut world = World::of(&rollout);
    assert_eq!(world.tick(&mut rollout, 0), ["0-0"]);
    world.at("0-0").command = None;
    assert_eq!(world.tick(&mut rollout, 1), ["0-0"]);
    assert_eq!(rollout.members[0].attempt, 1, "the same asking");
    world.at("0-0").command = Some(Answer::Late);
    assert_eq!(world.tick(&mut rollout, 2), ["0-0"]);
    assert_eq!(rollout.members[0].attempt, 2);
    rollout.refused(3, 0, "no".to_owned());
    world.tick(&mut rollout, 3);
    assert_eq!(rollout.phase.name(), "halted");
}

#[test]
fn who_was_overlooked_once_is_not_overlooked_again() {
    let mut rollout = rollout(&[1, 1]);
    let mut world = World::of(&rollout);
    world.tick(&mut rollout, 0);
    world.at("0-0").online = false;
    world.tick(&mut rollout, 130);
    assert_eq!(rollout.members[0].step, Step::Silent);
    assert!(rollout.resume(140 * SECOND_US));
    let view = world.at("0-0");
    (view.online, view.command) = (true, Some(Answer::Late));
    assert_eq!(world.tick(&mut rollout, 150), ["0-0"], "it was only away");
    world.at("0-0").command = Some(Answer::Failed("it hung".to_owned()));
    world.tick(&mut rollout, 160);
    assert_eq!(rollout.phase.name(), "halted");
}

#[test]
fn everything_has_an_end() {
    let mut rollout = rollout(&[1, 2]);
    let mut world = World::of(&rollout);
    world.at("0-0").online = false;
    world.tick(&mut rollout, 0);
    world.tick(&mut rollout, LIFE_US / SECOND_US - 1);
    assert_eq!(rollout.phase, Phase::Upgrading, "the canary is waited for");
    world.tick(&mut rollout, LIFE_US / SECOND_US);
    assert_eq!(rollout.phase, Phase::Expired);
    assert!(
        rollout
            .members
            .iter()
            .all(|member| member.step == Step::Missed)
    );
    assert!(!rollout.abort(0) && !rollout.pause(0) && !rollout.resume(0));
}

/// What may happen between two looks.
#[derive(Debug, Clone)]
enum Happens {
    Ends(usize, Answer),
    Says(usize),
    Goes(usize),
    Comes(usize),
    Returns(usize),
    NotTaken(usize),
    Pause,
    Resume,
    Abort,
    Restart,
    Time(i64),
}

fn happens() -> impl Strategy<Value = Happens> {
    let host = 0usize..400;
    prop_oneof![
        12 => host.clone().prop_map(|n| Happens::Ends(n, Answer::Done(0))),
        12 => host.clone().prop_map(Happens::Says),
        1 => host.clone().prop_map(|n| Happens::Ends(n, Answer::Failed("no".to_owned()))),
        1 => host.clone().prop_map(|n| Happens::Ends(n, Answer::Late)),
        2 => host.clone().prop_map(Happens::Goes),
        3 => host.clone().prop_map(Happens::Comes),
        1 => host.clone().prop_map(Happens::Returns),
        1 => host.prop_map(Happens::NotTaken),
        1 => Just(Happens::Pause),
        2 => Just(Happens::Resume),
        1 => (0..60u8).prop_map(|n| if n == 0 {
            Happens::Abort
        } else {
            Happens::Time(1)
        }),
        2 => Just(Happens::Restart),
        8 => (1i64..700).prop_map(Happens::Time),
    ]
}

proptest! {
    #[test]
    fn never_more_than_a_wave_at_once_and_never_past_what_has_failed(
        hosts in 1usize..120,
        canary in 0usize..3,
        percents in prop::collection::vec(1u32..=100, 1..4),
        story in prop::collection::vec(happens(), 1..400),
    ) {
        let mut percents = percents;
        percents.sort_unstable();
        let sizes = Rollout::sizes(hosts, canary, &percents);
        prop_assert_eq!(sizes.iter().sum::<usize>(), hosts);
        let mut rollout = rollout(&sizes);
        let mut world = World::of(&rollout);
        let mut now_s = 0;
        for what in story {
            let name = |n: usize| rollout.members[n % hosts].host.clone();
            match what {
                Happens::Ends(n, answer) => {
                    let host = name(n);
                    if world.at(&host).command == Some(Answer::Open) {
                        let answer = match answer {
                            Answer::Done(_) => Answer::Done(now_s * SECOND_US),
                            other => other,
                        };
                        world.at(&host).command = Some(answer);
                    }
                }
                Happens::Says(n) => {
                    let view = world.at(&name(n));
                    if matches!(view.command, Some(Answer::Done(_))) {
                        "2".clone_into(&mut view.version);
                    }
                }
                Happens::Goes(n) | Happens::Comes(n) => {
                    let online = matches!(what, Happens::Comes(_));
                    let view = world.at(&name(n));
                    if view.online != online {
                        (view.online, view.since_us) = (online, now_s * SECOND_US);
                    }
                }
                Happens::Returns(n) => {
                    let view = world.at(&name(n));
                    if view.version == "2" {
                        "1".clone_into(&mut view.version);
                        view.returned = Some(("2".to_owned(), "back".to_owned()));
                    }
                }
                Happens::NotTaken(n) => {
                    let host = name(n);
                    if world.at(&host).command == Some(Answer::Open) {
                        world.at(&host).command = None;
                    }
                }
                Happens::Pause => drop(rollout.pause(now_s * SECOND_US)),
                Happens::Resume => drop(rollout.resume(now_s * SECOND_US)),
                Happens::Abort => drop(rollout.abort(now_s * SECOND_US)),
                Happens::Restart => {
                    let kept = serde_json::to_vec(&rollout).unwrap();
                    rollout = serde_json::from_slice(&kept).unwrap();
                }
                Happens::Time(seconds) => now_s += seconds,
            }
            let before = rollout.clone();
            let asked = world.tick(&mut rollout, now_s);
            let under_way = rollout.members.iter().filter(|m| m.step == Step::Asked).count();
            let largest = *sizes.iter().max().unwrap();
            prop_assert!(under_way <= largest);
            if asked.iter().any(|host| {
                let was = before.members.iter().find(|m| m.host == *host).unwrap();
                was.step != Step::Asked
            }) && rollout.phase == Phase::Upgrading {
                prop_assert!(under_way <= rollout.size(rollout.wave));
            }
            for host in &asked {
                let was = before.members.iter().find(|m| m.host == *host).unwrap();
                prop_assert!(was.wave <= rollout.wave, "a later wave was asked");
                // Who is silent may turn out to have been away.
                let may_be = matches!(was.step, Step::Waiting | Step::Asked | Step::Silent);
                prop_assert!(may_be, "who has it, or refused it, was asked again");
            }
            let was_final = before.phase.is_final();
            let stood = matches!(before.phase, Phase::Paused | Phase::Halted { .. });
            prop_assert!(asked.is_empty() || !(was_final || stood));
            if was_final {
                prop_assert_eq!(&before.phase, &rollout.phase);
            }
            // Behind a wave of which too many failed nobody is asked.
            if !asked.is_empty() {
                prop_assert_eq!(rollout.too_many_bad().filter(|_| before.too_many_bad().is_some()), None);
            }
            prop_assert!(rollout.wave < rollout.waves);
        }
        world.tick(&mut rollout, LIFE_US / SECOND_US + now_s);
        prop_assert!(rollout.phase.is_final(), "{:?}", rollout.phase);
        prop_assert!(rollout.members.iter().all(|m| m.step != Step::Waiting));
    }
}
