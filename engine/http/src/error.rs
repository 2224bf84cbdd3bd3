//! Everything that can go wrong with a request, with the HTTP status and the OpenAI error object of each.

use engine_text::TextError;
use engine_wire::openai::RequestError;
use serde::Serialize;
use thiserror::Error;
use warp::http::StatusCode;

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
        "This model's maximum context length is {context_tokens} tokens, but '{param}' has {tokens}. Shorten it, or have its end cut off with 'truncate_prompt_tokens': -1."
    )]
    InputLength { context_tokens: u32, param: String, tokens: u32 },
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
    /// The instance works, the adapter that was named does not.
    #[error("The adapter `{model}` cannot be used: {message}")]
    Adapter { model: String, message: String },
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

impl ApiError {
    /// HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::InvalidRequest { .. } | Self::ContextLength { .. } | Self::InputLength { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::ModelNotFound { .. } | Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::DeadlineExceeded { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Unavailable { .. } | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Adapter { .. } | Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Short name, stable over versions: the error object's `code`, and a metric label.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidRequest { .. } => "invalid_request",
            Self::ContextLength { .. } | Self::InputLength { .. } => "context_length_exceeded",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::NotFound { .. } => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyTimeout { .. } => "body_timeout",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::QueueFull { .. } => "queue_full",
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::Unavailable { .. } => "unavailable",
            Self::Adapter { .. } => "adapter_unusable",
            Self::ShuttingDown => "shutting_down",
            Self::Internal { .. } => "internal",
        }
    }

    /// Seconds for the `Retry-After` header: always there on 429 and 503.
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::QueueFull { retry_after_s, .. } => Some(*retry_after_s),
            Self::Unavailable { retry_after_s, .. } => Some(retry_after_s.unwrap_or(1)),
            Self::ShuttingDown => Some(1),
            _ => None,
        }
    }

    /// The answer's body.
    pub fn body(&self) -> ErrorBody {
        let kind = match self.status() {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let (param, code) = match self {
            // OpenAI gives these no code: the parameter says what is wrong.
            Self::InvalidRequest { param, .. } => (param.clone(), None),
            Self::InputLength { param, .. } => (Some(param.clone()), Some(self.code())),
            Self::ModelNotFound { .. } => (Some("model".to_owned()), Some(self.code())),
            _ => (None, Some(self.code())),
        };
        ErrorBody { error: ErrorObject { message: self.to_string(), kind, param, code } }
    }
}

impl From<RequestError> for ApiError {
    fn from(RequestError { message, param }: RequestError) -> Self {
        Self::InvalidRequest { message, param }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        let message = error.to_string();
        match error {
            TextError::NoTemplate | TextError::Template { .. } => {
                Self::InvalidRequest { message, param: Some("messages".to_owned()) }
            }
            _ => Self::Internal { message },
        }
    }
}
