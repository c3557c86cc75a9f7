//! The door: looks the route up in the table, finds out who is asking, lets in or refuses.
//!
//! Runs before every handler. Identity comes from the `Authorization` header alone; cookies,
//! query strings and `X-Forwarded-*` are not looked at.

use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request, State as Axum};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fairlead_protocol::codes;

use crate::access::{self, Need};
use crate::backend::Caller;
use crate::error::ApiError;
use crate::routes::Shared;
use crate::server::Peer;

/// No bearer token is longer.
const BEARER_BYTES_MAX: usize = 256;

/// Lets a request through to its handler, or refuses it.
pub(crate) async fn check(Axum(state): Axum<Shared>, mut request: Request, next: Next) -> Response {
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let rule = path
        .as_deref()
        .and_then(|path| access::rule_of(request.method(), path));
    let Some(rule) = rule else {
        return unlisted(path.as_deref().unwrap_or_default());
    };
    if rule.browsers_refused && request.headers().contains_key(header::ORIGIN) {
        return ApiError::new(
            codes::PERMISSION_DENIED,
            "this stream is not for browsers: requests with an Origin are refused",
        )
        .into_response();
    }
    if rule.need == Need::Nothing {
        return next.run(request).await;
    }
    let from = Peer::of(request.extensions());
    let caller = match bearer(request.headers()) {
        Ok(token) => state.backend.authenticate(token, &from).await,
        Err(error) => Err(error),
    };
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) => return challenge(error),
    };
    if let Need::Permission(permission) = rule.need
        && let Err(error) = caller.require(permission)
    {
        let object = request.uri().path().chars().take(160).collect::<String>();
        state
            .backend
            .refused(&caller, rule.action, &object, &error)
            .await;
        return error.into_response();
    }
    request.extensions_mut().insert(Arc::new(caller));
    next.run(request).await
}

/// The answer to a method and path that are not in the table: never the handler's, even if there
/// is one.
fn unlisted(path: &str) -> Response {
    let listed: Vec<&str> = access::table()
        .iter()
        .filter(|rule| rule.path == path)
        .map(|rule| rule.method.as_str())
        .collect();
    if listed.is_empty() {
        tracing::error!(route = path, "route without a permission");
        return ApiError::new(codes::INTERNAL, "this route names no permission").into_response();
    }
    let mut response = StatusCode::METHOD_NOT_ALLOWED.into_response();
    if let Ok(value) = header::HeaderValue::from_str(&listed.join(", ")) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

fn challenge(error: ApiError) -> Response {
    let is_unauthenticated = error.code == codes::UNAUTHENTICATED;
    let mut response = error.into_response();
    if is_unauthenticated {
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            header::HeaderValue::from_static("Bearer"),
        );
    }
    response
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let unauthenticated = |message: &str| {
        ApiError::new(codes::UNAUTHENTICATED, message)
            .hint("send Authorization: Bearer FA1… (fairlead login, or FAIRLEAD_TOKEN)")
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values
        .next()
        .ok_or_else(|| unauthenticated("an API token is needed here"))?;
    if values.next().is_some() {
        return Err(unauthenticated(
            "there is more than one Authorization header",
        ));
    }
    let text = value
        .to_str()
        .map_err(|_| unauthenticated("the API token is not text"))?;
    let token = match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => {
            return Err(unauthenticated(
                "the Authorization header must be a Bearer token",
            ));
        }
    };
    if token.starts_with("FL1") {
        return Err(ApiError::new(
            codes::UNAUTHENTICATED,
            "this is a join token (FL1…), which lets a machine enrol; \
             the API needs an API token (FA1…)",
        )
        .hint("fairlead api-token create makes one"));
    }
    if token.len() > BEARER_BYTES_MAX || !token.starts_with("FA1") {
        return Err(unauthenticated(
            "this is not an API token: those begin with FA1",
        ));
    }
    Ok(token)
}

/// The caller of a guarded route.
pub(crate) struct Asking(pub(crate) Arc<Caller>);

impl<S: Send + Sync> FromRequestParts<S> for Asking {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Arc<Caller>>();
        caller
            .map(|caller| Self(Arc::clone(caller)))
            .ok_or_else(|| {
                // Only a handler of an open route could get here: a defect, refused.
                ApiError::new(codes::UNAUTHENTICATED, "an API token is needed here")
            })
    }
}
