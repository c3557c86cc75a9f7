//! The rollout of a version over hosts, as a pure state machine: what is known of the hosts to what is to be asked
//! of them. No clock, no store, no network.
//!
//! Hosts are in waves. A wave is over when each of its hosts that is there has the version or has failed; after each
//! passes a time in which those that have it are watched. When more than 2 % of a wave fail, or are not heard
//! of any more, it halts by itself. A host that is away is asked when it returns, as long as the rollout lives.
//! Whoever asks quotes [`Member::attempt`], so that asking again after a crash is asking the same thing.

use serde::{Deserialize, Serialize};

/// Thousandths of a wave that may fail; with more of them it halts.
pub const FAILED_PERMILLE_MAX: usize = 20;
/// A rollout that has not ended by itself ends after this.
pub const LIFE_US: i64 = 7 * 24 * 3600 * SECOND_US;
/// A host that is there and has not ended its command for so long counts as silent.
pub const ANSWER_WITHIN_US: i64 = 60 * 60 * SECOND_US;
/// What a connected host says of its versions is believed against its command's end after this; until then it
/// may be what it said before.
const SAYS_WITHIN_US: i64 = 60 * SECOND_US;
const SECOND_US: i64 = 1_000_000;

/// A rollout, whole: what the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Which version.
    pub version: String,
    /// SHA-256 of its manifest, hex.
    pub manifest: String,
    /// Also on hosts that had a higher one.
    pub allow_older: bool,
    /// When it began.
    pub begun_us: i64,
    /// Time between two waves, and after the last.
    pub between_us: i64,
    /// A host that is away for so long after it was asked, or while it is watched, counts as silent.
    pub silent_us: i64,
    /// The wave that it is in, from 0.
    pub wave: usize,
    /// How many waves there are.
    pub waves: usize,
    /// Where it is.
    pub phase: Phase,
    /// Since when.
    pub since_us: i64,
    /// The hosts, in the order in which they are asked.
    pub members: Vec<Member>,
}

/// Where a rollout is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Hosts of the waves up to this one are asked.
    Upgrading,
    /// The wave is over, and watched.
    Between {
        /// The next one begins then, or all are over.
        until_us: i64,
    },
    /// All waves are over; hosts that were away are asked as they return, and not watched.
    Trailing,
    /// Somebody wants nobody to be asked.
    Paused,
    /// Too many have failed: nobody is asked until somebody says so.
    Halted {
        /// What was seen.
        why: String,
    },
    /// Every host has the version, or is said not to.
    Finished,
    /// Somebody has ended it.
    Aborted,
    /// Its time was over.
    Expired,
}

impl Phase {
    /// Whether nothing more comes of it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Finished | Self::Aborted | Self::Expired)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Upgrading => "upgrading",
            Self::Between { .. } => "between",
            Self::Trailing => "trailing",
            Self::Paused => "paused",
            Self::Halted { .. } => "halted",
            Self::Finished => "finished",
            Self::Aborted => "aborted",
            Self::Expired => "expired",
        }
    }
}

/// One host of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub host: String,
    /// Its wave, from 0.
    pub wave: usize,
    /// How far it is.
    pub step: Step,
    /// Since when.
    pub since_us: i64,
    /// How often it was asked.
    pub attempt: u32,
    /// What is said about it.
    pub detail: String,
    /// It has failed, and somebody went on all the same.
    pub forgiven: bool,
}

/// How far a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It has not been asked.
    Waiting,
    /// It has been asked.
    Asked,
    /// It has the version.
    Done,
    /// It does not have it, and says why.
    Failed,
    /// It was asked, or had the version, and is not heard of.
    Silent,
    /// It will not be asked.
    Missed,
}

impl Step {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Asked => "asked",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Silent => "silent",
            Self::Missed => "missed",
        }
    }
}

/// What is known of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// It is a host of the installation.
    pub exists: bool,
    /// It is connected.
    pub online: bool,
    /// Since when it is or is not.
    pub since_us: i64,
    /// The version that is started there.
    pub version: String,
    /// The last version that it returned from, and why.
    pub returned: Option<(String, String)>,
    /// What became of the last asking; `None`: it was never taken.
    pub command: Option<Answer>,
}

/// What became of an asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has no end yet.
    Open,
    /// The version has the host, since then.
    Done(i64),
    /// Its time was over before it began.
    Late,
    /// It has not.
    Failed(String),
}

impl Rollout {
    /// In how many hosts each wave consists: the canaries, then so many that after each wave that share of all
    /// hosts has been asked.
    #[must_use]
    pub fn sizes(hosts: usize, canaries: usize, percents: &[u32]) -> Vec<usize> {
        let mut sizes = Vec::new();
        let mut asked = 0;
        let canary = canaries.min(hosts);
        let ends = percents
            .iter()
            .map(|percent| (hosts * *percent as usize).div_ceil(100));
        for end in std::iter::once(canary).chain(ends).chain([hosts]) {
            let end = end.min(hosts);
            if end > asked {
                sizes.push(end - asked);
                asked = end;
            }
        }
        sizes
    }

    /// Somebody wants nobody to be asked; whether that was possible.
    pub fn pause(&mut self, now_us: i64) -> bool {
        let asks = matches!(
            self.phase,
            Phase::Upgrading | Phase::Between { .. } | Phase::Trailing
        );
        if asks {
            self.enter(now_us, Phase::Paused);
        }
        asks
    }

    /// Somebody wants it to go on; what has failed so far is not held against it. Whether that was possible.
    pub fn resume(&mut self, now_us: i64) -> bool {
        let stands = matches!(self.phase, Phase::Paused | Phase::Halted { .. });
        if stands {
            for member in &mut self.members {
                member.forgiven |= is_bad(member.step);
            }
            self.enter(now_us, Phase::Upgrading);
        }
        stands
    }

    /// Somebody ends it; whether that was possible.
    pub fn abort(&mut self, now_us: i64) -> bool {
        let lives = !self.phase.is_final();
        if lives {
            self.close(now_us, Phase::Aborted, "the rollout was aborted");
        }
        lives
    }

    /// Time has passed, and this is known of the hosts. Gives the members that are to be asked, which are those
    /// that have not been and those whose asking was not taken.
    pub fn tick(&mut self, now_us: i64, view: impl Fn(&Member) -> View) -> Vec<usize> {
        let views: Vec<View> = self.members.iter().map(&view).collect();
        for (index, view) in views.iter().enumerate() {
            self.look(now_us, index, view);
        }
        if self.phase.is_final() {
            return Vec::new();
        }
        if now_us.saturating_sub(self.begun_us) >= LIFE_US {
            self.close(now_us, Phase::Expired, "the rollout's time was over");
            return Vec::new();
        }
        if self.asks_or_watches()
            && let Some(why) = self.too_many_bad()
        {
            self.enter(now_us, Phase::Halted { why });
        }
        if let Phase::Between { until_us } = self.phase
            && now_us >= until_us
        {
            self.watched(now_us);
        }
        let asked = match self.phase {
            Phase::Upgrading | Phase::Trailing => self.ask(now_us, &views),
            _ => Vec::new(),
        };
        self.move_on(now_us, &views);
        asked
    }

    /// The asking of a member was refused for good.
    pub fn refused(&mut self, now_us: i64, index: usize, why: String) {
        if let Some(member) = self.members.get_mut(index) {
            set(member, now_us, Step::Failed, why);
        }
    }

    fn enter(&mut self, now_us: i64, phase: Phase) {
        self.phase = phase;
        self.since_us = now_us;
    }

    /// It ends: whoever has not been asked will not be.
    fn close(&mut self, now_us: i64, phase: Phase, why: &str) {
        for member in &mut self.members {
            if member.step == Step::Waiting {
                set(member, now_us, Step::Missed, why.to_owned());
            }
        }
        self.enter(now_us, phase);
    }

    fn asks_or_watches(&self) -> bool {
        matches!(
            self.phase,
            Phase::Upgrading | Phase::Between { .. } | Phase::Trailing
        )
    }

    /// What a host's state says of how far it is.
    fn look(&mut self, now_us: i64, index: usize, view: &View) {
        let (version, silent_us) = (self.version.clone(), self.silent_us);
        let over = self.phase.is_final();
        let member = &mut self.members[index];
        if matches!(member.step, Step::Waiting | Step::Failed | Step::Missed) {
            if member.step == Step::Waiting && !view.exists {
                let why = "it is no host any more".to_owned();
                set(member, now_us, Step::Missed, why);
            }
            return;
        }
        if !view.exists {
            return set(
                member,
                now_us,
                Step::Missed,
                "it is no host any more".to_owned(),
            );
        }
        let away_us = if view.online {
            0
        } else {
            now_us.saturating_sub(member.since_us.max(view.since_us))
        };
        match (member.step, &view.command) {
            (Step::Asked | Step::Silent, Some(Answer::Late)) => {
                let (step, why) = if over {
                    (Step::Missed, "it was away until the rollout ended")
                } else {
                    (Step::Waiting, "it was away when it was asked")
                };
                set(member, now_us, step, why.to_owned());
            }
            (Step::Asked | Step::Silent, Some(Answer::Failed(why))) => {
                set(member, now_us, Step::Failed, why.clone());
            }
            (Step::Asked, Some(Answer::Done(_))) if view.version == version => {
                set(member, now_us, Step::Done, String::new());
            }
            (Step::Silent, Some(Answer::Done(_))) if view.online && view.version == version => {
                set(member, now_us, Step::Done, String::new());
            }
            (Step::Asked | Step::Silent, Some(Answer::Done(at_us)))
                if view.online
                    && now_us.saturating_sub(view.since_us.max(*at_us)) >= SAYS_WITHIN_US =>
            {
                set(member, now_us, Step::Failed, went_back(&version, view));
            }
            (Step::Asked, _) if away_us >= silent_us => {
                let why = "it is not connected any more since it was asked".to_owned();
                set(member, now_us, Step::Silent, why);
            }
            (Step::Asked, _) if now_us.saturating_sub(member.since_us) >= ANSWER_WITHIN_US => {
                let why = "it has not said what became of the upgrade".to_owned();
                set(member, now_us, Step::Silent, why);
            }
            (Step::Done, _) if !over => match &view.returned {
                Some((from, _)) if *from == version && view.version != version => {
                    set(member, now_us, Step::Failed, went_back(&version, view));
                }
                _ if away_us >= silent_us => {
                    let why = "it is not connected any more since it has the version".to_owned();
                    set(member, now_us, Step::Silent, why);
                }
                _ => {}
            },
            _ => {}
        }
    }

    fn size(&self, wave: usize) -> usize {
        let of_it = |member: &&Member| member.wave == wave;
        self.members.iter().filter(of_it).count()
    }

    fn too_many_bad(&self) -> Option<String> {
        (0..=self.wave).find_map(|wave| {
            let bad: Vec<&Member> = self
                .members
                .iter()
                .filter(|member| member.wave == wave && is_bad(member.step) && !member.forgiven)
                .collect();
            let size = self.size(wave);
            let too_many = bad.len() * 1000 > size * FAILED_PERMILLE_MAX;
            let first = bad.first().filter(|_| too_many)?;
            Some(format!(
                "{} of {size} hosts of wave {} failed or are silent; the first: {}",
                bad.len(),
                wave + 1,
                first.detail
            ))
        })
    }

    /// Hosts that are to be asked: so many that no more of them are under way than the wave has hosts.
    fn ask(&mut self, now_us: i64, views: &[View]) -> Vec<usize> {
        let mut room = if matches!(self.phase, Phase::Trailing) {
            (0..self.waves).map(|wave| self.size(wave)).max()
        } else {
            Some(self.size(self.wave))
        }
        .unwrap_or_default()
        .saturating_sub(self.under_way(views));
        let (wave, version) = (self.wave, self.version.clone());
        let mut asked = Vec::new();
        for (index, member) in self.members.iter_mut().enumerate() {
            let view = &views[index];
            if member.step == Step::Asked && view.command.is_none() {
                // Asked, and then somebody died before it was taken.
                asked.push(index);
            }
            if member.step != Step::Waiting || member.wave > wave || !view.online {
                continue;
            }
            if view.version == version {
                set(member, now_us, Step::Done, "it had the version".to_owned());
            } else if room > 0 {
                room -= 1;
                member.attempt += 1;
                // What somebody overlooked was what came of the asking before.
                member.forgiven = false;
                set(member, now_us, Step::Asked, String::new());
                asked.push(index);
            }
        }
        asked
    }

    /// Those whose command may still begin or goes on.
    fn under_way(&self, views: &[View]) -> usize {
        let goes_on = |(member, view): &(&Member, &View)| match member.step {
            Step::Asked => true,
            Step::Silent => view.command == Some(Answer::Open),
            _ => false,
        };
        self.members.iter().zip(views).filter(goes_on).count()
    }

    /// To the next phase, where this one has done what it is for.
    fn move_on(&mut self, now_us: i64, views: &[View]) {
        if !matches!(self.phase, Phase::Upgrading | Phase::Trailing) {
            return;
        }
        let wave = self.wave;
        let of_these = || {
            let all = self.members.iter().zip(views);
            all.filter(move |(member, _)| member.wave <= wave)
        };
        let busy = of_these().any(|(member, view)| {
            member.step == Step::Asked || (member.step == Step::Waiting && view.online)
        });
        let waiting = of_these().any(|(member, _)| member.step == Step::Waiting);
        let proved = of_these().any(|(member, _)| member.step == Step::Done);
        // Where all are away nothing has been shown yet.
        if busy || (waiting && !proved) {
            return;
        }
        match self.phase {
            Phase::Trailing if waiting => {}
            Phase::Trailing => self.enter(now_us, Phase::Finished),
            _ => {
                let until_us = now_us + self.between_us;
                self.enter(now_us, Phase::Between { until_us });
            }
        }
    }

    /// The wave has shown what it has shown.
    fn watched(&mut self, now_us: i64) {
        let waiting = || {
            self.members
                .iter()
                .any(|member| member.step == Step::Waiting)
        };
        let phase = if self.wave + 1 < self.waves {
            self.wave += 1;
            Phase::Upgrading
        } else if waiting() {
            Phase::Trailing
        } else {
            Phase::Finished
        };
        self.enter(now_us, phase);
    }
}

fn went_back(version: &str, view: &View) -> String {
    match &view.returned {
        Some((from, why)) if from == version => format!("it went back to {}: {why}", view.version),
        _ => format!("it had it, and runs {} now", view.version),
    }
}

fn is_bad(step: Step) -> bool {
    matches!(step, Step::Failed | Step::Silent)
}

fn set(member: &mut Member, now_us: i64, step: Step, detail: String) {
    if step != member.step {
        member.since_us = now_us;
    }
    member.step = step;
    member.detail = detail;
}

#[cfg(test)]
mod tests;
