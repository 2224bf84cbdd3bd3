//! The HTTP/1.1 server: hyper around a warp filter, with the bounds that warp's own server lacks.
//!
//! Time to send a head, number of connections, time for a reader that does not read, and time to drain are all
//! limited, so that a slow or hostile client costs its own small buffers and nothing else.

use crate::context::PeerAddr;
use crate::stall::StallGuard;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tower_service::Service;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// What a connection buffers in either direction, and so the longest head that is read.
const CONNECTION_BUFFER_BYTES: usize = 64 << 10;

/// Bounds of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServeOptions {
    /// Time for a request's head to arrive, and for an idle kept-alive connection to send its next one. The default
    /// is above the 5 s after which common clients give up an idle connection, so that they do it first.
    pub header_read_timeout: Duration,
    /// Connections at a time; more wait in the kernel's backlog.
    pub max_connections: u32,
    /// A connection is closed when a write makes no progress for this long.
    pub write_stall_timeout: Duration,
    /// After shutdown begins, answers may take this long to finish; then their connections are closed.
    pub drain_deadline: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            header_read_timeout: Duration::from_secs(10),
            max_connections: 4096,
            write_stall_timeout: Duration::from_secs(30),
            drain_deadline: Duration::from_secs(30),
        }
    }
}

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Phase {
    Serving,
    /// Connections finish the answer in hand and close.
    Draining,
    /// Connections close.
    Closing,
}

/// Serves until `shutdown` completes, then drains. Returns when every connection is closed.
pub async fn serve(
    listener: TcpListener,
    filter: BoxedFilter<(Response,)>,
    shutdown: impl Future<Output = ()> + Send,
    options: ServeOptions,
) {
    let places = Arc::new(Semaphore::new(options.max_connections as usize));
    let (phase, _) = watch::channel(Phase::Serving);
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else { continue };
        tokio::spawn(connection(stream, peer, filter.clone(), options, phase.subscribe(), place));
    }
    // Refuse new connections at once instead of letting them wait in the backlog.
    drop(listener);
    phase.send_replace(Phase::Draining);
    if timeout(options.drain_deadline, places.acquire_many(options.max_connections)).await.is_ok() {
        return;
    }
    let left = options.max_connections as usize - places.available_permits();
    tracing::warn!(connections = left, "drain deadline passed, closing connections");
    phase.send_replace(Phase::Closing);
    // Closing takes no more than a poll of each task.
    let _ = timeout(Duration::from_secs(5), places.acquire_many(options.max_connections)).await;
}

/// The next connection, once there is a place for one; none when accepting failed.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, place)),
        Err(error) => {
            // The client gave up (ECONNABORTED), or this process has no descriptor left (EMFILE), which
            // a tight loop would not make better.
            tracing::warn!(%error, "cannot accept a connection");
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    filter: BoxedFilter<(Response,)>,
    options: ServeOptions,
    mut phase: watch::Receiver<Phase>,
    _place: OwnedSemaphorePermit,
) {
    // Each token is a small write that must leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let service = warp::service(filter);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(PeerAddr(peer));
        let mut service = service.clone();
        service.call(request)
    });
    let io = TokioIo::new(StallGuard::new(stream, options.write_stall_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_read_timeout)
        .keep_alive(true)
        .max_buf_size(CONNECTION_BUFFER_BYTES)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut draining = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%peer, %error, "connection ended");
                }
                return;
            }
            // The sender lives as long as `serve`; with it gone there is nothing to wait for.
            changed = phase.wait_for(|phase| *phase >= if draining { Phase::Closing } else { Phase::Draining }) => {
                if draining || changed.is_err() {
                    return;
                }
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
