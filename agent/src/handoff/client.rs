//! The instance's end of the handoff socket: a line at a time, both ways, and connected again when the
//! supervisor has become another version of itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::shutdown::Shutdown;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::words::{FromSupervisor, ToSupervisor};

/// How often it says that it is there.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// A supervisor that is not there is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Words that wait, each way.
pub const WORDS_MAX: usize = 256;

/// What the link knows of its server, for the supervisor.
#[derive(Debug, Clone)]
pub struct LinkState(Arc<watch::Sender<Option<bool>>>);

impl Default for LinkState {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl LinkState {
    /// There is a link; whether its server lets another in beside it.
    pub fn up(&self, handoff: bool) {
        self.0.send_replace(Some(handoff));
    }

    /// There is none.
    pub fn down(&self) {
        self.0.send_replace(None);
    }
}

/// Carries words between the supervisor and this instance until shutdown.
pub async fn run(
    socket: PathBuf,
    link: LinkState,
    mut words: mpsc::Receiver<ToSupervisor>,
    heard: mpsc::Sender<FromSupervisor>,
    shutdown: Shutdown,
) {
    // What was not said whole is said again to the next.
    let mut unsaid: Option<ToSupervisor> = None;
    while !shutdown.is_cancelled() {
        let carried = tokio::select! {
            () = shutdown.cancelled() => return,
            carried = carry(&socket, &link, &mut words, &heard, &mut unsaid) => carried,
        };
        if let Err(error) = carried {
            tracing::debug!(%error, "the supervisor is not connected");
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn carry(
    socket: &PathBuf,
    link: &LinkState,
    words: &mut mpsc::Receiver<ToSupervisor>,
    heard: &mpsc::Sender<FromSupervisor>,
    unsaid: &mut Option<ToSupervisor>,
) -> std::io::Result<()> {
    let (reader, mut writer) = UnixStream::connect(socket).await?.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut beat = tokio::time::interval(BEAT_EVERY);
    let mut state = link.0.subscribe();
    if let Some(word) = unsaid {
        say(&mut writer, word).await?;
        *unsaid = None;
    }
    loop {
        tokio::select! {
            biased;
            word = words.recv() => {
                let Some(word) = word else { return Ok(()) };
                *unsaid = Some(word.clone());
                say(&mut writer, &word).await?;
                *unsaid = None;
            }
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                match serde_json::from_str(&line) {
                    Ok(word) => if heard.send(word).await.is_err() {
                        return Ok(());
                    },
                    Err(error) => tracing::warn!(%error, "the supervisor said something that is not known"),
                }
            }
            // Its sender is held here: it does not go.
            Ok(()) = state.changed() => beat.reset_immediately(),
            _ = beat.tick() => {
                let handoff = *state.borrow_and_update();
                say(&mut writer, &ToSupervisor::Alive { handoff }).await?;
            }
        }
    }
}

async fn say(
    writer: &mut tokio::net::unix::OwnedWriteHalf,
    word: &ToSupervisor,
) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
