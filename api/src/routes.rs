//! The routes: from HTTP to the backend's methods and back. No rule is decided here.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::backend::Backend;
use crate::error::ApiError;
use crate::input::BODY_BYTES_MAX;
use crate::{envelope, guard, openapi};

mod access;
mod archives;
mod commands;
mod fleet;
mod follow;
mod service;
mod share;
mod terminals;
mod upgrades;

use share::Shares;

/// What the routes need besides a backend.
#[derive(Clone)]
pub struct Options {
    /// Random bytes, for request ids.
    pub random: fn() -> [u8; 16],
    /// Fires when the server drains: open streams and followers end.
    pub shutdown: CancellationToken,
    /// The open command streams (WebSockets): a server that drains waits for them, so that they can be held.
    pub streams: TaskTracker,
    /// So many of them at once; more are told to come back.
    pub streams_max: usize,
    /// Followers (server-sent events) at once; more are told to come back.
    pub followers_max: usize,
    /// Of these, event streams of one token.
    pub event_streams_per_token_max: usize,
    /// And commands watched by one token.
    pub watches_per_token_max: usize,
}

/// What handlers share.
pub(crate) struct State {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) options: Options,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) followers: Arc<Semaphore>,
    pub(crate) event_streams: Arc<Shares>,
    pub(crate) watches: Arc<Shares>,
    pub(crate) openapi: bytes::Bytes,
}

pub(crate) type Shared = Arc<State>;

/// Every route, without state; also what the OpenAPI document is made from.
pub(crate) fn described() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(service::healthz))
        .routes(routes!(service::readyz))
        .routes(routes!(service::metrics))
        .routes(routes!(service::openapi_json))
        .routes(routes!(access::setup))
        .routes(routes!(access::whoami))
        .routes(routes!(fleet::status))
        .routes(routes!(fleet::hosts))
        .routes(routes!(fleet::host, fleet::delete_host))
        .routes(routes!(fleet::revoke_certificate))
        .routes(routes!(fleet::approve_host))
        .routes(routes!(fleet::containers))
        .routes(routes!(commands::submit, commands::list))
        .routes(routes!(commands::show))
        .routes(routes!(commands::cancel))
        .routes(routes!(follow::watch))
        .routes(routes!(follow::stream))
        .routes(routes!(archives::download, archives::upload))
        .routes(routes!(terminals::create, terminals::list))
        .routes(routes!(terminals::ticket))
        .routes(routes!(terminals::end))
        .routes(routes!(terminals::recordings))
        .routes(routes!(terminals::recording))
        .routes(routes!(fleet::packages))
        .routes(routes!(upgrades::versions))
        .routes(routes!(upgrades::push))
        .routes(routes!(upgrades::begin, upgrades::list))
        .routes(routes!(upgrades::show))
        .routes(routes!(upgrades::pause))
        .routes(routes!(upgrades::resume))
        .routes(routes!(upgrades::abort))
        .routes(routes!(fleet::events))
        .routes(routes!(follow::events))
        .routes(routes!(access::audit))
        .routes(routes!(access::create_join_token, access::join_tokens))
        .routes(routes!(access::revoke_join_token))
        .routes(routes!(access::create_api_token, access::api_tokens))
        .routes(routes!(access::revoke_api_token))
        .routes(routes!(fleet::create_region, fleet::regions))
        .routes(routes!(fleet::region))
}

/// The whole HTTP surface over one backend.
pub fn router(backend: Arc<dyn Backend>, options: Options) -> Router {
    let state = Arc::new(State {
        streams: Arc::new(Semaphore::new(options.streams_max)),
        followers: Arc::new(Semaphore::new(options.followers_max)),
        event_streams: Shares::new(options.event_streams_per_token_max),
        watches: Shares::new(options.watches_per_token_max),
        openapi: openapi::json().into(),
        backend,
        options,
    });
    let (router, _document) = described().split_for_parts();
    router
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&state),
            guard::check,
        ))
        .fallback(async || -> ApiError { envelope::not_found() })
        .layer(middleware::from_fn_with_state(
            Arc::clone(&state),
            envelope::wrap,
        ))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(state)
}

pub use follow::STREAM_SUBPROTOCOL;
