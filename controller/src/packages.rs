//! What machines download: the installer's script and the packages, as files below one directory.
//!
//! Nothing here is secret and nothing is made up on the way: the same bytes for everybody, whatever is
//! asked. What is downloaded proves itself by the script's hashes and the manifest's signature, not by
//! where it came from. Only plain names are looked up: no name begins with a dot, none holds a separator.

mod given;
pub mod pushed;
pub mod shipped;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use fairlead_api::server::Peer;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tower_http::services::ServeDir;

/// The directory, below the controller's data.
pub const DIR: &str = "packages";
/// Downloads at a time; more are told to come back.
const DOWNLOADS_MAX: usize = 64;
/// Longest name of a file or a version.
const NAME_CHARS_MAX: usize = 100;
/// Downloads that are remembered, for whoever waits for one.
const REMEMBERED_MAX: usize = 256;

/// A program that somebody has fetched to the end of the answer's head.
#[derive(Debug, Clone)]
pub struct Download {
    /// When, in microseconds.
    pub at_us: i64,
    /// What.
    pub file: String,
    /// Which version.
    pub version: String,
    /// Who, by the address of the connection.
    pub from: String,
}

/// The packages that this controller serves.
pub struct Packages {
    dir: PathBuf,
    now_us: Box<dyn Fn() -> i64 + Send + Sync>,
    places: Arc<Semaphore>,
    recent: Mutex<std::collections::VecDeque<Download>>,
    /// Held by whoever puts a file of a pushed version in place.
    pushing: tokio::sync::Mutex<()>,
}

impl Packages {
    /// Packages below `dir`, which need not be there.
    #[must_use]
    pub fn new(dir: &Path, now_us: impl Fn() -> i64 + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.to_owned(),
            now_us: Box::new(now_us),
            places: Arc::new(Semaphore::new(DOWNLOADS_MAX)),
            recent: Mutex::default(),
            pushing: tokio::sync::Mutex::default(),
        })
    }

    /// The version that new machines get; `None` when there is no package.
    #[must_use]
    pub fn stable(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.dir.join("channels/stable")).ok()?;
        let version = text.trim();
        is_name(version).then(|| version.to_owned())
    }

    /// Versions that are here, by name.
    #[must_use]
    pub fn versions(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut versions: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().join("manifest").is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| is_name(name))
            .collect();
        versions.sort_unstable();
        versions
    }

    /// Programs that were fetched since that moment, oldest first.
    #[must_use]
    pub fn downloads_since(&self, since_us: i64) -> Vec<Download> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent
            .iter()
            .filter(|download| download.at_us >= since_us)
            .cloned()
            .collect()
    }

    fn remember(&self, path: &str, from: Option<SocketAddr>) {
        // Only programs are of interest: `/packages/VERSION/fairlead-…`.
        let Some((version, file)) = path
            .strip_prefix("/packages/")
            .and_then(|rest| rest.split_once('/'))
        else {
            return;
        };
        if !file.starts_with("fairlead-agent-") {
            return;
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= REMEMBERED_MAX {
            recent.pop_front();
        }
        recent.push_back(Download {
            at_us: (self.now_us)(),
            file: file.to_owned(),
            version: version.to_owned(),
            from: from.map(|peer| peer.ip().to_string()).unwrap_or_default(),
        });
    }

    /// `/install.sh`, its signature, and `/packages/…`.
    pub fn router(self: &Arc<Self>) -> Router {
        // Answers of files know ranges, so that a download goes on where it broke off.
        let files = ServeDir::new(&self.dir)
            .append_index_html_on_directories(false)
            .call_fallback_on_method_not_allowed(false);
        Router::new()
            .route_service("/install.sh", files.clone())
            .route_service("/install.sh.sig", files.clone())
            .nest_service("/packages", files)
            .layer(middleware::from_fn_with_state(Arc::clone(self), guard))
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&text.len())
        && !text.starts_with('.')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+' | b'~'))
}

/// Whether a path is one that can be meant: at most a folder and a file, of plain names.
fn is_path(path: &str) -> bool {
    if matches!(path, "/install.sh" | "/install.sh.sig") {
        return true;
    }
    let Some(rest) = path.strip_prefix("/packages/") else {
        return false;
    };
    let parts: Vec<&str> = rest.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|part| is_name(part))
}

/// An answer to HEAD has no body, also where it is a refusal: HTTP/2 sends whatever body there is.
async fn guard(State(packages): State<Arc<Packages>>, request: Request, next: Next) -> Response {
    let is_head = *request.method() == Method::HEAD;
    let answer = answer(packages, request, next).await;
    if is_head {
        let (parts, _) = answer.into_parts();
        return Response::from_parts(parts, Body::empty());
    }
    answer
}

async fn answer(packages: Arc<Packages>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return said(StatusCode::METHOD_NOT_ALLOWED, "packages are only read\n");
    }
    if !is_path(&path) {
        return not_here();
    }
    let Ok(place) = Arc::clone(&packages.places).try_acquire_owned() else {
        let mut answer = said(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many downloads at once; try again in some seconds\n",
        );
        let wait = HeaderValue::from_static("5");
        answer.headers_mut().insert(header::RETRY_AFTER, wait);
        return answer;
    };
    let from = request.extensions().get::<Peer>().map(|peer| peer.0);
    let is_get = request.method() == Method::GET;
    let answer = next.run(request).await;
    match answer.status() {
        status if status.is_success() => {
            if is_get {
                packages.remember(&path, from);
            }
            dressed(answer, &path, place)
        }
        StatusCode::NOT_MODIFIED | StatusCode::RANGE_NOT_SATISFIABLE => answer,
        StatusCode::NOT_FOUND => not_here(),
        status => {
            tracing::warn!(path, %status, "a package could not be served");
            said(
                StatusCode::SERVICE_UNAVAILABLE,
                "the package cannot be read here now\n",
            )
        }
    }
}

/// The file's answer with what keeps browsers and caches from guessing; holds its place to its end.
fn dressed(answer: Response, path: &str, place: tokio::sync::OwnedSemaphorePermit) -> Response {
    let (mut parts, body) = answer.into_parts();
    let kind = if Path::new(path).extension().is_some_and(|end| end == "sh") {
        "text/x-shellscript; charset=utf-8"
    } else {
        "application/octet-stream"
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in headers {
        parts.headers.insert(name, HeaderValue::from_static(value));
    }
    let body = body.map_frame(move |frame| {
        let _held = &place;
        frame
    });
    Response::from_parts(parts, Body::new(body))
}

fn not_here() -> Response {
    said(
        StatusCode::NOT_FOUND,
        "package_not_found: there is no such file here; an administrator puts packages into the \
         controller's data directory, folder packages\n",
    )
}

fn said(status: StatusCode, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    fn world() -> (tempfile::TempDir, Arc<Packages>) {
        let dir = tempfile::tempdir().unwrap();
        let packages = dir.path().join(DIR);
        for folder in ["channels", "0.2.0"] {
            std::fs::create_dir_all(packages.join(folder)).unwrap();
        }
        std::fs::write(packages.join("install.sh"), "#!/bin/sh\n").unwrap();
        std::fs::write(packages.join("install.sh.sig"), "KEYID SIGNATURE\n").unwrap();
        std::fs::write(packages.join("channels/stable"), "0.2.0\n").unwrap();
        std::fs::write(packages.join("0.2.0/manifest"), "fairlead-manifest 1\n").unwrap();
        std::fs::write(
            packages.join("0.2.0/fairlead-agent-linux-x86_64"),
            "0123456789",
        )
        .unwrap();
        std::fs::write(packages.join(".hidden"), "secret").unwrap();
        std::fs::write(dir.path().join("root.key"), "secret").unwrap();
        let served = Packages::new(&packages, || 7);
        (dir, served)
    }

    async fn get(
        packages: &Arc<Packages>,
        path: &str,
        range: Option<&str>,
    ) -> (StatusCode, String) {
        let mut request = Request::get(path);
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        let request = request.body(Body::empty()).unwrap();
        let answer = packages.router().oneshot(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn files_are_served_whole_and_from_where_a_download_broke_off() {
        let (_dir, packages) = world();
        let script = get(&packages, "/install.sh", None).await;
        assert_eq!(script, (StatusCode::OK, "#!/bin/sh\n".to_owned()));
        for path in ["/install.sh.sig", "/packages/install.sh.sig"] {
            let signatures = get(&packages, path, None).await;
            assert_eq!(signatures, (StatusCode::OK, "KEYID SIGNATURE\n".to_owned()));
        }
        let agent = "/packages/0.2.0/fairlead-agent-linux-x86_64";
        assert_eq!(get(&packages, agent, None).await.1, "0123456789");
        let rest = get(&packages, agent, Some("bytes=4-")).await;
        assert_eq!(rest, (StatusCode::PARTIAL_CONTENT, "456789".to_owned()));
        assert_eq!(packages.stable().as_deref(), Some("0.2.0"));
        assert_eq!(packages.versions(), ["0.2.0"]);
        let downloads = packages.downloads_since(0);
        assert_eq!(downloads.len(), 2);
        assert_eq!(downloads[0].version, "0.2.0");
        assert!(packages.downloads_since(8).is_empty());
    }

    #[tokio::test]
    async fn s18_nothing_outside_and_nothing_hidden_can_be_named() {
        let (_dir, packages) = world();
        for path in [
            "/packages/../root.key",
            "/packages/..%2froot.key",
            "/packages/%2e%2e/root.key",
            "/packages/%2e%2e%2froot.key",
            "/packages/..\\root.key",
            "/packages/.hidden",
            "/packages/%2ehidden",
            "/packages//etc/passwd",
            "/packages/0.2.0/../../root.key",
            "/packages/0.2.0/..%5c..%5croot.key",
            "/packages/0.2.0/manifest%00.sh",
            "/packages/0.2.0/",
            "/packages/0.2.0",
            "/packages/",
            "/packages/a/b/c",
            "/install.sh/../packages/.hidden",
        ] {
            let (status, body) = get(&packages, path, None).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {body}");
            assert!(!body.contains("secret"), "{path}");
        }
    }

    #[tokio::test]
    async fn packages_are_only_read_and_so_many_at_a_time() {
        let (_dir, packages) = world();
        let request = Request::post("/install.sh").body(Body::empty()).unwrap();
        let answer = packages.router().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
        let places = u32::try_from(DOWNLOADS_MAX).unwrap();
        let held = Arc::clone(&packages.places)
            .acquire_many_owned(places)
            .await
            .unwrap();
        let (status, _) = get(&packages, "/install.sh", None).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        drop(held);
        assert_eq!(get(&packages, "/install.sh", None).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn an_answer_to_head_has_no_body() {
        let (_dir, packages) = world();
        for (path, status) in [
            ("/packages/0.2.0/fairlead-agent-linux-x86_64", 200),
            ("/packages/0.3.0/fairlead-agent-linux-x86_64", 404),
            ("/packages/.hidden", 404),
        ] {
            let request = Request::head(path).body(Body::empty()).unwrap();
            let answer = packages.router().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), status, "{path}");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.len(), 0, "{path}");
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn without_packages_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let packages = Packages::new(&dir.path().join("none"), || 0);
        let (status, body) = get(&packages, "/install.sh", None).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.starts_with("package_not_found"), "{body}");
        assert_eq!(packages.stable(), None);
        assert!(packages.versions().is_empty());
    }
}
