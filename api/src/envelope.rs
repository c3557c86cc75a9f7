//! Around every request: its id, its time, security headers, and one shape for every error.
//!
//! Whatever refuses a request (a handler, an extractor, axum's own 404 or 405), the client gets an
//! `ErrorBody` with a request id. Ids that a client or proxy sends are not believed.

use axum::extract::{MatchedPath, Request, State as Axum};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fairlead_protocol::{StreamId, codes};

use crate::access;
use crate::backend::Observed;
use crate::error::ApiError;
use crate::input::{URI_BYTES_MAX, invalid};
use crate::routes::Shared;

/// The header that carries a request's id in the answer.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Wraps one request.
pub(crate) async fn wrap(Axum(state): Axum<Shared>, request: Request, next: Next) -> Response {
    let started = tokio::time::Instant::now();
    let id = StreamId::from_bytes((state.options.random)()).to_string();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let mut response = if request.uri().to_string().len() > URI_BYTES_MAX {
        let mut error = invalid(format!("the URL is longer than {URI_BYTES_MAX} bytes"));
        error.status = StatusCode::URI_TOO_LONG;
        error.into_response()
    } else {
        next.run(request).await
    };
    if response.status().is_client_error() || response.status().is_server_error() {
        response = shaped(response, &id);
    }
    add_headers(response.headers_mut(), &id);
    let status = response.status();
    state.backend.observe(Observed {
        route: route.as_deref().and_then(known_route).unwrap_or("other"),
        method: known_method(&method),
        status: status.as_u16(),
        took_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
    });
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        tracing::error!(request_id = %id, status = status.as_u16(), "request failed");
    }
    response
}

fn known_route(path: &str) -> Option<&'static str> {
    access::table()
        .iter()
        .map(|rule| rule.path)
        .find(|known| *known == path)
}

fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// The same refusal as an `ErrorBody` with the request's id; other headers stay (`Allow`,
/// `Retry-After`).
fn shaped(mut response: Response, id: &str) -> Response {
    let error = response
        .extensions_mut()
        .remove::<ApiError>()
        .unwrap_or_else(|| of_status(response.status()));
    let mut kept = std::mem::take(response.headers_mut());
    kept.remove(header::CONTENT_LENGTH);
    kept.remove(header::CONTENT_TYPE);
    let mut shaped = (response.status(), axum::Json(error.body(id.to_owned()))).into_response();
    for (name, value) in &kept {
        shaped.headers_mut().insert(name.clone(), value.clone());
    }
    shaped
}

/// What is said of a refusal that is not ours (axum's own).
fn of_status(status: StatusCode) -> ApiError {
    match status {
        StatusCode::NOT_FOUND => not_found(),
        StatusCode::METHOD_NOT_ALLOWED => {
            let mut error = invalid("this method is not served here; Allow lists those that are");
            error.status = status;
            error
        }
        status if status.is_client_error() => {
            let mut error = invalid(
                status
                    .canonical_reason()
                    .unwrap_or("the request is not understood")
                    .to_lowercase(),
            );
            error.status = status;
            error
        }
        _ => ApiError::new(codes::INTERNAL, "the server failed")
            .hint("look the request id up in the server's log"),
    }
}

/// There is no such path.
pub(crate) fn not_found() -> ApiError {
    ApiError::new(codes::NOT_FOUND, "there is no such path")
        .hint("GET /api/v1/openapi.json lists all paths")
}

fn add_headers(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
    let fixed: [(HeaderName, &'static str); 6] = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Answers hold what only this token may see.
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
}
