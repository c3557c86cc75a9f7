//! Terminals: tickets, those that are open, recordings. The terminal's own socket is not here: a ticket
//! opens it, and no API token does.

use axum::Json;
use axum::body::Body as Bytes;
use axum::extract::State as Axum;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::fleet::name;
use crate::backend::RecordingQuery;
use crate::error::ApiError;
use crate::guard::Asking;
use crate::input::{Body, Name, Query};
use crate::routes::Shared;
use crate::types::{Recording, Terminal, TerminalRequest, TerminalTicket};

/// The origin of the page that asks; a program that is no page sends none.
fn origin(headers: &HeaderMap) -> Option<&str> {
    // One that is no text is no origin that is let in.
    headers
        .get(header::ORIGIN)
        .map(|value| value.to_str().unwrap_or("null"))
}

/// Asks for a terminal: a ticket for its socket, good once, within 30 s, for this page alone.
#[utoipa::path(post, path = "/api/v1/terminals", tag = "terminals", request_body = TerminalRequest,
    responses((status = 200, description = "The ticket.", body = TerminalTicket)))]
pub(crate) async fn create(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    headers: HeaderMap,
    Body(request): Body<TerminalRequest>,
) -> Result<Json<TerminalTicket>, ApiError> {
    let origin = origin(&headers);
    state
        .backend
        .create_terminal(&caller, origin, request)
        .await
        .map(Json)
}

/// Another ticket for a terminal of one's own that is open: to come back to it.
#[utoipa::path(post, path = "/api/v1/terminals/{id}/ticket", tag = "terminals",
    params(("id" = String, Path, description = "Session")),
    responses((status = 200, description = "The ticket.", body = TerminalTicket)))]
pub(crate) async fn ticket(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    headers: HeaderMap,
    Name(id): Name,
) -> Result<Json<TerminalTicket>, ApiError> {
    let origin = origin(&headers);
    state
        .backend
        .terminal_ticket(&caller, origin, &id)
        .await
        .map(Json)
}

/// Terminals that are open: one's own; for admins, all in scope.
#[utoipa::path(get, path = "/api/v1/terminals", tag = "terminals",
    responses((status = 200, description = "Terminals.", body = Vec<Terminal>)))]
pub(crate) async fn list(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
) -> Result<Json<Vec<Terminal>>, ApiError> {
    state.backend.terminals(&caller).await.map(Json)
}

/// Ends a terminal and all that runs in it: one's own; for admins, any in scope.
#[utoipa::path(delete, path = "/api/v1/terminals/{id}", tag = "terminals",
    params(("id" = String, Path, description = "Session")),
    responses((status = 200, description = "As it was.", body = Terminal)))]
pub(crate) async fn end(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Json<Terminal>, ApiError> {
    state.backend.end_terminal(&caller, &id).await.map(Json)
}

/// Which recordings.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RecordingParams {
    /// Of this user (as shown), or part of it.
    user: Option<String>,
    /// Of this host.
    host: Option<String>,
    /// Of this container.
    container: Option<String>,
    /// Begun at that moment or later.
    from: Option<Timestamp>,
    /// Begun at that moment or before.
    to: Option<Timestamp>,
}

/// Recordings of terminals, newest first, at most 1,000.
#[utoipa::path(get, path = "/api/v1/recordings", tag = "terminals", params(RecordingParams),
    responses((status = 200, description = "Recordings.", body = Vec<Recording>)))]
pub(crate) async fn recordings(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Query(query): Query<RecordingParams>,
) -> Result<Json<Vec<Recording>>, ApiError> {
    let query = RecordingQuery {
        user: name("user", query.user)?,
        host: name("host", query.host)?,
        container: name("container", query.container)?,
        from_us: query.from.map(Timestamp::as_microsecond),
        to_us: query.to.map(Timestamp::as_microsecond),
    };
    state.backend.recordings(&caller, query).await.map(Json)
}

/// One recording (asciicast version 2). What a container wrote is in it as it was written, escaped as JSON.
#[utoipa::path(get, path = "/api/v1/recordings/{id}", tag = "terminals",
    params(("id" = String, Path, description = "Session")),
    responses((status = 200, description = "The recording.", content_type = "application/x-asciicast")))]
pub(crate) async fn recording(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Response, ApiError> {
    let pieces = state.backend.recording(&caller, &id).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/x-asciicast"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"terminal.cast\"",
        ),
    ];
    Ok((headers, Bytes::from_stream(pieces)).into_response())
}
