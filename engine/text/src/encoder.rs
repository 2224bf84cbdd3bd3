//! The text side of encoders: WordPiece (Schuster and Nakajima 2012) as tokenizer.json describes it, with the tokens that
//! stand around every text, and the cut of texts that are too long.
//!
//! tokenizer.json may pad and cut on its own account (all-MiniLM-L6-v2's does, at 128): both are switched off, because
//! padding costs time and changes nothing, and what is cut is for the request to say.

use crate::TextError;
use crate::detokenize::Pieces;
use engine_store::{EncoderCheckpoint, ShorterVectors};
use engine_wire::TokenId;
use tokenizers::{ModelWrapper, Tokenizer};

/// What is known of a model's vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorFacts {
    /// Numbers in each.
    pub dimensions: usize,
    /// Shorter ones that it was trained for.
    pub shorter: ShorterVectors,
}

impl VectorFacts {
    /// Whether vectors of this many numbers can be had.
    pub fn allows(&self, dimensions: usize) -> bool {
        dimensions == self.dimensions
            || dimensions >= 1
                && match &self.shorter {
                    ShorterVectors::None => false,
                    ShorterVectors::Any => dimensions < self.dimensions,
                    ShorterVectors::Of(lengths) => dimensions < self.dimensions && lengths.contains(&dimensions),
                }
    }
}

/// A WordPiece tokenizer with the tokens around a text.
pub(crate) struct WordPiece {
    tokenizer: Box<Tokenizer>,
    before: Vec<TokenId>,
    after: Vec<TokenId>,
}

/// What begins a token that goes on with a word.
const CONTINUES: &str = "##";

impl WordPiece {
    /// Reads a folder's tokenizer.json.
    pub fn read(checkpoint: &EncoderCheckpoint) -> Result<(Self, Pieces), TextError> {
        let path = checkpoint.folder().join("tokenizer.json");
        let failed = |message: String| TextError::Build { message: format!("{}: {message}", path.display()) };
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| failed(error.to_string()))?;
        if !matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_)) {
            return Err(failed("its model is no WordPiece".to_owned()));
        }
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| failed(error.to_string()))?;
        let vocab = checkpoint.config().vocab;
        let highest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if highest as usize >= vocab {
            return Err(failed(format!("token {highest} is outside the model's vocabulary of {vocab}")));
        }
        let (before, after) = around(&tokenizer).map_err(failed)?;
        let pieces = pieces(&tokenizer, vocab);
        Ok((Self { tokenizer: Box::new(tokenizer), before, after }, pieces))
    }

    /// Tokens of a text; with those around it, if `add_special`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let ids = content(&self.tokenizer, text).map_err(|message| TextError::Encode { message })?;
        if !add_special {
            return Ok(ids);
        }
        Ok([&self.before[..], &ids, &self.after].concat())
    }

    /// Cuts a text's end off so that `limit` tokens are left, the ones around it included where there is room.
    pub fn truncate(&self, ids: &mut Vec<TokenId>, limit: usize) {
        if ids.len() <= limit {
            return;
        }
        let kept = limit.saturating_sub(self.after.len());
        if kept > self.before.len() && ids.ends_with(&self.after) {
            ids.drain(kept..ids.len() - self.after.len());
        } else {
            ids.truncate(limit);
        }
    }
}

fn content(tokenizer: &Tokenizer, text: &str) -> Result<Vec<TokenId>, String> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|error| error.to_string())?;
    Ok(encoding.get_ids().to_vec())
}

/// What the tokenizer puts before and after a text.
fn around(tokenizer: &Tokenizer) -> Result<(Vec<TokenId>, Vec<TokenId>), String> {
    let plain = content(tokenizer, "a")?;
    let whole = tokenizer.encode_fast("a", true).map_err(|error| error.to_string())?;
    let whole = whole.get_ids();
    let at = whole.windows(plain.len().max(1)).position(|window| window == plain);
    let at = at.ok_or_else(|| "its post-processor changes the tokens of a text".to_owned())?;
    Ok((whole[..at].to_vec(), whole[at + plain.len()..].to_vec()))
}

/// Text of every token: a blank before each that begins a word.
fn pieces(tokenizer: &Tokenizer, vocab: usize) -> Pieces {
    let added = tokenizer.get_added_tokens_decoder();
    let mut pieces = Pieces::with_capacity(vocab);
    for id in 0..vocab {
        let token = tokenizer.id_to_token(id as TokenId).unwrap_or_default();
        let special = added.get(&(id as TokenId)).is_some_and(|token| token.special);
        pieces.push(special, |out| match token.strip_prefix(CONTINUES) {
            Some(rest) if !special && !rest.is_empty() => out.extend_from_slice(rest.as_bytes()),
            _ if special => out.extend_from_slice(token.as_bytes()),
            _ => {
                out.push(b' ');
                out.extend_from_slice(token.as_bytes());
            }
        });
    }
    pieces
}
