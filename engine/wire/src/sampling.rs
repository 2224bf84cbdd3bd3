//! How the next token is chosen, as plain numbers. Output is a function of weights, prompt and these
//! parameters alone, which is what lets a stream resume on another instance.

use crate::TokenId;
use serde::{Deserialize, Serialize};

/// Sampling parameters of one request. `temperature == 0` is greedy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0 for greedy, otherwise the divisor of the logits.
    pub temperature: f32,
    /// Nucleus: smallest set of tokens whose probability reaches this. 1 switches it off.
    pub top_p: f32,
    /// Only the k likeliest tokens; 0 switches it off.
    pub top_k: u32,
    /// Drop tokens below this share of the likeliest one's probability; 0 switches it off.
    pub min_p: f32,
    /// Key of the random numbers: the draw at position `p` is a function of (seed, p) alone.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 }
    }
}

/// When a generation ends, in tokens. Stop strings are text and belong to the HTTP layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopRule {
    /// Tokens to produce in all, those of `GenerateRequest::emitted` included.
    pub max_tokens: u32,
    /// Tokens before which neither end-of-sequence nor a stop token may end the stream.
    pub min_tokens: u32,
    /// Go on after the model's end-of-sequence token, as vLLM's `ignore_eos`.
    pub ignore_eos: bool,
    /// Extra tokens that end the stream.
    pub stop_token_ids: Vec<TokenId>,
}

impl Default for StopRule {
    fn default() -> Self {
        Self { max_tokens: 16, min_tokens: 0, ignore_eos: false, stop_token_ids: Vec::new() }
    }
}
