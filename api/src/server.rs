//! Accepting connections: TLS, HTTP/1.1 and HTTP/2, limits per connection, drain.
//!
//! Each connection has its own task, owned by [`serve`]; a client that is slow, silent or hostile
//! holds one bounded connection for a bounded time and slows nobody else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Extensions, Request, Response};
use fairlead_daemon::arrivals::Arrivals;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crowd::{Crowd, Place};

pub mod crowd;
pub mod web_certificate;

/// What a server allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Of one address, connections without a request in progress; more are closed.
    pub idle_per_address_max: usize,
    /// TLS handshake.
    pub handshake_timeout: Duration,
    /// From a connection's (or the previous request's) end to the last header.
    pub header_timeout: Duration,
    /// A connection without any request in progress is closed after this.
    pub idle_timeout: Duration,
    /// How long requests may go on once the server drains.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            idle_per_address_max: 256,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Requests that one HTTP/2 connection may have in progress.
const HTTP2_STREAMS_MAX: u32 = 64;
/// Largest head of an HTTP/1.1 request.
const HTTP1_BUFFER_BYTES: usize = 16 * 1024;
/// Largest head of an HTTP/2 request.
const HTTP2_HEADERS_BYTES: u32 = 16 * 1024;
/// The application protocols that the TLS configuration should offer, best first.
pub const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Where a request comes from: the address of its connection, never a header.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

impl Peer {
    /// The peer's address as text; empty when there is no connection (tests).
    #[must_use]
    pub fn of(extensions: &Extensions) -> String {
        extensions
            .get::<Self>()
            .map(|peer| peer.0.ip().to_string())
            .unwrap_or_default()
    }
}

/// Serves until `shutdown`, then lets requests in progress end. The router's own long-lived
/// answers must end by the same signal (see `Options::shutdown`).
///
/// # Errors
/// When the listener is broken for good.
pub async fn serve(
    listener: impl Into<Arrivals>,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    shutdown: CancellationToken,
    limits: Limits,
) -> std::io::Result<()> {
    let mut listener = listener.into();
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let crowd = Crowd::new(limits.idle_per_address_max);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let place = tokio::select! {
            () = shutdown.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let Ok(place) = place else { break };
        let (socket, peer) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Some(idle) = crowd.enter(peer.ip()) else {
            tracing::debug!(peer = %peer, "too many idle connections of one address");
            continue;
        };
        let acceptor = acceptor.clone();
        let router = router.clone();
        let shutdown = shutdown.clone();
        let limits = limits.clone();
        connections.spawn(async move {
            let _place = place;
            if let Err(error) =
                connection(socket, (peer, idle), acceptor, router, shutdown, &limits).await
            {
                tracing::debug!(peer = %peer, error = %error, "connection ended");
            }
        });
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain_timeout, all_ended)
        .await
        .is_err()
    {
        tracing::warn!(
            left = connections.len(),
            "connections cut at the end of the drain"
        );
    }
    connections.shutdown().await;
    Ok(())
}

async fn connection(
    socket: TcpStream,
    (peer, place): (SocketAddr, Place),
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
    limits: &Limits,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    socket.set_nodelay(true)?;
    // Boxed: the handshake's large future is gone once it is done.
    let handshake = Box::pin(tokio::time::timeout(
        limits.handshake_timeout,
        acceptor.accept(socket),
    ));
    let stream = handshake.await??;
    let spoken = stream.get_ref().1.alpn_protocol();
    if spoken.is_some_and(|protocol| !ALPN.contains(&protocol)) {
        // A CA that looked at a challenge's answer (RFC 8737): the handshake was all it wanted.
        return Ok(());
    }
    let is_http2 = spoken == Some(ALPN[0]);
    let activity = Arc::new(Activity {
        requests: AtomicUsize::new(0),
        place,
    });
    let idle = idle(Arc::clone(&activity), limits.idle_timeout);
    if is_http2 {
        serve_http2(stream, peer, router, shutdown, activity, idle).await
    } else {
        serve_http1(stream, peer, router, shutdown, activity, idle, limits).await
    }
}

/// Ends when a whole period passed without a request in progress or begun. The low half of the
/// counter counts requests in progress, the high half those that ever began.
async fn idle(activity: Arc<Activity>, timeout: Duration) {
    let mut before = usize::MAX;
    loop {
        tokio::time::sleep(timeout).await;
        let now = activity.requests.load(Ordering::Relaxed);
        if now.is_multiple_of(IN_PROGRESS) && now == before {
            return;
        }
        before = now;
    }
}

/// Requests in progress are counted below this, begun ones in steps of it.
const IN_PROGRESS: usize = 1 << 16;

/// What one connection does.
struct Activity {
    requests: AtomicUsize,
    /// Among the idle ones of its address while it has no request in progress.
    place: Place,
}

/// A request that is in progress; ends with its answer's last byte.
struct InProgress(Arc<Activity>);

impl InProgress {
    fn begin(activity: &Arc<Activity>) -> Self {
        let before = activity
            .requests
            .fetch_add(IN_PROGRESS + 1, Ordering::Relaxed);
        if before.is_multiple_of(IN_PROGRESS) {
            activity.place.leave();
        }
        Self(Arc::clone(activity))
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let before = self.0.requests.fetch_sub(1, Ordering::Relaxed);
        if before % IN_PROGRESS == 1 {
            self.0.place.come_back();
        }
    }
}

async fn answer(
    mut request: Request<Incoming>,
    peer: SocketAddr,
    router: Router,
    activity: Arc<Activity>,
) -> Result<Response<Body>, Infallible> {
    let in_progress = InProgress::begin(&activity);
    request.extensions_mut().insert(Peer(peer));
    let response = router.oneshot(request.map(Body::new)).await?;
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &in_progress;
            frame
        }))
    }))
}

async fn serve_http1(
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
    activity: Arc<Activity>,
    idle: impl Future<Output = ()>,
    limits: &Limits,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let service =
        service_fn(move |request| answer(request, peer, router.clone(), Arc::clone(&activity)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HTTP1_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = connection.as_mut() => return Ok(done?),
        () = idle => return Ok(()),
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

async fn serve_http2(
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
    activity: Arc<Activity>,
    idle: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let service =
        service_fn(move |request| answer(request, peer, router.clone(), Arc::clone(&activity)));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_header_list_size(HTTP2_HEADERS_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = connection.as_mut() => return Ok(done?),
        () = idle => return Ok(()),
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

#[cfg(test)]
mod tests;
