//! Setup, tokens, audit.

use axum::Json;
use axum::extract::State as Axum;
use axum::http::{Extensions, StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::error::ApiError;
use crate::guard::Asking;
use crate::input::{Body, Name, Query};
use crate::routes::Shared;
use crate::server::Peer;
use crate::types::{
    ApiToken, ApiTokenRequest, AuditRow, JoinToken, JoinTokenRequest, NewApiToken, NewJoinToken,
    Page, SetupRequest, WhoAmI,
};

/// Claims a new installation: makes its first admin token, once.
#[utoipa::path(post, path = "/api/v1/setup", tag = "access", request_body = SetupRequest,
    responses((status = 201, description = "The admin token.", body = NewApiToken)))]
pub(crate) async fn setup(
    Axum(state): Axum<Shared>,
    extensions: Extensions,
    Body(request): Body<SetupRequest>,
) -> Result<(StatusCode, Json<NewApiToken>), ApiError> {
    let made = state.backend.setup(&Peer::of(&extensions), request).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Who this token is and what it may do.
#[utoipa::path(get, path = "/api/v1/whoami", tag = "access",
    responses((status = 200, description = "The caller.", body = WhoAmI)))]
pub(crate) async fn whoami(Axum(state): Axum<Shared>, Asking(caller): Asking) -> Json<WhoAmI> {
    Json(WhoAmI {
        name: caller.name.clone(),
        token_id: caller.token_id.clone(),
        tenant: caller.tenant.clone(),
        permissions: caller.permissions.clone(),
        scope: caller.scope.clone(),
        expires_at: caller.expires_at(),
        server_version: state.backend.version().to_owned(),
    })
}

/// A page of the audit log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditParams {
    /// At most so many rows (1 to 1000); absent: 100.
    limit: Option<u32>,
    /// Older than this number.
    before: Option<i64>,
}

/// The audit log, newest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "access", params(AuditParams),
    responses((status = 200, description = "Rows.", body = Page<AuditRow>)))]
pub(crate) async fn audit(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Query(query): Query<AuditParams>,
) -> Result<Json<Page<AuditRow>>, ApiError> {
    let limit = super::fleet::page_limit(query.limit)?;
    state
        .backend
        .audit(&caller, limit, query.before)
        .await
        .map(Json)
}

/// Makes a join token, with which hosts enrol.
#[utoipa::path(post, path = "/api/v1/join-tokens", tag = "access", request_body = JoinTokenRequest,
    responses((status = 201, description = "The token.", body = NewJoinToken)))]
pub(crate) async fn create_join_token(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Body(request): Body<JoinTokenRequest>,
) -> Result<(StatusCode, Json<NewJoinToken>), ApiError> {
    let made = state.backend.create_join_token(&caller, request).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Join tokens, newest first, without their secrets.
#[utoipa::path(get, path = "/api/v1/join-tokens", tag = "access",
    responses((status = 200, description = "Tokens.", body = Vec<JoinToken>)))]
pub(crate) async fn join_tokens(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
) -> Result<Json<Vec<JoinToken>>, ApiError> {
    state.backend.join_tokens(&caller).await.map(Json)
}

/// Ends a join token. Hosts that it let in stay.
#[utoipa::path(delete, path = "/api/v1/join-tokens/{id}", tag = "access",
    params(("id" = String, Path, description = "The token's id")),
    responses((status = 200, description = "The token.", body = JoinToken)))]
pub(crate) async fn revoke_join_token(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Json<JoinToken>, ApiError> {
    state
        .backend
        .revoke_join_token(&caller, &id)
        .await
        .map(Json)
}

/// Makes an API token.
#[utoipa::path(post, path = "/api/v1/api-tokens", tag = "access", request_body = ApiTokenRequest,
    responses((status = 201, description = "The token.", body = NewApiToken)))]
pub(crate) async fn create_api_token(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Body(request): Body<ApiTokenRequest>,
) -> Result<(StatusCode, Json<NewApiToken>), ApiError> {
    let made = state.backend.create_api_token(&caller, request).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// API tokens, newest first, without their secrets.
#[utoipa::path(get, path = "/api/v1/api-tokens", tag = "access",
    responses((status = 200, description = "Tokens.", body = Vec<ApiToken>)))]
pub(crate) async fn api_tokens(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
) -> Result<Json<Vec<ApiToken>>, ApiError> {
    state.backend.api_tokens(&caller).await.map(Json)
}

/// Ends an API token and closes what is open with it.
#[utoipa::path(delete, path = "/api/v1/api-tokens/{id}", tag = "access",
    params(("id" = String, Path, description = "The token's id")),
    responses((status = 200, description = "The token.", body = ApiToken)))]
pub(crate) async fn revoke_api_token(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(id): Name,
) -> Result<Json<ApiToken>, ApiError> {
    state.backend.revoke_api_token(&caller, &id).await.map(Json)
}
