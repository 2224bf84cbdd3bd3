//! `/tokenize` and `/detokenize`: what a prompt comes to, without an instance. Both work while a model has none.

use crate::body::read_body;
use crate::prepare::{before_deadline, check_ids, in_turn, refuse_hopeless};
use crate::respond::{NO_MODEL, counted, error_response, json_response};
use crate::routes::{Service, check_content_type};
use crate::{ApiError, Backend, RequestContext, logprobs};
use bytes::Buf;
use engine_text::TextModel;
use engine_wire::TokenId;
use engine_wire::openai::{
    ChatMessage, Detokenized, TokenizeInput, TokenizeRequest, Tokenized, parse_detokenize, parse_tokenize,
};
use futures_util::Stream;
use serde_json::value::{RawValue, to_raw_value};
use std::sync::Arc;
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Tokenize,
    Detokenize,
}

/// One request, from body to answer.
pub(crate) async fn convert<B: Backend, D: Buf>(
    direction: Direction,
    service: &Service<B>,
    context: &RequestContext,
    headers: HeaderMap,
    body: impl Stream<Item = Result<D, warp::Error>>,
) -> Response {
    let route = if direction == Direction::Tokenize { "tokenize" } else { "detokenize" };
    // Known models only: the label must not grow with what clients send.
    let mut known_model = None;
    let response = match answer(direction, service, context, headers, body, &mut known_model).await {
        Ok(value) => json_response(StatusCode::OK, &value, context),
        Err(error) => error_response(&error, context),
    };
    counted(response, known_model.as_deref().unwrap_or(NO_MODEL), route)
}

async fn answer<B: Backend, D: Buf>(
    direction: Direction,
    service: &Service<B>,
    context: &RequestContext,
    headers: HeaderMap,
    body: impl Stream<Item = Result<D, warp::Error>>,
    known_model: &mut Option<String>,
) -> Result<Box<RawValue>, ApiError> {
    check_content_type(&headers)?;
    let body = read_body(&headers, body, &service.options.limits).await?;
    let work = async {
        match direction {
            Direction::Tokenize => {
                let request = parse_tokenize(&body)?;
                let text = service.backend.text(&request.model).await?;
                *known_model = Some(request.model.clone());
                let bytes = text_bytes(&request.input);
                refuse_hopeless(&text, bytes)?;
                in_turn(bytes, &service.tokenizers, move || tokenize(&text, request)).await
            }
            Direction::Detokenize => {
                let request = parse_detokenize(&body)?;
                let text = service.backend.text(&request.model).await?;
                *known_model = Some(request.model);
                let ids = request.tokens;
                in_turn(ids.len(), &service.tokenizers, move || detokenize(&text, &ids)).await
            }
        }
    };
    before_deadline(context, "while the text was tokenized", work).await?
}

fn text_bytes(input: &TokenizeInput) -> usize {
    match input {
        TokenizeInput::Prompt { text, .. } => text.len(),
        TokenizeInput::Messages { messages, .. } => messages.iter().map(ChatMessage::text_bytes).sum(),
    }
}

fn tokenize(text: &Arc<TextModel>, request: TokenizeRequest) -> Result<Box<RawValue>, ApiError> {
    let tokens = match request.input {
        TokenizeInput::Prompt { text: prompt, add_special } => text.encode(&prompt, add_special)?,
        TokenizeInput::Messages { messages, tools } => {
            let rendered = text.render_chat(&messages, &tools)?;
            refuse_hopeless(text, rendered.len())?;
            text.encode(&rendered, false)?
        }
    };
    let strings = |ids: &[TokenId]| ids.iter().map(|id| logprobs::token_text(text.token_bytes(*id))).collect();
    written(&Tokenized {
        count: u32::try_from(tokens.len()).unwrap_or(u32::MAX),
        max_model_len: text.context_tokens,
        token_strs: request.token_strings.then(|| strings(&tokens)),
        tokens,
    })
}

fn detokenize(text: &TextModel, ids: &[TokenId]) -> Result<Box<RawValue>, ApiError> {
    check_ids(ids, "tokens", text.vocab())?;
    // Special tokens are part of what was asked about.
    written(&Detokenized { prompt: text.decode(ids, false) })
}

fn written(answer: &impl serde::Serialize) -> Result<Box<RawValue>, ApiError> {
    to_raw_value(answer).map_err(|error| ApiError::Internal { message: error.to_string() })
}
