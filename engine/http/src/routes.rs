//! Paths and methods. What a path does stands in `generate` (below), what it says in `sse` and `whole`.

use crate::access::{AccessGuard, AccessHook, AccessOutcome};
use crate::body::read_body;
use crate::choice::Choice;
use crate::context::context;
use crate::embeddings::embed;
use crate::forward::{ForwardRequest, Forwarded, event_stream, forward, respond};
use crate::prepare::{Input, Output, before_deadline, prepare};
use crate::respond::{NO_MODEL, counted, error_response, json_response, refused, text_response, with_allow};
use crate::sse::{Api, Envelope, SseBody};
use crate::tokenize::{Direction, convert};
use crate::tools::Reading;
use crate::whole::collect;
use crate::{ApiError, Backend, Limits, ModelCard, RequestContext, TokenStream};
use bytes::Buf;
use engine_wire::openai::{GenerateOptions, ModelList, ModelObject, parse_chat, parse_completion};
use futures_util::Stream;
use futures_util::future::try_join_all;
use serde_json::value::RawValue;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::sleep_until;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::header::CONTENT_TYPE;
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;

const TEXT: &str = "text/plain; charset=utf-8";
/// The Prometheus text exposition format.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What routes need besides their backend.
#[derive(Clone)]
pub struct RouteOptions {
    pub limits: Limits,
    /// Receives a record for each generation request.
    pub access: AccessHook,
}

/// Everything a handler needs; cheap to clone.
#[derive(Clone)]
pub(crate) struct Service<B> {
    pub backend: B,
    pub options: RouteOptions,
    /// Bounds the texts that are tokenized at a time to the cores there are.
    pub tokenizers: Arc<Semaphore>,
}

/// The OpenAI routes, vLLM's `/tokenize` and `/detokenize`, `/healthz` and `/readyz`. Combine with others by `or`, and end with [`with_fallback`].
pub fn routes<B: Backend>(backend: B, options: RouteOptions) -> BoxedFilter<(Response,)> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let limits = options.limits;
    let service = Service { backend, options, tokenizers: Arc::new(Semaphore::new(cores)) };
    let chat = warp::path!("v1" / "chat" / "completions").and(warp::post()).map(|| Api::Chat);
    let completions = warp::path!("v1" / "completions").and(warp::post()).map(|| Api::Completion);
    let generate = chat
        .or(completions)
        .unify()
        .and(with(service.clone()))
        .and(context(limits))
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(|api, service: Service<B>, context, headers, body| async move {
            generate(api, &service, context, headers, body).await
        });
    let tokenize = warp::path!("tokenize").and(warp::post()).map(|| Direction::Tokenize);
    let detokenize = warp::path!("detokenize").and(warp::post()).map(|| Direction::Detokenize);
    let convert = tokenize
        .or(detokenize)
        .unify()
        .and(with(service.clone()))
        .and(context(limits))
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(|direction, service: Service<B>, context, headers, body| async move {
            convert(direction, &service, &context, headers, body).await
        });
    let embeddings = warp::path!("v1" / "embeddings")
        .and(warp::post())
        .and(with(service.clone()))
        .and(context(limits))
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(
            |service: Service<B>, context, headers, body| async move { embed(&service, context, headers, body).await },
        );
    let models = warp::path!("v1" / "models")
        .and(warp::get())
        .and(with(service.clone()))
        .and(context(limits))
        .map(|service: Service<B>, context| list_models(&service.backend, &context));
    let model = warp::path!("v1" / "models" / ..)
        .and(warp::path::tail())
        .and(warp::get())
        .and(with(service.clone()))
        .and(context(limits))
        .map(|name: warp::path::Tail, service: Service<B>, context| {
            one_model(&service.backend, name.as_str(), &context)
        });
    let health = warp::path!("healthz")
        .and(warp::get())
        .and(context(limits))
        .map(|context| counted(text_response(StatusCode::OK, "ok\n".into(), TEXT, &context), NO_MODEL, "healthz"));
    let ready = warp::path!("readyz")
        .and(warp::get())
        .and(with(service))
        .and(context(limits))
        .map(|service: Service<B>, context| readiness(&service.backend, &context));
    let generate = generate.or(embeddings).unify();
    generate.or(convert).unify().or(models).unify().or(model).unify().or(health).unify().or(ready).unify().boxed()
}

/// `GET /metrics`: whatever `render` gives, in the Prometheus text format.
pub fn metrics_route(render: impl Fn() -> String + Clone + Send + Sync + 'static) -> BoxedFilter<(Response,)> {
    warp::path!("metrics")
        .and(warp::get())
        .and(context(Limits::default()))
        .map(move |context| counted(text_response(StatusCode::OK, render(), METRICS, &context), NO_MODEL, "metrics"))
        .boxed()
}

/// Answers what no route takes in the OpenAI error's shape: 405 for a known path, 404 otherwise.
pub fn with_fallback(filter: BoxedFilter<(Response,)>, limits: Limits) -> BoxedFilter<(Response,)> {
    let fallback = warp::path::full().and(warp::method()).and(context(limits)).map(not_served);
    filter.or(fallback).unify().boxed()
}

fn with<T: Clone + Send + Sync + 'static>(value: T) -> impl Filter<Extract = (T,), Error = Infallible> + Clone {
    warp::any().map(move || value.clone())
}

fn not_served(path: FullPath, method: Method, context: RequestContext) -> Response {
    let allowed = match path.as_str() {
        "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings" | "/tokenize" | "/detokenize" => Some("POST"),
        "/v1/models" | "/healthz" | "/readyz" | "/metrics" => Some("GET"),
        other if other.starts_with("/v1/models/") => Some("GET"),
        _ => None,
    };
    let response = match allowed {
        Some(allowed) if allowed != method.as_str() => {
            with_allow(error_response(&ApiError::MethodNotAllowed, &context), allowed)
        }
        _ => {
            let path: String = path.as_str().chars().take(128).collect();
            error_response(&ApiError::NotFound { what: format!("{method} {path}") }, &context)
        }
    };
    counted(response, NO_MODEL, "other")
}

fn list_models(backend: &impl Backend, context: &RequestContext) -> Response {
    let data = backend.models().into_iter().map(model_object).collect();
    let list = ModelList { object: "list".to_owned(), data };
    counted(json_response(StatusCode::OK, &list, context), NO_MODEL, "models")
}

fn one_model(backend: &impl Backend, name: &str, context: &RequestContext) -> Response {
    let response = match backend.models().into_iter().find(|card| card.name == name) {
        Some(card) => json_response(StatusCode::OK, &model_object(card), context),
        None => error_response(&ApiError::ModelNotFound { model: name.chars().take(256).collect() }, context),
    };
    counted(response, NO_MODEL, "model")
}

fn model_object(card: ModelCard) -> ModelObject {
    ModelObject {
        id: card.name,
        object: "model".to_owned(),
        created: card.created_unix_s,
        owned_by: "foreshock".to_owned(),
        revision: card.revision,
        max_model_len: card.context_tokens,
        root: card.root,
        parent: card.parent,
    }
}

fn readiness(backend: &impl Backend, context: &RequestContext) -> Response {
    let response = match backend.ready() {
        Ok(()) => text_response(StatusCode::OK, "ready\n".to_owned(), TEXT, context),
        Err(message) => error_response(&ApiError::Unavailable { message, retry_after_s: None }, context),
    };
    counted(response, NO_MODEL, "readyz")
}

/// One generation request, from body to answer.
async fn generate<B: Backend, D: Buf>(
    api: Api,
    service: &Service<B>,
    context: RequestContext,
    headers: HeaderMap,
    body: impl Stream<Item = Result<D, warp::Error>>,
) -> Response {
    let route = if api == Api::Chat { "chat_completions" } else { "completions" };
    let mut access = AccessGuard::new(&context, service.options.access.clone());
    // Known models only: the label must not grow with what clients send.
    let mut known_model = None;
    let result = answer(api, service, &context, headers, body, &mut access, &mut known_model).await;
    let response = match result {
        Ok(Answer::Stream(envelope, parts)) => {
            let deadline = (sleep_until(context.deadline.into()), context.deadline_ms());
            event_stream(SseBody::new(envelope, parts, deadline, access), &context)
        }
        Ok(Answer::Whole(value)) => {
            let response = json_response(StatusCode::OK, &value, &context);
            access.record.outcome = AccessOutcome::Finished;
            access.note_write(true);
            response
        }
        Ok(Answer::Forwarded(forwarded)) => respond(forwarded, &context, access),
        Err(error) => refused(&error, &context, &mut access),
    };
    counted(response, known_model.as_deref().unwrap_or(NO_MODEL), route)
}

/// How a request is answered.
enum Answer {
    Stream(Envelope, Vec<(TokenStream, Choice)>),
    Whole(Box<RawValue>),
    Forwarded(Forwarded),
}

async fn answer<B: Backend, D: Buf>(
    api: Api,
    service: &Service<B>,
    context: &RequestContext,
    headers: HeaderMap,
    body: impl Stream<Item = Result<D, warp::Error>>,
    access: &mut AccessGuard,
    known_model: &mut Option<String>,
) -> Result<Answer, ApiError> {
    check_content_type(&headers)?;
    let body = read_body(&headers, body, &service.options.limits).await?;
    if let Some(request) = ForwardRequest::of(&service.backend, api.path(), &body) {
        return forward(&service.backend, context, request, access, known_model).await.map(Answer::Forwarded);
    }
    let (input, options) = parse(api, &body)?;
    let tools = input.tools();
    drop(body);
    access.record.model = options.model.clone();
    access.record.stream = options.stream;
    let prepared = prepare(&service.backend, context, &options, input, &service.tokenizers).await;
    if !matches!(prepared, Err(ApiError::ModelNotFound { .. })) {
        *known_model = Some(options.model.clone());
    }
    let prepared = prepared?;
    access.record.prompt_tokens = prepared.prompt_tokens;
    let (text, options, tools) = (&prepared.text, &options, &tools);
    let starts = prepared.outputs.into_iter().map(|Output { request, echo }| async move {
        let stream = service.backend.generate(context.clone(), request).await?;
        let calls = Reading::of(tools, text, options.stream);
        Ok::<_, ApiError>((stream, Choice::new(text, options, echo, calls)))
    });
    let parts = before_deadline(context, "before an instance took the request", try_join_all(starts)).await??;
    let envelope = Envelope::new(api, &context.request_id, options);
    if options.stream {
        return Ok(Answer::Stream(envelope, parts));
    }
    let collected =
        before_deadline(context, "before the answer was complete", collect(&envelope, parts, access)).await?;
    collected.map(Answer::Whole)
}

fn parse(api: Api, body: &[u8]) -> Result<(Input, GenerateOptions), ApiError> {
    match api {
        Api::Chat => {
            let request = parse_chat(body)?;
            Ok((Input::Chat { messages: request.messages, tools: Arc::new(request.tools) }, request.options))
        }
        Api::Completion => {
            let request = parse_completion(body)?;
            Ok((Input::Prompts(request.prompts), request.options))
        }
    }
}

/// A body that says it is something else than JSON is refused; one that says nothing is taken for JSON.
pub(crate) fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let media_type = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    if media_type.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(ApiError::UnsupportedMediaType) }
}
