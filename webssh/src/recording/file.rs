//! Recordings as files of one directory: written as they happen, listed, read, cleared away.
//!
//! A recording that cannot be written ends its session: no recorder, no shell. What they take of the disk is
//! bounded: each of them, and all together (the oldest go first), and some of the disk is never touched,
//! because the server's own store lies on it too.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fairlead_protocol::{CommandId, FrozenRecording};

use super::{ARRIVING, EXTENSION, Header, Writer};

/// Lines are written when so much waits, or when a moment has passed.
pub const WRITE_AT_BYTES: usize = 64 * 1024;
/// A recording that grows beyond this ends its session.
pub const RECORDING_BYTES_MAX: u64 = 1 << 30;
/// A header is never longer.
const HEADER_BYTES_MAX: u64 = 8 * 1024;
/// Recordings that one listing reads.
pub const LISTED_MAX: usize = 1000;

/// Recordings leave so much of the disk free.
const LEFT_FREE_BYTES: u64 = 512 << 20;
/// How often, in bytes written, it is looked whether so much is free.
const LOOK_EVERY_BYTES: u64 = 8 << 20;

/// Where recordings lie.
#[derive(Debug, Clone)]
pub struct Recordings {
    pub(super) dir: PathBuf,
    /// All together, beyond which the oldest are removed.
    max_bytes: u64,
    pub(super) used: Arc<AtomicU64>,
}

/// One recording, as listed.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its header.
    pub header: Header,
    /// Its size.
    pub bytes: u64,
}

/// A recording that is being made.
#[derive(Debug)]
pub struct Recorder {
    writer: Option<Writer>,
    file: Arc<File>,
    path: PathBuf,
    written: u64,
    /// Whether the disk has room is looked at again when so much is written.
    look_at: u64,
    used: Arc<AtomicU64>,
}

impl Recordings {
    /// Recordings below that directory, which is made if need be; only its owner can enter it. Together they
    /// are not to take more than `max_bytes`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path, max_bytes: u64) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        let mut used = 0;
        for entry in std::fs::read_dir(dir)? {
            used += entry?.metadata()?.len();
        }
        Ok(Self {
            dir: dir.to_owned(),
            max_bytes,
            used: Arc::new(AtomicU64::new(used)),
        })
    }

    /// Whether they take more of the disk than they are to.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.max_bytes
    }

    pub(super) fn path(&self, session: CommandId) -> PathBuf {
        self.dir.join(format!("{session}.{EXTENSION}"))
    }

    pub(super) fn path_arriving(&self, session: CommandId) -> PathBuf {
        self.dir.join(format!("{session}.{ARRIVING}"))
    }

    /// Begins a recording; its header is on the disk when this returns.
    ///
    /// # Errors
    /// When that is not possible: then there is no terminal either.
    pub async fn begin(
        &self,
        session: CommandId,
        header: Header,
        now_us: i64,
    ) -> io::Result<Recorder> {
        if self.is_full() {
            return Err(io::Error::other(
                "recordings take all the room that they may have",
            ));
        }
        let path = self.path(session);
        let to_make = path.clone();
        let file = blocking(move || {
            File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(to_make)
        })
        .await?;
        let mut recorder = Recorder {
            writer: Some(Writer::new(&header, now_us)),
            file: Arc::new(file),
            path,
            written: 0,
            look_at: 0,
            used: Arc::clone(&self.used),
        };
        if let Err(error) = recorder.flush(now_us).await {
            recorder.discard().await;
            return Err(error);
        }
        Ok(recorder)
    }

    /// Goes on with one that was frozen.
    ///
    /// # Errors
    /// When it is not as it was then.
    pub async fn thaw(&self, session: CommandId, frozen: &FrozenRecording) -> io::Result<Recorder> {
        let path = self.path(session);
        let not_it = || io::Error::other("the recording is not as it was");
        let writer = Writer::thawed(frozen).ok_or_else(not_it)?;
        let (to_open, length) = (path.clone(), frozen.length);
        let file = blocking(move || {
            let file = File::options()
                .append(true)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                .open(to_open)?;
            if file.metadata()?.len() == length {
                Ok(file)
            } else {
                Err(not_it())
            }
        })
        .await?;
        Ok(Recorder {
            writer: Some(writer),
            file: Arc::new(file),
            path,
            written: frozen.length,
            look_at: frozen.length,
            used: Arc::clone(&self.used),
        })
    }

    /// A recording, whole or as far as it is; `None` when there is none of that session.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self, session: CommandId) -> io::Result<Option<File>> {
        let paths = [self.path(session), self.path_arriving(session)];
        blocking(move || {
            for path in paths {
                match File::open(path) {
                    Ok(file) => return Ok(Some(file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(None)
        })
        .await
    }

    /// What a recording's first line says; `None` when there is none of that session.
    ///
    /// # Errors
    /// When it cannot be looked for.
    pub async fn header(&self, session: CommandId) -> io::Result<Option<Header>> {
        let paths = [self.path(session), self.path_arriving(session)];
        blocking(move || {
            let found = paths.iter().find_map(|path| look(path));
            Ok(found.map(|listed| listed.header))
        })
        .await
    }

    /// The newest of the recordings that began within these seconds since 1970.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn list(&self, began: RangeInclusive<i64>) -> io::Result<Vec<Listed>> {
        let dir = self.dir.clone();
        blocking(move || {
            let mut found: Vec<Listed> = std::fs::read_dir(dir)?
                .flatten()
                .filter(|entry| is_recording(&entry.path()))
                .filter_map(|entry| look(&entry.path()))
                .filter(|listed| began.contains(&listed.header.timestamp))
                .collect();
            found.sort_unstable_by_key(|listed| std::cmp::Reverse(listed.header.timestamp));
            found.truncate(LISTED_MAX);
            Ok(found)
        })
        .await
    }

    /// Removes those that began before that moment, and of the others the oldest while all together take
    /// more than they may; never one of `open`. Those that were removed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn tidy(&self, before_s: i64, open: HashSet<CommandId>) -> io::Result<Vec<Listed>> {
        let all = self.clone();
        blocking(move || {
            let open: HashSet<PathBuf> = open
                .into_iter()
                .flat_map(|session| [all.path(session), all.path_arriving(session)])
                .collect();
            let mut found: Vec<(PathBuf, Listed)> = std::fs::read_dir(&all.dir)?
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| is_recording(path))
                .filter(|path| !open.contains(path))
                .filter_map(|path| look(&path).map(|listed| (path, listed)))
                .collect();
            found.sort_unstable_by_key(|(_, listed)| listed.header.timestamp);
            let mut gone = Vec::new();
            for (path, listed) in found {
                if listed.header.timestamp >= before_s && !all.is_full() {
                    break;
                }
                std::fs::remove_file(path)?;
                take_off(&all.used, listed.bytes);
                gone.push(listed);
            }
            Ok(gone)
        })
        .await
    }
}

fn is_recording(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == EXTENSION || extension == ARRIVING)
}

pub(super) fn take_off(used: &AtomicU64, bytes: u64) {
    let less = |used: u64| Some(used.saturating_sub(bytes));
    // It always has a next value.
    let _ = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// An error when writing on would leave too little of the disk free.
pub(super) fn leaves_room(file: &File) -> io::Result<()> {
    let disk = rustix::fs::fstatvfs(file)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < LEFT_FREE_BYTES {
        return Err(io::Error::other("too little of the disk is free"));
    }
    Ok(())
}

pub(super) fn look(path: &Path) -> Option<Listed> {
    let file = File::open(path).ok()?;
    let bytes = file.metadata().ok()?.len();
    let mut line = String::new();
    BufReader::new(file.take(HEADER_BYTES_MAX))
        .read_line(&mut line)
        .ok()?;
    let header = serde_json::from_str(&line).ok()?;
    Some(Listed { header, bytes })
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

impl Recorder {
    /// Output came; written when enough waits.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn output(&mut self, now_us: i64, bytes: &[u8]) -> io::Result<()> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        writer.output(now_us, bytes);
        if writer.waiting() >= WRITE_AT_BYTES {
            self.flush(now_us).await?;
        }
        Ok(())
    }

    /// The terminal has another size.
    pub fn resized(&mut self, now_us: i64, columns: u16, rows: u16) {
        if let Some(writer) = &mut self.writer {
            writer.resized(now_us, columns, rows);
        }
    }

    /// Whether something waits to be written.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.writer.as_ref().is_some_and(|w| w.waiting() > 0)
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn flush(&mut self, now_us: i64) -> io::Result<()> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let text = writer.take(now_us);
        self.write(text, false).await
    }

    /// All of it is on the disk, and goes on from there in the server's next process.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn freeze(&mut self, now_us: i64) -> io::Result<FrozenRecording> {
        self.flush(now_us).await?;
        let file = Arc::clone(&self.file);
        blocking(move || file.sync_all()).await?;
        let writer = self.writer.as_ref();
        let frozen = writer.map(|writer| writer.frozen(self.written));
        frozen.ok_or_else(|| io::Error::other("the recording has ended"))
    }

    /// Ends the recording, synced; the hash over all its lines.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn end(&mut self, now_us: i64) -> io::Result<String> {
        let Some(writer) = self.writer.take() else {
            return Ok(String::new());
        };
        let (text, hash) = writer.end(now_us);
        self.write(text, true).await?;
        Ok(hash)
    }

    /// Removes it: its terminal was never begun.
    pub async fn discard(self) {
        take_off(&self.used, self.written);
        let path = self.path;
        if let Err(error) = blocking(move || std::fs::remove_file(path)).await {
            tracing::warn!(%error, "the recording of a terminal that was not begun is left");
        }
    }

    async fn write(&mut self, text: String, sync: bool) -> io::Result<()> {
        let length = text.len() as u64;
        if self.written + length > RECORDING_BYTES_MAX && !sync {
            return Err(io::Error::other("the recording has become too large"));
        }
        let look = self.written >= self.look_at && !sync;
        if look {
            self.look_at = self.written + LOOK_EVERY_BYTES;
        }
        let file = Arc::clone(&self.file);
        blocking(move || {
            if look {
                leaves_room(&file)?;
            }
            (&*file).write_all(text.as_bytes())?;
            if sync { file.sync_all() } else { Ok(()) }
        })
        .await?;
        self.written += length;
        self.used.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{About, verify};
    use super::*;

    const ID: CommandId = CommandId::from_bytes([7; 16]);

    fn header(timestamp: i64) -> Header {
        Header {
            version: 2,
            width: 80,
            height: 25,
            timestamp,
            title: String::new(),
            fairlead: About::default(),
        }
    }

    #[tokio::test]
    async fn a_recording_is_written_listed_read_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let recordings = Recordings::open(&dir.path().join("recordings"), u64::MAX).unwrap();
        let mut recorder = recordings.begin(ID, header(5), 0).await.unwrap();
        recorder.output(10, b"hello").await.unwrap();
        assert!(recorder.is_waiting());
        recorder.flush(20).await.unwrap();
        assert_eq!(recordings.list(5..=5).await.unwrap()[0].header, header(5));
        assert!(recordings.list(6..=9).await.unwrap().is_empty());
        assert!(recordings.list(0..=4).await.unwrap().is_empty());
        assert!(
            recordings.begin(ID, header(5), 0).await.is_err(),
            "no recording is written over"
        );
        let hash = recorder.end(30).await.unwrap();
        let mut text = String::new();
        let mut file = recordings.read(ID).await.unwrap().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(verify(&text), Ok((header(5), hash)));
        let none = HashSet::new;
        assert!(recordings.tidy(5, none()).await.unwrap().is_empty());
        let open = HashSet::from([ID]);
        assert!(recordings.tidy(6, open).await.unwrap().is_empty());
        assert_eq!(recordings.tidy(6, none()).await.unwrap().len(), 1);
        assert!(recordings.read(ID).await.unwrap().is_none());
        assert_eq!(recordings.used.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn one_that_was_frozen_goes_on_in_the_same_chain_and_only_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let recordings = Recordings::open(dir.path(), u64::MAX).unwrap();
        let mut recorder = recordings.begin(ID, header(5), 0).await.unwrap();
        // The restart comes in the middle of a character.
        let (before, after) = "vorher: ü".as_bytes().split_at(9);
        recorder.output(10, before).await.unwrap();
        let frozen = recorder.freeze(20).await.unwrap();
        drop(recorder);
        let next = Recordings::open(dir.path(), u64::MAX).unwrap();
        let mut recorder = next.thaw(ID, &frozen).await.unwrap();
        recorder.output(30, after).await.unwrap();
        recorder.resized(35, 90, 30);
        let hash = recorder.end(40).await.unwrap();
        let text = std::fs::read_to_string(next.path(ID)).unwrap();
        assert_eq!(verify(&text), Ok((header(5), hash)));
        assert!(text.contains("vorher: ") && text.contains('ü'), "{text}");
        assert_eq!(next.used.load(Ordering::Relaxed), text.len() as u64);
        let refused = next.thaw(ID, &frozen).await.unwrap_err();
        assert!(refused.to_string().contains("as it was"), "{refused}");
    }

    #[tokio::test]
    async fn all_together_are_bounded_and_the_oldest_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let recordings = Recordings::open(dir.path(), 60_000).unwrap();
        let id = |n: u8| CommandId::from_bytes([n; 16]);
        for n in 1..=3 {
            let mut recorder = recordings.begin(id(n), header(n.into()), 0).await.unwrap();
            recorder.output(10, &[b'x'; 25_000]).await.unwrap();
            recorder.end(20).await.unwrap();
        }
        assert!(recordings.is_full());
        let refused = recordings.begin(id(4), header(4), 0).await.unwrap_err();
        assert!(refused.to_string().contains("room"), "{refused}");
        // What is counted is what lies there, also for the next process.
        let next = Recordings::open(dir.path(), 60_000).unwrap();
        let used = |of: &Recordings| of.used.load(Ordering::Relaxed);
        assert_eq!(used(&next), used(&recordings));
        let gone = recordings.tidy(0, HashSet::from([id(1)])).await.unwrap();
        assert_eq!(gone[0].header, header(2), "the first is still open");
        assert_eq!(gone.len(), 1);
        let recorder = recordings.begin(id(4), header(4), 0).await.unwrap();
        let before = used(&recordings);
        recorder.discard().await;
        assert!(used(&recordings) < before);
        assert!(recordings.read(id(4)).await.unwrap().is_none());
    }
}
