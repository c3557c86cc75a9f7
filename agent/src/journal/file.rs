//! Journal files: framing, the writer thread with its grouped syncs, locks, torn tails.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fairlead_planted::{self as planted, Defect};
use fairlead_protocol::{
    HostId, InstanceId, JournalHeader, JournalRecord, Message, journal_record::Kind,
};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{mpsc, oneshot};

/// Format of the files that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Length and checksum before each record.
const FRAME_HEADER_BYTES: usize = 8;
/// Largest record: a result with its whole body, and room to spare.
const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// Records that may wait for the writer.
const RECORDS_WAITING_MAX: usize = 1024;
/// A file that has grown by so much since it was last written anew is written anew.
const GROWN_BYTES: u64 = 8 * 1024 * 1024;

/// Why the journal did not take a record, or cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The disk is full, read-only or broken.
    #[error("cannot write the journal {path}: {reason}")]
    Write {
        /// The file.
        path: String,
        /// In the system's words.
        reason: String,
    },
    /// The file or directory cannot be read.
    #[error("cannot read the journal {path}: {reason}")]
    Read {
        /// The file.
        path: String,
        /// In the system's words.
        reason: String,
    },
    /// A newer program wrote it.
    #[error(
        "the journal {path} has format {format}, this agent knows {FORMAT}: install the version \
         that wrote it, or move the file away if its commands do not matter any more"
    )]
    Newer {
        /// The file.
        path: String,
        /// Its format.
        format: u32,
    },
    /// It is no journal at all.
    #[error("{path} is not a journal: move it away")]
    Foreign {
        /// The file.
        path: String,
    },
    /// The writer has ended: the process is shutting down.
    #[error("the journal is closed")]
    Closed,
}

/// What was read from a file.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) records: Vec<JournalRecord>,
    pub(super) torn: bool,
}

impl Reading {
    /// Whether it was written for another host than this one.
    pub(super) fn is_of_another(&self, host: HostId) -> bool {
        matches!(
            self.records.first().and_then(|record| record.kind.as_ref()),
            Some(Kind::Header(header)) if !header.host.is_empty() && header.host != host.to_wire()
        )
    }
}

/// Keeps a file under a name that is not looked at again.
pub(super) fn put_aside(path: &Path) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".other-host");
    tracing::warn!(path = %path.display(), aside = %Path::new(&aside).display(), "journal of another host: it is kept aside, nothing in it is acted on");
    if let Err(error) = std::fs::rename(path, &aside) {
        tracing::warn!(path = %path.display(), %error, "it could not be renamed");
    }
}

/// Reads a file up to its end or its torn tail.
pub(super) fn read(path: &Path) -> Result<Reading, JournalError> {
    let bytes = std::fs::read(path).map_err(|error| JournalError::Read {
        path: path.display().to_string(),
        reason: error.to_string(),
    })?;
    let mut records = Vec::new();
    let mut rest = &bytes[..];
    while let Some((record, after)) = next_record(rest) {
        if records.is_empty() {
            check_header(&record, path)?;
        }
        records.push(record);
        rest = after;
    }
    if records.is_empty() && !is_torn_beginning(&bytes) {
        return Err(JournalError::Foreign {
            path: path.display().to_string(),
        });
    }
    Ok(Reading {
        records,
        torn: !rest.is_empty(),
    })
}

/// Whether this could be a file whose very first record was cut off: then nothing was ever in it.
fn is_torn_beginning(bytes: &[u8]) -> bool {
    let Some((length, _)) = bytes.split_first_chunk::<4>() else {
        return true;
    };
    let length = u32::from_le_bytes(*length) as usize;
    length <= RECORD_BYTES_MAX && bytes.len() < FRAME_HEADER_BYTES + length
}

fn next_record(bytes: &[u8]) -> Option<(JournalRecord, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > RECORD_BYTES_MAX || rest.len() < length {
        return None;
    }
    let (payload, after) = rest.split_at(length);
    if crc32fast::hash(payload) != u32::from_le_bytes(*checksum) {
        return None;
    }
    Some((JournalRecord::decode(payload).ok()?, after))
}

fn check_header(record: &JournalRecord, path: &Path) -> Result<(), JournalError> {
    let path = path.display().to_string();
    match &record.kind {
        Some(Kind::Header(header)) if header.format <= FORMAT => Ok(()),
        Some(Kind::Header(header)) => Err(JournalError::Newer {
            path,
            format: header.format,
        }),
        _ => Err(JournalError::Foreign { path }),
    }
}

/// A journal of another instance, and what could be read of it.
pub(super) struct Other {
    pub(super) path: PathBuf,
    /// Before it was read: nothing more was written.
    pub(super) is_dead: bool,
    pub(super) reading: Result<Reading, JournalError>,
}

/// What each of the others has written. A living instance takes over what a dead one wrote, and removes that file
/// then: a journal that was read before may be the one that has it now, so all are read again.
pub(super) fn read_others(dir: &Path, own: InstanceId) -> Result<Vec<Other>, JournalError> {
    'again: loop {
        let mut all = Vec::new();
        for path in others(dir, own)? {
            let is_dead = is_dead(&path);
            let reading = read(&path);
            if reading.is_err() && !path.exists() {
                continue 'again;
            }
            all.push(Other {
                path,
                is_dead,
                reading,
            });
        }
        return Ok(all);
    }
}

/// Journal files in the directory except this instance's own.
fn others(dir: &Path, own: InstanceId) -> Result<Vec<PathBuf>, JournalError> {
    let unreadable = |error: io::Error| JournalError::Read {
        path: dir.display().to_string(),
        reason: error.to_string(),
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        // `<instance>.new` is a file that was being written anew; its original is complete.
        if name.ends_with(".new") && is_dead(&path) {
            let _ = std::fs::remove_file(&path);
        } else if name
            .parse::<InstanceId>()
            .is_ok_and(|instance| instance != own)
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Whether nobody holds the file's lock.
pub(super) fn is_dead(path: &Path) -> bool {
    OpenOptions::new()
        .read(true)
        .open(path)
        .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
}

fn frame(record: &JournalRecord, into: &mut Vec<u8>) {
    let payload = record.encode_to_vec();
    into.extend_from_slice(
        &u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    into.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    into.extend_from_slice(&payload);
}

enum Job {
    Append {
        records: Vec<JournalRecord>,
        done: Option<oneshot::Sender<Result<(), JournalError>>>,
    },
    Compact {
        keep: Keep,
    },
}

/// From all records of a file, those that still matter.
pub(super) type Keep = Box<dyn FnOnce(Reading) -> Vec<JournalRecord> + Send>;

/// Owner of the writer thread.
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    grown: Arc<AtomicBool>,
}

/// Sends records to the writer thread.
#[derive(Clone)]
pub(super) struct Handle {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// Makes this instance's file with these first records, locked and synced.
    pub(super) fn create(
        path: &Path,
        header: JournalHeader,
        records: &[JournalRecord],
    ) -> Result<Self, JournalError> {
        let failed = |error: io::Error| write_error(path, &error);
        let (file, length) = write_whole(path, records).map_err(failed)?;
        let (jobs, queue) = mpsc::channel(RECORDS_WAITING_MAX);
        let grown = Arc::new(AtomicBool::new(false));
        let mut thread = WriterThread {
            path: path.to_owned(),
            file,
            length,
            length_when_new: length,
            header,
            grown: Arc::clone(&grown),
        };
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || thread.run(queue))
            .map_err(failed)?;
        Ok(Self { jobs, grown })
    }

    pub(super) fn handle(&self) -> Handle {
        Handle {
            jobs: self.jobs.clone(),
        }
    }

    pub(super) fn has_grown(&self) -> bool {
        self.grown.load(Ordering::Relaxed)
    }

    /// Writes the file anew with what still matters of it. The writer reads its own file for that, so
    /// nothing that was appended meanwhile can be missed.
    pub(super) fn compact(&self, keep: Keep) {
        // A full queue means that there is more important work; the next tidy asks again.
        let _ = self.jobs.try_send(Job::Compact { keep });
    }
}

impl Handle {
    /// Appends and returns after the sync that covers the records.
    pub(super) async fn append(&self, records: Vec<JournalRecord>) -> Result<(), JournalError> {
        let (done, outcome) = oneshot::channel();
        let job = Job::Append {
            records,
            done: Some(done),
        };
        self.jobs
            .send(job)
            .await
            .map_err(|_| JournalError::Closed)?;
        outcome.await.map_err(|_| JournalError::Closed)?
    }

    /// Appends with the next sync; losing it does no harm.
    pub(super) fn append_lazily(&self, record: JournalRecord) {
        let _ = self.jobs.try_send(Job::Append {
            records: vec![record],
            done: None,
        });
    }
}

struct WriterThread {
    path: PathBuf,
    file: File,
    length: u64,
    length_when_new: u64,
    header: JournalHeader,
    grown: Arc<AtomicBool>,
}

impl WriterThread {
    fn run(&mut self, mut queue: mpsc::Receiver<Job>) {
        let mut pending: Option<Job> = None;
        loop {
            let first = match pending.take() {
                Some(job) => job,
                None => match queue.blocking_recv() {
                    Some(job) => job,
                    None => return,
                },
            };
            match first {
                Job::Compact { keep } => self.compact(keep),
                Job::Append { records, done } => {
                    let mut bytes = Vec::new();
                    let mut waiting = Vec::new();
                    records.iter().for_each(|record| frame(record, &mut bytes));
                    waiting.extend(done);
                    // Everything that waits shares one write and one sync.
                    loop {
                        match queue.try_recv() {
                            Ok(Job::Append { records, done }) => {
                                records.iter().for_each(|record| frame(record, &mut bytes));
                                waiting.extend(done);
                            }
                            Ok(other) => {
                                pending = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    // What nobody waits for is synced with what somebody will.
                    let outcome = self.append(&bytes, !waiting.is_empty());
                    for done in waiting {
                        // A task that has gone away does not want to know.
                        let _ = done.send(outcome.clone());
                    }
                }
            }
        }
    }

    fn append(&mut self, bytes: &[u8], sync: bool) -> Result<(), JournalError> {
        let written = self
            .file
            .write_all(bytes)
            .and_then(|()| if sync { self.sync() } else { Ok(()) });
        match written {
            Ok(()) => {
                self.length += bytes.len() as u64;
                self.grown.store(
                    self.length > self.length_when_new + GROWN_BYTES,
                    Ordering::Relaxed,
                );
                Ok(())
            }
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "journal could not be written");
                // Half a record must not be followed by a whole one.
                if let Err(error) = self.file.set_len(self.length) {
                    tracing::error!(path = %self.path.display(), %error, "journal could not be cut back");
                }
                Err(write_error(&self.path, &error))
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        if planted::is(Defect::JournalUnsynced) {
            return Ok(());
        }
        self.file.sync_data()
    }

    fn compact(&mut self, keep: Keep) {
        let reading = match read(&self.path) {
            Ok(reading) => reading,
            Err(error) => {
                tracing::warn!(%error, "journal could not be read to write it anew");
                return;
            }
        };
        if reading.torn {
            tracing::error!(path = %self.path.display(), "journal is damaged; it is not written anew");
            self.length_when_new = self.length;
            self.grown.store(false, Ordering::Relaxed);
            return;
        }
        let mut all = vec![JournalRecord {
            kind: Some(Kind::Header(self.header.clone())),
        }];
        all.extend(keep(reading));
        let mut beside = self.path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let done = write_whole(&beside, &all).and_then(|(file, length)| {
            std::fs::rename(&beside, &self.path)?;
            Ok((file, length))
        });
        match done {
            Ok((file, length)) => {
                // From the rename on this is the journal, whatever comes after.
                self.file = file;
                self.length = length;
                if let Err(error) = fairlead_daemon::files::sync_parent(&self.path) {
                    tracing::warn!(path = %self.path.display(), %error, "journal's directory could not be synced");
                }
                self.length_when_new = length;
                self.grown.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "journal could not be written anew");
                let _ = std::fs::remove_file(&beside);
            }
        }
    }
}

fn write_error(path: &Path, error: &io::Error) -> JournalError {
    JournalError::Write {
        path: path.display().to_string(),
        reason: error.to_string(),
    }
}

/// A new file with these records: locked, written, synced, its directory entry synced.
fn write_whole(path: &Path, records: &[JournalRecord]) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .append(true)
        .read(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    file.set_len(0)?;
    let mut bytes = Vec::new();
    for record in records {
        frame(record, &mut bytes);
    }
    file.write_all(&bytes)?;
    file.sync_all()?;
    fairlead_daemon::files::sync_parent(path)?;
    Ok((file, bytes.len() as u64))
}
