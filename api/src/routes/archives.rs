//! A copy's archive as the body of an answer or of a request: for pages, which open no WebSocket with a token.
//! The same stream as `stream`'s, with its frames unwrapped; nothing of it is kept here.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::State as Axum;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use fairlead_protocol::stream::{Channel, frame, parse};
use fairlead_protocol::{codes, limits};
use futures_util::StreamExt;
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::follow::place;
use crate::backend::{Attach, Caller, ClientStream};
use crate::error::ApiError;
use crate::guard::Asking;
use crate::input::{Name, invalid, throw_away};
use crate::routes::Shared;
use crate::types::Command;

/// A client from whom nothing has come for so long is gone.
const SILENT_AFTER: Duration = Duration::from_secs(70);
/// How long a page waits for a copy's end once all has been sent; the command itself may go on.
const END_WITHIN: Duration = Duration::from_secs(30 * 60);

/// How long the end of a command whose stream broke is waited for.
const END_TOLD_WITHIN_MS: u32 = 3_000;

/// The last frame of a stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct End {
    state: String,
    code: String,
    message: String,
}

impl End {
    fn of(payload: &[u8]) -> Self {
        serde_json::from_slice(payload).unwrap_or_default()
    }

    fn judged(self) -> Result<(), ApiError> {
        if self.state == "succeeded" {
            return Ok(());
        }
        Err(ApiError::new(codes::known(&self.code), self.message))
    }
}

fn lost() -> ApiError {
    let message = "the connection to the host broke before the copy's end";
    ApiError::new(codes::STREAM_LOST, message)
}

fn ended_early() -> ApiError {
    let message = "the API token ended, or the server is restarting: the copy was given up";
    ApiError::new(codes::STREAM_LOST, message)
}

/// What refused a copy before its stream began, or ended with it without a last frame, the command itself says.
async fn explained(state: &Shared, caller: &Caller, id: &str, error: ApiError) -> ApiError {
    if error.code != codes::STREAM_LOST && error.code != codes::NO_STREAM {
        return error;
    }
    match state.backend.command(caller, id, END_TOLD_WITHIN_MS).await {
        Ok(command) if command.is_final && !command.code.is_empty() => {
            ApiError::new(codes::known(&command.code), command.message)
        }
        _ => error,
    }
}

/// The stream of one copy, until its client or its server goes.
struct CopyStream {
    far: ClientStream,
    ended: CancellationToken,
    shutdown: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl CopyStream {
    /// Opens the stream of a command of that kind.
    async fn open(
        state: &Shared,
        caller: &Caller,
        id: &str,
        kind: &str,
    ) -> Result<(Self, Command), ApiError> {
        let command = state.backend.command(caller, id, 0).await?;
        if command.kind != kind {
            let message = format!(
                "command {} is no {kind}, but a {}",
                command.id, command.kind
            );
            return Err(invalid(message));
        }
        let place = place(&state.streams, "streams")?;
        let far = state.backend.open_stream(caller, id, Attach::Plain).await?;
        let copy = Self {
            far,
            ended: caller.ended.clone(),
            shutdown: state.options.shutdown.clone(),
            _place: place,
        };
        Ok((copy, command))
    }

    /// What the host sends next.
    async fn hear(&mut self) -> Result<(Channel, Bytes), ApiError> {
        loop {
            let heard = tokio::select! {
                // The revocations first, as everywhere.
                biased;
                () = self.ended.cancelled() => return Err(ended_early()),
                () = self.far.cut.cancelled() => return Err(ended_early()),
                () = self.shutdown.cancelled() => return Err(ended_early()),
                heard = self.far.from_agent.recv() => heard.ok_or_else(lost)?,
            };
            if let Some(said) = parse(heard) {
                return Ok(said);
            }
        }
    }

    /// The next piece of the archive; `None` at its end.
    async fn piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            match self.hear().await? {
                (Channel::Output, data) => return Ok(Some(data)),
                (Channel::End, payload) => return End::of(&payload).judged().map(|()| None),
                _ => {}
            }
        }
    }

    /// All of a body to the host, as fast as it takes it. What the host says meanwhile ends it.
    async fn send(&mut self, body: &mut BodyDataStream) -> Result<(), ApiError> {
        let to_agent = self.far.to_agent.clone();
        let sending = async {
            loop {
                let next = tokio::time::timeout(SILENT_AFTER, body.next()).await;
                let piece = match next {
                    Ok(Some(Ok(piece))) => piece,
                    Ok(None) => break,
                    Ok(Some(Err(_))) | Err(_) => {
                        return Err(invalid("the archive did not come to its end"));
                    }
                };
                for chunk in piece.chunks(limits::STREAM_CHUNK_BYTES) {
                    let sent = to_agent.send(frame(Channel::Input, chunk)).await;
                    sent.map_err(|_| lost())?;
                }
            }
            let sent = to_agent.send(frame(Channel::InputEnd, &[])).await;
            sent.map_err(|_| lost())
        };
        tokio::pin!(sending);
        let early = tokio::select! {
            sent = &mut sending => {
                sent?;
                None
            }
            early = self.end() => Some(early),
        };
        match early {
            Some(early) => early,
            None => tokio::time::timeout(END_WITHIN, self.end())
                .await
                .unwrap_or_else(|_| Err(lost())),
        }
    }

    async fn end(&mut self) -> Result<(), ApiError> {
        loop {
            if let (Channel::End, payload) = self.hear().await? {
                return End::of(&payload).judged();
            }
        }
    }
}

fn pieces(copy: CopyStream, first: Option<Bytes>) -> impl Stream<Item = Result<Bytes, ApiError>> {
    stream::unfold((copy, Some(first)), |(mut copy, first)| async move {
        let next = match first {
            Some(first) => Ok(first),
            None => copy.piece().await,
        };
        match next {
            Ok(piece) => piece.map(|piece| (Ok(piece), (copy, None))),
            // The answer is cut, so that nobody takes what came for the whole.
            Err(error) => {
                tracing::info!(code = error.code, "a copy ended early");
                Some((Err(error), (copy, Some(None))))
            }
        }
    })
}

/// The archive (tar) that a `copy-out` with `attach` brings. What fails before its first byte is an error; what
/// fails later cuts the answer off.
#[utoipa::path(get, path = "/api/v1/commands/{id}/archive", tag = "commands",
    params(("id" = String, Path, description = "Id or unique prefix of it")),
    responses((status = 200, description = "The archive.", content_type = "application/x-tar")))]
pub(crate) async fn download(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Response, ApiError> {
    let begun = async {
        let (mut copy, _) = CopyStream::open(&state, &caller, &id, "copy-out").await?;
        let first = copy.piece().await?;
        Ok((copy, first))
    };
    let (copy, first) = match begun.await {
        Ok(begun) => begun,
        Err(error) => return Err(explained(&state, &caller, &id, error).await),
    };
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"archive.tar\"",
        ),
    ];
    Ok((headers, Body::from_stream(pieces(copy, first))).into_response())
}

/// Sends the archive (tar) of a `copy-in` with `attach`; its size and digest were said with the command. Answers
/// when it is unpacked.
#[utoipa::path(put, path = "/api/v1/commands/{id}/archive", tag = "commands",
    params(("id" = String, Path, description = "Id or unique prefix of it")),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 200, description = "It is unpacked: the command as it was.", body = Command)))]
pub(crate) async fn upload(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
    body: Body,
) -> Result<Json<Command>, ApiError> {
    let mut body = body.into_data_stream();
    let opened = async {
        let (mut copy, command) = CopyStream::open(&state, &caller, &id, "copy-in").await?;
        loop {
            match copy.hear().await? {
                (Channel::Begun, _) => return Ok((copy, command)),
                (Channel::End, payload) => {
                    // It ended before anything was wanted of us: nothing was copied.
                    End::of(&payload).judged()?;
                    return Err(lost());
                }
                _ => {}
            }
        }
    };
    let (mut copy, command) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            throw_away(&mut body).await;
            return Err(explained(&state, &caller, &id, error).await);
        }
    };
    match copy.send(&mut body).await {
        Ok(()) => Ok(Json(command)),
        Err(error) => {
            throw_away(&mut body).await;
            let error = explained(&state, &caller, &id, error).await;
            // All of it may have been there before the stream broke.
            match state.backend.command(&caller, &id, 0).await {
                Ok(command) if command.state == "succeeded" => Ok(Json(command)),
                _ => Err(error),
            }
        }
    }
}
