//! Hosts, containers, events, regions.

use axum::Json;
use axum::extract::State as Axum;
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::backend::{ContainerQuery, EventQuery};
use crate::error::ApiError;
use crate::guard::Asking;
use crate::input::{Body, Name, Query, invalid, text};
use crate::routes::Shared;
use crate::types::{
    Container, Event, Host, NewRegion, Packages, Page, Region, RegionRequest, Status,
};
use fairlead_protocol::limits::NAME_CHARS_MAX;

/// Rows of a page when the client does not say.
const PAGE_DEFAULT: u32 = 100;
/// Most rows of a page.
const PAGE_MAX: u32 = 1000;

/// The number of rows that a client asks for.
pub(super) fn page_limit(asked: Option<u32>) -> Result<u32, ApiError> {
    match asked {
        None => Ok(PAGE_DEFAULT),
        Some(limit @ 1..=PAGE_MAX) => Ok(limit),
        Some(_) => Err(invalid(format!("limit must be 1 to {PAGE_MAX}"))),
    }
}

/// A name in a query: an empty one is a mistake, never "everything".
pub(super) fn name(what: &str, value: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    if value.is_empty() {
        return Err(invalid(format!(
            "{what} is empty; leave it out to mean all"
        )));
    }
    text(what, &value, NAME_CHARS_MAX)?;
    Ok(Some(value))
}

/// The fleet in one glance.
#[utoipa::path(get, path = "/api/v1/status", tag = "fleet",
    responses((status = 200, description = "Counts and what deserves attention.", body = Status)))]
pub(crate) async fn status(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
) -> Result<Json<Status>, ApiError> {
    state.backend.status(&caller).await.map(Json)
}

/// What machines install from here.
#[utoipa::path(get, path = "/api/v1/packages", tag = "fleet",
    responses((status = 200, description = "Versions, addresses, and who has fetched an agent lately.", body = Packages)))]
pub(crate) async fn packages(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
) -> Result<Json<Packages>, ApiError> {
    state.backend.packages(&caller).await.map(Json)
}

/// Hosts by name.
#[utoipa::path(get, path = "/api/v1/hosts", tag = "fleet",
    responses((status = 200, description = "Hosts.", body = Vec<Host>)))]
pub(crate) async fn hosts(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
) -> Result<Json<Vec<Host>>, ApiError> {
    state.backend.hosts(&caller).await.map(Json)
}

/// One host.
#[utoipa::path(get, path = "/api/v1/hosts/{host}", tag = "fleet",
    params(("host" = String, Path, description = "Name, id or unique prefix of the id")),
    responses((status = 200, description = "The host.", body = Host)))]
pub(crate) async fn host(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(host): Name,
) -> Result<Json<Host>, ApiError> {
    state.backend.host(&caller, &host).await.map(Json)
}

/// Ends a host's identity: its links and streams are cut. Its containers are left alone.
#[utoipa::path(delete, path = "/api/v1/hosts/{host}", tag = "fleet",
    params(("host" = String, Path, description = "Name, id or unique prefix of the id")),
    responses((status = 200, description = "The host as it was.", body = Host)))]
pub(crate) async fn delete_host(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(host): Name,
) -> Result<Json<Host>, ApiError> {
    state.backend.delete_host(&caller, &host).await.map(Json)
}

/// Ends a host's newest certificate: its links are cut until it has another one.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/revoke-certificate", tag = "fleet",
    params(("host" = String, Path, description = "Name, id or unique prefix of the id")),
    responses((status = 200, description = "The host.", body = Host)))]
pub(crate) async fn revoke_certificate(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(host): Name,
) -> Result<Json<Host>, ApiError> {
    state
        .backend
        .revoke_certificate(&caller, &host)
        .await
        .map(Json)
}

/// Lets a held host go on.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/approve", tag = "fleet",
    params(("host" = String, Path, description = "Name, id or unique prefix of the id")),
    responses((status = 200, description = "The host.", body = Host)))]
pub(crate) async fn approve_host(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(host): Name,
) -> Result<Json<Host>, ApiError> {
    state.backend.approve_host(&caller, &host).await.map(Json)
}

/// Which containers.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ContainerParams {
    /// Host by name, id or unique prefix of the id.
    host: Option<String>,
    /// Stopped ones too.
    #[serde(default)]
    all: bool,
    /// Of this Compose project.
    project: Option<String>,
    /// Name, or part of it.
    name: Option<String>,
}

/// Containers by host and name.
#[utoipa::path(get, path = "/api/v1/containers", tag = "fleet", params(ContainerParams),
    responses((status = 200, description = "Containers.", body = Vec<Container>)))]
pub(crate) async fn containers(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Query(query): Query<ContainerParams>,
) -> Result<Json<Vec<Container>>, ApiError> {
    let query = ContainerQuery {
        host: name("host", query.host)?,
        all: query.all,
        project: name("project", query.project)?,
        name: name("name", query.name)?,
    };
    state.backend.containers(&caller, query).await.map(Json)
}

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventParams {
    /// Host by name, id or unique prefix of the id.
    host: Option<String>,
    /// Not before, RFC 3339.
    since: Option<Timestamp>,
    /// At most so many (1 to 1000); absent: 100.
    limit: Option<u32>,
    /// Older than this number.
    before: Option<i64>,
}

/// Events, newest first.
#[utoipa::path(get, path = "/api/v1/events", tag = "fleet", params(EventParams),
    responses((status = 200, description = "Events.", body = Page<Event>)))]
pub(crate) async fn events(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Query(query): Query<EventParams>,
) -> Result<Json<Page<Event>>, ApiError> {
    let query = EventQuery {
        host: name("host", query.host)?,
        since_us: query.since.map(Timestamp::as_microsecond),
        limit: page_limit(query.limit)?,
        before: query.before,
    };
    state.backend.events(&caller, query).await.map(Json)
}

/// Makes a region and the token with which its access server joins.
#[utoipa::path(post, path = "/api/v1/regions", tag = "fleet", request_body = RegionRequest,
    responses((status = 201, description = "The region and its token.", body = NewRegion)))]
pub(crate) async fn create_region(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Body(request): Body<RegionRequest>,
) -> Result<(StatusCode, Json<NewRegion>), ApiError> {
    let made = state.backend.create_region(&caller, request).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Regions by name.
#[utoipa::path(get, path = "/api/v1/regions", tag = "fleet",
    responses((status = 200, description = "Regions.", body = Vec<Region>)))]
pub(crate) async fn regions(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
) -> Result<Json<Vec<Region>>, ApiError> {
    state.backend.regions(&caller).await.map(Json)
}

/// One region.
#[utoipa::path(get, path = "/api/v1/regions/{name}", tag = "fleet",
    params(("name" = String, Path, description = "The region's name")),
    responses((status = 200, description = "The region.", body = Region)))]
pub(crate) async fn region(
    Axum(state): Axum<Shared>,
    Asking(caller): Asking,
    Name(name): Name,
) -> Result<Json<Region>, ApiError> {
    state.backend.region(&caller, &name).await.map(Json)
}
