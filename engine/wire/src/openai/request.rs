//! Chat completion and completion requests, read and checked.
//!
//! Unknown parameters are refused as OpenAI's API refuses them: a misspelt limit that is silently ignored costs
//! its sender money. Parameters that clients send by default and that change nothing here are accepted.

use super::fields::{Fields, RequestError, elements, kind_of, parse, wrong_type};
use super::messages::{ChatMessage, parse_messages};
use super::options::{
    GenerateOptions, check_best_of, clamp_u32, parse_chat_logprobs, parse_completion_logprobs, parse_options,
};
use super::tools::{ToolOptions, parse_tool_options};
use crate::TokenId;
use serde_json::value::RawValue;

/// Prompts of one completions request.
const MAX_PROMPTS: usize = 16;
/// Outputs of one completions request: prompts times choices.
const MAX_OUTPUTS: usize = 64;

/// `POST /v1/chat/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub messages: Vec<ChatMessage>,
    pub tools: ToolOptions,
    pub options: GenerateOptions,
}

/// `POST /v1/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// At least one, at most 16.
    pub prompts: Vec<Prompt>,
    pub options: GenerateOptions,
}

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// Reads the body of a chat completion request.
pub fn parse_chat(body: &[u8]) -> Result<ChatRequest, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let raw = fields.take_raw("messages");
    let tools = parse_tool_options(&mut fields)?;
    let mut options = parse_options(&mut fields)?;
    let newer = fields.integer("max_completion_tokens", "an integer of at least 1", |n| n >= 1)?;
    options.max_tokens = newer.map(clamp_u32).or(options.max_tokens);
    refuse_no_tokens(&options, false)?;
    options.top_logprobs = parse_chat_logprobs(&mut fields)?;
    let messages = parse_messages(raw.ok_or_else(|| fields.missing("messages"))?)?;
    let empty = |value: &str| matches!(value, "[]" | "{}");
    fields.unsupported("audio", empty)?;
    fields.unsupported("prediction", empty)?;
    fields.unsupported("reasoning_effort", |_| false)?;
    fields.unsupported("web_search_options", |_| false)?;
    fields.unsupported("modalities", |value| value.replace(char::is_whitespace, "") == "[\"text\"]")?;
    fields.unsupported("verbosity", |value| value == "\"medium\"")?;
    fields.finish()?;
    Ok(ChatRequest { messages, tools, options })
}

/// Reads the body of a completion request.
pub fn parse_completion(body: &[u8]) -> Result<CompletionRequest, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let raw = fields.take_raw("prompt");
    let mut options = parse_options(&mut fields)?;
    let prompts = parse_prompts(raw.ok_or_else(|| fields.missing("prompt"))?, PROMPT)?;
    check_outputs(prompts.len(), options.n)?;
    options.top_logprobs = parse_completion_logprobs(&mut fields)?;
    options.echo = fields.take("echo", "a boolean")?.unwrap_or(false);
    if options.echo && options.top_logprobs.is_some() && options.constraint.is_some() {
        let param = &options.constraint_param;
        let message = format!("'{param}' is not supported together with 'echo' and 'logprobs'. Leave one of them out.");
        return Err(RequestError::at(param, message));
    }
    // Nothing is produced: what evaluations ask for, who want to know how likely a text is.
    refuse_no_tokens(&options, options.echo)?;
    check_best_of(&mut fields, options.n)?;
    fields.unsupported("suffix", |value| value == "\"\"")?;
    fields.finish()?;
    Ok(CompletionRequest { prompts, options })
}

fn refuse_no_tokens(options: &GenerateOptions, allowed: bool) -> Result<(), RequestError> {
    if options.max_tokens != Some(0) || allowed {
        return Ok(());
    }
    let message = "Invalid value for 'max_tokens': 0 is not an integer of at least 1.";
    Err(RequestError::at("max_tokens", message))
}

fn check_outputs(prompts: usize, n: u32) -> Result<(), RequestError> {
    let outputs = prompts.saturating_mul(n as usize);
    if outputs <= MAX_OUTPUTS {
        return Ok(());
    }
    let message = format!(
        "Invalid 'n': {prompts} prompts with {n} choices each are {outputs} outputs. At most {MAX_OUTPUTS} are accepted."
    );
    Err(RequestError::at("n", message))
}

/// A field of one or several prompts.
#[derive(Clone, Copy)]
pub(super) struct PromptField {
    pub name: &'static str,
    /// What it holds, in the singular.
    pub what: &'static str,
    pub max: usize,
}

/// Of completions.
const PROMPT: PromptField = PromptField { name: "prompt", what: "prompt", max: MAX_PROMPTS };

/// `"a"`, `["a", "b"]`, `[1, 2]` or `[[1, 2], [3]]`: told apart by the first element.
pub(super) fn parse_prompts(raw: &RawValue, field: PromptField) -> Result<Vec<Prompt>, RequestError> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids or an array of arrays of token ids";
    let name = field.name;
    if kind_of(raw) == "a string" {
        return Ok(vec![Prompt::Text(parse(raw, name, EXPECTED)?)]);
    }
    if kind_of(raw) != "an array" {
        return Err(wrong_type(name, EXPECTED, raw));
    }
    // The second byte that is not a blank tells what the elements are, without holding them all.
    let first = raw.get().trim_start()[1..].trim_start().as_bytes().first().copied();
    let prompts = match first {
        Some(b'"' | b'[') => parse_several(elements(raw, name, EXPECTED)?, field)?,
        Some(b']') => Vec::new(),
        _ => vec![Prompt::Tokens(parse_ids(raw, name, EXPECTED)?)],
    };
    if prompts.is_empty() {
        let message = format!("Invalid '{name}': empty array. Expected at least one {}.", field.what);
        return Err(RequestError::at(name, message));
    }
    Ok(prompts)
}

fn parse_several(items: Vec<&RawValue>, field: PromptField) -> Result<Vec<Prompt>, RequestError> {
    let PromptField { name, what, max } = field;
    if items.len() > max {
        let message =
            format!("Invalid '{name}': array too long. Expected at most {max} {what}s, but got {}.", items.len());
        return Err(RequestError::at(name, message));
    }
    let parse_item = |(index, item): (usize, &RawValue)| {
        let param = format!("{name}[{index}]");
        match kind_of(item) {
            "a string" => parse(item, &param, "a string").map(Prompt::Text),
            _ => parse_ids(item, &param, "a string or an array of token ids").map(Prompt::Tokens),
        }
    };
    items.into_iter().enumerate().map(parse_item).collect()
}

pub(super) fn parse_ids(raw: &RawValue, param: &str, expected: &str) -> Result<Vec<TokenId>, RequestError> {
    serde_json::from_str(raw.get()).map_err(|_| {
        if kind_of(raw) != "an array" {
            return wrong_type(param, expected, raw);
        }
        let message = format!("Invalid '{param}': an element is not a token id (an integer from 0 to {}).", u32::MAX);
        RequestError::at(param, message)
    })
}
