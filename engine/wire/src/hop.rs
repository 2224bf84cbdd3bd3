//! The hop from gateway to engine: HTTP/1.1 over loopback TCP, `POST /v1/foreshock/generate` with a
//! [`GenerateRequest`], answered by server-sent events, each `data: ` line one [`HopEvent`] as JSON and
//! the last one `data: [DONE]`.
//!
//! Embeddings go as one `POST /v1/foreshock/embed` with an [`EmbedRequest`], answered by the vectors as bytes.
//!
//! Token ids travel, not text: a stream that is cut goes on elsewhere from `prompt` + `emitted`.
//! It is plain SSE on a TCP port so that the kernel's probes measure it like any other engine.
//! Trace context, deadline, tenant and request id travel as headers, named here.

use crate::TokenId;
use crate::constraint::Constraint;
use crate::sampling::{Sampling, StopRule};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use std::sync::Arc;

/// Path of the hop on an engine's port.
pub const GENERATE_PATH: &str = "/v1/foreshock/generate";
/// Path of embeddings on an engine's port.
pub const EMBED_PATH: &str = "/v1/foreshock/embed";
/// Header of their answer: numbers in each vector. The body is one vector for each text, in order, of little-endian
/// f32 with nothing between.
pub const HEADER_DIMENSIONS: &str = "x-foreshock-dimensions";
/// Header: request id, echoed in the answer. Also accepted from and returned to API clients.
pub const HEADER_REQUEST_ID: &str = "x-request-id";
/// Header: tenant of the request.
pub const HEADER_TENANT: &str = "x-foreshock-tenant";
/// Header: milliseconds that the request may still take, counted from its arrival.
pub const HEADER_DEADLINE_MS: &str = "x-foreshock-deadline-ms";
/// Header: W3C trace parent.
pub const HEADER_TRACEPARENT: &str = "traceparent";

/// One generation, in tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    /// Model name, checked by the engine against the one it serves and the adapters that it knows.
    pub model: String,
    /// Revision that the adapter `model` names must have at the engine, so that no stream goes on with another
    /// one's output; none for the base model, and from clients that do not care.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_revision: Option<String>,
    /// Prompt tokens, at least one.
    pub prompt: Vec<TokenId>,
    /// Tokens already sent to the client by an instance that died; the stream goes on after them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emitted: Vec<TokenId>,
    /// Tokens that the output begins with, whatever would be drawn; they count in `stop`, and none of them ends it. They
    /// are the rest of a prompt whose log-probabilities are wanted: `prompt` is then its first token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<TokenId>,
    #[serde(default)]
    pub sampling: Sampling,
    #[serde(default)]
    pub stop: StopRule,
    /// Whether log-probabilities are wanted, and of how many of the likeliest tokens beside the chosen one:
    /// at most [`MAX_TOP_LOGPROBS`]. They are of the model's own distribution, before temperature, penalties and bias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u32>,
    /// Lower goes first among its tenant's, as vLLM's.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// What the text of the output must be, `emitted` included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Arc<Constraint>>,
}

impl GenerateRequest {
    /// Tokens of the prompt, as its sender counts them.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt.len() + self.given.len()
    }

    /// How many of so many tokens of the output were drawn, not given.
    pub fn drawn(&self, output_tokens: usize) -> usize {
        output_tokens.saturating_sub(self.given.len())
    }
}

/// Not written, so that a peer that does not know priorities understands requests without one.
fn is_zero(priority: &i32) -> bool {
    *priority == 0
}

/// Texts whose vectors are wanted, in tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedRequest {
    /// Model name, checked by the engine against the one it serves.
    pub model: String,
    /// Tokens of each text, at least one.
    pub texts: Vec<Vec<TokenId>>,
}

/// One vector of length 1 for each text of an [`EmbedRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// Numbers in each vector.
    pub dimensions: usize,
    /// All vectors, one after the other.
    pub numbers: Vec<f32>,
}

impl Embedded {
    /// The vectors as they travel.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// Vectors that travelled; none when the bytes are not `texts` vectors of this many numbers.
    pub fn from_bytes(dimensions: usize, texts: usize, bytes: &[u8]) -> Option<Self> {
        let expected = dimensions.checked_mul(texts)?.checked_mul(4)?;
        if dimensions == 0 || bytes.len() != expected {
            return None;
        }
        let numbers = bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
        Some(Self { dimensions, numbers })
    }
}

/// Alternatives that may be asked for at each position.
pub const MAX_TOP_LOGPROBS: u32 = 20;

/// Log-probabilities at one position, natural logarithms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Of the token that was chosen.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first; as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End of sequence, a stop token, or (HTTP layer) a stop string.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
}

/// One event of a token stream. As JSON it is an object whose first key says what it is: `tokens`, `finished` or
/// `failed`. The kernel's probes tell tokens by that key, so those with log-probabilities have it first too.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Frame")]
pub enum HopEvent {
    /// New tokens, in order; never those of `emitted`. An end-of-sequence token that ends the stream is included.
    Tokens(Vec<TokenId>),
    /// The same with one entry of log-probabilities for each token: for requests that ask for them.
    Scored { tokens: Vec<TokenId>, logprobs: Vec<TokenLogprobs> },
    /// The stream is complete.
    Finished {
        reason: FinishReason,
        /// Prompt tokens that came from the prefix cache.
        cached_tokens: u32,
    },
    /// The stream ends here with an error, in the OpenAI error's words.
    Failed { status: u16, code: String, message: String },
}

impl HopEvent {
    /// The tokens that it brings, if it is one that brings any.
    pub fn tokens(&self) -> Option<&[TokenId]> {
        match self {
            Self::Tokens(tokens) | Self::Scored { tokens, .. } => Some(tokens),
            Self::Finished { .. } | Self::Failed { .. } => None,
        }
    }
}

impl Serialize for HopEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Tokens(tokens) => map.serialize_entry("tokens", tokens)?,
            Self::Scored { tokens, logprobs } => {
                map.serialize_entry("tokens", tokens)?;
                map.serialize_entry("logprobs", logprobs)?;
            }
            Self::Finished { reason, cached_tokens } => {
                map.serialize_entry("finished", &FinishedFrame { reason: *reason, cached_tokens: *cached_tokens })?;
            }
            Self::Failed { status, code, message } => {
                let failed = FailedFrame { status: *status, code: code.clone(), message: message.clone() };
                map.serialize_entry("failed", &failed)?;
            }
        }
        map.end()
    }
}

/// An event as it is read, before it is known to be one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Frame {
    tokens: Option<Vec<TokenId>>,
    logprobs: Option<Vec<TokenLogprobs>>,
    finished: Option<FinishedFrame>,
    failed: Option<FailedFrame>,
}

#[derive(Serialize, Deserialize)]
struct FinishedFrame {
    reason: FinishReason,
    cached_tokens: u32,
}

#[derive(Serialize, Deserialize)]
struct FailedFrame {
    status: u16,
    code: String,
    message: String,
}

impl TryFrom<Frame> for HopEvent {
    type Error = &'static str;

    fn try_from(frame: Frame) -> Result<Self, Self::Error> {
        match frame {
            Frame { tokens: Some(tokens), logprobs: None, finished: None, failed: None } => Ok(Self::Tokens(tokens)),
            Frame { tokens: Some(tokens), logprobs: Some(logprobs), finished: None, failed: None } => {
                if tokens.len() != logprobs.len() {
                    return Err("there is not one entry of `logprobs` for each of `tokens`");
                }
                Ok(Self::Scored { tokens, logprobs })
            }
            Frame {
                tokens: None,
                logprobs: None,
                finished: Some(FinishedFrame { reason, cached_tokens }),
                failed: None,
            } => Ok(Self::Finished { reason, cached_tokens }),
            Frame { tokens: None, logprobs: None, finished: None, failed: Some(failed) } => {
                let FailedFrame { status, code, message } = failed;
                Ok(Self::Failed { status, code, message })
            }
            _ => Err("expected exactly one of `tokens`, `finished` and `failed`"),
        }
    }
}
