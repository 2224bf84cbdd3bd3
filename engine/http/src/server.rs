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
use socket2::{SockFilter, SockRef};
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

/// In a shutdown, how long a connection that has not asked for anything yet may take to do so: its request may be on
/// its way, or read already and not yet looked at.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

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
    for (stream, peer, place) in accepted_by_the_kernel(listener, &places) {
        tokio::spawn(connection(stream, peer, filter.clone(), options, phase.subscribe(), place));
    }
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

/// The connections whose handshakes the kernel completed before the listener closes. Their clients have sent, or
/// will send, a request that closing would answer with a reset.
fn accepted_by_the_kernel(
    listener: TcpListener,
    places: &Arc<Semaphore>,
) -> Vec<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let mut left = Vec::new();
    let Ok(listener) = listener.into_std() else { return left };
    // From here on the kernel drops what comes for the listener, so that nobody gets in between the last accept
    // and the close: who tries again after a SYN without an answer is refused. BPF_RET | BPF_K, 0: keep no byte.
    let nothing_passes = [SockFilter::new(0x06, 0, 0, 0)];
    if let Err(error) = SockRef::from(&listener).attach_filter(&nothing_passes) {
        tracing::debug!(%error, "cannot close the door before the last accept");
    }
    while let Ok(place) = places.clone().try_acquire_owned()
        && let Ok((stream, peer)) = listener.accept()
    {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            left.push((stream, peer, place));
        }
    }
    left
}

/// Resolves when a connection has to end with the answer in hand: in a shutdown, once it has `asked` for
/// something, or has had the time to.
async fn told_to_end(mut phase: watch::Receiver<Phase>, mut asked: watch::Receiver<bool>) {
    // An error is a sender that is gone: nothing is left to wait for.
    if phase.wait_for(|phase| *phase >= Phase::Draining).await.is_ok() {
        let _ = timeout(FIRST_REQUEST_GRACE, asked.wait_for(|asked| *asked)).await;
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
    let (asked, was_asked) = watch::channel(false);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        asked.send_replace(true);
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
    let mut told_to_end = pin!(told_to_end(phase.clone(), was_asked));
    let mut closing = pin!(phase.wait_for(|phase| *phase >= Phase::Closing));
    let mut ending = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%peer, %error, "connection ended");
                }
                return;
            }
            () = &mut told_to_end, if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = &mut closing => return,
        }
    }
}
