//! Text to tokens and back, as vLLM's `/tokenize` and `/detokenize` have it.

use super::fields::{Fields, RequestError};
use super::messages::{ChatMessage, parse_messages};
use super::options::parse_model;
use super::request::parse_ids;
use super::tools::{Tool, parse_tools};
use crate::TokenId;
use serde::Serialize;

/// `POST /tokenize`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeRequest {
    pub model: String,
    pub input: TokenizeInput,
    /// Whether each token's text is wanted too.
    pub token_strings: bool,
}

/// What is to be tokenized.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizeInput {
    /// A plain prompt; with the tokens that the model puts around it, if `add_special`.
    Prompt { text: String, add_special: bool },
    /// A conversation, as a chat completion would send it to the model.
    Messages { messages: Vec<ChatMessage>, tools: Vec<Tool> },
}

/// Answer of `/tokenize`.
#[derive(Clone, Debug, Serialize)]
pub struct Tokenized {
    pub count: u32,
    /// Longest sequence of the model, tokens.
    pub max_model_len: u32,
    pub tokens: Vec<TokenId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_strs: Option<Vec<String>>,
}

/// `POST /detokenize`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetokenizeRequest {
    pub model: String,
    pub tokens: Vec<TokenId>,
}

/// Answer of `/detokenize`.
#[derive(Clone, Debug, Serialize)]
pub struct Detokenized {
    pub prompt: String,
}

/// Reads the body of a tokenize request.
pub fn parse_tokenize(body: &[u8]) -> Result<TokenizeRequest, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let model = parse_model(&mut fields)?;
    let token_strings = fields.take("return_token_strs", "a boolean")?.unwrap_or(false);
    let input = match (fields.take::<String>("prompt", "a string")?, fields.take_raw("messages")) {
        (Some(text), None) => {
            let add_special = fields.take("add_special_tokens", "a boolean")?.unwrap_or(true);
            TokenizeInput::Prompt { text, add_special }
        }
        (None, Some(messages)) => {
            // A template writes these tokens itself.
            fields.unsupported("add_special_tokens", |value| value == "false")?;
            fields.unsupported("add_generation_prompt", |value| value == "true")?;
            fields.unsupported("continue_final_message", |value| value == "false")?;
            TokenizeInput::Messages { messages: parse_messages(messages)?, tools: parse_tools(&mut fields)? }
        }
        (None, None) => return Err(fields.missing("prompt")),
        (Some(_), Some(_)) => {
            let message = "Invalid 'messages': send either 'prompt' or 'messages', not both.";
            return Err(RequestError::at("messages", message));
        }
    };
    fields.finish()?;
    Ok(TokenizeRequest { model, input, token_strings })
}

/// Reads the body of a detokenize request.
pub fn parse_detokenize(body: &[u8]) -> Result<DetokenizeRequest, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let model = parse_model(&mut fields)?;
    let raw = fields.take_raw("tokens").ok_or_else(|| fields.missing("tokens"))?;
    let tokens = parse_ids(raw, "tokens", "an array of token ids")?;
    fields.finish()?;
    Ok(DetokenizeRequest { model, tokens })
}
