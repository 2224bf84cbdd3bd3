//! What chat and completion requests have in common: how much is produced, how tokens are chosen, and what of it is
//! shown. Every bound has an error that names its parameter.

use super::fields::{Fields, RequestError, kind_of, map_entries, parse, shorten};
use super::structured::parse_constraint;
use crate::TokenId;
use crate::constraint::Constraint;
use crate::hop::MAX_TOP_LOGPROBS;
use serde_json::value::RawValue;
use std::sync::Arc;

/// Stop strings of one request. OpenAI allows 4; other servers allow more.
pub const MAX_STOP_STRINGS: usize = 16;
/// Choices that may be asked for per prompt.
pub const MAX_CHOICES: u32 = 16;
/// Entries of `logit_bias`. OpenAI allows 300.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Longest stop string, bytes: what the matcher may have to hold back.
const MAX_STOP_BYTES: usize = 1024;
/// Extra stop tokens of one request.
const MAX_STOP_TOKEN_IDS: usize = 256;
/// Longest model name, bytes.
const MAX_MODEL_BYTES: usize = 256;
/// Alternatives of a completion's `logprobs`, as OpenAI bounds them; chats may ask for more.
const MAX_COMPLETION_LOGPROBS: u32 = 5;

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
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub repetition_penalty: f32,
    /// In order of id.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Key of the draws; none lets the server draw one.
    pub seed: Option<i64>,
    /// Choices for each prompt, at least one.
    pub n: u32,
    /// Lower is served first among the same tenant's.
    pub priority: i32,
    /// Whether log-probabilities are wanted, and of how many of the likeliest tokens beside the chosen one.
    pub top_logprobs: Option<u32>,
    /// Whether the answer begins with the prompt.
    pub echo: bool,
    /// Strings that end the output.
    pub stop: Vec<String>,
    /// Whether what ended the output is part of it.
    pub include_stop: bool,
    pub stop_token_ids: Vec<TokenId>,
    pub ignore_eos: bool,
    /// What the output must be.
    pub constraint: Option<Arc<Constraint>>,
    /// The parameter that asked for it, for errors; empty without one.
    pub constraint_param: String,
    /// Whether special tokens are left out of the text.
    pub skip_special_tokens: bool,
    pub stream: bool,
    /// Whether a stream ends with a chunk that counts tokens.
    pub include_usage: bool,
}

pub(super) fn parse_options(fields: &mut Fields<'_>) -> Result<GenerateOptions, RequestError> {
    let model = parse_model(fields)?;
    let max_tokens = fields.integer("max_tokens", "an integer of at least 1", |n| n >= 0)?.map(clamp_u32);
    let min_tokens =
        fields.integer("min_tokens", "an integer from 0 on", |n| (0..=i64::from(u32::MAX)).contains(&n))?;
    let temperature = fields.number("temperature", "between 0 and 2", |t| (0.0..=2.0).contains(&t))?;
    let top_p = fields.number("top_p", "greater than 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
    let top_k = fields.integer("top_k", "-1 or 0 (off) or a count", |k| (-1..=i64::from(u32::MAX)).contains(&k))?;
    let min_p = fields.number("min_p", "between 0 and 1", |p| (0.0..=1.0).contains(&p))?;
    let penalty =
        |fields: &mut Fields<'_>, name| fields.number(name, "between -2 and 2", |p| (-2.0..=2.0).contains(&p));
    let frequency_penalty = penalty(fields, "frequency_penalty")?;
    let presence_penalty = penalty(fields, "presence_penalty")?;
    let repetition_penalty = fields.number("repetition_penalty", "greater than 0", |p| p > 0.0)?;
    let logit_bias = fields.take_raw("logit_bias").map(parse_logit_bias).transpose()?.unwrap_or_default();
    let n = fields.integer("n", "an integer from 1 to 16", |n| (1..=i64::from(MAX_CHOICES)).contains(&n))?;
    let priority = fields.take::<i32>("priority", "an integer of 32 bits")?.unwrap_or(0);
    let seed = fields.take::<i64>("seed", "an integer of 64 bits")?;
    let stop = fields.take_raw("stop").map(parse_stop).transpose()?.unwrap_or_default();
    let stop_token_ids = parse_stop_token_ids(fields)?;
    let include_stop = fields.take("include_stop_str_in_output", "a boolean")?.unwrap_or(false);
    let ignore_eos = fields.take("ignore_eos", "a boolean")?.unwrap_or(false);
    let skip_special_tokens = fields.take("skip_special_tokens", "a boolean")?.unwrap_or(true);
    let stream = fields.take("stream", "a boolean")?.unwrap_or(false);
    let include_usage = parse_stream_options(fields)?;
    let constraint = parse_constraint(fields)?;
    fields.ignore(IGNORED);
    Ok(GenerateOptions {
        model,
        max_tokens,
        min_tokens: min_tokens.map_or(0, clamp_u32),
        temperature: temperature.unwrap_or(1.0) as f32,
        // A tiny positive value must not round to 0 and so become invalid below.
        top_p: top_p.map_or(1.0, |p| (p as f32).max(f32::MIN_POSITIVE)),
        top_k: top_k.map_or(0, |k| clamp_u32(k.max(0))),
        min_p: min_p.unwrap_or(0.0) as f32,
        frequency_penalty: frequency_penalty.unwrap_or(0.0) as f32,
        presence_penalty: presence_penalty.unwrap_or(0.0) as f32,
        // Neither 0 nor infinite, whatever is rounded.
        repetition_penalty: repetition_penalty.map_or(1.0, |p| (p as f32).clamp(f32::MIN_POSITIVE, f32::MAX)),
        logit_bias,
        seed,
        n: n.map_or(1, clamp_u32),
        priority,
        top_logprobs: None,
        echo: false,
        stop,
        include_stop,
        stop_token_ids,
        ignore_eos,
        constraint_param: constraint.as_ref().map(|(param, _)| param.clone()).unwrap_or_default(),
        constraint: constraint.map(|(_, constraint)| Arc::new(constraint)),
        skip_special_tokens,
        stream,
        include_usage,
    })
}

pub(super) fn parse_model(fields: &mut Fields<'_>) -> Result<String, RequestError> {
    let model: String = fields.require("model", "a string")?;
    if model.is_empty() || model.len() > MAX_MODEL_BYTES {
        let message = format!("Invalid 'model': expected a name of 1 to {MAX_MODEL_BYTES} bytes.");
        return Err(RequestError::at("model", message));
    }
    Ok(model)
}

/// Chat: `logprobs` says whether, `top_logprobs` how many alternatives.
pub(super) fn parse_chat_logprobs(fields: &mut Fields<'_>) -> Result<Option<u32>, RequestError> {
    let wanted = fields.take("logprobs", "a boolean")?.unwrap_or(false);
    let within = |count: i64| (0..=i64::from(MAX_TOP_LOGPROBS)).contains(&count);
    let top = fields.integer("top_logprobs", "an integer from 0 to 20", within)?.map_or(0, clamp_u32);
    if top > 0 && !wanted {
        let message = "Invalid 'top_logprobs': it needs 'logprobs' to be true.";
        return Err(RequestError::at("top_logprobs", message));
    }
    Ok(wanted.then_some(top))
}

/// Completions: `logprobs` is the number of alternatives; 0 asks for the chosen token's alone.
pub(super) fn parse_completion_logprobs(fields: &mut Fields<'_>) -> Result<Option<u32>, RequestError> {
    let within = |count: i64| (0..=i64::from(MAX_COMPLETION_LOGPROBS)).contains(&count);
    Ok(fields.integer("logprobs", "an integer from 0 to 5", within)?.map(clamp_u32))
}

/// Choosing the best of several outputs by itself is not offered: as many as are produced are returned.
pub(super) fn check_best_of(fields: &mut Fields<'_>, n: u32) -> Result<(), RequestError> {
    match fields.integer("best_of", "an integer of at least 1", |count| count >= 1)? {
        Some(count) if count != i64::from(n) => {
            let message = format!(
                "'best_of' is {count}, but only the value of 'n' ({n}) is supported. Ask for more choices by 'n' with 'logprobs', and choose among them."
            );
            Err(RequestError::at("best_of", message))
        }
        _ => Ok(()),
    }
}

/// `{"<token id>": bias, ...}`, in order of id.
fn parse_logit_bias(raw: &RawValue) -> Result<Vec<(TokenId, f32)>, RequestError> {
    const EXPECTED: &str = "an object of token ids and numbers";
    let entries = map_entries::<MAX_LOGIT_BIAS>(raw, "logit_bias", EXPECTED)?;
    let entry = |(key, raw): (std::borrow::Cow<'_, str>, &RawValue)| {
        let Ok(token) = key.parse::<TokenId>() else {
            let message = format!("Invalid 'logit_bias': the key '{}' is not a token id.", shorten(&key));
            return Err(RequestError::at("logit_bias", message));
        };
        let bias: f64 = parse(raw, &format!("logit_bias.{token}"), "a number")?;
        if !(-100.0..=100.0).contains(&bias) {
            let message = format!("Invalid value for 'logit_bias.{token}': {bias} is not between -100 and 100.");
            return Err(RequestError::at("logit_bias", message));
        }
        Ok((token, bias as f32))
    };
    let mut biases: Vec<(TokenId, f32)> = entries.into_iter().map(entry).collect::<Result<_, _>>()?;
    biases.sort_by_key(|(token, _)| *token);
    if let Some(pair) = biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let message = format!("Invalid 'logit_bias': token id {} stands there twice.", pair[0].0);
        return Err(RequestError::at("logit_bias", message));
    }
    Ok(biases)
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

/// Counts beyond any context are all the same.
pub(super) fn clamp_u32(count: i64) -> u32 {
    u32::try_from(count.max(0)).unwrap_or(u32::MAX)
}
