//! The tokens that end an output, from a checkpoint's metadata or a folder's small files.
//!
//! `TextModel` knows them too, but building one costs tens of milliseconds, which a cold start does not
//! have. A test holds the two to the same answer.

use engine_core::TokenId;
use engine_store::{Checkpoint, Gguf, GgufError, TextFiles};
use engine_text::END_TEXTS;
use std::path::Path;

/// Keys under which a file names its own end tokens.
const ID_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Token types of llama.cpp that are no text: unknown, control, unused.
const CONTROL_TYPES: [i64; 3] = [2, 3, 5];

/// End tokens of a checkpoint that was opened from `path`; the error is for people.
pub fn of_checkpoint(checkpoint: &Checkpoint, path: &Path) -> Result<Vec<TokenId>, String> {
    if let Some(gguf) = checkpoint.as_gguf() {
        return end_tokens(gguf).map_err(|error| error.to_string());
    }
    let files = TextFiles::open(path).map_err(|error| error.to_string())?;
    engine_text::end_tokens(&files).map_err(|error| error.to_string())
}

/// End tokens in order of id; none when the file has no vocabulary, as test files may.
pub fn end_tokens(gguf: &Gguf) -> Result<Vec<TokenId>, GgufError> {
    let mut ids = Vec::new();
    for key in ID_KEYS {
        ids.extend(gguf.optional(key, Gguf::u32)?);
    }
    let tokens = gguf.optional("tokenizer.ggml.tokens", Gguf::strings)?;
    let types = gguf.optional("tokenizer.ggml.token_type", Gguf::i64s)?;
    if let (Some(tokens), Some(types)) = (tokens, types) {
        let control = tokens.zip(types).enumerate().filter(|(_, (_, kind))| CONTROL_TYPES.contains(kind));
        ids.extend(control.filter(|(_, (text, _))| END_TEXTS.contains(text)).map(|(id, _)| id as TokenId));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
