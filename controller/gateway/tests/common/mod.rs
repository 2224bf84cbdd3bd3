//! A gateway over test engines, and clients for it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod engine;

use controller_gateway::{Endpoint, Gateway, GatewayOptions, ModelDemand, ModelRoute, RouteTable};
use engine::Engine;
use engine_http::backend::{StreamEvent, TokenStream};
use engine_http::{ApiError, Backend, RequestContext};
use engine_wire::hop::{FinishReason, GenerateRequest, HopEvent};
use engine_wire::sampling::{Sampling, StopRule};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

pub const MODEL: &str = "m";

/// A gateway and the sender of its route table.
pub struct Bench {
    pub gateway: Gateway,
    pub routes: watch::Sender<Arc<RouteTable>>,
}

pub fn options() -> GatewayOptions {
    GatewayOptions {
        quarantine: Duration::from_millis(2),
        resume_backoff: Duration::from_millis(1),
        waiting_interval: Duration::from_millis(20),
        load_text: Arc::new(|_| Err("tests need no text".to_owned())),
        ..GatewayOptions::default()
    }
}

impl Bench {
    pub fn new(options: GatewayOptions, endpoints: Vec<Endpoint>) -> Self {
        let (routes, receiver) = watch::channel(table(endpoints));
        Self { gateway: Gateway::new(options, receiver), routes }
    }

    pub fn publish(&self, endpoints: Vec<Endpoint>) {
        self.routes.send_replace(table(endpoints));
    }

    pub fn demand(&self) -> ModelDemand {
        self.gateway.demand().remove(MODEL).unwrap_or_default()
    }

    /// Starts a request and collects its stream.
    pub async fn complete(&self, prompt: u32, max_tokens: u32) -> Result<Collected, ApiError> {
        let stream = self.gateway.generate(context(Duration::from_secs(20)), request(prompt, max_tokens)).await?;
        Ok(collect(stream).await)
    }
}

pub fn route(revision: &str) -> Arc<ModelRoute> {
    Arc::new(ModelRoute {
        name: MODEL.to_owned(),
        revision: revision.to_owned(),
        path: "/nowhere.gguf".into(),
        created_unix_s: 1,
        context_tokens: 2048,
        base: None,
        engine: None,
    })
}

pub fn table(endpoints: Vec<Endpoint>) -> Arc<RouteTable> {
    let mut table = RouteTable::default();
    table.models.insert(MODEL.to_owned(), route("r1"));
    table.endpoints.insert(MODEL.to_owned(), endpoints);
    Arc::new(table)
}

pub fn endpoint(instance: &str, engine: &Engine) -> Endpoint {
    Endpoint { instance: instance.to_owned(), addr: engine.addr, ready: true }
}

pub fn loading(instance: &str, engine: &Engine) -> Endpoint {
    Endpoint { ready: false, ..endpoint(instance, engine) }
}

pub fn context(limit: Duration) -> RequestContext {
    let now = Instant::now();
    RequestContext {
        request_id: "req-1".to_owned(),
        tenant: "default".to_owned(),
        key: None,
        arrived_at: now,
        arrived_at_ns: engine_http::clock::monotonic_ns(),
        deadline: now + limit,
        trace_parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
        peer: None,
    }
}

pub fn request(prompt: u32, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        model: MODEL.to_owned(),
        adapter_revision: None,
        prompt: vec![prompt, 7],
        emitted: Vec::new(),
        given: Vec::new(),
        sampling: Sampling::default(),
        stop: StopRule { max_tokens, ..StopRule::default() },
        top_logprobs: None,
        priority: 0,
        constraint: None,
    }
}

/// All that came out of one stream.
#[derive(Debug, Default, PartialEq)]
pub struct Collected {
    pub tokens: Vec<u32>,
    /// Log-probability of each token, where they were asked for.
    pub logprobs: Vec<f32>,
    pub finished: Option<FinishReason>,
    pub error: Option<ApiError>,
    pub waiting: usize,
}

/// Reads a stream to its end; nothing may follow its end or its error.
pub async fn collect(mut stream: TokenStream) -> Collected {
    let mut collected = Collected::default();
    while let Some(item) = stream.events.recv().await {
        assert!(collected.finished.is_none() && collected.error.is_none(), "{item:?} after the end");
        match item {
            Ok(StreamEvent::Waiting) => collected.waiting += 1,
            Ok(StreamEvent::Hop(HopEvent::Tokens(tokens))) => collected.tokens.extend(tokens),
            Ok(StreamEvent::Hop(HopEvent::Scored { tokens, logprobs })) => {
                collected.tokens.extend(tokens);
                collected.logprobs.extend(logprobs.iter().map(|entry| entry.logprob));
            }
            Ok(StreamEvent::Hop(HopEvent::Finished { reason, .. })) => collected.finished = Some(reason),
            Ok(StreamEvent::Hop(failed)) => panic!("{failed:?} must not occur here"),
            Err(error) => collected.error = Some(error),
        }
    }
    collected
}

/// Waits until something holds; fails after 10 s.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{what} did not come true");
}
