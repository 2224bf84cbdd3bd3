//! The engine's port.

use crate::backend::LocalBackend;
use crate::error::EngineError;
use crate::exposition;
use crate::hop;
use crate::shared::Shared;
use engine_http::{ApiError, Backend, RequestContext};
use engine_wire::hop::GENERATE_PATH;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use warp::Filter;
use warp::http::StatusCode;
use warp::reply::Response;

/// Time for answers to reach their clients after the last request has ended.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Unix time, s.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(crate) fn error_response(error: &ApiError) -> Response {
    let (status, code) = status_and_code(error);
    let body = serde_json::json!({"error": {"message": error.to_string(), "type": "x", "param": null, "code": code}});
    let mut response = Response::new(body.to_string().into());
    *response.status_mut() = status;
    response
}

pub(crate) fn status_and_code(error: &ApiError) -> (StatusCode, &'static str) {
    match error {
        ApiError::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        ApiError::ModelNotFound { .. } => (StatusCode::NOT_FOUND, "model_not_found"),
        ApiError::Internal { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        _ => (StatusCode::BAD_REQUEST, "invalid"),
    }
}

/// The running server.
pub(crate) struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    pub fn start(listener: TcpListener, backend: LocalBackend, shared: Arc<Shared>) -> Result<Self, EngineError> {
        let handle = exposition::install()?;
        let generate = warp::path(GENERATE_PATH.trim_start_matches('/').split('/').next().unwrap_or(""))
            .and(warp::path::path("foreshock"))
            .and(warp::path::path("generate"))
            .and(warp::post())
            .and(warp::body::bytes())
            .then(move |body| hop::generate(backend.clone(), context(), body));
        let filter = generate.or(exposition::route(handle, shared));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = warp::serve(filter).incoming(listener).graceful(async move {
            let _ = stopped.await;
        });
        Ok(Self { stop, task: tokio::spawn(server.run()) })
    }

    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(STOP_LIMIT, self.task).await;
    }
}

fn context() -> RequestContext {
    let now = Instant::now();
    RequestContext {
        request_id: "r".into(),
        tenant: "default".into(),
        key: None,
        arrived_at: now,
        deadline: now + Duration::from_secs(60),
        trace_parent: String::new(),
        peer: None,
    }
}
