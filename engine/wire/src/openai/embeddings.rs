//! `POST /v1/embeddings`: texts or token ids in, one vector each out.

use super::fields::{Fields, RequestError};
use super::options::{clamp_u32, parse_model};
use super::request::{Prompt, PromptField, parse_prompts};
use serde::Serialize;

/// Inputs of one request, as OpenAI bounds them.
pub const MAX_EMBEDDING_INPUTS: usize = 2048;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingRequest {
    pub model: String,
    /// At least one, at most [`MAX_EMBEDDING_INPUTS`].
    pub inputs: Vec<Prompt>,
    /// Whether vectors are answered as base64 of little-endian f32, instead of numbers.
    pub base64: bool,
    /// Numbers in each vector; none for as many as the model has.
    pub dimensions: Option<u32>,
    pub truncation: Truncation,
}

/// What becomes of an input that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// It is refused.
    None,
    /// Its end is cut off at the model's limit.
    ToModel,
    /// Its end is cut off at so many tokens.
    ToTokens(u32),
}

/// Reads the body of an embeddings request.
pub fn parse_embedding(body: &[u8]) -> Result<EmbeddingRequest, RequestError> {
    const INPUT: PromptField = PromptField { name: "input", what: "input", max: MAX_EMBEDDING_INPUTS };
    let mut fields = Fields::of_body(body)?;
    let raw = fields.take_raw(INPUT.name);
    let model = parse_model(&mut fields)?;
    let inputs = parse_prompts(raw.ok_or_else(|| fields.missing(INPUT.name))?, INPUT)?;
    let base64 = match fields.take::<String>("encoding_format", "a string")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let shown: String = other.chars().take(64).collect();
            let message = format!("Invalid value for 'encoding_format': '{shown}' is neither 'float' nor 'base64'.");
            return Err(RequestError::at("encoding_format", message));
        }
    };
    let dimensions = fields.integer("dimensions", "an integer of at least 1", |n| n >= 1)?.map(clamp_u32);
    let truncation =
        fields.integer("truncate_prompt_tokens", "-1 or an integer of at least 1", |n| n == -1 || n >= 1)?;
    fields.ignore(&["user"]);
    fields.finish()?;
    Ok(EmbeddingRequest {
        model,
        inputs,
        base64,
        dimensions,
        truncation: match truncation {
            None => Truncation::None,
            Some(-1) => Truncation::ToModel,
            Some(tokens) => Truncation::ToTokens(clamp_u32(tokens)),
        },
    })
}

/// Answer of `/v1/embeddings`.
#[derive(Clone, Debug, Serialize)]
pub struct EmbeddingList<'a> {
    /// `list`
    pub object: &'static str,
    pub data: Vec<EmbeddingData<'a>>,
    pub model: &'a str,
    pub usage: EmbeddingUsage,
}

/// One vector of an [`EmbeddingList`].
#[derive(Clone, Debug, Serialize)]
pub struct EmbeddingData<'a> {
    /// `embedding`
    pub object: &'static str,
    /// Of the input.
    pub index: u32,
    pub embedding: EmbeddingVector<'a>,
}

/// A vector in either form.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum EmbeddingVector<'a> {
    Numbers(&'a [f32]),
    /// Little-endian f32.
    Base64(String),
}

/// Tokens of an embeddings request: there is no output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EmbeddingUsage {
    pub prompt_tokens: u32,
    pub total_tokens: u32,
}
