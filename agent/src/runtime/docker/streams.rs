//! Reading what flows: the engine's two-in-one output format, raw terminal output, JSON lines.

use std::pin::Pin;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use hyper::body::{Body, Incoming};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::errors::clean;
use crate::runtime::{Output, RuntimeError};

/// What is read from an exec's connection at once.
const READ_BYTES: usize = 16 * 1024;
/// A line of JSON (event, pull progress) longer than this is no such line.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// The bytes of an answer as they come.
pub(super) fn body_bytes(body: Incoming) -> BoxStream<'static, Result<Bytes, RuntimeError>> {
    stream::unfold(Some(body), |state| async move {
        let mut body = state?;
        loop {
            let frame =
                std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await?;
            match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Some((Ok(data), Some(body))),
                    Err(_trailers) => {}
                },
                Err(error) => {
                    let error = RuntimeError::Interrupted(clean(&error.to_string()));
                    return Some((Err(error), None));
                }
            }
        }
    })
    .boxed()
}

/// The bytes of a two-way connection as they come.
pub(super) fn reader_bytes<R>(reader: R) -> BoxStream<'static, Result<Bytes, RuntimeError>>
where
    R: AsyncRead + Send + Unpin + 'static,
{
    stream::unfold(Some(reader), |state| async move {
        let mut reader = state?;
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.freeze()), Some(reader))),
            Err(error) => Some((
                Err(RuntimeError::Interrupted(clean(&error.to_string()))),
                None,
            )),
        }
    })
    .boxed()
}

/// Output as it comes: raw with a terminal, else unpacked from the engine's frames.
pub(super) fn output(
    bytes: BoxStream<'static, Result<Bytes, RuntimeError>>,
    tty: bool,
) -> BoxStream<'static, Result<Output, RuntimeError>> {
    if tty {
        return bytes.map(|piece| piece.map(Output::Stdout)).boxed();
    }
    let state = (bytes, Unpacker::default(), false);
    stream::unfold(state, |(mut bytes, mut unpacker, ended)| async move {
        if ended {
            return None;
        }
        loop {
            if let Some(piece) = unpacker.next() {
                let ended = piece.is_err();
                return Some((piece, (bytes, unpacker, ended)));
            }
            match bytes.next().await {
                Some(Ok(more)) => unpacker.buffer.extend_from_slice(&more),
                Some(Err(error)) => return Some((Err(error), (bytes, unpacker, true))),
                None if unpacker.is_between_frames() => return None,
                None => {
                    let error = RuntimeError::Interrupted("output ended in mid-frame".to_owned());
                    return Some((Err(error), (bytes, unpacker, true)));
                }
            }
        }
    })
    .boxed()
}

/// The engine's frames: one byte of stream, three of zero, four of length, then the payload. A
/// payload is passed on piece by piece, so that a long one needs no long buffer.
#[derive(Default)]
struct Unpacker {
    buffer: BytesMut,
    /// Stream and bytes still to come of the frame at hand.
    frame: Option<(u8, usize)>,
}

impl Unpacker {
    fn is_between_frames(&self) -> bool {
        self.frame.is_none() && self.buffer.is_empty()
    }

    fn next(&mut self) -> Option<Result<Output, RuntimeError>> {
        loop {
            match self.frame {
                None => {
                    let header: [u8; 8] = self.buffer.get(..8)?.try_into().ok()?;
                    let [stream, zero @ .., a, b, c, d] = header;
                    if stream > 3 || zero != [0; 3] {
                        let text = "the engine's output is not in its own format".to_owned();
                        return Some(Err(RuntimeError::Engine(text)));
                    }
                    self.buffer.advance(8);
                    let length = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.frame = (length > 0).then_some((stream, length));
                }
                Some((stream, left)) => {
                    if self.buffer.is_empty() {
                        return None;
                    }
                    let piece = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                    let left = left - piece.len();
                    self.frame = (left > 0).then_some((stream, left));
                    return Some(match stream {
                        2 => Ok(Output::Stderr(piece)),
                        // 3 is the engine's own word about a failure in mid-stream.
                        3 => Err(RuntimeError::Engine(clean(&String::from_utf8_lossy(
                            &piece,
                        )))),
                        _ => Ok(Output::Stdout(piece)),
                    });
                }
            }
        }
    }
}

/// JSON values, one to a line (events, progress of a pull).
pub(super) fn json_lines<T: DeserializeOwned + Send + 'static>(
    bytes: BoxStream<'static, Result<Bytes, RuntimeError>>,
) -> impl Stream<Item = Result<T, RuntimeError>> + Send + 'static {
    let state = (bytes, BytesMut::new(), false);
    stream::unfold(state, |(mut bytes, mut buffer, mut ended)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let value = serde_json::from_slice(&line).map_err(unreadable);
                return Some((value, (bytes, buffer, ended)));
            }
            if ended {
                let rest = buffer.split();
                if rest.trim_ascii().is_empty() {
                    return None;
                }
                let value = serde_json::from_slice(&rest).map_err(unreadable);
                return Some((value, (bytes, buffer, ended)));
            }
            match bytes.next().await {
                Some(Ok(_)) if buffer.len() > LINE_BYTES_MAX => {
                    let error = RuntimeError::Engine("the engine's line has no end".to_owned());
                    buffer.clear();
                    return Some((Err(error), (stream::empty().boxed(), buffer, true)));
                }
                Some(Ok(more)) => buffer.extend_from_slice(&more),
                Some(Err(error)) => {
                    buffer.clear();
                    return Some((Err(error), (bytes, buffer, true)));
                }
                None => ended = true,
            }
        }
    })
}

fn unreadable(error: serde_json::Error) -> RuntimeError {
    RuntimeError::Engine(format!("the engine's answer cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(pieces: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (stream, payload) in pieces {
            out.extend_from_slice(&[*stream, 0, 0, 0]);
            out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
            out.extend_from_slice(payload);
        }
        out
    }

    fn unpack(wire: &[u8], cut: usize) -> (Vec<u8>, Vec<u8>, bool) {
        let pieces: Vec<Result<Bytes, RuntimeError>> = wire
            .chunks(cut)
            .map(|c| Ok(Bytes::copy_from_slice(c)))
            .collect();
        let (mut out, mut err, mut failed) = (Vec::new(), Vec::new(), false);
        let mut stream = output(stream::iter(pieces).boxed(), false);
        futures_util::FutureExt::now_or_never(async {
            while let Some(piece) = stream.next().await {
                match piece {
                    Ok(Output::Stdout(bytes)) => out.extend_from_slice(&bytes),
                    Ok(Output::Stderr(bytes)) => err.extend_from_slice(&bytes),
                    Err(_) => failed = true,
                }
            }
        })
        .unwrap();
        (out, err, failed)
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            pieces in proptest::collection::vec((1u8..=2, proptest::collection::vec(any::<u8>(), 0..50)), 0..10),
            cut in 1usize..30,
        ) {
            let (out, err, failed) = unpack(&framed(&pieces), cut);
            let of = |n: u8| pieces.iter().filter(|p| p.0 == n).flat_map(|p| p.1.clone()).collect::<Vec<u8>>();
            prop_assert!(!failed);
            prop_assert_eq!(out, of(1));
            prop_assert_eq!(err, of(2));
        }

        #[test]
        fn any_bytes_end_or_are_refused(wire: Vec<u8>, cut in 1usize..30) {
            unpack(&wire, cut);
        }
    }

    #[test]
    fn a_cut_frame_is_an_error() {
        let mut wire = framed(&[(1, b"hello".to_vec())]);
        wire.pop();
        let (out, _, failed) = unpack(&wire, 3);
        assert_eq!(out, b"hell");
        assert!(failed);
    }

    #[test]
    fn lines_need_no_last_newline() {
        let pieces = [&b"{\"a\":1}\n{\"a\""[..], b":2}\r\n\n", b"{\"a\":3}"];
        let bytes = stream::iter(pieces.map(|p| Ok(Bytes::copy_from_slice(p)))).boxed();
        let values: Vec<_> = futures_util::FutureExt::now_or_never(
            json_lines::<serde_json::Value>(bytes)
                .map(Result::unwrap)
                .collect(),
        )
        .unwrap();
        assert_eq!(values.len(), 3);
        assert_eq!(values[2]["a"], 3);
    }
}
