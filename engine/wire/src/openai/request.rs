//! Chat completion and completion requests, read and checked.
//!
//! Unknown parameters are refused as OpenAI's API refuses them: a misspelt limit that is silently ignored costs
//! its sender money. Parameters that clients send by default and that change nothing here are accepted.

use super::fields::{Fields, RequestError, elements, kind_of, parse, wrong_type};
use super::messages::{ChatMessage, parse_messages};
use crate::TokenId;
use serde_json::value::RawValue;

/// Stop strings of one request. OpenAI allows 4; other servers allow more.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string, bytes: what the matcher may have to hold back.
const MAX_STOP_BYTES: usize = 1024;
/// Extra stop tokens of one request.
const MAX_STOP_TOKEN_IDS: usize = 256;
/// Prompts of one completions request.
const MAX_PROMPTS: usize = 16;
/// Longest model name, bytes.
const MAX_MODEL_BYTES: usize = 256;

/// Parameters that only matter to other servers, to accounting or to caching there.
const IGNORED: &[&str] = &[
    "user",
    "metadata",
    "store",
    "parallel_tool_calls",
    "service_tier",
    "cache_prompt",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// What chat and completion requests have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    pub model: String,
    /// Tokens to produce at most; none leaves it to the route (OpenAI: 16 for completions, the context for chat).
    pub max_tokens: Option<u32>,
    /// Tokens before which nothing but `max_tokens` ends the output.
    pub min_tokens: u32,
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: u32,
    pub min_p: f32,
    /// Key of the draws; none lets the server draw one.
    pub seed: Option<i64>,
    /// Strings that end the output and are not part of it.
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<TokenId>,
    pub ignore_eos: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    pub stream: bool,
    /// Whether a stream ends with a chunk that counts tokens.
    pub include_usage: bool,
}

/// `POST /v1/chat/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub messages: Vec<ChatMessage>,
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
    let mut options = parse_options(&mut fields)?;
    let newer = fields.integer("max_completion_tokens", "an integer of at least 1", |n| n >= 1)?;
    options.max_tokens = newer.map(clamp_u32).or(options.max_tokens);
    let messages = parse_messages(raw.ok_or_else(|| fields.missing("messages"))?)?;
    let empty = |value: &str| matches!(value, "[]" | "{}");
    let zero_or_false = |value: &str| matches!(value, "false" | "0");
    fields.unsupported("tools", empty)?;
    fields.unsupported("functions", empty)?;
    fields.unsupported("tool_choice", |value| matches!(value, "\"none\"" | "\"auto\""))?;
    fields.unsupported("function_call", |value| matches!(value, "\"none\"" | "\"auto\""))?;
    fields.unsupported("logprobs", zero_or_false)?;
    fields.unsupported("top_logprobs", zero_or_false)?;
    fields.unsupported("audio", empty)?;
    fields.unsupported("prediction", empty)?;
    fields.unsupported("reasoning_effort", |_| false)?;
    fields.unsupported("web_search_options", |_| false)?;
    fields.unsupported("modalities", |value| value.replace(char::is_whitespace, "") == "[\"text\"]")?;
    fields.unsupported("verbosity", |value| value == "\"medium\"")?;
    fields.finish()?;
    Ok(ChatRequest { messages, options })
}

/// Reads the body of a completion request.
pub fn parse_completion(body: &[u8]) -> Result<CompletionRequest, RequestError> {
    let mut fields = Fields::of_body(body)?;
    let raw = fields.take_raw("prompt");
    let options = parse_options(&mut fields)?;
    let prompts = parse_prompts(raw.ok_or_else(|| fields.missing("prompt"))?)?;
    // `logprobs: 0` asks for the chosen token's probability here, unlike in chat.
    fields.unsupported("logprobs", |_| false)?;
    fields.unsupported("echo", |value| value == "false")?;
    fields.unsupported("best_of", |value| value == "1")?;
    fields.unsupported("suffix", |value| value == "\"\"")?;
    fields.finish()?;
    Ok(CompletionRequest { prompts, options })
}

fn parse_options(fields: &mut Fields<'_>) -> Result<GenerateOptions, RequestError> {
    let model = parse_model(fields)?;
    let max_tokens = fields.integer("max_tokens", "an integer of at least 1", |n| n >= 1)?.map(clamp_u32);
    let min_tokens =
        fields.integer("min_tokens", "an integer from 0 on", |n| (0..=i64::from(u32::MAX)).contains(&n))?;
    let temperature = fields.number("temperature", "between 0 and 2", |t| (0.0..=2.0).contains(&t))?;
    let top_p = fields.number("top_p", "greater than 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
    let top_k = fields.integer("top_k", "-1 or 0 (off) or a count", |k| (-1..=i64::from(u32::MAX)).contains(&k))?;
    let min_p = fields.number("min_p", "between 0 and 1", |p| (0.0..=1.0).contains(&p))?;
    let seed = fields.take::<i64>("seed", "an integer of 64 bits")?;
    let stop = fields.take_raw("stop").map(parse_stop).transpose()?.unwrap_or_default();
    let stop_token_ids = parse_stop_token_ids(fields)?;
    let ignore_eos = fields.take("ignore_eos", "a boolean")?.unwrap_or(false);
    let skip_special_tokens = fields.take("skip_special_tokens", "a boolean")?.unwrap_or(true);
    let stream = fields.take("stream", "a boolean")?.unwrap_or(false);
    let include_usage = parse_stream_options(fields)?;
    refuse_unsupported(fields)?;
    Ok(GenerateOptions {
        model,
        max_tokens,
        min_tokens: min_tokens.map_or(0, clamp_u32),
        temperature: temperature.unwrap_or(1.0) as f32,
        // A tiny positive value must not round to 0 and so become invalid below.
        top_p: top_p.map_or(1.0, |p| (p as f32).max(f32::MIN_POSITIVE)),
        top_k: top_k.map_or(0, |k| clamp_u32(k.max(0))),
        min_p: min_p.unwrap_or(0.0) as f32,
        seed,
        stop,
        stop_token_ids,
        ignore_eos,
        skip_special_tokens,
        stream,
        include_usage,
    })
}

fn refuse_unsupported(fields: &mut Fields<'_>) -> Result<(), RequestError> {
    if let Some(n) = fields.integer("n", "an integer of at least 1", |n| n >= 1)?
        && n != 1
    {
        let message =
            format!("'n' is {n}, but only one choice per prompt is supported yet. Send the request {n} times.");
        return Err(RequestError::at("n", message));
    }
    let is_number = |value: &str, neutral: f64| value.parse::<f64>().is_ok_and(|number| number == neutral);
    fields.unsupported("frequency_penalty", |value| is_number(value, 0.0))?;
    fields.unsupported("presence_penalty", |value| is_number(value, 0.0))?;
    fields.unsupported("repetition_penalty", |value| is_number(value, 1.0))?;
    fields.unsupported("logit_bias", |value| value.replace(char::is_whitespace, "") == "{}")?;
    fields.unsupported("include_stop_str_in_output", |value| value == "false")?;
    if let Some(format) = fields.take_raw("response_format") {
        let mut format = Fields::of_object(format, "response_format.".to_owned())?;
        let kind: String = format.require("type", "a string")?;
        if kind != "text" {
            let message = "'response_format' other than {\"type\": \"text\"} is not supported yet.";
            return Err(RequestError::at("response_format", message));
        }
        format.finish()?;
    }
    fields.ignore(IGNORED);
    Ok(())
}

fn parse_model(fields: &mut Fields<'_>) -> Result<String, RequestError> {
    let model: String = fields.require("model", "a string")?;
    if model.is_empty() || model.len() > MAX_MODEL_BYTES {
        let message = format!("Invalid 'model': expected a name of 1 to {MAX_MODEL_BYTES} bytes.");
        return Err(RequestError::at("model", message));
    }
    Ok(model)
}

fn parse_stop(raw: &RawValue) -> Result<Vec<String>, RequestError> {
    const EXPECTED: &str = "a string or an array of strings";
    let stop: Vec<String> = match kind_of(raw) {
        "a string" => vec![parse(raw, "stop", EXPECTED)?],
        _ => parse(raw, "stop", EXPECTED)?,
    };
    if stop.len() > MAX_STOP_STRINGS {
        let message = format!(
            "Invalid 'stop': array too long. Expected at most {MAX_STOP_STRINGS} strings, but got {}.",
            stop.len()
        );
        return Err(RequestError::at("stop", message));
    }
    if let Some(index) = stop.iter().position(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
        let message = format!(
            "Invalid 'stop': string {index} has {} bytes. Expected 1 to {MAX_STOP_BYTES} bytes.",
            stop[index].len()
        );
        return Err(RequestError::at("stop", message));
    }
    Ok(stop)
}

fn parse_stop_token_ids(fields: &mut Fields<'_>) -> Result<Vec<TokenId>, RequestError> {
    let ids: Vec<TokenId> = fields.take("stop_token_ids", "an array of token ids")?.unwrap_or_default();
    if ids.len() <= MAX_STOP_TOKEN_IDS {
        return Ok(ids);
    }
    let message = format!("Invalid 'stop_token_ids': more than {MAX_STOP_TOKEN_IDS} ids.");
    Err(RequestError::at("stop_token_ids", message))
}

fn parse_stream_options(fields: &mut Fields<'_>) -> Result<bool, RequestError> {
    let Some(raw) = fields.take_raw("stream_options") else { return Ok(false) };
    let mut options = Fields::of_object(raw, "stream_options.".to_owned())?;
    let include_usage = options.take("include_usage", "a boolean")?.unwrap_or(false);
    // Padding against size side channels: none is added here, with or without it.
    options.ignore(&["include_obfuscation"]);
    options.finish()?;
    Ok(include_usage)
}

/// `"a"`, `["a", "b"]`, `[1, 2]` or `[[1, 2], [3]]`: told apart by the first element.
fn parse_prompts(raw: &RawValue) -> Result<Vec<Prompt>, RequestError> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids or an array of arrays of token ids";
    if kind_of(raw) == "a string" {
        return Ok(vec![Prompt::Text(parse(raw, "prompt", EXPECTED)?)]);
    }
    if kind_of(raw) != "an array" {
        return Err(wrong_type("prompt", EXPECTED, raw));
    }
    // The second byte that is not a blank tells what the elements are, without holding them all.
    let first = raw.get().trim_start()[1..].trim_start().as_bytes().first().copied();
    let prompts = match first {
        Some(b'"' | b'[') => parse_several(elements(raw, "prompt", EXPECTED)?)?,
        Some(b']') => Vec::new(),
        _ => vec![Prompt::Tokens(parse_ids(raw, "prompt", EXPECTED)?)],
    };
    if prompts.is_empty() {
        return Err(RequestError::at("prompt", "Invalid 'prompt': empty array. Expected at least one prompt."));
    }
    Ok(prompts)
}

fn parse_several(items: Vec<&RawValue>) -> Result<Vec<Prompt>, RequestError> {
    if items.len() > MAX_PROMPTS {
        let message = format!(
            "Invalid 'prompt': array too long. Expected at most {MAX_PROMPTS} prompts, but got {}.",
            items.len()
        );
        return Err(RequestError::at("prompt", message));
    }
    let parse_item = |(index, item): (usize, &RawValue)| {
        let param = format!("prompt[{index}]");
        match kind_of(item) {
            "a string" => parse(item, &param, "a string").map(Prompt::Text),
            _ => parse_ids(item, &param, "a string or an array of token ids").map(Prompt::Tokens),
        }
    };
    items.into_iter().enumerate().map(parse_item).collect()
}

fn parse_ids(raw: &RawValue, param: &str, expected: &str) -> Result<Vec<TokenId>, RequestError> {
    serde_json::from_str(raw.get()).map_err(|_| {
        if kind_of(raw) != "an array" {
            return wrong_type(param, expected, raw);
        }
        let message = format!("Invalid '{param}': an element is not a token id (an integer from 0 to {}).", u32::MAX);
        RequestError::at(param, message)
    })
}

/// Counts beyond any context are all the same.
fn clamp_u32(count: i64) -> u32 {
    u32::try_from(count.max(0)).unwrap_or(u32::MAX)
}
