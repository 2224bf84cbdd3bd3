//! The hop's routes: token ids in, and out one server-sent event for each [`HopEvent`], or the bytes of all vectors.
//!
//! When the client goes away, hyper drops the body, which drops the stream, which the step thread sees
//! before its next step: there is no other path for a cancellation, so none can be forgotten.

use bytes::Bytes;
use engine_http::backend::StreamEvent;
use engine_http::{ApiError, Backend, Limits, RequestContext, TokenStream};
use engine_wire::hop::{EmbedRequest, Embedded, GenerateRequest, HEADER_DIMENSIONS, HEADER_REQUEST_ID, HopEvent};
use futures_util::stream::{self, Stream};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use warp::http::{HeaderMap, HeaderValue};
use warp::reply::{Reply, Response};

/// `POST /v1/foreshock/generate` and `/v1/foreshock/embed`.
pub(crate) fn route<B: Backend>(backend: B, limits: Limits) -> BoxedFilter<(Response,)> {
    generate_route(backend.clone(), limits).or(embed_route(backend, limits)).unify().boxed()
}

fn embed_route<B: Backend>(backend: B, limits: Limits) -> BoxedFilter<(Response,)> {
    warp::path!("v1" / "foreshock" / "embed")
        .and(warp::post())
        .and(engine_http::context(limits))
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |context: RequestContext, headers: HeaderMap, body| {
            let backend = backend.clone();
            async move {
                let embedded = match engine_http::read_body(&headers, body, &limits).await {
                    Ok(body) => embed(backend, context.clone(), &body).await,
                    Err(error) => Err(error),
                };
                match embedded {
                    Ok(embedded) => vectors(&embedded, &context),
                    Err(error) => engine_http::error_response(&error, &context),
                }
            }
        })
        .boxed()
}

async fn embed<B: Backend>(backend: B, context: RequestContext, body: &[u8]) -> Result<Embedded, ApiError> {
    let request: EmbedRequest = serde_json::from_slice(body).map_err(|error| ApiError::InvalidRequest {
        message: format!("The body is not an embed request: {error}"),
        param: None,
    })?;
    backend.embed(context, request).await
}

fn vectors(embedded: &Embedded, context: &RequestContext) -> Response {
    let mut response = Response::new(embedded.to_bytes().into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(HEADER_DIMENSIONS, HeaderValue::from(embedded.dimensions));
    echo_request_id(headers, context);
    response
}

fn echo_request_id(headers: &mut HeaderMap, context: &RequestContext) {
    if let Ok(request_id) = HeaderValue::from_str(&context.request_id) {
        headers.insert(HEADER_REQUEST_ID, request_id);
    }
}

fn generate_route<B: Backend>(backend: B, limits: Limits) -> BoxedFilter<(Response,)> {
    warp::path!("v1" / "foreshock" / "generate")
        .and(warp::post())
        .and(engine_http::context(limits))
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |context: RequestContext, headers: HeaderMap, body| {
            let backend = backend.clone();
            async move {
                let started = match engine_http::read_body(&headers, body, &limits).await {
                    Ok(body) => start(backend, context.clone(), &body).await,
                    Err(error) => Err(error),
                };
                match started {
                    Ok(stream) => events(stream, &context),
                    Err(error) => engine_http::error_response(&error, &context),
                }
            }
        })
        .boxed()
}

async fn start<B: Backend>(backend: B, context: RequestContext, body: &[u8]) -> Result<TokenStream, ApiError> {
    let request: GenerateRequest = serde_json::from_slice(body).map_err(|error| ApiError::InvalidRequest {
        message: format!("The body is not a generate request: {error}"),
        param: None,
    })?;
    backend.generate(context, request).await
}

fn events(stream: TokenStream, context: &RequestContext) -> Response {
    let mut response = warp::reply::stream(frames(stream)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    echo_request_id(headers, context);
    response
}

/// Where the stream of frames stands.
enum Stage {
    Events(TokenStream),
    Done,
    Closed,
}

/// One frame for each event. hyper writes out what it has when a body has nothing ready, so a yield before
/// each event makes one write of one event even when several are waiting: the kernel's probes count writes.
fn frames(stream: TokenStream) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> {
    stream::unfold(Stage::Events(stream), |stage| async move {
        match stage {
            Stage::Closed => None,
            Stage::Done => {
                tokio::task::yield_now().await;
                Some((Ok(Bytes::from_static(b"data: [DONE]\n\n")), Stage::Closed))
            }
            Stage::Events(mut stream) => {
                tokio::task::yield_now().await;
                // A channel that closes without a last event belongs to an engine that ends.
                let event = stream.events.recv().await.unwrap_or(Err(ApiError::ShuttingDown));
                let (frame, last) = frame(event);
                let next = if last { Stage::Done } else { Stage::Events(stream) };
                Some((Ok(frame), next))
            }
        }
    })
}

/// The bytes of an event, and whether it is the last before `[DONE]`.
fn frame(event: Result<StreamEvent, ApiError>) -> (Bytes, bool) {
    let event = match event {
        Ok(StreamEvent::Waiting) => return (Bytes::from_static(b": waiting\n\n"), false),
        Ok(StreamEvent::Hop(event)) => event,
        Err(error) => failed(&error),
    };
    let last = event.tokens().is_none();
    match serde_json::to_string(&event) {
        Ok(json) => (Bytes::from(format!("data: {json}\n\n")), last),
        // Not reachable: a HopEvent holds nothing that JSON cannot say.
        Err(error) => (Bytes::from(format!(": {error}\n\n")), true),
    }
}

fn failed(error: &ApiError) -> HopEvent {
    HopEvent::Failed { status: error.status().as_u16(), code: error.code().to_string(), message: error.to_string() }
}
