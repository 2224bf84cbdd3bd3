//! Requests for a model whose engine speaks the API by itself: they go to it as they came, and its answer comes back as
//! it was given. Nothing is parsed but what routing and metering need, so an engine's own parameters and fields pass.

use crate::access::{AccessGuard, AccessOutcome};
use crate::prepare::before_deadline;
use crate::respond::with_request_id;
use crate::sse::{DONE, WAITING, write_event};
use crate::{ApiError, Backend, RequestContext};
use bytes::Bytes;
use futures_util::Stream;
use serde::Deserialize;
use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc;
use warp::Reply;
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use warp::reply::Response;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct ForwardRequest {
    /// Path that it was sent to, such as `/v1/completions`.
    pub path: &'static str,
    pub model: String,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    pub body: Bytes,
}

/// Tokens of one answer. What an engine does not tell is 0, but for the output of a stream, whose tokens are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwardUsage {
    pub prompt_tokens: u32,
    /// Prompt tokens that came from the engine's prefix cache.
    pub cached_tokens: u32,
    pub output_tokens: u32,
}

/// An engine's answer.
pub enum Forwarded {
    Whole(ForwardedWhole),
    /// Server-sent events; the last item is [`ForwardPart::End`] or an error.
    Stream(mpsc::Receiver<Result<ForwardPart, ApiError>>),
}

/// An answer in one piece, whatever its status.
#[derive(Clone, Debug)]
pub struct ForwardedWhole {
    pub status: u16,
    pub content_type: Option<String>,
    pub body: Bytes,
    pub usage: ForwardUsage,
}

/// A part of a streamed answer.
#[derive(Clone, Debug, PartialEq)]
pub enum ForwardPart {
    /// Nothing yet, but the request is held and alive: becomes an SSE comment.
    Waiting,
    /// Events in whole, byte for byte, and the tokens that they carry.
    Events { bytes: Bytes, tokens: u32 },
    /// The answer is complete.
    End(ForwardUsage),
}

/// What a body must say for its request to be routed.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(default)]
    stream: Option<bool>,
}

impl ForwardRequest {
    /// The request, if its model is one of those that `backend` forwards. A body that cannot be read is for the strict
    /// parsers, which say what is wrong with it.
    pub(crate) fn of(backend: &impl Backend, path: &'static str, body: &[u8]) -> Option<Self> {
        let forwarded = backend.forwarded();
        if forwarded.is_empty() {
            return None;
        }
        let head: Head<'_> = serde_json::from_slice(body).ok()?;
        forwarded.contains(head.model.as_ref()).then(|| Self {
            path,
            model: head.model.into_owned(),
            stream: head.stream.unwrap_or(false),
            body: Bytes::copy_from_slice(body),
        })
    }
}

/// Has the backend forward a request; what is known of it goes into its record.
pub(crate) async fn forward<B: Backend>(
    backend: &B,
    context: &RequestContext,
    request: ForwardRequest,
    access: &mut AccessGuard,
    known_model: &mut Option<String>,
) -> Result<Forwarded, ApiError> {
    access.record.model = request.model.clone();
    access.record.stream = request.stream;
    *known_model = Some(request.model.clone());
    let forwarded = backend.forward(context.clone(), request);
    before_deadline(context, "before an instance answered the request", forwarded).await?
}

/// The answer to the client.
pub(crate) fn respond(forwarded: Forwarded, context: &RequestContext, mut access: AccessGuard) -> Response {
    match forwarded {
        Forwarded::Whole(whole) => respond_whole(whole, context, &mut access),
        Forwarded::Stream(parts) => event_stream(ForwardBody { parts, ended: false, access }, context),
    }
}

fn respond_whole(whole: ForwardedWhole, context: &RequestContext, access: &mut AccessGuard) -> Response {
    let status = StatusCode::from_u16(whole.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let record = &mut access.record;
    record.status = status.as_u16();
    record.outcome = match status {
        status if status.is_success() => AccessOutcome::Finished,
        status if status.is_client_error() => AccessOutcome::Rejected,
        _ => AccessOutcome::Failed,
    };
    note_usage(access, whole.usage);
    access.note_write(whole.usage.output_tokens > 0);
    let mut response = Response::new(whole.body.into());
    *response.status_mut() = status;
    let content_type = whole.content_type.and_then(|value| HeaderValue::from_str(&value).ok());
    let content_type = content_type.unwrap_or(HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    with_request_id(response, context)
}

/// An answer of server-sent events.
pub(crate) fn event_stream<S>(body: S, context: &RequestContext) -> Response
where
    S: Stream<Item = Result<Bytes, Infallible>> + Send + Sync + 'static,
{
    let mut response = warp::reply::stream(body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer answers would hold the tokens back.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    with_request_id(response, context)
}

fn note_usage(access: &mut AccessGuard, usage: ForwardUsage) {
    let record = &mut access.record;
    record.prompt_tokens = usage.prompt_tokens;
    record.cached_tokens = usage.cached_tokens;
    record.output_tokens = usage.output_tokens;
}

/// The body of a streamed answer. Dropping it drops the parts, which cancels the work.
struct ForwardBody {
    parts: mpsc::Receiver<Result<ForwardPart, ApiError>>,
    ended: bool,
    access: AccessGuard,
}

impl ForwardBody {
    /// The head is out, so the error becomes an event, as with any other model.
    fn fail(&mut self, error: &ApiError) -> Bytes {
        self.ended = true;
        self.access.record.outcome = AccessOutcome::Failed;
        self.access.note_write(false);
        let mut out = String::new();
        write_event(&error.body(), &mut out);
        out.push_str(DONE);
        out.into()
    }
}

impl Stream for ForwardBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let bytes = match ready!(this.parts.poll_recv(cx)) {
            Some(Ok(ForwardPart::Waiting)) => {
                this.access.note_write(false);
                Bytes::from_static(WAITING)
            }
            Some(Ok(ForwardPart::Events { bytes, tokens })) => {
                this.access.record.output_tokens += tokens;
                this.access.note_write(tokens > 0);
                bytes
            }
            Some(Ok(ForwardPart::End(usage))) => {
                this.ended = true;
                this.access.record.outcome = AccessOutcome::Finished;
                note_usage(&mut this.access, usage);
                return Poll::Ready(None);
            }
            Some(Err(error)) => this.fail(&error),
            None => this.fail(&ApiError::Unavailable {
                message: "The stream broke off before it was complete".to_owned(),
                retry_after_s: None,
            }),
        };
        Poll::Ready(Some(Ok(bytes)))
    }
}
