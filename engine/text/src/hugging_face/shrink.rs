//! What kind of tokenizer a tokenizer.json describes: its alphabet, and whether the bytes of text that one token can
//! stand for are bounded, on which a cheap refusal of texts that cannot fit relies.
//!
//! The description is looked at as JSON: the crate's types do not show what is in them.

use serde::Serialize;
use serde_json::Value;
use tokenizers::Tokenizer;

pub(super) struct Shape {
    /// Entries are written in GPT-2's byte alphabet.
    pub(super) is_byte_level: bool,
    /// How many bytes of input may become one byte of token; None when there is no bound.
    pub(super) shrinks_by: Option<usize>,
}

impl Shape {
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        let decoder = steps(&tokenizer.get_decoder(), "decoders")?;
        let cutter = steps(&tokenizer.get_pre_tokenizer(), "pretokenizers")?;
        let normalizer = steps(&tokenizer.get_normalizer(), "normalizers")?;
        let is_byte_level = decoder.iter().chain(&cutter).any(|step| kind(step) == "ByteLevel");
        let keeps_text = cutter.iter().all(|step| {
            matches!(kind(step), "ByteLevel" | "Digits" | "Metaspace")
                || kind(step) == "Split" && step["behavior"] != "Removed"
        });
        let takes_blanks = tokenizer.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip);
        let factor = normalizer.iter().try_fold(1, |factor, step| Some(factor * shortening(step)?));
        Ok(Self { is_byte_level, shrinks_by: factor.filter(|_| keeps_text && !takes_blanks) })
    }
}

/// By how much a normalizer may shorten text.
fn shortening(step: &Value) -> Option<usize> {
    match kind(step) {
        "Prepend" => Some(1),
        // A blank becomes U+2581.
        "Replace" if step["pattern"]["String"] == " " => Some(1),
        // To no less than a third.
        "NFC" => Some(3),
        _ => None,
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or_default()
}

/// A part of the tokenizer as its steps: those of a sequence, or itself.
fn steps(part: &Option<&impl Serialize>, list: &str) -> Result<Vec<Value>, String> {
    let Some(part) = part else { return Ok(Vec::new()) };
    let mut steps = Vec::new();
    let mut open = vec![serde_json::to_value(part).map_err(|error| error.to_string())?];
    while let Some(step) = open.pop() {
        match step.get(list) {
            Some(Value::Array(inner)) => open.extend(inner.iter().cloned()),
            _ => steps.push(step),
        }
    }
    Ok(steps)
}
