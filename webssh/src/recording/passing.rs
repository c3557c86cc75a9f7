//! Recordings on their way from the server that made them to the one that keeps them: read in pieces here,
//! put together and looked through there.
//!
//! A piece is whole lines, and where it begins is said with it: what is there already is not taken twice, and
//! nothing is left out. What arrives is a peer's word: it is text without control characters, it names the
//! session as whose it came, and it takes no more of the disk than any other recording. Whether it is what was
//! recorded shows in its own hashes, when it is whole.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use fairlead_protocol::CommandId;

use super::file::{RECORDING_BYTES_MAX, Recordings, blocking, leaves_room, look, take_off};
use super::{About, Broken, EXTENSION, Header, Verification, steers};

/// A piece is not larger; no line is.
pub const PIECE_BYTES: usize = 256 * 1024;
/// One that arrives may be so much larger than where recording ends.
const SLACK_BYTES: u64 = 1 << 20;

/// A piece of a recording.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Whole lines.
    pub data: Vec<u8>,
    /// Nothing that is a line comes after it so far.
    pub is_last: bool,
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// So many bytes are here.
    Have(u64),
    /// It was whole before.
    Done,
}

/// Why a piece is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It is not one of that session's, or no recording at all.
    #[error("{0}")]
    Wrong(&'static str),
    /// It cannot be kept now.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

impl Recordings {
    /// Those that lie here, in no order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn made_here(&self) -> io::Result<Vec<CommandId>> {
        let dir = self.dir.clone();
        blocking(move || {
            let entries = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path());
            Ok(entries
                .filter(|path| path.extension().is_some_and(|e| e == EXTENSION))
                .filter_map(|path| path.file_stem()?.to_str()?.parse().ok())
                .collect())
        })
        .await
    }

    /// The lines from that byte on, as many as a piece holds.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn piece(&self, session: CommandId, from: u64) -> io::Result<Piece> {
        let path = self.path(session);
        blocking(move || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut data = Vec::new();
            file.take(PIECE_BYTES as u64).read_to_end(&mut data)?;
            let was_all = data.len() < PIECE_BYTES;
            let lines = data
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            data.truncate(lines);
            // What is larger than a piece and has no end is no line of ours.
            let is_last = was_all || data.is_empty();
            Ok(Piece { data, is_last })
        })
        .await
    }

    /// Removes one: it is kept elsewhere.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self, session: CommandId) -> io::Result<()> {
        let (path, all) = (self.path(session), self.clone());
        blocking(move || {
            let length = std::fs::metadata(&path)?.len();
            std::fs::remove_file(&path)?;
            take_off(&all.used, length);
            Ok(())
        })
        .await
    }

    /// Takes a piece of a recording that another server made of the session that `is_its` knows.
    ///
    /// # Errors
    /// When it is not taken.
    pub async fn arrives(
        &self,
        session: CommandId,
        offset: u64,
        data: Vec<u8>,
        is_its: impl Fn(&About) -> bool + Send + 'static,
    ) -> Result<Arrived, NotTaken> {
        if data.len() > PIECE_BYTES || !is_lines(&data) {
            return Err(NotTaken::Wrong("these are no lines of a recording"));
        }
        if self.is_full() {
            let full = "recordings take all the room that they may have";
            return Err(io::Error::other(full).into());
        }
        let all = self.clone();
        let taken = blocking(move || Ok(all.take(session, offset, &data, is_its)));
        taken.await?
    }

    fn take(
        &self,
        session: CommandId,
        offset: u64,
        data: &[u8],
        is_its: impl Fn(&About) -> bool,
    ) -> Result<Arrived, NotTaken> {
        if self.path(session).try_exists()? {
            return Ok(Arrived::Done);
        }
        let path = self.path_arriving(session);
        let mut have = length_of(&path)?;
        if offset != have || data.is_empty() {
            return Ok(Arrived::Have(have));
        }
        if have + data.len() as u64 > RECORDING_BYTES_MAX + SLACK_BYTES {
            return Err(NotTaken::Wrong("a recording is never so large"));
        }
        if have == 0 && !begins_as(data, is_its) {
            return Err(NotTaken::Wrong("its first line does not name this session"));
        }
        let mut file = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)?;
        let kept = leaves_room(&file)
            .and_then(|()| file.write_all(data))
            .and_then(|()| file.sync_data());
        if let Err(error) = kept {
            // Half a piece is none.
            file.set_len(have)?;
            if have == 0 {
                std::fs::remove_file(&path)?;
            }
            return Err(error.into());
        }
        have += data.len() as u64;
        self.used.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(Arrived::Have(have))
    }

    /// All of it is here: looks it through, and puts it among the others, whatever is found; so that what was
    /// tampered with can be looked at. Its header and size, and the last hash or what is wrong with it.
    ///
    /// # Errors
    /// When it cannot be read or put there.
    pub async fn has_arrived(
        &self,
        session: CommandId,
    ) -> io::Result<(Header, u64, Result<String, Broken>)> {
        let (from, to) = (self.path_arriving(session), self.path(session));
        blocking(move || {
            let listed = look(&from).ok_or_else(|| io::Error::other("it has no header"))?;
            let file = File::open(&from)?;
            let found = look_through(&file)?;
            file.sync_all()?;
            std::fs::rename(&from, &to)?;
            if let Some(dir) = to.parent() {
                File::open(dir)?.sync_all()?;
            }
            let found = found.map(|(_, hash)| hash);
            Ok((listed.header, listed.bytes, found))
        })
        .await
    }
}

fn length_of(path: &Path) -> io::Result<u64> {
    match std::fs::metadata(path) {
        Ok(file) => Ok(file.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Whole lines of text in which nothing steers a terminal.
fn is_lines(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    (text.is_empty() || text.ends_with('\n')) && !steers(text)
}

fn begins_as(data: &[u8], is_its: impl Fn(&About) -> bool) -> bool {
    let first = data.split(|byte| *byte == b'\n').next().unwrap_or_default();
    serde_json::from_slice::<Header>(first).is_ok_and(|header| is_its(&header.fairlead))
}

fn look_through(file: &File) -> io::Result<Result<(Header, String), Broken>> {
    let mut lines = BufReader::new(file);
    let mut verification = Verification::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut lines)
            .take(PIECE_BYTES as u64)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(verification.end());
        }
        let text = line.strip_suffix(b"\n").map(std::str::from_utf8);
        let Some(Ok(text)) = text else {
            return Ok(Err(verification.no_line()));
        };
        if let Err(broken) = verification.line(text) {
            return Ok(Err(broken));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::file::Recorder;

    const ID: CommandId = CommandId::from_bytes([7; 16]);

    fn header() -> Header {
        Header {
            version: 2,
            width: 80,
            height: 25,
            timestamp: 1,
            title: "vm/web".to_owned(),
            fairlead: About {
                session: ID.to_string(),
                ..About::default()
            },
        }
    }

    fn is_its(about: &About) -> bool {
        about.session == ID.to_string()
    }

    async fn recorded(at: &Recordings, bytes: usize) -> Recorder {
        let mut recorder = at.begin(ID, header(), 0).await.unwrap();
        for n in 0..bytes / 1000 {
            let output = [b'a' + (n % 26) as u8; 1000];
            recorder.output(n as i64, &output).await.unwrap();
        }
        recorder.flush(9).await.unwrap();
        recorder
    }

    /// All that is there so far, as the one server sends and the other takes it.
    async fn pass(from: &Recordings, to: &Recordings) -> u64 {
        let mut have = match to.arrives(ID, 0, Vec::new(), is_its).await.unwrap() {
            Arrived::Have(have) => have,
            Arrived::Done => panic!("it is not whole"),
        };
        loop {
            let piece = from.piece(ID, have).await.unwrap();
            match to.arrives(ID, have, piece.data, is_its).await.unwrap() {
                Arrived::Have(now) => have = now,
                Arrived::Done => panic!("it is not whole"),
            }
            if piece.is_last {
                return have;
            }
        }
    }

    fn both(dir: &Path) -> (Recordings, Recordings) {
        let open = |name: &str| Recordings::open(&dir.join(name), u64::MAX).unwrap();
        (open("region"), open("centre"))
    }

    #[tokio::test]
    async fn it_arrives_while_it_is_made_and_is_whole_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (region, centre) = both(dir.path());
        let mut recorder = recorded(&region, 700_000).await;
        let so_far = pass(&region, &centre).await;
        assert!(so_far > 700_000);
        assert_eq!(
            centre.list(0..=9).await.unwrap()[0].bytes,
            so_far,
            "it is listed"
        );
        assert!(centre.header(ID).await.unwrap().is_some());
        recorder.output(10, b"more").await.unwrap();
        let hash = recorder.end(11).await.unwrap();
        // The one that takes was restarted meanwhile.
        let centre = Recordings::open(&dir.path().join("centre"), u64::MAX).unwrap();
        let length = pass(&region, &centre).await;
        let (found, bytes, whole) = centre.has_arrived(ID).await.unwrap();
        assert_eq!((found, bytes, whole), (header(), length, Ok(hash)));
        let again = centre.arrives(ID, 0, Vec::new(), is_its).await.unwrap();
        assert_eq!(again, Arrived::Done, "said again when the answer was lost");
        assert_eq!(region.made_here().await.unwrap(), [ID]);
        region.remove(ID).await.unwrap();
        assert!(region.made_here().await.unwrap().is_empty());
        assert_eq!(region.used.load(Ordering::Relaxed), 0);
        assert_eq!(centre.used.load(Ordering::Relaxed), length);
    }

    #[tokio::test]
    async fn what_is_no_recording_of_that_session_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (region, centre) = both(dir.path());
        recorded(&region, 1000).await.end(5).await.unwrap();
        let good = region.piece(ID, 0).await.unwrap().data;
        let text = String::from_utf8(good.clone()).unwrap();
        for wrong in [
            text.replace(&ID.to_string(), "another").into_bytes(),
            text.replacen("\\u", "\x1b", 1)
                .replacen('a', "\x1b", 1)
                .into_bytes(),
            text.replacen('a', "\u{9b}", 1).into_bytes(),
            text.trim_end().as_bytes().to_vec(),
            vec![0xff; 10],
            vec![b'x'; PIECE_BYTES + 1],
        ] {
            let taken = centre.arrives(ID, 0, wrong, is_its).await;
            assert!(matches!(taken, Err(NotTaken::Wrong(_))), "{taken:?}");
        }
        // Nor is anything put in or left out.
        let taken = centre.arrives(ID, 5, good.clone(), is_its).await.unwrap();
        assert_eq!(taken, Arrived::Have(0));
        let length = good.len() as u64;
        for _ in 0..2 {
            let taken = centre.arrives(ID, 0, good.clone(), is_its).await.unwrap();
            assert_eq!(taken, Arrived::Have(length));
        }
    }

    #[tokio::test]
    async fn what_was_tampered_with_or_cut_off_shows_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (region, centre) = both(dir.path());
        recorded(&region, 30_000).await.end(5).await.unwrap();
        let text = String::from_utf8(region.piece(ID, 0).await.unwrap().data).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.remove(3);
        let tampered = lines.join("\n") + "\n";
        centre
            .arrives(ID, 0, tampered.into_bytes(), is_its)
            .await
            .unwrap();
        let (_, _, found) = centre.has_arrived(ID).await.unwrap();
        assert!(matches!(found, Err(Broken::Chain(_))), "{found:?}");
        assert_eq!(centre.list(0..=9).await.unwrap().len(), 1);

        let dir = tempfile::tempdir().unwrap();
        let (region, centre) = both(dir.path());
        drop(recorded(&region, 30_000).await);
        pass(&region, &centre).await;
        let (_, _, found) = centre.has_arrived(ID).await.unwrap();
        assert_eq!(found, Err(Broken::NoEnd));
    }

    #[tokio::test]
    async fn one_that_takes_all_its_room_takes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (region, _) = both(dir.path());
        recorded(&region, 30_000).await.end(5).await.unwrap();
        let small = Recordings::open(&dir.path().join("small"), 10).unwrap();
        let piece = region.piece(ID, 0).await.unwrap();
        small.arrives(ID, 0, piece.data, is_its).await.unwrap();
        let taken = small.arrives(ID, 0, Vec::new(), is_its).await;
        assert!(matches!(taken, Err(NotTaken::Disk(_))), "{taken:?}");
    }
}
