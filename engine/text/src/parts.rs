//! What a GGUF file says about its tokenizer and template, checked, in one struct.

use crate::TextError;
use engine_store::Gguf;
use engine_wire::TokenId;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// Kind of a vocabulary entry (llama.cpp's `llama_token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Normal,
    /// Unknown, control or unused: special, left out of text on request.
    Control,
    /// Matched whole in text like a control token, but always part of the text.
    UserDefined,
    /// Stands for one byte, in SentencePiece vocabularies.
    Byte,
}

/// How text becomes tokens, and what only that way needs.
pub enum Method {
    /// Byte-level BPE: the pre-tokenizer's name, and the merges in order.
    ByteLevel { pre: String, merges: Vec<(String, String)> },
    /// SentencePiece: a score per token.
    SentencePiece { scores: Vec<f32>, unknown: Option<TokenId>, add_space_prefix: bool },
}

/// The text side of a checkpoint, as read.
pub struct Parts {
    pub method: Method,
    pub tokens: Vec<String>,
    pub kinds: Vec<TokenKind>,
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
        let method = read_method(gguf, tokens.len())?;
        // Files older than the flag want their begin-of-text token in these families (llama.cpp does so too).
        let bos_expected = match &method {
            Method::ByteLevel { pre, .. } => matches!(pre.as_str(), "llama-bpe" | "llama3" | "llama-v3"),
            Method::SentencePiece { .. } => true,
        };
        Ok(Self {
            add_bos: add_bos.unwrap_or(bos_expected) && bos.is_some(),
            add_eos: add_eos && eos.is_some(),
            template: gguf.optional("tokenizer.chat_template", Gguf::str)?.map(str::to_owned),
            context_tokens: read_context(gguf)?,
            other_ends: ends.into_iter().flatten().collect(),
            method,
            tokens,
            kinds,
            bos,
            eos,
        })
    }
}

fn read_method(gguf: &Gguf, vocab: usize) -> Result<Method, TextError> {
    match gguf.str("tokenizer.ggml.model")? {
        "gpt2" => {
            let pre = gguf.optional("tokenizer.ggml.pre", Gguf::str)?.unwrap_or("default").to_owned();
            Ok(Method::ByteLevel { pre, merges: read_merges(gguf)? })
        }
        "llama" => {
            let scores = gguf.f32s(SCORES)?;
            if scores.len() != vocab {
                let message = format!("{} entries for {vocab} tokens", scores.len());
                return Err(TextError::Metadata { key: SCORES, message });
            }
            let add_space_prefix = gguf.optional("tokenizer.ggml.add_space_prefix", Gguf::bool)?.unwrap_or(true);
            let unknown = read_token(gguf, "tokenizer.ggml.unknown_token_id", vocab)?;
            Ok(Method::SentencePiece { scores, unknown, add_space_prefix })
        }
        model => Err(TextError::TokenizerModel { model: model.to_owned() }),
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
        6 => TokenKind::Byte,
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
