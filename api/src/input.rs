//! Reading what a client sent: bounded before it is understood, and refused in the one error shape.
//!
//! Bodies are at most [`BODY_BYTES_MAX`]; every text in them is measured before the typed parse.
//! The texts of parse errors are cut and stripped, because they may quote the client.

use std::time::Duration;

use axum::body::{BodyDataStream, HttpBody};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use fairlead_protocol::{codes, limits};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::ApiError;

/// Largest body of a request.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// How much of a body that is larger is read nevertheless, so that its sender hears why.
const BODY_BYTES_DRAINED_MAX: usize = 32 << 20;
/// Longest path and query together.
pub const URI_BYTES_MAX: usize = 4 * 1024;
/// Most members of one list or map.
const MEMBERS_MAX: usize = 512;
/// A body that takes longer to arrive is given up.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON body, measured and parsed.
pub struct Body<T>(pub T);

impl<S, T> FromRequest<S> for Body<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            let mut error = invalid("the body must be JSON with Content-Type: application/json");
            error.status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(error);
        }
        let bytes = tokio::time::timeout(BODY_TIMEOUT, read(request.into_body()))
            .await
            .map_err(|_| invalid("the body did not arrive in time"))??;
        parse(&bytes).map(Self)
    }
}

/// A whole body. Of one that is too large some more is read and thrown away: who is still writing when
/// the connection closes never sees the answer that says why.
async fn read(mut body: axum::body::Body) -> Result<Vec<u8>, ApiError> {
    let (mut kept, mut length) = (Vec::new(), 0);
    // Its Content-Length says so: nothing of it is waited for.
    if body.size_hint().lower() > BODY_BYTES_DRAINED_MAX as u64 {
        return Err(too_large());
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| invalid("the body broke off"))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        length += data.len();
        if length <= BODY_BYTES_MAX {
            kept.extend_from_slice(data);
        } else if length > BODY_BYTES_DRAINED_MAX {
            break;
        }
    }
    if length <= BODY_BYTES_MAX {
        return Ok(kept);
    }
    Err(too_large())
}

/// Reads on in a body that is refused, as far as its sender may be heard out: who is still writing when the
/// connection closes never sees the answer.
pub async fn throw_away(body: &mut BodyDataStream) {
    let mut length = 0;
    let reading = async {
        while let Some(Ok(piece)) = body.next().await {
            length += piece.len();
            if length > BODY_BYTES_DRAINED_MAX {
                return;
            }
        }
    };
    // Either way the answer goes out now.
    let _ = tokio::time::timeout(BODY_TIMEOUT, reading).await;
}

fn too_large() -> ApiError {
    let mut error = invalid(format!(
        "the body is too large: it may have {BODY_BYTES_MAX} bytes at most"
    ));
    error.status = StatusCode::PAYLOAD_TOO_LARGE;
    error
}

/// The typed value of a JSON text whose every string was measured first.
///
/// # Errors
/// `invalid_request`, saying what and where.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| not_understood(&error))?;
    measure(&value, "")?;
    // From the text again, not from the value: only then are repeated fields noticed.
    serde_json::from_slice(bytes).map_err(|error| not_understood(&error))
}

fn not_understood(error: &serde_json::Error) -> ApiError {
    invalid(format!(
        "the body is not what is expected here: {}",
        plain(&error.to_string())
    ))
}

/// An `invalid_request`.
#[must_use]
pub fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(codes::INVALID_REQUEST, message)
}

/// At most 300 characters, without control characters.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(300)
        .collect()
}

/// How long a text may be, by the field that holds it.
fn chars_max(field: &str) -> usize {
    match field {
        // Scripts and settings are longer than other texts; the encoded command has its own bound.
        "command" | "entrypoint" | "env" => limits::COMMAND_BYTES_MAX,
        "id" | "name" | "host" | "region" | "regions" | "container" | "kind" | "user"
        | "signal" | "hostname" | "secret" => limits::NAME_CHARS_MAX,
        _ => limits::TEXT_CHARS_MAX,
    }
}

/// Fields that hold (or list) objects. A list where an object belongs would be read as an object
/// without fields, and an empty scope restricts nothing.
const OBJECTS: [&str; 6] = ["", "action", "scope", "precondition", "spec", "health"];

fn is_object_needed(field: &str, value: &Value) -> bool {
    match value {
        Value::Array(items) if matches!(field, "ports" | "mounts") => {
            !items.iter().all(Value::is_object)
        }
        Value::Array(_) => OBJECTS.contains(&field),
        _ => false,
    }
}

fn measure(value: &Value, field: &str) -> Result<(), ApiError> {
    if is_object_needed(field, value) {
        return Err(invalid(format!("{field:?} must be an object, not a list")));
    }
    let text = |text: &str| {
        let max = chars_max(field);
        if text.chars().nth(max).is_some() {
            return Err(invalid(format!(
                "{field:?} is too long: at most {max} characters"
            )));
        }
        if text.contains('\0') {
            return Err(invalid(format!("{field:?} contains a NUL character")));
        }
        Ok(())
    };
    let members = |count: usize| {
        if count > MEMBERS_MAX {
            return Err(invalid(format!(
                "{field:?} has {count} members; at most {MEMBERS_MAX}"
            )));
        }
        Ok(())
    };
    match value {
        Value::String(string) => text(string),
        Value::Array(items) => {
            members(items.len())?;
            items.iter().try_for_each(|item| measure(item, field))
        }
        Value::Object(map) => {
            members(map.len())?;
            map.iter().try_for_each(|(key, item)| {
                if key.chars().nth(limits::NAME_CHARS_MAX).is_some() {
                    return Err(invalid(format!("a key within {field:?} is too long")));
                }
                measure(item, key)
            })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// Query parameters, measured and parsed; unknown ones are refused by their types.
pub struct Query<T>(pub T);

impl<S, T> FromRequestParts<S> for Query<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|query| Self(query.0))
            .map_err(|rejection: QueryRejection| {
                invalid(format!(
                    "the query is not understood: {}",
                    plain(&rejection.body_text())
                ))
            })
    }
}

/// The one variable of a path.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection: PathRejection| {
                invalid(format!(
                    "the path is not understood: {}",
                    plain(&rejection.body_text())
                ))
            })?;
        text("the path", &path.0, limits::NAME_CHARS_MAX)?;
        Ok(Self(path.0))
    }
}

/// Refuses a text that is too long or holds control characters.
///
/// # Errors
/// `invalid_request`, naming `what`.
pub fn text(what: &str, value: &str, chars_max: usize) -> Result<(), ApiError> {
    if value.chars().nth(chars_max).is_some() {
        return Err(invalid(format!(
            "{what} is too long: at most {chars_max} characters"
        )));
    }
    if value.chars().any(char::is_control) {
        return Err(invalid(format!("{what} contains control characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::CommandRequest;
    use proptest::prelude::*;

    #[test]
    fn s27_every_text_is_capped_before_it_is_parsed() {
        let long = "x".repeat(limits::TEXT_CHARS_MAX + 1);
        for body in [
            format!(r#"{{"action":{{"kind":"pull","image":"{long}"}}}}"#),
            format!(
                r#"{{"action":{{"kind":"start","container":"{}"}}}}"#,
                "x".repeat(129)
            ),
            format!(r#"{{"action":{{"kind":"ping"}},"{long}":1}}"#),
            format!(
                r#"{{"host":"{}","action":{{"kind":"ping"}}}}"#,
                "é".repeat(129)
            ),
        ] {
            let error = parse::<CommandRequest>(body.as_bytes()).unwrap_err();
            assert_eq!(error.code, codes::INVALID_REQUEST);
            assert!(error.message.contains("too long"), "{error}");
        }
    }

    #[test]
    fn unknown_and_repeated_fields_are_refused() {
        for body in [
            r#"{"action":{"kind":"ping"},"force":true}"#,
            r#"{"host":"a","host":"b","action":{"kind":"ping"}}"#,
            r#"{"action":{"kind":"raw"}}"#,
            r#"{"action":{"kind":"start","container":null}}"#,
            r#"{"action":{"kind":"start","container":"a","extra":1}}"#,
            r#"[]"#,
            r#"{"action":{"kind":"ping"},"precondition":[]}"#,
            r#"{"action":{"kind":"run","spec":[]}}"#,
            r#"{"action":{"kind":"run","spec":{"image":"a","ports":[[]]}}}"#,
            r#"{"action""#,
            "",
        ] {
            parse::<CommandRequest>(body.as_bytes()).unwrap_err();
        }
        parse::<CommandRequest>(br#"{"action":{"kind":"ping"}}"#).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_in_plain_words(bytes: Vec<u8>) {
            if let Err(error) = parse::<CommandRequest>(&bytes) {
                prop_assert!(!error.message.chars().any(char::is_control));
                prop_assert!(error.message.chars().count() < 400);
            }
        }
    }
}
