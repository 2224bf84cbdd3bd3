//! Everything that can go wrong with a request, with the HTTP status and the OpenAI error object of each.

use serde::Serialize;
use thiserror::Error;

/// An API error. Variants become metric labels; `Display` is the message that the client reads.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ApiError {
    #[error("{message}")]
    InvalidRequest { message: String, param: Option<String> },
    #[error(
        "This model's maximum context length is {context_tokens} tokens, but the prompt has {prompt_tokens} and max_tokens asks for {max_tokens}. Shorten the prompt or lower max_tokens."
    )]
    ContextLength { context_tokens: u32, prompt_tokens: u32, max_tokens: u32 },
    #[error(
        "The model `{model}` does not exist. GET /v1/models lists those that do; `foreshock models add` registers one."
    )]
    ModelNotFound { model: String },
    #[error("{what} not found")]
    NotFound { what: String },
    #[error("Method not allowed for this path")]
    MethodNotAllowed,
    #[error("The request body is larger than the limit of {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: u64 },
    #[error("The request body did not arrive within {limit_ms} ms")]
    BodyTimeout { limit_ms: u64 },
    #[error("Content-Type must be application/json")]
    UnsupportedMediaType,
    /// A bounded queue is full; the client may come back.
    #[error("The queue of model `{model}` is full ({limit} requests wait). Retry after {retry_after_s} s.")]
    QueueFull { model: String, limit: usize, retry_after_s: u32 },
    #[error("The request's deadline of {deadline_ms} ms passed {stage}")]
    DeadlineExceeded { deadline_ms: u64, stage: &'static str },
    /// No instance could serve or finish it.
    #[error("{message}")]
    Unavailable { message: String, retry_after_s: Option<u32> },
    #[error("The server is shutting down")]
    ShuttingDown,
    #[error("{message}")]
    Internal { message: String },
}

/// The body of every error answer: `{"error": {...}}`.
#[derive(Serialize)]
pub struct ErrorBody {
    pub error: ErrorObject,
}

/// OpenAI's error object.
#[derive(Serialize)]
pub struct ErrorObject {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub param: Option<String>,
    pub code: Option<&'static str>,
}
