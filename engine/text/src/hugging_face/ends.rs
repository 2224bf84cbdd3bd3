//! The tokens that end an output, from a folder's small files: an engine needs them at its start, when it has no
//! time for the tokenizer. `TextModel` answers with the same function.

use super::special_text;
use crate::{END_TEXTS, TextError};
use engine_store::TextFiles;
use engine_wire::TokenId;
use serde::Deserialize;
use serde_json::Value;

/// A token that stands beside the vocabulary.
#[derive(Deserialize)]
struct Added {
    #[serde(default)]
    id: TokenId,
    content: String,
    #[serde(default)]
    special: bool,
}

/// The part of tokenizer.json that is looked at.
#[derive(Deserialize)]
struct AddedTokens {
    #[serde(default)]
    added_tokens: Vec<Added>,
}

/// End tokens in order of id: those that generation_config.json and config.json name, the tokenizer's own, and
/// those of [`END_TEXTS`].
pub fn end_tokens(files: &TextFiles) -> Result<Vec<TokenId>, TextError> {
    let added = added_tokens(files)?;
    let eos = special_text(files, "eos");
    let mut ids = Vec::new();
    for stated in [files.generation.get("eos_token_id"), files.config_value("eos_token_id")].into_iter().flatten() {
        collect(stated, &mut ids)?;
    }
    let ends = |token: &&Added| {
        eos.as_ref() == Some(&token.content) || token.special && END_TEXTS.contains(&token.content.as_str())
    };
    ids.extend(added.iter().filter(ends).map(|token| token.id));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// One id or a list of them.
fn collect(value: &Value, ids: &mut Vec<TokenId>) -> Result<(), TextError> {
    let wrong =
        || TextError::Metadata { key: "eos_token_id", message: format!("{value} is no token id or list of them") };
    match value {
        Value::Null => {}
        Value::Array(list) => {
            for value in list {
                ids.push(token_id(value).ok_or_else(wrong)?);
            }
        }
        one => ids.push(token_id(one).ok_or_else(wrong)?),
    }
    Ok(())
}

fn token_id(value: &Value) -> Option<TokenId> {
    value.as_u64().and_then(|id| TokenId::try_from(id).ok())
}

/// From tokenizer_config.json, which is small; files that are older than the field have it in tokenizer.json alone.
fn added_tokens(files: &TextFiles) -> Result<Vec<Added>, TextError> {
    let wrong = |message: String| TextError::Tokenizer { message };
    if let Some(Value::Object(decoder)) = files.tokenizer_config.get("added_tokens_decoder") {
        let token = |(id, token): (&String, &Value)| -> Result<Added, TextError> {
            let id = id.parse().map_err(|_| wrong(format!("added_tokens_decoder: {id:?} is no token id")))?;
            let added = Added::deserialize(token).map_err(|error| wrong(format!("added_tokens_decoder: {error}")))?;
            Ok(Added { id, ..added })
        };
        return decoder.iter().map(token).collect();
    }
    let tokens: AddedTokens = serde_json::from_slice(&files.tokenizer()?).map_err(|error| wrong(error.to_string()))?;
    Ok(tokens.added_tokens)
}
