//! What commands of ours do just now, so that what the engine tells can be told apart from what others do.
//!
//! An event is ours when a command of ours acts on the same object, brings about events of that word, and
//! was acting at that time. The engine writes some events a little after it has answered; those count
//! too, but only a word that the act has not had yet: what comes a second time is somebody else's.

use std::collections::{HashMap, VecDeque};

use fairlead_protocol::CommandId;
use fairlead_protocol::command::{Kind, Lane};
use tokio::time::Instant;

/// Acts that are remembered for each object.
const ACTS_MAX: usize = 8;
/// How late the engine writes an event of an act that it has answered.
const LATE_US: i64 = 150_000;
/// How long an act is remembered after its end, for events on their way to us.
const KEPT: std::time::Duration = std::time::Duration::from_secs(2);
/// Stands for every image.
const ANY_IMAGE: &str = "image/*";

/// One command's acting on one object.
#[derive(Debug)]
struct Act {
    command: CommandId,
    words: &'static [&'static str],
    /// Of those, the ones that the engine has told.
    had: Vec<&'static str>,
    begun_us: i64,
    /// `i64::MAX` while it goes on.
    ended_us: i64,
    ended: Option<Instant>,
}

/// The acts, by object: a container's name, or `image/REFERENCE`.
#[derive(Debug, Default)]
pub(super) struct Acts(HashMap<String, VecDeque<Act>>);

/// The objects on which a command brings about events, and the words of those events.
#[must_use]
pub fn objects(kind: &Kind, lane: &Lane) -> Vec<(String, &'static [&'static str])> {
    let mut objects = Vec::new();
    let on_container: &[&str] = match kind {
        Kind::Run(_) => &["create", "start"],
        Kind::Create(_) => &["create"],
        Kind::Start(_) => &["start"],
        Kind::Stop(_) => &["kill", "die", "stop"],
        Kind::Restart(_) => &["kill", "die", "stop", "start", "restart"],
        Kind::Kill(_) => &["kill", "die"],
        Kind::Remove(_) => &["kill", "die", "stop", "destroy"],
        Kind::Exec(_) => &["exec_create", "exec_start", "exec_detach", "exec_die"],
        // Looking, copying and reading logs bring about none.
        _ => &[],
    };
    if let Lane::Container(name) = lane
        && !on_container.is_empty()
    {
        objects.push((name.clone(), on_container));
    }
    match kind {
        Kind::Pull(pull) => objects.push((image(&pull.image), &["pull"])),
        Kind::Run(run) => objects.extend(made_of(run.spec.as_ref())),
        Kind::Create(create) => objects.extend(made_of(create.spec.as_ref())),
        Kind::PruneImages(_) => objects.push((ANY_IMAGE.to_owned(), &["untag", "delete"])),
        _ => {}
    }
    objects
}

fn made_of(
    spec: Option<&fairlead_protocol::ContainerSpec>,
) -> Option<(String, &'static [&'static str])> {
    spec.map(|spec| (image(&spec.image), &["pull"][..]))
}

/// The key of an image: its reference as the engine writes it, with a tag.
pub(super) fn image(reference: &str) -> String {
    let short = reference
        .strip_prefix("docker.io/")
        .map_or(reference, |rest| {
            rest.strip_prefix("library/").unwrap_or(rest)
        });
    let last = short.rsplit('/').next().unwrap_or(short);
    let tag = if last.contains([':', '@']) {
        ""
    } else {
        ":latest"
    };
    format!("image/{short}{tag}")
}

impl Acts {
    pub(super) fn begin(
        &mut self,
        object: &str,
        command: CommandId,
        words: &'static [&'static str],
        now_us: i64,
    ) {
        let acts = self.0.entry(object.to_owned()).or_default();
        if acts.len() >= ACTS_MAX {
            acts.pop_front();
        }
        acts.push_back(Act {
            command,
            words,
            had: Vec::new(),
            begun_us: now_us,
            ended_us: i64::MAX,
            ended: None,
        });
    }

    pub(super) fn end(&mut self, object: &str, command: CommandId, now_us: i64) {
        let acts = self.0.get_mut(object).into_iter().flatten();
        for act in acts.filter(|act| act.command == command) {
            act.ended_us = now_us;
            act.ended = Some(Instant::now());
        }
    }

    /// The command of ours that brought that about, if one did; the act has had the word then.
    pub(super) fn cause(&mut self, object: &str, word: &str, at_us: i64) -> Option<CommandId> {
        let act = self.0.get_mut(object)?.iter_mut().rev().find(|act| {
            let in_time = act.begun_us <= at_us && at_us <= act.ended_us;
            let late = at_us > act.ended_us && at_us - act.ended_us <= LATE_US;
            act.words.contains(&word) && (in_time || late && !act.had.contains(&word))
        })?;
        let known = act.words.iter().find(|known| **known == word)?;
        act.had.push(known);
        Some(act.command)
    }

    /// The same of an image, known to the engine by these names.
    pub(super) fn image_cause(
        &mut self,
        names: [&str; 2],
        word: &str,
        at_us: i64,
    ) -> Option<CommandId> {
        names
            .iter()
            .find_map(|name| self.cause(&image(name), word, at_us))
            .or_else(|| self.cause(ANY_IMAGE, word, at_us))
    }

    /// Forgets what nothing is told of any more.
    pub(super) fn tidy(&mut self) {
        self.0.retain(|_, acts| {
            acts.retain(|act| act.ended.is_none_or(|ended| ended.elapsed() < KEPT));
            !acts.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use fairlead_protocol::{ContainerSpec, Kill, Pull, Restart, Run};

    use super::*;

    fn id(n: u8) -> CommandId {
        CommandId::from_bytes([n; 16])
    }

    fn restarted() -> Acts {
        let mut acts = Acts::default();
        let kind = Kind::Restart(Restart::default());
        for (object, words) in objects(&kind, &Lane::Container("web".to_owned())) {
            acts.begin(&object, id(1), words, 1_000_000);
        }
        acts
    }

    #[test]
    fn an_act_is_ours_from_its_beginning_to_a_little_after_its_end() {
        let mut acts = restarted();
        assert_eq!(acts.cause("web", "kill", 999_999), None);
        assert_eq!(acts.cause("web", "kill", 5_000_000), Some(id(1)));
        acts.end("web", id(1), 6_000_000);
        assert_eq!(acts.cause("web", "die", 6_100_000), Some(id(1)), "late");
        assert_eq!(acts.cause("web", "restart", 6_200_000), None);
        assert_eq!(acts.cause("db", "kill", 5_000_000), None);
    }

    #[test]
    fn what_comes_a_second_time_after_the_end_is_somebody_elses() {
        let mut acts = restarted();
        for word in ["kill", "kill", "die", "stop", "start"] {
            assert_eq!(acts.cause("web", word, 2_000_000), Some(id(1)), "{word}");
        }
        acts.end("web", id(1), 3_000_000);
        assert_eq!(acts.cause("web", "restart", 3_000_500), Some(id(1)));
        for word in ["restart", "kill", "die", "start"] {
            assert_eq!(acts.cause("web", word, 3_000_900), None, "{word} by hand");
        }
    }

    #[test]
    fn a_command_brings_about_its_own_kinds_of_events_only() {
        let mut acts = Acts::default();
        let web = Lane::Container("web".to_owned());
        for (object, words) in objects(&Kind::Kill(Kill::default()), &web) {
            acts.begin(&object, id(1), words, 1);
        }
        assert_eq!(acts.cause("web", "start", 2), None);
        assert_eq!(acts.cause("web", "exec_start", 2), None);
        assert_eq!(acts.cause("web", "rename", 2), None);
        assert_eq!(acts.cause("web", "kill", 2), Some(id(1)));
    }

    #[test]
    fn an_image_that_we_pull_is_pulled_by_us() {
        let mut acts = Acts::default();
        let pull = Kind::Pull(Pull {
            image: "docker.io/library/busybox".to_owned(),
            ..Pull::default()
        });
        let run = Kind::Run(Run {
            spec: Some(ContainerSpec {
                image: "registry:5000/app:1".to_owned(),
                ..ContainerSpec::default()
            }),
        });
        let of = |kind: &Kind| objects(kind, &kind.lane());
        for (object, words) in of(&pull) {
            acts.begin(&object, id(1), words, 10);
        }
        for (object, words) in of(&run) {
            acts.begin(&object, id(2), words, 10);
        }
        let mut cause = |id, name, word| acts.image_cause([id, name], word, 20);
        assert_eq!(cause("busybox:latest", "busybox", "pull"), Some(id(1)));
        assert_eq!(
            cause("registry:5000/app:1", "registry:5000/app", "pull"),
            Some(id(2))
        );
        assert_eq!(cause("busybox:2", "busybox:2", "pull"), None);
        assert_eq!(cause("busybox:latest", "busybox", "delete"), None);
    }

    #[tokio::test]
    async fn what_goes_on_is_kept_and_what_is_over_is_not_kept_for_long() {
        let mut acts = restarted();
        acts.tidy();
        assert_eq!(acts.cause("web", "kill", 5_000_000), Some(id(1)));
        acts.end("web", id(1), 6_000_000);
        acts.tidy();
        assert!(!acts.0.is_empty(), "events may still be on their way");
    }
}
