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
    /// Taken from a token's logit for each time it was generated, as OpenAI defines it. 0 switches it off.
    #[serde(skip_serializing_if = "is_zero")]
    pub frequency_penalty: f32,
    /// Taken once from the logit of every token that was generated, as OpenAI defines it. 0 switches it off.
    #[serde(skip_serializing_if = "is_zero")]
    pub presence_penalty: f32,
    /// Divides the positive and multiplies the negative logits of all tokens in prompt and output, as vLLM and
    /// Hugging Face do (Keskar et al., CTRL, 2019). 1 switches it off.
    #[serde(skip_serializing_if = "is_one")]
    pub repetition_penalty: f32,
    /// Added to the logits of some tokens, in order of id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<(TokenId, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
        }
    }
}

impl Sampling {
    /// Whether a choice depends on the tokens before it otherwise than through the model.
    pub fn uses_history(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

/// Seed of choice `index` of a request with this seed: the first choice is what the request would get alone, the
/// others are unrelated (the finaliser of SplitMix64 over seed and index).
pub fn choice_seed(seed: u64, index: u32) -> u64 {
    if index == 0 {
        return seed;
    }
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(index)));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

// Neutral values are not written, so that a peer that does not know these fields understands requests without them.

fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

fn is_one(value: &f32) -> bool {
    *value == 1.0
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
