//! The one error type of the HTTP surface, and its one conversion into an answer.
//!
//! A handler says what is wrong as a code, what the operator should know and what to do next; the
//! developer's cause chain was logged where it was known. Texts never hold secrets.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fairlead_protocol::codes;

use crate::types::{ErrorBody, ErrorDetail};

/// What a request failed with.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code.
    pub code: &'static str,
    /// What failed, on which host.
    pub message: String,
    /// What to do next; may be empty.
    pub hint: String,
    /// When to come back, for `Retry-After`.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    /// An error with the status that belongs to its code.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: status_of(code),
            code,
            message: message.into(),
            hint: String::new(),
            retry_after_s: None,
        }
    }

    /// Says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The body of the answer.
    #[must_use]
    pub fn body(&self, request_id: String) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                code: self.code.to_owned(),
                message: self.message.clone(),
                hint: self.hint.clone(),
                request_id,
            },
        }
    }

    /// Says when to come back.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

/// The HTTP status of a code; a code without one of its own is the caller's mistake.
fn status_of(code: &str) -> StatusCode {
    match code {
        codes::UNAUTHENTICATED => StatusCode::UNAUTHORIZED,
        codes::PERMISSION_DENIED | codes::SETUP_CLOSED | codes::TICKET_REFUSED => {
            StatusCode::FORBIDDEN
        }
        codes::HOST_NOT_FOUND
        | codes::CONTAINER_NOT_FOUND
        | codes::COMMAND_NOT_FOUND
        | codes::REGION_NOT_FOUND
        | codes::TOKEN_NOT_FOUND
        | codes::TERMINAL_NOT_FOUND
        | codes::NOT_FOUND => StatusCode::NOT_FOUND,
        codes::AMBIGUOUS | codes::ALREADY_EXISTS | codes::DUPLICATE_ID | codes::NO_STREAM => {
            StatusCode::CONFLICT
        }
        codes::COMMAND_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        codes::BUSY => StatusCode::TOO_MANY_REQUESTS,
        codes::HOST_OFFLINE | codes::REGION_OFFLINE | codes::STORAGE_UNAVAILABLE => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        codes::INTERNAL => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body(String::new()))).into_response();
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // The envelope writes the body again, with the request's id in it.
        response.extensions_mut().insert(self);
        response
    }
}
