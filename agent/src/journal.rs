//! The journal: what this host was asked to do and what became of it, on its own disk.
//!
//! One append-only file per instance (`journal/<instance>`), each record framed as
//! `length u32 | crc32 u32 | protobuf`, little-endian. The first record is a header with format and
//! instance. The live instance holds an exclusive lock on its file; a free lock means that the writer is
//! dead and its file may be taken over.
//!
//! Rules:
//! * An intent is on disk before the act, a result before it is sent. Many records share one sync.
//! * A torn tail (power cut in the middle of an append) ends the file: everything before it counts.
//! * A file of a newer format is never touched. While one is there, nothing with an effect is begun
//!   ([`Journal::blocked`]), because what it holds cannot be known.
//! * A file of another host's (this machine was enrolled anew) is put aside: what it says was asked of
//!   somebody else.
//! * A record that could not be written leaves no trace: the file is cut back to its last good end.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use fairlead_protocol::{Acked, ExecCreated, SignedCommand, State, journal_record::Kind};
use fairlead_protocol::{
    CommandId, CommandResult, HostId, InstanceId, Intent, JournalHeader, JournalRecord, limits,
};

mod file;

pub use file::{FORMAT, JournalError};
use file::{Reading, read};

/// What is known of a command with an effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What was intended, and the exec that was made for it.
    pub phase: Phase,
    /// When the id may be forgotten, by the server's time.
    pub forget_us: i64,
}

/// How far a command got.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// The intent is on disk; what became of it is not known here.
    Begun {
        /// As written before the act.
        intent: Box<Intent>,
        /// The engine's exec, where one was made.
        exec: Option<String>,
    },
    /// It has a final state; the body is kept until the region has acknowledged it.
    Done {
        /// As sent.
        result: Box<CommandResult>,
        /// Whether the region has it on its disk.
        acked: bool,
    },
}

/// The journal of the running instance, with what it took over from dead ones.
pub struct Journal {
    writer: file::Writer,
    entries: HashMap<CommandId, Entry>,
    /// What other instances, which live, have begun: theirs to finish.
    theirs: HashSet<CommandId>,
    blocked: Option<String>,
}

impl Journal {
    /// Opens this instance's file and takes over those of dead instances.
    ///
    /// # Errors
    /// When the directory cannot be used at all.
    pub fn open(
        dir: &Path,
        instance: InstanceId,
        host: HostId,
        epoch: u64,
        now_us: i64,
    ) -> Result<Self, JournalError> {
        let mut entries = HashMap::new();
        // Of those that live only what has ended counts: what they have under way is theirs.
        let mut theirs = HashMap::new();
        let mut blocked = None;
        let mut taken_over: Vec<PathBuf> = Vec::new();
        for other in file::read_others(dir, instance)? {
            let path = other.path;
            match other.reading {
                Ok(reading) if reading.is_of_another(host) => file::put_aside(&path),
                Ok(reading) => {
                    if reading.torn {
                        tracing::warn!(path = %path.display(), "journal has a torn tail; what was synced is used");
                    }
                    // An instance that does not own the host takes nothing over.
                    if epoch != 0 && other.is_dead {
                        replay(&reading, &mut entries);
                        taken_over.push(path);
                    } else {
                        replay(&reading, &mut theirs);
                    }
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), error = %error, "journal cannot be read");
                    blocked = Some(error.to_string());
                }
            }
        }
        entries.retain(|_, entry: &mut Entry| entry.matters(now_us));
        let header = JournalHeader {
            format: FORMAT,
            instance: instance.to_wire(),
            epoch,
            at_us: now_us,
            host: host.to_wire(),
        };
        let mut records = vec![JournalRecord {
            kind: Some(Kind::Header(header.clone())),
        }];
        records.extend(snapshot(&entries));
        let writer = file::Writer::create(&dir.join(instance.to_string()), header, &records)?;
        // Only now, with everything in our own synced file, are the dead ones' files superfluous.
        for path in taken_over {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "dead journal could not be removed");
            }
        }
        let mut journal = Self {
            writer,
            entries,
            theirs: HashSet::new(),
            blocked,
        };
        journal.know(Known(theirs));
        Ok(journal)
    }

    /// What another instance, which lives, has begun or seen to its end. It sends the results itself.
    pub fn know(&mut self, known: Known) {
        for (id, mut entry) in known.0 {
            match &mut entry.phase {
                Phase::Done { acked, .. } => {
                    *acked = true;
                    self.entries.entry(id).or_insert(entry);
                }
                Phase::Begun { .. } => drop(self.theirs.insert(id)),
            }
        }
    }

    /// Whether another instance, which lives, has begun that command.
    #[must_use]
    pub fn is_theirs(&self, id: CommandId) -> bool {
        self.theirs.contains(&id) && !self.entries.contains_key(&id)
    }

    /// Takes over what instances that are gone have left. Their files go once all of it is on disk here.
    pub fn take_over(&mut self, dead: Vec<Dead>) {
        let mut paths = Vec::new();
        let mut taken = HashMap::new();
        for Dead { path, entries } in dead {
            paths.push(path);
            for (id, entry) in entries {
                self.theirs.remove(&id);
                let ours = self.entries.get(&id).map(|entry| &entry.phase);
                // A result that is known here by hearsay only may still be owed to the region.
                let hearsay = matches!(ours, Some(Phase::Done { acked: true, .. }));
                if ours.is_none() || (hearsay && matches!(entry.phase, Phase::Done { .. })) {
                    taken.insert(id, entry.clone());
                    self.entries.insert(id, entry);
                }
            }
        }
        let (handle, records) = (self.writer.handle(), snapshot(&taken));
        // Ends with the sync.
        tokio::spawn(async move {
            if let Err(error) = handle.append(records).await {
                tracing::warn!(%error, "a journal that was taken over stays where it is");
                return;
            }
            for path in paths {
                match std::fs::remove_file(&path) {
                    // Two that went at once: it was read twice, and removed once.
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::warn!(path = %path.display(), %error, "dead journal could not be removed");
                    }
                    _ => {}
                }
            }
        });
    }

    /// Why nothing with an effect may be begun, if so.
    #[must_use]
    pub fn blocked(&self) -> Option<&str> {
        self.blocked.as_deref()
    }

    /// What is known of a command.
    #[must_use]
    pub fn entry(&self, id: CommandId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// Commands begun by an earlier instance whose outcome is not known, oldest intent first.
    #[must_use]
    pub fn unsettled(&self) -> Vec<(CommandId, Intent, Option<String>)> {
        let mut found: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(id, entry)| match &entry.phase {
                Phase::Begun { intent, exec } => Some((*id, (**intent).clone(), exec.clone())),
                Phase::Done { .. } => None,
            })
            .collect();
        found.sort_by_key(|(_, intent, _)| intent.at_us);
        found
    }

    /// Results that the region has not acknowledged.
    #[must_use]
    pub fn unacked(&self) -> Vec<CommandResult> {
        let mut found: Vec<_> = self
            .entries
            .values()
            .filter_map(|entry| match &entry.phase {
                Phase::Done {
                    result,
                    acked: false,
                } => Some((**result).clone()),
                _ => None,
            })
            .collect();
        found.sort_by_key(|result| result.stamps.last().map_or(0, |stamp| stamp.at_us));
        found
    }

    /// A handle with which tasks append records; the index is updated by the caller's
    /// `note_*` after the append has succeeded.
    #[must_use]
    pub fn appender(&self) -> Appender {
        Appender {
            handle: self.writer.handle(),
        }
    }

    /// The intent is on disk.
    pub fn note_intent(&mut self, id: CommandId, intent: Intent, not_after_us: i64) {
        let phase = Phase::Begun {
            intent: Box::new(intent),
            exec: None,
        };
        self.entries.insert(
            id,
            Entry {
                phase,
                forget_us: forget_us(not_after_us),
            },
        );
    }

    /// The exec's id is on disk.
    pub fn note_exec(&mut self, id: CommandId, exec_id: &str) {
        if let Some(Entry {
            phase: Phase::Begun { exec, .. },
            ..
        }) = self.entries.get_mut(&id)
        {
            *exec = Some(exec_id.to_owned());
        }
    }

    /// The result is on disk (or, for a command without effect, in memory only).
    pub fn note_result(&mut self, id: CommandId, result: CommandResult, not_after_us: i64) {
        let phase = Phase::Done {
            result: Box::new(result),
            acked: false,
        };
        self.entries.insert(
            id,
            Entry {
                phase,
                forget_us: forget_us(not_after_us),
            },
        );
    }

    /// The region has the result on its disk: the body is not needed any more.
    pub fn acked(&mut self, id: CommandId) {
        if let Some(Entry {
            phase: Phase::Done { result, acked },
            ..
        }) = self.entries.get_mut(&id)
            && !*acked
        {
            *acked = true;
            drop_body(result);
            let record = JournalRecord {
                kind: Some(Kind::Acked(Acked {
                    command: id.to_wire(),
                })),
            };
            // Losing this record only means that a result is sent once more.
            self.writer.handle().append_lazily(record);
        }
    }

    /// A planted defect: as if the command had never come.
    pub(crate) fn forget(&mut self, id: CommandId) {
        self.entries.remove(&id);
    }

    /// Forgets ids whose time is over and, when the file has grown, writes it anew.
    pub fn tidy(&mut self, now_us: i64) {
        self.entries.retain(|_, entry| entry.matters(now_us));
        if self.writer.has_grown() {
            self.writer.compact(still_mattering(now_us));
        }
    }
}

/// What the journal of another instance holds.
#[derive(Debug, Default)]
pub struct Known(HashMap<CommandId, Entry>);

/// What the journal of an instance that is gone holds.
#[derive(Debug)]
pub struct Dead {
    path: PathBuf,
    entries: HashMap<CommandId, Entry>,
}

/// Reads the journal of an instance, which may be writing it.
///
/// # Errors
/// When it cannot be read.
pub fn read_of(dir: &Path, instance: &str) -> Result<Known, JournalError> {
    let mut entries = HashMap::new();
    if instance.parse::<InstanceId>().is_ok() {
        replay(&read(&dir.join(instance))?, &mut entries);
    }
    Ok(Known(entries))
}

/// Whether this program can read all journals that are there.
///
/// # Errors
/// When it cannot read one.
pub fn check(dir: &Path) -> Result<(), JournalError> {
    if !dir.exists() {
        return Ok(());
    }
    // No instance has this id.
    for other in file::read_others(dir, InstanceId::from_bytes([0; 16]))? {
        other.reading?;
    }
    Ok(())
}

/// Reads the journals of instances that are gone.
///
/// # Errors
/// When the directory cannot be read.
pub fn of_the_dead(dir: &Path, own: InstanceId, host: HostId) -> Result<Vec<Dead>, JournalError> {
    let mut dead = Vec::new();
    let others = file::read_others(dir, own)?.into_iter();
    for other in others.filter(|other| other.is_dead) {
        let path = other.path;
        match other.reading {
            Ok(reading) if reading.is_of_another(host) => file::put_aside(&path),
            Ok(reading) => {
                let mut entries = HashMap::new();
                replay(&reading, &mut entries);
                dead.push(Dead { path, entries });
            }
            Err(error) => {
                tracing::error!(%error, "the journal of an instance that is gone cannot be read");
            }
        }
    }
    Ok(dead)
}

/// Appends records on behalf of a command's task.
#[derive(Clone)]
pub struct Appender {
    handle: file::Handle,
}

impl Appender {
    /// Writes an intent and returns once it is synced.
    ///
    /// # Errors
    /// When it could not be written; the journal is as before then.
    pub async fn intent(&self, intent: Intent) -> Result<(), JournalError> {
        self.handle
            .append(vec![JournalRecord {
                kind: Some(Kind::Intent(intent)),
            }])
            .await
    }

    /// Writes an exec's id.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn exec_created(&self, id: CommandId, exec_id: &str) -> Result<(), JournalError> {
        let record = ExecCreated {
            command: id.to_wire(),
            exec_id: exec_id.to_owned(),
        };
        self.handle
            .append(vec![JournalRecord {
                kind: Some(Kind::ExecCreated(record)),
            }])
            .await
    }

    /// Writes a result, and the deadline with which its id is remembered.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn result(
        &self,
        id: CommandId,
        result: CommandResult,
        not_after_us: i64,
    ) -> Result<(), JournalError> {
        // A command may end without ever having begun; then no intent tells its deadline.
        let deadline = JournalRecord {
            kind: Some(Kind::Intent(remembered(id, not_after_us))),
        };
        let result = JournalRecord {
            kind: Some(Kind::Result(result)),
        };
        self.handle.append(vec![deadline, result]).await
    }
}

/// The region has it; should a region that lost it ask again, the result says that its body is gone.
fn drop_body(result: &mut CommandResult) {
    result.body_truncated |= !result.body.is_empty();
    result.body = bytes::Bytes::new();
    result.body_length = 0;
}

fn forget_us(not_after_us: i64) -> i64 {
    let kept = limits::COMMAND_KEPT_AFTER_DEADLINE.as_micros();
    not_after_us.saturating_add(i64::try_from(kept).unwrap_or(i64::MAX))
}

/// `not_after` of a signed command that was verified when it was written.
fn not_after_us(signed: Option<&SignedCommand>) -> i64 {
    use fairlead_protocol::Message;
    signed
        .and_then(|signed| fairlead_protocol::Command::decode(&signed.command[..]).ok())
        .map_or(i64::MAX, |command| command.not_after_us)
}

/// The id of a signed command.
fn command_id(signed: Option<&SignedCommand>) -> Option<CommandId> {
    use fairlead_protocol::Message;
    let command = fairlead_protocol::Command::decode(&signed?.command[..]).ok()?;
    CommandId::from_wire(&command.id).ok()
}

/// Brings a file's records into the index. A result beats an intent, whichever file it is in.
fn replay(reading: &Reading, entries: &mut HashMap<CommandId, Entry>) {
    for record in &reading.records {
        match record.kind.as_ref() {
            Some(Kind::Intent(intent)) => {
                let Some(id) = command_id(intent.command.as_ref()) else {
                    continue;
                };
                let forget_us = forget_us(not_after_us(intent.command.as_ref()));
                let phase = Phase::Begun {
                    intent: Box::new(intent.clone()),
                    exec: None,
                };
                match entries.get_mut(&id) {
                    None => drop(entries.insert(id, Entry { phase, forget_us })),
                    // Written again because the engine showed something newer; a record that only
                    // tells a finished command's deadline replaces nothing.
                    Some(known) if intent.at_us != 0 && known.begun_without_exec() => {
                        known.phase = phase;
                    }
                    Some(_) => {}
                }
            }
            Some(Kind::ExecCreated(made)) => {
                if let Ok(id) = CommandId::from_wire(&made.command)
                    && let Some(Entry {
                        phase: Phase::Begun { exec, .. },
                        ..
                    }) = entries.get_mut(&id)
                {
                    *exec = Some(made.exec_id.clone());
                }
            }
            Some(Kind::Result(result)) => {
                let Ok(id) = CommandId::from_wire(&result.command) else {
                    continue;
                };
                let forget_us = entries.get(&id).map_or(i64::MAX, |entry| entry.forget_us);
                let phase = Phase::Done {
                    result: Box::new(result.clone()),
                    acked: false,
                };
                entries.insert(id, Entry { phase, forget_us });
            }
            Some(Kind::Acked(acked)) => {
                if let Ok(id) = CommandId::from_wire(&acked.command)
                    && let Some(Entry {
                        phase: Phase::Done { acked, .. },
                        ..
                    }) = entries.get_mut(&id)
                {
                    *acked = true;
                }
            }
            Some(Kind::Header(_) | Kind::Took(_)) | None => {}
        }
    }
}

/// What of a file still matters at that time.
fn still_mattering(now_us: i64) -> file::Keep {
    Box::new(move |reading| {
        let mut entries = HashMap::new();
        replay(&reading, &mut entries);
        entries.retain(|_, entry: &mut Entry| entry.matters(now_us));
        snapshot(&entries)
    })
}

/// The records that say what the index says.
fn snapshot(entries: &HashMap<CommandId, Entry>) -> Vec<JournalRecord> {
    let mut records = Vec::new();
    for (id, entry) in entries {
        match &entry.phase {
            Phase::Begun { intent, exec } => {
                records.push(JournalRecord {
                    kind: Some(Kind::Intent((**intent).clone())),
                });
                if let Some(exec_id) = exec {
                    let made = ExecCreated {
                        command: id.to_wire(),
                        exec_id: exec_id.clone(),
                    };
                    records.push(JournalRecord {
                        kind: Some(Kind::ExecCreated(made)),
                    });
                }
            }
            Phase::Done { result, acked } => {
                // The deadline is in the intent; without it the id would be kept for ever.
                let kept = i64::try_from(limits::COMMAND_KEPT_AFTER_DEADLINE.as_micros());
                let deadline = entry.forget_us.saturating_sub(kept.unwrap_or(0));
                let deadline = Kind::Intent(remembered(*id, deadline));
                let mut result = (**result).clone();
                if *acked {
                    drop_body(&mut result);
                }
                records.push(JournalRecord {
                    kind: Some(deadline),
                });
                records.push(JournalRecord {
                    kind: Some(Kind::Result(result)),
                });
                if *acked {
                    let acked = Acked {
                        command: id.to_wire(),
                    };
                    records.push(JournalRecord {
                        kind: Some(Kind::Acked(acked)),
                    });
                }
            }
        }
    }
    records
}

/// An intent that carries only id and deadline of a command that is done.
fn remembered(id: CommandId, not_after_us: i64) -> Intent {
    use fairlead_protocol::{Command, Message};
    let command = Command {
        id: id.to_wire(),
        not_after_us,
        ..Command::default()
    };
    let signed = SignedCommand {
        command: command.encode_to_vec().into(),
        ..SignedCommand::default()
    };
    Intent {
        command: Some(signed),
        ..Intent::default()
    }
}

impl Entry {
    fn begun_without_exec(&self) -> bool {
        matches!(self.phase, Phase::Begun { exec: None, .. })
    }

    /// Whether it is still needed: not known to have ended well, or a duplicate may still come.
    fn matters(&self, now_us: i64) -> bool {
        // A result that the region does not have is kept however long the region is away.
        matches!(
            self.phase,
            Phase::Begun { .. } | Phase::Done { acked: false, .. }
        ) || self.forget_us > now_us
    }

    /// The state that this entry stands for, for repeated deliveries.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.phase {
            Phase::Begun { .. } => State::Running,
            Phase::Done { result, .. } => State::try_from(result.state).unwrap_or(State::Unknown),
        }
    }
}

#[cfg(test)]
mod tests;
