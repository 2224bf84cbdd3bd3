//! Answers, as they go out. `None` is written as `null` where OpenAI's API does so, because typed clients
//! look for the field.

use crate::hop::FinishReason;
use serde::{Deserialize, Serialize};

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub total_tokens: u32,
    pub prompt_tokens_details: PromptTokensDetails,
}

impl Usage {
    /// Usage of some counts.
    pub fn new(prompt_tokens: u32, completion_tokens: u32, cached_tokens: u32) -> Self {
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// Part of [`Usage`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: u32,
}

/// A whole chat answer.
#[derive(Clone, Debug, Serialize)]
pub struct ChatCompletion<'a> {
    pub id: &'a str,
    /// `chat.completion`
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
}

/// One choice of a [`ChatCompletion`].
#[derive(Clone, Debug, Serialize)]
pub struct ChatChoice {
    pub index: u32,
    pub message: ChatReply,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: ChatFinish,
}

/// Why a chat's answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatFinish {
    Stop,
    Length,
    /// It ended by itself and has calls, which the client is to make.
    ToolCalls,
}

/// What the assistant says.
#[derive(Clone, Debug, Serialize)]
pub struct ChatReply {
    /// `assistant`
    pub role: &'static str,
    /// None where there are only calls.
    pub content: Option<String>,
    pub refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallReply>,
}

/// A call that the client is to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ToolCallReply {
    pub id: String,
    /// `function`
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub function: FunctionReply,
}

/// Which function, with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionReply {
    pub name: String,
    /// JSON text of an object, as the model wrote it.
    pub arguments: String,
}

/// What a chunk adds to a call: its opening has id, type and name, and then come pieces of arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ToolCallDelta<'a> {
    /// Of the call among the answer's calls.
    pub index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: FunctionDelta<'a>,
}

/// Part of [`ToolCallDelta`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    pub arguments: &'a str,
}

/// One event of a chat stream.
#[derive(Clone, Debug, Serialize)]
pub struct ChatChunk<'a> {
    pub id: &'a str,
    /// `chat.completion.chunk`
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: &'a [ChatChunkChoice<'a>],
    /// Outer none: not asked for. Inner none: asked for, and not this chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One choice of a [`ChatChunk`].
#[derive(Clone, Debug, Serialize)]
pub struct ChatChunkChoice<'a> {
    pub index: u32,
    pub delta: ChatDelta<'a>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<ChatFinish>,
}

/// What a chunk adds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<[ToolCallDelta<'a>; 1]>,
}

/// A completion, whole or one event of its stream: OpenAI uses one shape for both.
#[derive(Clone, Debug, Serialize)]
pub struct TextCompletion<'a> {
    pub id: &'a str,
    /// `text_completion`
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: &'a [CompletionChoice<'a>],
    /// Outer none: not asked for. Inner none: asked for, and not this chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One choice of a [`TextCompletion`].
#[derive(Clone, Debug, Serialize)]
pub struct CompletionChoice<'a> {
    pub text: &'a str,
    pub index: u32,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<FinishReason>,
}

/// Log-probabilities of a chat's tokens: of the model's own distribution, before temperature, penalties and bias.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatLogprobs {
    pub content: Vec<ChatTokenLogprob>,
    pub refusal: Option<()>,
}

/// One token of [`ChatLogprobs`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatTokenLogprob {
    /// Its text; written out as `bytes:\xe2\x80` when it is not whole characters.
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    /// The likeliest tokens at its place, likeliest first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One alternative of a [`ChatTokenLogprob`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// Log-probabilities of a completion's tokens, one entry for each in every list.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Where the token's text begins in the choice's text, characters.
    pub text_offset: Vec<u32>,
    /// None for the first token of a prompt that is echoed: there is nothing that it follows from.
    pub token_logprobs: Vec<Option<f32>>,
    pub tokens: Vec<String>,
    /// The likeliest tokens by their text, likeliest first, and the chosen one if it is not among them.
    pub top_logprobs: Vec<Option<LogprobMap>>,
}

/// Texts of tokens with their log-probabilities, as a JSON object in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogprobMap(pub Vec<(String, f32)>);

impl Serialize for LogprobMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// `GET /v1/models`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`
    pub object: String,
    pub data: Vec<ModelObject>,
}

/// `GET /v1/models/{id}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelObject {
    pub id: String,
    /// `model`
    pub object: String,
    pub created: u64,
    /// `foreshock`
    pub owned_by: String,
    /// Digest of weights and parameters: what the name stands for now.
    pub revision: String,
    /// Longest sequence, tokens; named as vLLM names it.
    pub max_model_len: u32,
    /// What the model is made from, as vLLM has it: its own name, or the name of an adapter's folder.
    pub root: String,
    /// The base model of an adapter.
    pub parent: Option<String>,
}
