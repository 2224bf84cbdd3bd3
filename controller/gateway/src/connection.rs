//! One HTTP/1.1 connection to an instance, over hyper. A pool of our own instead of a client library's,
//! because here dropping a connection must close its socket at once: that is how a client's disconnect
//! cancels the work in the engine.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// An open connection. Dropping it closes the socket.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    /// It has carried a request before, so the peer may have closed it meanwhile.
    pub reused: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects, within `timeout`.
    pub async fn open(addr: SocketAddr, timeout: Duration) -> Result<Self, String> {
        let connect = tokio::time::timeout(timeout, TcpStream::connect(addr));
        let stream = connect
            .await
            .map_err(|_| format!("no connection to {addr} within {} ms", timeout.as_millis()))?
            .map_err(|error| format!("no connection to {addr}: {error}"))?;
        stream.set_nodelay(true).map_err(|error| format!("TCP_NODELAY on {addr}: {error}"))?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(256 * 1024)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("HTTP handshake with {addr}: {error}"))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%addr, %error, "connection to an instance ended");
            }
        });
        Ok(Self { sender, driver, reused: false })
    }

    /// Whether a request may be sent on it, as far as is known.
    pub fn is_usable(&self) -> bool {
        self.sender.is_ready() && !self.driver.is_finished()
    }

    /// Hands the request over at once and answers with the response's head.
    pub fn send(&mut self, request: Request<Full<Bytes>>) -> impl Future<Output = hyper::Result<Response<Incoming>>> {
        self.sender.send_request(request)
    }

    /// Waits until the last answer is read to its end and the connection can be used again.
    pub async fn becomes_usable(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }
}
