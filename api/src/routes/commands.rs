//! Commands: asking, looking, withdrawing.

use axum::Json;
use axum::extract::State as Axum;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::fleet::{name, page_limit};
use crate::backend::CommandQuery;
use crate::error::ApiError;
use crate::guard::Asking;
use crate::input::{Body, Name, Query, invalid};
use crate::routes::Shared;
use crate::types::{Command, CommandRequest, Page};

/// Longest that an answer is held back for a command's end.
pub(crate) const WAIT_MS_MAX: u32 = 60_000;

/// How long to wait for the end.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitParams {
    /// Milliseconds to wait for the final state (at most 60000); absent: 0.
    #[serde(default)]
    wait_ms: u32,
}

impl WaitParams {
    fn checked(&self) -> Result<u32, ApiError> {
        if self.wait_ms > WAIT_MS_MAX {
            return Err(invalid(format!("wait_ms must be at most {WAIT_MS_MAX}")));
        }
        Ok(self.wait_ms)
    }
}

/// Asks for a command. It is on the controller's disk when this answers; its end is waited for as
/// long as `wait_ms` says. The same id with the same request answers with the command as it is.
#[utoipa::path(post, path = "/api/v1/commands", tag = "commands", params(WaitParams),
    request_body = CommandRequest,
    responses((status = 201, description = "Taken.", body = Command),
              (status = 200, description = "Was taken before.", body = Command)))]
pub(crate) async fn submit(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Query(wait): Query<WaitParams>,
    Body(request): Body<CommandRequest>,
) -> Result<(StatusCode, Json<Command>), ApiError> {
    let wait_ms = wait.checked()?;
    let submitted = state.backend.submit(&caller, request, wait_ms).await?;
    let status = if submitted.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(submitted.command)))
}

/// Which commands.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CommandParams {
    /// Host by name, id or unique prefix of the id.
    host: Option<String>,
    /// In this state.
    state: Option<String>,
    /// Of this container or image.
    container: Option<String>,
    /// At most so many (1 to 1000); absent: 100.
    limit: Option<u32>,
    /// Older than this place.
    before: Option<i64>,
}

/// Commands, newest first.
#[utoipa::path(get, path = "/api/v1/commands", tag = "commands", params(CommandParams),
    responses((status = 200, description = "Commands.", body = Page<Command>)))]
pub(crate) async fn list(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Query(query): Query<CommandParams>,
) -> Result<Json<Page<Command>>, ApiError> {
    let query = CommandQuery {
        host: name("host", query.host)?,
        state: name("state", query.state)?,
        container: name("container", query.container)?,
        limit: page_limit(query.limit)?,
        before: query.before,
    };
    state.backend.commands(&caller, query).await.map(Json)
}

/// One command with its timeline.
#[utoipa::path(get, path = "/api/v1/commands/{id}", tag = "commands",
    params(("id" = String, Path, description = "Id or unique prefix of it"), WaitParams),
    responses((status = 200, description = "The command.", body = Command)))]
pub(crate) async fn show(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
    Query(wait): Query<WaitParams>,
) -> Result<Json<Command>, ApiError> {
    let wait_ms = wait.checked()?;
    state.backend.command(&caller, &id, wait_ms).await.map(Json)
}

/// Withdraws a command that has not begun. One that runs is not stopped by this.
#[utoipa::path(post, path = "/api/v1/commands/{id}/cancel", tag = "commands",
    params(("id" = String, Path, description = "Id or unique prefix of it")),
    responses((status = 202, description = "The withdrawal is on its way.", body = Command)))]
pub(crate) async fn cancel(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<(StatusCode, Json<Command>), ApiError> {
    state
        .backend
        .cancel(&caller, &id)
        .await
        .map(|command| (StatusCode::ACCEPTED, Json(command)))
}
