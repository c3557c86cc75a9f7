//! Files of packages over a stream's socket, both ends. Who asks names a package by its manifest's hash, a file in
//! it, and the byte to go on from; so a download that broke off is resumed at any server that has the package.
//!
//! Nothing here says that a file is to be believed: whoever gets it checks it. May use: the socket, and the open
//! file that it is given.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use fairlead_protocol::stream::{Channel, frame, parse};
use fairlead_protocol::{Message, PackageAsk, limits};
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::socket::{SocketError, StreamSocket};

/// A side that takes or gives nothing for so long is left.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// The server may have to get the file itself first.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// Longest name of a file.
const NAME_CHARS_MAX: usize = 128;
/// Of a refusal's words, what is believed.
const WORDS_MAX: usize = 400;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The manifest's hash.
    pub manifest: [u8; 32],
    /// The file's name.
    pub file: String,
    /// From this byte on.
    pub offset: u64,
}

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server said no.
    #[error("{message} ({code})")]
    Refused {
        /// Stable.
        code: String,
        /// In words.
        message: String,
    },
    /// The connection ended.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It ended before the file did.
    #[error("the file broke off")]
    BrokeOff,
    /// It is larger than it may be.
    #[error("the file has {size} bytes, and {max} are expected at most")]
    TooLarge {
        /// Its size.
        size: u64,
        /// What was expected.
        max: u64,
    },
    /// It cannot be written here.
    #[error("the file cannot be written: {0}")]
    Disk(#[from] io::Error),
}

/// What the other side asks for; `None` when it does not say, or says what cannot be meant.
pub async fn asked(socket: &mut StreamSocket) -> Option<Wanted> {
    let first = tokio::time::timeout(limits::HELLO_TIMEOUT, socket.hear()).await;
    let ask = PackageAsk::decode(first.ok()?.ok()??).ok()?;
    let manifest = ask.manifest[..].try_into().ok()?;
    (ask.file.len() <= NAME_CHARS_MAX).then_some(Wanted {
        manifest,
        file: ask.file,
        offset: ask.offset,
    })
}

/// Sends a file from a byte on.
///
/// # Errors
/// When it cannot be read, or is not taken.
pub async fn give(
    socket: &mut StreamSocket,
    mut file: File,
    size: u64,
    offset: u64,
) -> Result<(), FetchError> {
    let begun = json!({ "size": size }).to_string();
    say(socket, frame(Channel::Begun, begun.as_bytes())).await?;
    file.seek(io::SeekFrom::Start(offset)).await?;
    let mut left = size.saturating_sub(offset);
    let mut chunk = vec![0; limits::STREAM_CHUNK_BYTES];
    while left > 0 {
        let most = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
        let read = file.read(&mut chunk[..most]).await?;
        if read == 0 {
            break;
        }
        left -= read as u64;
        say(socket, frame(Channel::Output, &chunk[..read])).await?;
    }
    end(socket, "", "").await
}

/// Says no.
pub async fn refuse(socket: &mut StreamSocket, code: &str, message: &str) {
    // Whether it is heard is the other side's affair.
    let _ = end(socket, code, message).await;
}

async fn end(socket: &mut StreamSocket, code: &str, message: &str) -> Result<(), FetchError> {
    let text = json!({ "code": code, "message": message }).to_string();
    say(socket, frame(Channel::End, text.as_bytes())).await?;
    socket.close().await;
    Ok(())
}

async fn say(socket: &mut StreamSocket, frame: Bytes) -> Result<(), FetchError> {
    match tokio::time::timeout(STALLED_AFTER, socket.send(frame)).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(SocketError::Stuck.into()),
    }
}

/// Asks for a file and writes what comes behind what `to` holds already. Its whole size, once all has come.
///
/// # Errors
/// When it did not come whole; what has come is kept.
pub async fn fetch(
    socket: &mut StreamSocket,
    wanted: &Wanted,
    max: u64,
    to: &mut File,
) -> Result<u64, FetchError> {
    let fetched = write_all(socket, wanted, max, to).await;
    // What is still on its way to the disk must be there before anybody looks how much of the file there is.
    to.flush().await?;
    fetched
}

async fn write_all(
    socket: &mut StreamSocket,
    wanted: &Wanted,
    max: u64,
    to: &mut File,
) -> Result<u64, FetchError> {
    let ask = PackageAsk {
        manifest: Bytes::copy_from_slice(&wanted.manifest),
        file: wanted.file.clone(),
        offset: wanted.offset,
    };
    say(socket, ask.encode_to_vec().into()).await?;
    let mut have = wanted.offset;
    let mut size = None;
    let mut patience = PATIENCE;
    loop {
        let heard = tokio::time::timeout(patience, socket.hear()).await;
        let frame = heard.map_err(|_| SocketError::Silent)??;
        patience = STALLED_AFTER;
        match frame.and_then(parse) {
            Some((Channel::Begun, text)) => {
                let said = serde_json::from_slice::<Value>(&text).unwrap_or_default();
                let told = said["size"].as_u64().unwrap_or(u64::MAX);
                if told > max {
                    return Err(FetchError::TooLarge { size: told, max });
                }
                size = Some(told);
            }
            Some((Channel::Output, bytes)) if size.is_some() => {
                have += bytes.len() as u64;
                if have > max {
                    return Err(FetchError::TooLarge { size: have, max });
                }
                to.write_all(&bytes).await?;
            }
            Some((Channel::End, text)) => {
                return ended(&text, size, have);
            }
            _ => return Err(FetchError::BrokeOff),
        }
    }
}

fn ended(text: &[u8], size: Option<u64>, have: u64) -> Result<u64, FetchError> {
    let said = serde_json::from_slice::<Value>(text).unwrap_or_default();
    let words = |key: &str| -> String {
        let text = said[key].as_str().unwrap_or_default().chars();
        text.filter(|c| !c.is_control()).take(WORDS_MAX).collect()
    };
    let code = words("code");
    if !code.is_empty() {
        let message = words("message");
        return Err(FetchError::Refused { code, message });
    }
    size.filter(|size| *size == have)
        .ok_or(FetchError::BrokeOff)
}
