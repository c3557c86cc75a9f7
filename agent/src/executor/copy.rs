//! Copies between a container and a client's stream.
//!
//! An archive that comes in is kept in a file, checked against the signed digest, and only then unpacked by the
//! engine: a lost stream or an altered archive changes nothing. Over an orderly restart of a server both directions
//! are held (`terminal::line`). May use: the engine, and the spool folder of this instance.

use std::io;
use std::path::Path;

use bytes::Bytes;
use fairlead_identity::digest::Sha256;
use fairlead_link::socket::StreamSocket;
use fairlead_protocol::{CommandId, CopyIn, CopyOut, codes, limits};
use futures_util::StreamExt;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::attached::end;
use super::outcome::Outcome;
use super::terminal::line::{Again, Line, Sink, Source};
use super::terminal::{self, Seen};
use crate::runtime::{ContainerRuntime, Output, RuntimeError};

/// A path of a container, as a tar archive, to the stream.
pub(super) async fn run_out(
    runtime: &dyn ContainerRuntime,
    copy: &CopyOut,
    stream: Option<(StreamSocket, Again<'_>)>,
) -> Result<Outcome, RuntimeError> {
    let Some((stream, again)) = stream else {
        return Ok(needs_stream());
    };
    let archive = runtime.copy_out(&copy.container, &copy.path).await?;
    let pieces = archive.map(|piece| piece.map(Output::Stdout)).boxed();
    let mut line = Line::new(Source::Engine(pieces), Sink::Nothing, 0);
    let (mut sender, mut receiver) = stream.split();
    let on = (&mut sender, &mut receiver);
    let outcome = match terminal::see(&mut line, on, &again, std::future::pending()).await {
        Seen::Ended => Outcome::done(),
        Seen::Left(_) => Outcome::failed(
            codes::STREAM_LOST,
            "the reader left before the copy was whole",
        ),
        Seen::Failed(error) => return Err(error),
    };
    end((sender, receiver), &outcome).await;
    Ok(outcome)
}

/// Takes an archive in whole and unpacks it.
pub(super) async fn run_in(
    runtime: &dyn ContainerRuntime,
    id: CommandId,
    copy: &CopyIn,
    stream: Option<(StreamSocket, Again<'_>)>,
    spool: &Path,
) -> Result<Outcome, RuntimeError> {
    let Some((stream, again)) = stream else {
        return Ok(needs_stream());
    };
    if copy.size > limits::COPY_IN_BYTES_MAX {
        return Ok(Outcome::failed(
            codes::INVALID_REQUEST,
            format!(
                "an archive may have {} bytes at most",
                limits::COPY_IN_BYTES_MAX
            ),
        ));
    }
    let path = spool.join(format!("copy-{id}"));
    let (mut sender, mut receiver) = stream.split();
    let received = match File::create(&path).await {
        Ok(file) => {
            let (mut spooled, over) = Spooled::new(file, copy.size);
            let mut line = Line::new(over, Sink::File(&mut spooled), 0);
            let on = (&mut sender, &mut receiver);
            // How it went tells what was spooled.
            terminal::see(&mut line, on, &again, std::future::pending()).await;
            spooled.check(&copy.sha256).await
        }
        Err(error) => Err(cannot_keep(&error)),
    };
    let outcome = match received {
        Ok(()) => unpack(runtime, copy, &path).await,
        Err(outcome) => Ok(outcome),
    };
    // What is left over is removed at the next start as well.
    let _ = tokio::fs::remove_file(&path).await;
    let outcome = outcome.unwrap_or_else(Outcome::from);
    end((sender, receiver), &outcome).await;
    Ok(outcome)
}

fn cannot_keep(error: &io::Error) -> Outcome {
    Outcome::failed(
        codes::STORAGE_UNAVAILABLE,
        format!("the host cannot keep the archive: {error}; make room on its disk"),
    )
}

/// An archive on its way to the disk.
pub(super) struct Spooled {
    file: File,
    digest: Sha256,
    announced: u64,
    received: u64,
    is_more: bool,
    failed: Option<io::Error>,
    /// Dropped when all has come.
    unfinished: Option<oneshot::Sender<()>>,
}

impl Spooled {
    /// And what ends with it, in place of the output that it does not have.
    fn new(file: File, announced: u64) -> (Self, Source<'static>) {
        let (unfinished, over) = oneshot::channel();
        let over = futures_util::stream::once(over).filter_map(async |_| None);
        let spooled = Self {
            file,
            digest: Sha256::default(),
            announced,
            received: 0,
            is_more: false,
            failed: None,
            unfinished: Some(unfinished),
        };
        (spooled, Source::Engine(over.boxed()))
    }

    /// Some of it, and how much; nothing beyond what was announced. What is dropped before it returns has taken
    /// nothing.
    pub(super) async fn take(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.len() as u64 > self.announced.saturating_sub(self.received) {
            self.is_more = true;
            return Ok(0);
        }
        let some = match self.file.write(data).await {
            Ok(some) => some,
            Err(error) => return self.failed(error),
        };
        self.digest.update(&data[..some]);
        self.received += some as u64;
        Ok(some)
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        match self.file.flush().await {
            Ok(()) => Ok(()),
            Err(error) => self.failed(error),
        }
    }

    fn failed<T>(&mut self, error: io::Error) -> io::Result<T> {
        let kind = error.kind();
        self.failed.get_or_insert(error);
        Err(kind.into())
    }

    /// The client sends nothing more.
    pub(super) fn end(&mut self) {
        self.unfinished = None;
    }

    /// Whether it is all there, and what was signed.
    async fn check(mut self, sha256: &[u8]) -> Result<(), Outcome> {
        let _ = self.flush().await;
        let lost = |reason: &str| {
            Err(Outcome::failed(
                codes::STREAM_LOST,
                format!("{reason}; nothing was copied"),
            ))
        };
        if let Some(error) = self.failed {
            return Err(cannot_keep(&error));
        }
        if self.is_more {
            return lost("more came than was announced");
        }
        if self.unfinished.is_some() {
            return lost("the sender left before the end");
        }
        if self.received == self.announced && self.digest.finish()[..] == *sha256 {
            return Ok(());
        }
        Err(Outcome::failed(
            codes::DIGEST_MISMATCH,
            "what arrived is not what was signed; nothing was copied",
        ))
    }
}

async fn unpack(
    runtime: &dyn ContainerRuntime,
    copy: &CopyIn,
    path: &Path,
) -> Result<Outcome, RuntimeError> {
    let file = File::open(path)
        .await
        .map_err(|error| RuntimeError::Engine(format!("the archive is gone: {error}")))?;
    let archive = futures_util::stream::unfold(file, |mut file| async move {
        let mut chunk = vec![0; limits::STREAM_CHUNK_BYTES];
        match file.read(&mut chunk).await {
            Ok(0) => None,
            Ok(read) => {
                chunk.truncate(read);
                Some((Ok(Bytes::from(chunk)), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    runtime
        .copy_in(&copy.container, &copy.path, archive.boxed())
        .await?;
    Ok(Outcome::done())
}

fn needs_stream() -> Outcome {
    Outcome::failed(
        codes::STREAM_NOT_ATTACHED,
        "a copy needs a stream, and none was attached",
    )
}
