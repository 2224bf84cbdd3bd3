//! The text side of a Hugging Face folder: tokenizer.json, run as it is by the `tokenizers` crate, and what the files
//! beside it say of special tokens and the template. Tokens become text through the same detokenizer as those of a
//! GGUF file, so streaming, stops and prefixes are alike.

mod ends;
mod pieces;
mod shrink;

pub use ends::end_tokens;

use crate::TextError;
use crate::model::{Encoder, TextModel};
use crate::template::ChatTemplate;
use engine_store::TextFiles;
use engine_wire::TokenId;
use serde_json::Value;
use std::sync::Arc;
use tokenizers::{ModelWrapper, Tokenizer};

/// More entries than any vocabulary has; ids beyond are a broken file, not a request for memory.
const VOCAB_MAX: u32 = 1 << 24;

impl TextModel {
    /// Builds the text side from a folder's files. No weight is read. Blocks for tenths of a second.
    pub fn from_folder(files: &TextFiles) -> Result<Self, TextError> {
        let wrong = |message: String| TextError::Tokenizer { message };
        let mut tokenizer = Tokenizer::from_bytes(files.tokenizer()?).map_err(|error| wrong(error.to_string()))?;
        if !matches!(tokenizer.get_model(), ModelWrapper::BPE(_)) {
            return Err(wrong("its model is no BPE, the one that is supported".into()));
        }
        // Of use to training batches: here a text is never cut or filled up.
        tokenizer.with_truncation(None).map_err(|error| wrong(error.to_string()))?.with_padding(None);
        let shape = shrink::Shape::of(&tokenizer).map_err(wrong)?;
        let highest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if highest >= VOCAB_MAX {
            return Err(wrong(format!("it has a token of id {highest}; at most {VOCAB_MAX} are supported")));
        }
        let pieces = pieces::build(&tokenizer, shape.is_byte_level, highest);
        let special = |name: &str| special_token(files, &tokenizer, name);
        let (bos, eos) = (special("bos"), special("eos"));
        let source = files.chat_template()?;
        let template = source.map(|source| ChatTemplate::new(source, bos.text.clone(), eos.text.clone()));
        let context_tokens = u32::try_from(files.context_tokens()?).unwrap_or(u32::MAX);
        let token_bytes_max = match shape.shrinks_by {
            Some(factor) => pieces.longest().saturating_mul(factor).max(1),
            None => usize::MAX,
        };
        Ok(Self {
            context_tokens,
            encoder: Encoder::Whole(Box::new(tokenizer)),
            pieces: Arc::new(pieces),
            template,
            bos_id: bos.id,
            eos_id: eos.id,
            eos_ids: end_tokens(files)?,
            // Its post-processor adds what is to be added.
            add_bos: false,
            add_eos: false,
            token_bytes_max,
            vectors: None,
        })
    }
}

/// A token that files name by its text, by its id, or by both.
struct Special {
    text: String,
    id: Option<TokenId>,
}

fn special_token(files: &TextFiles, tokenizer: &Tokenizer, name: &str) -> Special {
    let stated = files.config_value(&format!("{name}_token_id"));
    // Of several end tokens the first is the one that ends a text.
    let stated = stated.and_then(|value| value.get(0).unwrap_or(value).as_u64());
    let stated = stated.and_then(|id| TokenId::try_from(id).ok()).filter(|id| tokenizer.id_to_token(*id).is_some());
    match special_text(files, name) {
        Some(text) => Special { id: tokenizer.token_to_id(&text).or(stated), text },
        None => Special { text: stated.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default(), id: stated },
    }
}

/// The text of `bos_token`, `eos_token`, ...: plain, or an object that describes the token.
pub(crate) fn special_text(files: &TextFiles, name: &str) -> Option<String> {
    let key = format!("{name}_token");
    let values = [&files.tokenizer_config, &files.special_tokens].map(|map| map.get(&key));
    values.into_iter().flatten().find_map(|value| match value {
        Value::String(text) => Some(text.clone()),
        other => other.get("content").and_then(Value::as_str).map(str::to_owned),
    })
}
