//! A finished WebSocket that carries one kind of message each way.
//!
//! The buffers are small on purpose: tungstenite allocates its read buffer eagerly and never gives a
//! grown one back, and there are tens of thousands of links. A peer that does not read is cut after
//! [`WRITE_TIMEOUT`], because nothing here waits for ever.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use fairlead_identity::Identity;
use futures_util::{FutureExt, SinkExt, StreamExt};
use prost::Message;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, error::ProtocolError, protocol::WebSocketConfig};

/// A peer that takes nothing for so long is cut.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a goodbye may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Eagerly allocated per connection.
const READ_BUFFER_BYTES: usize = 512;
/// Beyond the largest message: room for one that waits while another is written.
const WRITE_BUFFER_SLACK: usize = 2;

/// Buffer sizes for a connection whose messages are at most so large.
#[must_use]
pub fn config(message_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(message_bytes_max * WRITE_BUFFER_SLACK + 1024)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max))
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The peer closed it, in order.
    #[error("the peer closed the connection")]
    Closed,
    /// It ended without a word of the peer's.
    #[error("the connection was cut: the other end has died, or something on the way ended it")]
    Cut,
    /// It broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The peer sent something that it must not send.
    #[error("the peer broke the protocol: {0}")]
    Violation(String),
    /// The peer takes nothing.
    #[error("the peer has taken nothing for {WRITE_TIMEOUT:?}")]
    Stuck,
    /// The peer said nothing for too long.
    #[error("the peer has been silent for too long")]
    Silent,
}

impl From<tungstenite::Error> for SocketError {
    fn from(error: tungstenite::Error) -> Self {
        use tungstenite::Error as E;
        match error {
            E::ConnectionClosed | E::AlreadyClosed => Self::Closed,
            E::Io(error) if is_cut(&error) => Self::Cut,
            E::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Self::Cut,
            E::Protocol(violation) => Self::Violation(violation.to_string()),
            E::Capacity(excess) => Self::Violation(excess.to_string()),
            other => Self::Broken(other.to_string()),
        }
    }
}

/// Whether that says only that the connection has ended, in the words of TLS or of the system.
pub(crate) fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe
    )
}

/// What was heard.
#[derive(Debug)]
pub enum Heard<T> {
    /// A message.
    Message(T),
    /// A sign of life (ping or pong).
    Life,
}

/// The raw stream under every connection.
pub type Raw = WebSocketStream<TlsStream<TcpStream>>;

/// A finished WebSocket: sends `Out`, hears `In`.
pub struct Socket<Out, In> {
    raw: Raw,
    /// Where the peer is.
    pub remote: Option<SocketAddr>,
    /// Who the peer is, by its certificate; absent behind the enrol door.
    pub peer: Option<Identity>,
    kinds: PhantomData<fn(Out) -> In>,
}

impl<Out: Message, In: Message + Default> Socket<Out, In> {
    pub(crate) fn new(raw: Raw, remote: Option<SocketAddr>, peer: Option<Identity>) -> Self {
        Self {
            raw,
            remote,
            peer,
            kinds: PhantomData,
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// When the connection is over or the peer takes nothing.
    pub async fn send(&mut self, message: &Out) -> Result<(), SocketError> {
        self.send_raw(tungstenite::Message::Binary(message.encode_to_vec().into()))
            .await
    }

    /// Sends a ping.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub async fn ping(&mut self) -> Result<(), SocketError> {
        self.send_raw(tungstenite::Message::Ping(Bytes::new()))
            .await
    }

    /// Says goodbye, as far as the peer lets us.
    pub async fn close(&mut self) {
        // The connection is over either way.
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.raw.close(None)).await;
    }

    async fn send_raw(&mut self, message: tungstenite::Message) -> Result<(), SocketError> {
        match tokio::time::timeout(WRITE_TIMEOUT, self.raw.send(message)).await {
            Ok(sent) => sent.map_err(SocketError::from),
            Err(_) => Err(SocketError::Stuck),
        }
    }

    /// The next thing the peer says. May be dropped and called again without loss.
    ///
    /// # Errors
    /// When the connection is over, or the peer sent what it must not send.
    pub async fn hear(&mut self) -> Result<Heard<In>, SocketError> {
        use tungstenite::Message as M;
        match self.raw.next().await {
            None => Err(SocketError::Closed),
            Some(Err(error)) => Err(error.into()),
            Some(Ok(M::Binary(bytes))) => In::decode(bytes)
                .map(Heard::Message)
                .map_err(|error| SocketError::Violation(error.to_string())),
            Some(Ok(M::Ping(_) | M::Pong(_) | M::Frame(_))) => Ok(Heard::Life),
            Some(Ok(M::Close(_))) => Err(SocketError::Closed),
            Some(Ok(M::Text(_))) => Err(SocketError::Violation("a text message".to_owned())),
        }
    }

    /// The next message, signs of life passed over, within a time.
    ///
    /// # Errors
    /// As [`Socket::hear`], or when the time is over.
    pub async fn hear_message(&mut self, within: Duration) -> Result<In, SocketError> {
        let hear = async {
            loop {
                if let Heard::Message(message) = self.hear().await? {
                    return Ok(message);
                }
            }
        };
        tokio::time::timeout(within, hear)
            .await
            .unwrap_or(Err(SocketError::Silent))
    }
}

/// What a stream's next item is: a frame, its end (`None` within), or nothing yet (`None`).
fn frame_in(
    item: Option<Result<tungstenite::Message, tungstenite::Error>>,
) -> Option<Result<Option<Bytes>, SocketError>> {
    use tungstenite::Message as M;
    match item {
        None | Some(Ok(M::Close(_))) => Some(Ok(None)),
        Some(Err(error)) => match SocketError::from(error) {
            SocketError::Closed => Some(Ok(None)),
            other => Some(Err(other)),
        },
        Some(Ok(M::Binary(bytes))) => Some(Ok(Some(bytes))),
        Some(Ok(M::Ping(_) | M::Pong(_) | M::Frame(_))) => None,
        Some(Ok(M::Text(_))) => Some(Err(SocketError::Violation("a text message".to_owned()))),
    }
}

/// A stream: binary frames of [`fairlead_protocol::stream`], relayed without decoding.
pub struct StreamSocket {
    raw: Raw,
    /// Looked at, and not heard yet.
    ahead: VecDeque<Bytes>,
}

impl StreamSocket {
    pub(crate) fn new(raw: Raw) -> Self {
        Self {
            raw,
            ahead: VecDeque::new(),
        }
    }

    /// Sends a frame; waits while the peer's TCP window is closed (that is the flow control).
    ///
    /// # Errors
    /// When the stream is over.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), SocketError> {
        Ok(self.raw.send(tungstenite::Message::Binary(frame)).await?)
    }

    /// The next frame; `None` when the peer closed in order.
    ///
    /// # Errors
    /// When it broke.
    pub async fn hear(&mut self) -> Result<Option<Bytes>, SocketError> {
        if let Some(frame) = self.ahead.pop_front() {
            return Ok(Some(frame));
        }
        loop {
            if let Some(heard) = frame_in(self.raw.next().await) {
                return heard;
            }
        }
    }

    /// Whether a frame of those that have come so far is such a one, without waiting for any. They are heard all the
    /// same. Looks through about `bytes_max` of them.
    ///
    /// # Errors
    /// When it broke.
    pub fn has_come(
        &mut self,
        is_such: impl Fn(&Bytes) -> bool,
        bytes_max: usize,
    ) -> Result<bool, SocketError> {
        let mut seen = 0;
        while seen < bytes_max {
            let next = self.raw.next().now_or_never();
            match next.map(frame_in) {
                Some(Some(Ok(Some(frame)))) => {
                    let is = is_such(&frame);
                    seen += frame.len() + 1;
                    self.ahead.push_back(frame);
                    if is {
                        return Ok(true);
                    }
                }
                Some(Some(Err(broken))) => return Err(broken),
                // Neither a ping nor a pong.
                Some(None) => seen += 1,
                // Nothing more has come, or will.
                None | Some(Some(Ok(None))) => break,
            }
        }
        Ok(self.ahead.iter().any(is_such))
    }

    /// Says goodbye.
    pub async fn close(&mut self) {
        // The stream is over either way.
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.raw.close(None)).await;
    }

    /// Both directions apart: one task reads while another writes.
    #[must_use]
    pub fn split(self) -> (StreamSender, StreamReceiver) {
        let (sink, stream) = self.raw.split();
        let receiver = StreamReceiver {
            stream,
            ahead: self.ahead,
        };
        (StreamSender(sink), receiver)
    }
}

/// The writing half of a stream.
pub struct StreamSender(futures_util::stream::SplitSink<Raw, tungstenite::Message>);

impl StreamSender {
    /// As [`StreamSocket::send`].
    ///
    /// # Errors
    /// When the stream is over.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), SocketError> {
        Ok(self.0.send(tungstenite::Message::Binary(frame)).await?)
    }

    /// Says goodbye.
    pub async fn close(&mut self) {
        // The stream is over either way.
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.0.close()).await;
    }

    /// Says goodbye behind words that must arrive: a connection that is closed with something unread is reset, and
    /// that overtakes what was sent last. So what the far end still says is heard, until it has closed too.
    pub async fn close_behind(&mut self, receiver: &mut StreamReceiver) {
        self.close().await;
        let said = async { while let Ok(Some(_)) = receiver.hear().await {} };
        let _ = tokio::time::timeout(CLOSE_WITHIN, said).await;
    }
}

/// The reading half of a stream.
pub struct StreamReceiver {
    stream: futures_util::stream::SplitStream<Raw>,
    ahead: VecDeque<Bytes>,
}

impl StreamReceiver {
    /// As [`StreamSocket::hear`].
    ///
    /// # Errors
    /// When it broke.
    pub async fn hear(&mut self) -> Result<Option<Bytes>, SocketError> {
        if let Some(frame) = self.ahead.pop_front() {
            return Ok(Some(frame));
        }
        loop {
            if let Some(heard) = frame_in(self.stream.next().await) {
                return heard;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_is_cut_is_said_in_plain_words() {
        let eof = io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/latest",
        );
        let reset = io::Error::from_raw_os_error(104);
        let errors = [
            tungstenite::Error::Io(eof),
            tungstenite::Error::Io(reset),
            tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake),
        ];
        for error in errors {
            let said = SocketError::from(error);
            assert!(matches!(said, SocketError::Cut), "{said}");
            assert!(!said.to_string().contains("TLS"), "{said}");
        }
        let other = SocketError::from(tungstenite::Error::Io(io::ErrorKind::TimedOut.into()));
        assert!(matches!(other, SocketError::Broken(_)), "{other}");
    }
}
