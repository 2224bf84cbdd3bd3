//! `/v1/embeddings`: texts to tokens, one request for all vectors, and the answer in either form.

use crate::access::{AccessGuard, AccessOutcome};
use crate::body::read_body;
use crate::forward::{ForwardRequest, Forwarded, forward, respond};
use crate::prepare::{before_deadline, check_ids, in_turn, invalid};
use crate::respond::{NO_MODEL, counted, json_response, refused};
use crate::routes::{Service, check_content_type};
use crate::{ApiError, Backend, RequestContext};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Buf;
use engine_text::{TextModel, VectorFacts};
use engine_wire::TokenId;
use engine_wire::hop::{EmbedRequest, Embedded};
use engine_wire::openai::{
    EmbeddingData, EmbeddingList, EmbeddingRequest, EmbeddingUsage, EmbeddingVector, Prompt, Truncation,
    parse_embedding,
};
use futures_util::Stream;
use serde_json::value::{RawValue, to_raw_value};
use std::sync::Arc;
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

/// Tokens of one request over all its inputs, as OpenAI bounds them.
const MAX_TOKENS: usize = 300_000;

/// One request, from body to answer.
pub(crate) async fn embed<B: Backend, D: Buf>(
    service: &Service<B>,
    context: RequestContext,
    headers: HeaderMap,
    body: impl Stream<Item = Result<D, warp::Error>>,
) -> Response {
    let mut access = AccessGuard::new(&context, service.options.access.clone());
    // Known models only: the label must not grow with what clients send.
    let mut known_model = None;
    let response = match answer(service, &context, headers, body, &mut access, &mut known_model).await {
        Ok(Answer::Forwarded(forwarded)) => respond(forwarded, &context, access),
        Ok(Answer::Vectors(value)) => {
            access.record.outcome = AccessOutcome::Finished;
            access.note_write(false);
            json_response(StatusCode::OK, &value, &context)
        }
        Err(error) => refused(&error, &context, &mut access),
    };
    counted(response, known_model.as_deref().unwrap_or(NO_MODEL), "embeddings")
}

/// How a request is answered.
enum Answer {
    Vectors(Box<RawValue>),
    Forwarded(Forwarded),
}

async fn answer<B: Backend, D: Buf>(
    service: &Service<B>,
    context: &RequestContext,
    headers: HeaderMap,
    body: impl Stream<Item = Result<D, warp::Error>>,
    access: &mut AccessGuard,
    known_model: &mut Option<String>,
) -> Result<Answer, ApiError> {
    check_content_type(&headers)?;
    let body = read_body(&headers, body, &service.options.limits).await?;
    if let Some(request) = ForwardRequest::of(&service.backend, "/v1/embeddings", &body) {
        return forward(&service.backend, context, request, access, known_model).await.map(Answer::Forwarded);
    }
    let EmbeddingRequest { model, inputs, base64, dimensions, truncation } = parse_embedding(&body)?;
    drop(body);
    access.record.model = model.clone();
    let text = before_deadline(context, "while the model's tokenizer was loaded", service.backend.text(&model)).await?;
    if !matches!(text, Err(ApiError::ModelNotFound { .. })) {
        *known_model = Some(model.clone());
    }
    let text = text?;
    let facts = text.vectors().ok_or_else(|| generates_text(&model))?;
    let dimensions = check_dimensions(dimensions, facts, &model)?;
    let bytes = inputs.iter().map(|input| if let Prompt::Text(text) = input { text.len() } else { 0 }).sum();
    let tokenized = in_turn(bytes, &service.tokenizers, move || tokenize(&text, inputs, truncation));
    let texts = before_deadline(context, "while the inputs were tokenized", tokenized).await??;
    let prompt_tokens = texts.iter().map(Vec::len).sum::<usize>() as u32;
    access.record.prompt_tokens = prompt_tokens;
    let count = texts.len();
    let request = EmbedRequest { model: model.clone(), texts };
    let embedded = service.backend.embed(context.clone(), request);
    let embedded = before_deadline(context, "before all vectors were computed", embedded).await??;
    if embedded.numbers.len() != count * embedded.dimensions || embedded.dimensions < dimensions {
        let message = "The model's instance answered with vectors of another shape".to_owned();
        return Err(ApiError::Internal { message });
    }
    // Some microseconds for each vector: many are written on a blocking thread, as many texts are tokenized there.
    in_turn(count * dimensions, &service.tokenizers, move || {
        write(&model, &shortened(embedded, dimensions), base64, prompt_tokens)
    })
    .await
    .map(Answer::Vectors)
}

/// The error for a model that has no vectors.
fn generates_text(model: &str) -> ApiError {
    invalid(
        "model",
        format!(
            "The model `{model}` generates text and makes no embeddings: use /v1/completions or /v1/chat/completions, or name an embedding model."
        ),
    )
}

fn check_dimensions(asked: Option<u32>, facts: &VectorFacts, model: &str) -> Result<usize, ApiError> {
    let dimensions = asked.map_or(facts.dimensions, |asked| asked as usize);
    if facts.allows(dimensions) {
        return Ok(dimensions);
    }
    let own = facts.dimensions;
    let message = format!(
        "Invalid value for 'dimensions': {dimensions}. Vectors of `{model}` have {own}, and it was not trained for this length (Matryoshka). Leave it out or ask for {own}."
    );
    Err(invalid("dimensions", message))
}

/// Tokens of all inputs, each within the model's limit, together within the request's.
fn tokenize(text: &Arc<TextModel>, inputs: Vec<Prompt>, truncation: Truncation) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let alone = inputs.len() == 1;
    let mut total = 0;
    let mut texts = Vec::with_capacity(inputs.len());
    for (index, input) in inputs.into_iter().enumerate() {
        let param = if alone { "input".to_owned() } else { format!("input[{index}]") };
        let ids = tokenize_one(text, input, truncation, &param)?;
        total += ids.len();
        if total > MAX_TOKENS {
            let message =
                format!("Invalid 'input': too many tokens. At most {MAX_TOKENS} in one request are accepted.");
            return Err(invalid("input", message));
        }
        texts.push(ids);
    }
    Ok(texts)
}

fn tokenize_one(
    text: &TextModel,
    input: Prompt,
    truncation: Truncation,
    param: &str,
) -> Result<Vec<TokenId>, ApiError> {
    let mut ids = match input {
        Prompt::Text(input) => text.encode(&input, true)?,
        Prompt::Tokens(ids) => {
            check_ids(&ids, param, text.vocab())?;
            ids
        }
    };
    match truncation {
        Truncation::None => {}
        Truncation::ToModel => text.truncate(&mut ids, text.context_tokens as usize),
        Truncation::ToTokens(limit) => text.truncate(&mut ids, limit as usize),
    }
    if ids.is_empty() {
        return Err(invalid(param, format!("Invalid '{param}': it has no tokens. Expected at least one.")));
    }
    if ids.len() > text.context_tokens as usize {
        let tokens = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        return Err(ApiError::InputLength { context_tokens: text.context_tokens, param: param.to_owned(), tokens });
    }
    Ok(ids)
}

/// Vectors of so many numbers: the beginnings of the model's own, at length 1 again.
fn shortened(embedded: Embedded, dimensions: usize) -> Embedded {
    if embedded.dimensions == dimensions {
        return embedded;
    }
    let mut numbers = Vec::with_capacity(embedded.numbers.len() / embedded.dimensions * dimensions);
    for vector in embedded.numbers.chunks_exact(embedded.dimensions) {
        let kept = &vector[..dimensions];
        let length = kept.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        numbers.extend(kept.iter().map(|x| x / length));
    }
    Embedded { dimensions, numbers }
}

fn write(model: &str, embedded: &Embedded, base64: bool, prompt_tokens: u32) -> Result<Box<RawValue>, ApiError> {
    let vector = |numbers| match base64 {
        false => EmbeddingVector::Numbers(numbers),
        true => EmbeddingVector::Base64(STANDARD.encode(little_endian(numbers))),
    };
    let entry =
        |(index, numbers)| EmbeddingData { object: "embedding", index: index as u32, embedding: vector(numbers) };
    let list = EmbeddingList {
        object: "list",
        data: embedded.numbers.chunks_exact(embedded.dimensions).enumerate().map(entry).collect(),
        model,
        usage: EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens },
    };
    to_raw_value(&list).map_err(|error| ApiError::Internal { message: error.to_string() })
}

fn little_endian(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
