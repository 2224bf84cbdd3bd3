//! Lines of Mooncake's traces: `{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}`. Other
//! fields are left alone.

use super::reader::{Fault, Row, at, tokens_of};
use super::repair::{Kind, Problem};
use serde::Deserialize;
use serde_json::Number;

/// Latest time of a request, ms: a hundred years.
const LATEST_MS: f64 = 3.2e12;

#[derive(Deserialize)]
struct Line {
    timestamp: Number,
    input_length: Number,
    output_length: Number,
    #[serde(default)]
    hash_ids: Vec<u64>,
    model: Option<String>,
}

/// Reads one line.
pub(super) fn row(line: &str) -> Result<Row, Fault> {
    let parsed: Line = serde_json::from_str(line).map_err(|error| {
        let kind = if error.is_data() { Kind::Columns } else { Kind::Number };
        let text = error.to_string();
        let found = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
        at(characters(line, error.column()), Problem::new(kind, found))
    })?;
    let column = |key: &str| line.find(&format!("\"{key}\"")).map_or(1, |byte| characters(line, byte + 1));
    let time_ms = parsed.timestamp.as_f64().unwrap_or(f64::NAN);
    let wrong_time = match time_ms {
        ms if ms < 0.0 => Some(Kind::Negative),
        ms if ms <= LATEST_MS => None,
        ms if ms.is_nan() => Some(Kind::Number),
        _ => Some(Kind::Huge),
    };
    if let Some(kind) = wrong_time {
        return Err(at(column("timestamp"), Problem::new(kind, format!("timestamp is {}", parsed.timestamp))));
    }
    let tokens = |number: &Number, key: &str| {
        tokens_of(number.as_f64().unwrap_or(f64::NAN), &number.to_string(), key)
            .map_err(|problem| at(column(key), problem))
    };
    let prompt_tokens = tokens(&parsed.input_length, "input_length")?;
    let output_tokens = tokens(&parsed.output_length, "output_length")?;
    let zero = [(prompt_tokens, "input_length"), (output_tokens, "output_length")];
    Ok(Row {
        at_ns: (time_ms * 1e6) as i128,
        prompt_tokens,
        output_tokens,
        model: parsed.model,
        prefix: parsed.hash_ids.into(),
        zero_column: zero.iter().find(|(n, _)| *n == 0).map(|(_, key)| column(key)),
    })
}

/// The character column of a byte column, both from 1.
fn characters(line: &str, byte: usize) -> usize {
    line.char_indices().take_while(|(at, _)| *at + 1 < byte.max(1)).count() + 1
}
