//! How requests reach the engine: one connection for each, over a unix socket.
//!
//! A connection of its own for every request makes the one distinction sure that the executor
//! lives on: either no engine was reached (nothing has happened), or the request was handed over
//! and the answer is missing (it may have happened). A pool that hands out stale connections after
//! an engine's restart cannot tell the two apart. A connect on a unix socket costs microseconds.
//!
//! The API version is negotiated before the first request and again whenever the engine was away.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::errors::Error;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::calls::is_listed;
use crate::runtime::ENGINE_QUESTION_TIMEOUT;

/// The newest API that this build was written against (that of bollard's models).
const NEWEST: ApiVersion = ApiVersion {
    major: 1,
    minor: 53,
};
/// Largest answer that is read into memory: a list of some ten thousand containers.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest error text that is read.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// A version of the engine's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ApiVersion {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl ApiVersion {
    pub(super) const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[derive(serde::Deserialize)]
struct VersionAnswer {
    #[serde(rename = "ApiVersion")]
    api_version: String,
}

#[derive(serde::Deserialize)]
struct ErrorAnswer {
    #[serde(default)]
    message: String,
}

/// The engine behind a unix socket.
#[derive(Debug)]
pub(super) struct Engine {
    socket: PathBuf,
    version: Mutex<Option<ApiVersion>>,
}

impl Engine {
    pub(super) fn new(socket: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            socket,
            version: Mutex::new(None),
        })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The version to speak: asked of the engine once, and again after it was away.
    pub(super) async fn version(&self) -> Result<ApiVersion, Error> {
        let known = *self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(version) = known {
            return Ok(version);
        }
        let ask = async {
            let request = Request::get("/version").body(Full::new(Bytes::new()))?;
            let answer = self.send_as_is(request).await?;
            decode::<VersionAnswer>(checked(answer).await?).await
        };
        // Whatever goes wrong here, the request proper has not been sent: the engine is away.
        let answer = within(ENGINE_QUESTION_TIMEOUT, ask)
            .await
            .map_err(|error| match error {
                Error::SocketNotFoundError(text) => Error::SocketNotFoundError(text),
                Error::RequestTimeoutError => Error::RequestTimeoutError,
                other => Error::SocketNotFoundError(other.to_string()),
            })?;
        let theirs =
            ApiVersion::parse(&answer.api_version).ok_or(Error::APIVersionParseError {})?;
        let version = theirs.min(NEWEST);
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(version);
        Ok(version)
    }

    /// Forgets the negotiated version: the engine may be another one when it is back.
    pub(super) fn forget_version(&self) {
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A question that changes nothing, with its answer's bytes, within the limit for questions.
    pub(super) async fn question(&self, path_and_query: &str) -> Result<Bytes, Error> {
        let ask = async {
            let answer = self.call(Method::GET, path_and_query, None).await?;
            collect(answer).await
        };
        within(ENGINE_QUESTION_TIMEOUT, ask).await
    }

    /// The same, decoded.
    pub(super) async fn ask<T: DeserializeOwned>(&self, path_and_query: &str) -> Result<T, Error> {
        Ok(serde_json::from_slice(
            &self.question(path_and_query).await?,
        )?)
    }

    /// Any request; an answer that is an error is returned as one. No time limit of its own.
    pub(super) async fn call(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Response<Incoming>, Error> {
        let bytes = body
            .map(serde_json::to_vec)
            .transpose()?
            .unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path_and_query)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))?;
        checked(self.send(request).await?).await
    }

    /// Asks for a raw two-way connection (exec).
    pub(super) async fn upgrade(
        &self,
        path_and_query: &str,
        body: &serde_json::Value,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>, Error> {
        let request = Request::post(path_and_query)
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "tcp")
            .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
        let answer = checked(self.send(request).await?).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::DockerStreamError {
                error: "the engine gave no two-way connection".to_owned(),
            });
        }
        Ok(TokioIo::new(hyper::upgrade::on(answer).await?))
    }

    /// Sends a request under the negotiated version.
    pub(super) async fn send<B>(&self, request: Request<B>) -> Result<Response<Incoming>, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (mut parts, body) = request.into_parts();
        let path = unversioned(&parts.uri);
        let plain = path.split_once('?').map_or(path, |(plain, _)| plain);
        if !is_listed(&parts.method, plain) {
            return Err(Error::DockerResponseServerError {
                status_code: StatusCode::FORBIDDEN.as_u16(),
                message: format!("{} {plain} is no call that this agent makes", parts.method),
            });
        }
        parts.uri = format!("/v{}{path}", self.version().await?).parse()?;
        let answer = self.send_as_is(Request::from_parts(parts, body)).await?;
        if answer.status() == StatusCode::BAD_REQUEST {
            // Among other things: "client version … is too old" from an engine that was upgraded
            // while we were not looking. Asking again costs one small question.
            self.forget_version();
        }
        Ok(answer)
    }

    async fn send_as_is<B>(&self, mut request: Request<B>) -> Result<Response<Incoming>, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            self.forget_version();
            Error::SocketNotFoundError(format!("{}: {error}", self.socket.display()))
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The task ends by itself: when the answer has been read, or when the answer (or the
        // future that waits for it) is dropped. It can outlive neither.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the engine ended");
            }
        });
        request
            .headers_mut()
            .insert(HOST, hyper::header::HeaderValue::from_static("engine"));
        sender.send_request(request).await.map_err(|error| {
            self.forget_version();
            Error::from(error)
        })
    }
}

/// The path (and query) without a version's prefix; scheme and authority are dropped.
fn unversioned(uri: &Uri) -> &str {
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    // bollard 0.21 drops its own prefix while it joins the path; should it stop doing so, ours
    // still is the only one.
    match path
        .strip_prefix("/v")
        .and_then(|rest| rest.split_once('/'))
    {
        Some((version, _)) if ApiVersion::parse(version).is_some() => &path[2 + version.len()..],
        _ => path,
    }
}

/// Runs a question within a limit.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::RequestTimeoutError),
    }
}

/// The answer, or the error that it is.
async fn checked(answer: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    let status = answer.status();
    if status.is_success()
        || status == StatusCode::NOT_MODIFIED
        || status == StatusCode::SWITCHING_PROTOCOLS
    {
        return Ok(answer);
    }
    let text = match Limited::new(answer.into_body(), ERROR_BYTES_MAX)
        .collect()
        .await
    {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let message = serde_json::from_slice::<ErrorAnswer>(&text).map_or_else(
        |_| String::from_utf8_lossy(&text).into_owned(),
        |answer| answer.message,
    );
    Err(Error::DockerResponseServerError {
        status_code: status.as_u16(),
        message,
    })
}

async fn collect(answer: Response<Incoming>) -> Result<Bytes, Error> {
    match Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
    {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(Error::DockerStreamError {
            error: error.to_string(),
        }),
    }
}

async fn decode<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T, Error> {
    Ok(serde_json::from_slice(&collect(answer).await?)?)
}

/// `text` as a value in a query.
pub(super) fn query_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_somebody_elses_is_taken_off_the_path() {
        let uri: Uri = "http://engine/containers/json?all=true".parse().unwrap();
        assert_eq!(unversioned(&uri), "/containers/json?all=true");
        let uri: Uri = "/v1.53/volumes".parse().unwrap();
        assert_eq!(unversioned(&uri), "/volumes");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(ApiVersion::parse("1.9").unwrap() < ApiVersion::parse("1.41").unwrap());
        assert_eq!(ApiVersion::parse("x"), None);
    }

    #[test]
    fn query_values_cannot_leave_their_place() {
        assert_eq!(query_value("a b&c=/é"), "a%20b%26c%3D%2F%C3%A9");
    }
}
