//! What a GGUF file says about its tokenizer and template, checked, in one struct.

use crate::TextError;
use engine_store::Gguf;
use engine_wire::TokenId;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// Kind of a vocabulary entry (llama.cpp's `llama_token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Normal,
    /// Unknown, control or unused: special, left out of text on request.
    Control,
    /// Matched whole in text like a control token, but always part of the text.
    UserDefined,
}

/// The text side of a checkpoint, as read.
pub struct Parts {
    pub pre: String,
    pub tokens: Vec<String>,
    pub kinds: Vec<TokenKind>,
    pub merges: Vec<(String, String)>,
    pub bos: Option<TokenId>,
    pub eos: Option<TokenId>,
    /// End of turn and end of message, where the file names them.
    pub other_ends: Vec<TokenId>,
    pub add_bos: bool,
    pub add_eos: bool,
    pub template: Option<String>,
    pub context_tokens: u32,
}

impl Parts {
    /// Reads and checks the metadata keys.
    pub fn read(gguf: &Gguf) -> Result<Self, TextError> {
        let model = gguf.str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(TextError::TokenizerModel { model: model.to_owned() });
        }
        let tokens: Vec<String> = gguf.strings(TOKENS)?.map(str::to_owned).collect();
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            return Err(TextError::Metadata { key: TOKENS, message: format!("{} tokens", tokens.len()) });
        }
        let kinds = read_kinds(gguf, tokens.len())?;
        let token = |key: &'static str| read_token(gguf, key, tokens.len());
        let bos = token("tokenizer.ggml.bos_token_id")?;
        let eos = token("tokenizer.ggml.eos_token_id")?;
        let ends = [token("tokenizer.ggml.eot_token_id")?, token("tokenizer.ggml.eom_token_id")?];
        let flag = |key: &'static str| gguf.optional(key, Gguf::bool);
        let add_bos = flag("tokenizer.ggml.add_bos_token")?;
        let add_eos = flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let pre = gguf.optional("tokenizer.ggml.pre", Gguf::str)?.unwrap_or("default").to_owned();
        Ok(Self {
            // Llama 3 files older than the flag want their begin-of-text token all the same (llama.cpp does so too).
            add_bos: add_bos.unwrap_or(matches!(pre.as_str(), "llama-bpe" | "llama3" | "llama-v3")) && bos.is_some(),
            add_eos: add_eos && eos.is_some(),
            template: gguf.optional("tokenizer.chat_template", Gguf::str)?.map(str::to_owned),
            context_tokens: read_context(gguf)?,
            merges: read_merges(gguf)?,
            other_ends: ends.into_iter().flatten().collect(),
            pre,
            tokens,
            kinds,
            bos,
            eos,
        })
    }
}

fn read_context(gguf: &Gguf) -> Result<u32, TextError> {
    let architecture = gguf.str("general.architecture")?;
    let context_tokens = gguf.u32(&format!("{architecture}.context_length"))?;
    if context_tokens == 0 {
        return Err(TextError::Metadata { key: "context_length", message: "must be at least 1".into() });
    }
    Ok(context_tokens)
}

fn read_token(gguf: &Gguf, key: &'static str, vocab: usize) -> Result<Option<TokenId>, TextError> {
    let Some(id) = gguf.optional(key, Gguf::u32)? else { return Ok(None) };
    if (id as usize) < vocab {
        return Ok(Some(id));
    }
    Err(TextError::Metadata { key, message: format!("token {id} is outside the vocabulary of {vocab}") })
}

fn read_kinds(gguf: &Gguf, vocab: usize) -> Result<Vec<TokenKind>, TextError> {
    let Some(numbers) = gguf.optional(TOKEN_TYPE, Gguf::i64s)? else { return Ok(vec![TokenKind::Normal; vocab]) };
    if numbers.len() != vocab {
        let message = format!("{} entries for {vocab} tokens", numbers.len());
        return Err(TextError::Metadata { key: TOKEN_TYPE, message });
    }
    let kind = |number: i64| match number {
        2 | 3 | 5 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        _ => TokenKind::Normal,
    };
    Ok(numbers.into_iter().map(kind).collect())
}

fn read_merges(gguf: &Gguf) -> Result<Vec<(String, String)>, TextError> {
    let split = |(index, merge): (usize, &str)| {
        // The first character belongs to the left side even if it is a blank, which some files contain.
        let at = merge.char_indices().skip(1).find(|(_, character)| *character == ' ').map(|(at, _)| at);
        let pair = at.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
        pair.ok_or_else(|| TextError::Metadata { key: MERGES, message: format!("entry {index} is no pair: {merge:?}") })
    };
    gguf.strings(MERGES)?.enumerate().map(split).collect()
}
