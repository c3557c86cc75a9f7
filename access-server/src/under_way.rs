//! Of open commands what is told of them and is on no disk: when each was stored here, and how far it is. The centre
//! hears the newest again when its link is new. Lost with this process; no decision rests on it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fairlead_protocol::{CommandId, CommandProgress, HostId, Progress};

/// Open commands, each of one host.
#[derive(Debug, Default)]
pub struct UnderWay {
    commands: Mutex<HashMap<CommandId, Known>>,
}

#[derive(Debug)]
struct Known {
    host: HostId,
    taken_us: i64,
    /// For its timeline; it goes to disk while it is delivered.
    stored_us: Option<i64>,
    newest: Option<CommandProgress>,
}

impl UnderWay {
    fn commands(&self) -> MutexGuard<'_, HashMap<CommandId, Known>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The command has come.
    pub fn taken(&self, id: CommandId, host: HostId, taken_us: i64) {
        let known = Known {
            host,
            taken_us,
            stored_us: None,
            newest: None,
        };
        self.commands().entry(id).or_insert(known);
    }

    /// It is on the ledger's disk since then.
    pub fn stored(&self, id: CommandId, stored_us: i64) {
        if let Some(known) = self.commands().get_mut(&id) {
            known.stored_us = Some(stored_us);
        }
    }

    /// A host says how far a command is; kept when it is one of its own.
    pub fn progress(&self, host: HostId, progress: Progress) -> CommandProgress {
        let id = CommandId::from_wire(&progress.command).ok();
        let newest = CommandProgress {
            host: host.to_wire(),
            progress: Some(progress),
        };
        let mut commands = self.commands();
        let known = id.and_then(|id| commands.get_mut(&id));
        if let Some(known) = known.filter(|known| known.host == host) {
            known.newest = Some(newest.clone());
        }
        newest
    }

    /// The newest of each command of which anything was said.
    pub fn newest(&self) -> Vec<CommandProgress> {
        let commands = self.commands();
        let newest = commands.values().filter_map(|known| known.newest.clone());
        newest.collect()
    }

    /// Forgets what nobody has asked for: commands of hosts that stay away.
    pub fn tidy(&self, before_us: i64) {
        self.commands()
            .retain(|_, known| known.taken_us >= before_us);
    }

    /// It has ended; when it was stored. Only for the host whose command it is.
    pub fn ended(&self, id: CommandId, host: HostId) -> Option<i64> {
        let mut commands = self.commands();
        commands.get(&id).filter(|known| known.host == host)?;
        commands.remove(&id)?.stored_us
    }
}

#[cfg(test)]
mod tests {
    use fairlead_protocol::State;

    use super::*;

    const ID: CommandId = CommandId::from_bytes([1; 16]);
    const HOST: HostId = HostId::from_bytes([2; 16]);
    const OTHER: HostId = HostId::from_bytes([3; 16]);

    fn said(id: CommandId, waiting_for: &str) -> Progress {
        Progress {
            command: id.to_wire(),
            state: State::Running.into(),
            waiting_for: waiting_for.to_owned(),
            ..Progress::default()
        }
    }

    #[test]
    fn the_newest_of_an_open_command_is_kept_and_nothing_of_others() {
        let under_way = UnderWay::default();
        under_way.taken(ID, HOST, 6);
        under_way.progress(HOST, said(ID, "first"));
        let newest = under_way.progress(HOST, said(ID, "then"));
        under_way.progress(OTHER, said(ID, "of another's"));
        under_way.progress(HOST, said(CommandId::from_bytes([4; 16]), "of none"));
        // It was delivered before it was on disk, and came again.
        under_way.stored(ID, 7);
        under_way.taken(ID, HOST, 8);
        assert_eq!(under_way.newest(), [newest]);
        assert_eq!(under_way.ended(ID, OTHER), None);
        assert_eq!(under_way.ended(ID, HOST), Some(7));
        under_way.stored(ID, 9);
        assert!(under_way.newest().is_empty());
        under_way.taken(ID, HOST, 7);
        under_way.stored(ID, 7);
        under_way.tidy(8);
        assert_eq!(under_way.ended(ID, HOST), None);
    }
}
