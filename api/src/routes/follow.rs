//! What stays open: server-sent events and the WebSocket of a command's stream.
//!
//! Everything here ends when the caller's token ends, when the server drains, and when the client
//! goes away. How many there may be at once is bounded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Axum;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::HeaderMap;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use fairlead_protocol::{codes, limits};
use futures_util::stream::{BoxStream, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::IntoParams;

use super::fleet::name;
use super::share::Share;
use crate::backend::{Attach, Caller};
use crate::error::ApiError;
use crate::guard::Asking;
use crate::input::{Name, Query, invalid};
use crate::relay;
use crate::routes::Shared;
use crate::types::{Command, Event};

/// The WebSocket subprotocol of a command's stream.
pub const STREAM_SUBPROTOCOL: &str = "fairlead.stream.v1";
/// A comment goes out this often, so that a dead client is noticed and proxies stay awake.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Read and write buffers of a stream's WebSocket; the library's own are 128 KiB each.
const STREAM_BUFFER_BYTES: usize = 8 * 1024;

pub(crate) fn place(
    semaphore: &Arc<Semaphore>,
    what: &str,
) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(semaphore)
        .try_acquire_owned()
        .map_err(|_| ApiError::new(codes::BUSY, format!("too many {what} are open")).retry_after(5))
}

/// Items as server-sent events until the token or the server ends.
fn sent<T: Serialize + Send + 'static>(
    items: BoxStream<'static, T>,
    name: &'static str,
    id: fn(&T) -> Option<String>,
    caller: &Caller,
    state: &Shared,
    places: (Share, OwnedSemaphorePermit),
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>> + use<T>> {
    let ended = caller.ended.clone();
    let shutdown = state.options.shutdown.clone();
    let until = async move {
        tokio::select! {
            () = ended.cancelled() => {}
            () = shutdown.cancelled() => {}
        }
    };
    let events = items.take_until(Box::pin(until)).filter_map(move |item| {
        // The place is held as long as the stream lives.
        let _held = &places;
        let event = sse::Event::default().event(name);
        let event = match id(&item) {
            Some(id) => event.id(id),
            None => event,
        };
        std::future::ready(event.json_data(&item).ok().map(Ok))
    });
    Sse::new(events).keep_alive(sse::KeepAlive::new().interval(KEEP_ALIVE))
}

/// A command as server-sent events named `command`, each time it changes; the last has its final
/// state.
#[utoipa::path(get, path = "/api/v1/commands/{id}/watch", tag = "commands",
    params(("id" = String, Path, description = "Id or unique prefix of it")),
    responses((status = 200, description = "Server-sent events.", body = Command,
        content_type = "text/event-stream")))]
pub(crate) async fn watch(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let share = state.watches.take(&caller.token_id, "commands")?;
    let permit = place(&state.followers, "followers")?;
    let commands = state.backend.watch(&caller, &id).await?;
    Ok(sent(
        commands,
        "command",
        |_: &Command| None,
        &caller,
        &state,
        (share, permit),
    ))
}

/// Which events to follow.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct FollowParams {
    /// Host by name, id or unique prefix of the id.
    host: Option<String>,
    /// From after this number; the header `Last-Event-ID` goes before it. Absent: from now on.
    after: Option<i64>,
}

/// Events as server-sent events named `event`, whose id is the event's number: a client that
/// reconnects with `Last-Event-ID` misses none.
#[utoipa::path(get, path = "/api/v1/events/stream", tag = "fleet", params(FollowParams),
    responses((status = 200, description = "Server-sent events.", body = Event,
        content_type = "text/event-stream")))]
pub(crate) async fn events(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Query(query): Query<FollowParams>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let host = name("host", query.host)?;
    let after = match headers.get("last-event-id") {
        None => query.after,
        Some(value) => Some(
            value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse::<i64>().ok())
                .ok_or_else(|| invalid("Last-Event-ID is not a number"))?,
        ),
    };
    let share = state
        .event_streams
        .take(&caller.token_id, "event streams")?;
    let permit = place(&state.followers, "followers")?;
    let events = state
        .backend
        .follow_events(&caller, host.as_deref(), after)
        .await?;
    Ok(sent(
        events,
        "event",
        |e: &Event| Some(e.seq.to_string()),
        &caller,
        &state,
        (share, permit),
    ))
}

/// How to attach.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AttachParams {
    /// This client's stream may be held when the server restarts: it keeps its input until it is told that it was
    /// taken, and comes back with `resume` after a last frame that says where the stream goes on. Default: false.
    hold: Option<bool>,
    /// The stream was held: the first frame says where it goes on. Default: false.
    resume: Option<bool>,
}

/// The stream of an exec, logs or copy: a WebSocket (subprotocol `fairlead.stream.v1`) of binary
/// frames, one byte of channel and the payload. Not for browsers.
#[utoipa::path(get, path = "/api/v1/commands/{id}/stream", tag = "commands",
    params(("id" = String, Path, description = "Id or unique prefix of it"), AttachParams),
    responses((status = 101, description = "The stream.")))]
pub(crate) async fn stream(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
    Query(query): Query<AttachParams>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let attach = match (query.hold, query.resume) {
        (_, Some(true)) => Attach::Resuming,
        (Some(true), _) => Attach::Keeping,
        _ => Attach::Plain,
    };
    let upgrade = upgrade
        .map_err(|rejection| {
            let mut error = invalid("this path is a WebSocket");
            error.status = rejection.into_response().status();
            error
        })?
        .protocols([STREAM_SUBPROTOCOL])
        .read_buffer_size(STREAM_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * limits::STREAM_MESSAGE_BYTES_MAX)
        .max_message_size(limits::STREAM_MESSAGE_BYTES_MAX)
        .max_frame_size(limits::STREAM_MESSAGE_BYTES_MAX);
    if upgrade.selected_protocol().is_none() {
        return Err(invalid(format!(
            "the subprotocol must be {STREAM_SUBPROTOCOL}"
        )));
    }
    let permit = place(&state.streams, "streams")?;
    // The far side first: a client gets its 101 only when there is something to talk to.
    let far = state.backend.open_stream(&caller, &id, attach).await?;
    let ended = caller.ended.clone();
    let shutdown = state.options.shutdown.clone();
    let is_open = state.options.streams.token();
    Ok(upgrade.on_upgrade(move |socket| async move {
        let _open = (permit, is_open);
        relay::run(socket, far, attach, ended, shutdown).await;
    }))
}
