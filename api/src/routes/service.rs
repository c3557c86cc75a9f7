//! For probes, monitoring and generators of clients.

use axum::extract::State as Axum;
use axum::http::header;
use axum::response::IntoResponse;

use crate::error::ApiError;
use crate::routes::Shared;

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "service",
    responses((status = 200, description = "It does.", body = String, content_type = "text/plain")))]
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether requests can be served: `ok`, then what monitoring may want to know, a line each.
#[utoipa::path(get, path = "/readyz", tag = "service",
    responses((status = 200, description = "They can.", body = String, content_type = "text/plain")))]
pub(crate) async fn readyz(Axum(state): Axum<Shared>) -> Result<String, ApiError> {
    let remarks = state.backend.ready().await?;
    let lines = std::iter::once("ok".to_owned()).chain(remarks);
    Ok(lines.map(|line| line + "\n").collect())
}

/// Measurements as Prometheus text.
#[utoipa::path(get, path = "/metrics", tag = "service",
    responses((status = 200, description = "Prometheus text.", body = String, content_type = "text/plain")))]
pub(crate) async fn metrics(Axum(state): Axum<Shared>) -> impl IntoResponse {
    let text = state.backend.metrics().await;
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
}

/// This description.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "service",
    responses((status = 200, description = "OpenAPI 3.1.", body = serde_json::Value)))]
pub(crate) async fn openapi_json(Axum(state): Axum<Shared>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        state.openapi.clone(),
    )
}
