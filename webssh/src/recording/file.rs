//! Recordings as files of one directory: written as they happen, listed, read, cleared away.
//!
//! A recording that cannot be written ends its session: no recorder, no shell.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairlead_protocol::CommandId;

use super::{EXTENSION, Header, Writer};

/// Lines are written when so much waits, or when a moment has passed.
pub const WRITE_AT_BYTES: usize = 64 * 1024;
/// A recording that grows beyond this ends its session.
pub const RECORDING_BYTES_MAX: u64 = 1 << 30;
/// A header is never longer.
const HEADER_BYTES_MAX: u64 = 8 * 1024;
/// Recordings that one listing reads.
pub const LISTED_MAX: usize = 1000;

/// Where recordings lie.
#[derive(Debug, Clone)]
pub struct Recordings {
    dir: PathBuf,
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
    written: u64,
}

impl Recordings {
    /// Recordings below that directory, which is made if need be; only its owner can enter it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    fn path(&self, session: CommandId) -> PathBuf {
        self.dir.join(format!("{session}.{EXTENSION}"))
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
        let path = self.path(session);
        let file = blocking(move || {
            File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        })
        .await?;
        let mut recorder = Recorder {
            writer: Some(Writer::new(&header, now_us)),
            file: Arc::new(file),
            written: 0,
        };
        recorder.flush(now_us).await?;
        Ok(recorder)
    }

    /// A recording, whole or as far as it is; `None` when there is none of that session.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self, session: CommandId) -> io::Result<Option<File>> {
        let path = self.path(session);
        let opened = blocking(move || File::open(path)).await;
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a recording's first line says; `None` when there is none of that session.
    ///
    /// # Errors
    /// When it cannot be looked for.
    pub async fn header(&self, session: CommandId) -> io::Result<Option<Header>> {
        let path = self.path(session);
        blocking(move || Ok(look(&path).map(|listed| listed.header))).await
    }

    /// The newest recordings.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn list(&self) -> io::Result<Vec<Listed>> {
        let dir = self.dir.clone();
        blocking(move || {
            let mut found: Vec<Listed> = std::fs::read_dir(dir)?
                .flatten()
                .filter(|entry| entry.path().extension().is_some_and(|e| e == EXTENSION))
                .filter_map(|entry| look(&entry.path()))
                .collect();
            found.sort_unstable_by_key(|listed| std::cmp::Reverse(listed.header.timestamp));
            found.truncate(LISTED_MAX);
            Ok(found)
        })
        .await
    }

    /// Removes recordings that began before that moment; how many.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn forget_before(&self, at_s: i64) -> io::Result<usize> {
        let dir = self.dir.clone();
        blocking(move || {
            let mut gone = 0;
            for entry in std::fs::read_dir(dir)?.flatten() {
                let path = entry.path();
                let old = path.extension().is_some_and(|e| e == EXTENSION)
                    && look(&path).is_some_and(|listed| listed.header.timestamp < at_s);
                if old {
                    std::fs::remove_file(path)?;
                    gone += 1;
                }
            }
            Ok(gone)
        })
        .await
    }
}

fn look(path: &Path) -> Option<Listed> {
    let file = File::open(path).ok()?;
    let bytes = file.metadata().ok()?.len();
    let mut line = String::new();
    BufReader::new(file.take(HEADER_BYTES_MAX))
        .read_line(&mut line)
        .ok()?;
    let header = serde_json::from_str(&line).ok()?;
    Some(Listed { header, bytes })
}

async fn blocking<T: Send + 'static>(
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

    async fn write(&mut self, text: String, sync: bool) -> io::Result<()> {
        self.written += text.len() as u64;
        if self.written > RECORDING_BYTES_MAX && !sync {
            return Err(io::Error::other("the recording has become too large"));
        }
        let file = Arc::clone(&self.file);
        blocking(move || {
            (&*file).write_all(text.as_bytes())?;
            if sync { file.sync_all() } else { Ok(()) }
        })
        .await
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
        let recordings = Recordings::open(&dir.path().join("recordings")).unwrap();
        let mut recorder = recordings.begin(ID, header(5), 0).await.unwrap();
        recorder.output(10, b"hello").await.unwrap();
        assert!(recorder.is_waiting());
        recorder.flush(20).await.unwrap();
        assert_eq!(recordings.list().await.unwrap()[0].header, header(5));
        assert!(
            recordings.begin(ID, header(5), 0).await.is_err(),
            "no recording is written over"
        );
        let hash = recorder.end(30).await.unwrap();
        let mut text = String::new();
        let mut file = recordings.read(ID).await.unwrap().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(verify(&text), Ok((header(5), hash)));
        assert_eq!(recordings.forget_before(5).await.unwrap(), 0);
        assert_eq!(recordings.forget_before(6).await.unwrap(), 1);
        assert!(recordings.read(ID).await.unwrap().is_none());
    }
}
