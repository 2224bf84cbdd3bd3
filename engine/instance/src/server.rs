//! The engine's port: the OpenAI routes, the hop beside them, and /metrics.

use crate::backend::LocalBackend;
use crate::error::EngineError;
use crate::exposition;
use crate::hop;
use crate::shared::Shared;
use engine_http::{Limits, RouteOptions, ServeOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use warp::Filter;

/// Time for answers to reach their clients after the last request has ended.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The running server.
pub(crate) struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    /// Answers from now on: /readyz says no until the model is loaded, generations wait inside.
    pub fn start(listener: TcpListener, backend: LocalBackend, shared: Arc<Shared>) -> Result<Self, EngineError> {
        let limits = Limits::default();
        let metrics = engine_http::metrics_route(exposition::render(exposition::install()?, shared));
        let hop = hop::route(backend.clone(), limits);
        // The engine's own records of requests are the step thread's.
        let api = engine_http::routes(backend, RouteOptions { limits, access: Arc::new(|_| {}) });
        let filter = engine_http::with_fallback(hop.or(metrics).unify().or(api).unify().boxed(), limits);
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let options = ServeOptions { drain_deadline: STOP_LIMIT, ..ServeOptions::default() };
        Ok(Self { stop, task: tokio::spawn(engine_http::serve(listener, filter, shutdown, options)) })
    }

    /// Lets the last bytes go out, then closes everything.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        // `serve` keeps its own deadline; this one is for the case that it cannot.
        let _ = tokio::time::timeout(STOP_LIMIT * 2, self.task).await;
    }
}
