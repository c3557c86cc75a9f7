//! Versions of the agent, and rollouts of them.

use axum::Json;
use axum::extract::State as Axum;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::http::StatusCode;
use futures_util::TryStreamExt;

use crate::backend::RolloutOrder;
use crate::error::ApiError;
use crate::guard::Asking;
use crate::input::{Body, Name, invalid, text};
use crate::routes::Shared;
use crate::types::{AgentVersion, PushedFile, Rollout, RolloutRequest};
use fairlead_protocol::limits::NAME_CHARS_MAX;

/// Versions of the agent that are here, the newest first.
#[utoipa::path(get, path = "/api/v1/agent/versions", tag = "agent",
    responses((status = 200, description = "Versions.", body = Vec<AgentVersion>)))]
pub(crate) async fn versions(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
) -> Result<Json<Vec<AgentVersion>>, ApiError> {
    state.backend.agent_versions(&caller).await.map(Json)
}

/// Takes a file of a version: `manifest.sig` first, then `manifest`, which must be signed by a key that the
/// controller trusts, then the agents' programs that it names. The version is listed when the last one is there.
#[utoipa::path(put, path = "/api/v1/agent/versions/{version}/files/{file}", tag = "agent",
    params(("version" = String, Path, description = "Such as 1.4.0"),
        ("file" = String, Path, description = "The file's name in the package")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, description = "It was taken.", body = PushedFile)))]
pub(crate) async fn push(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Result<Json<PushedFile>, ApiError> {
    let Path((version, file)) = path.map_err(|_| invalid("the path names no file"))?;
    text("version", &version, NAME_CHARS_MAX)?;
    text("file", &file, NAME_CHARS_MAX)?;
    let body = request.into_body().into_data_stream();
    let body = body.map_err(std::io::Error::other);
    let taken = state
        .backend
        .push_version(&caller, &version, &file, Box::pin(body));
    taken.await.map(Json)
}

/// Begins a rollout, or says what it would be.
#[utoipa::path(post, path = "/api/v1/agent/rollouts", tag = "agent",
    request_body = RolloutRequest,
    responses((status = 201, description = "It has begun.", body = Rollout),
        (status = 200, description = "What it would be.", body = Rollout)))]
pub(crate) async fn begin(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Body(request): Body<RolloutRequest>,
) -> Result<(StatusCode, Json<Rollout>), ApiError> {
    let status = if request.dry_run {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let begun = state.backend.begin_rollout(&caller, request).await?;
    Ok((status, Json(begun)))
}

/// Rollouts, newest first (at most 50), without their hosts.
#[utoipa::path(get, path = "/api/v1/agent/rollouts", tag = "agent",
    responses((status = 200, description = "Rollouts.", body = Vec<Rollout>)))]
pub(crate) async fn list(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
) -> Result<Json<Vec<Rollout>>, ApiError> {
    state.backend.rollouts(&caller).await.map(Json)
}

/// One rollout.
#[utoipa::path(get, path = "/api/v1/agent/rollouts/{id}", tag = "agent",
    params(("id" = String, Path, description = "Id or unique prefix of it")),
    responses((status = 200, description = "The rollout.", body = Rollout)))]
pub(crate) async fn show(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Json<Rollout>, ApiError> {
    state.backend.rollout(&caller, &id, None).await.map(Json)
}

/// Nobody more is asked until it is resumed.
#[utoipa::path(post, path = "/api/v1/agent/rollouts/{id}/pause", tag = "agent",
    params(("id" = String, Path, description = "Id or unique prefix of it")),
    responses((status = 200, description = "The rollout.", body = Rollout)))]
pub(crate) async fn pause(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Json<Rollout>, ApiError> {
    let order = Some(RolloutOrder::Pause);
    state.backend.rollout(&caller, &id, order).await.map(Json)
}

/// One that is paused or halted goes on; what has failed so far is not held against it.
#[utoipa::path(post, path = "/api/v1/agent/rollouts/{id}/resume", tag = "agent",
    params(("id" = String, Path, description = "Id or unique prefix of it")),
    responses((status = 200, description = "The rollout.", body = Rollout)))]
pub(crate) async fn resume(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Json<Rollout>, ApiError> {
    let order = Some(RolloutOrder::Resume);
    state.backend.rollout(&caller, &id, order).await.map(Json)
}

/// Ends it: nobody more is asked. Hosts that were asked already go on.
#[utoipa::path(post, path = "/api/v1/agent/rollouts/{id}/abort", tag = "agent",
    params(("id" = String, Path, description = "Id or unique prefix of it")),
    responses((status = 200, description = "The rollout.", body = Rollout)))]
pub(crate) async fn abort(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Json<Rollout>, ApiError> {
    let order = Some(RolloutOrder::Abort);
    state.backend.rollout(&caller, &id, order).await.map(Json)
}
