//! One model's tokenizer, template and limits.

use crate::TextError;
use crate::byte_level::ByteDecoder;
use crate::detokenize::{Detokenizer, Pieces};
use crate::encoder::{VectorFacts, WordPiece};
use crate::parts::{Method, Parts, TokenKind};
use crate::pretokenize::family;
use crate::sentencepiece::{self, SentencePiece};
use crate::template::ChatTemplate;
use crate::tool_format::ToolFormat;
use engine_store::{EncoderCheckpoint, Gguf, TextFiles};
use engine_wire::TokenId;
use engine_wire::openai::{ChatMessage, Tool};
use std::path::Path;
use std::sync::Arc;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Tokenizer};

/// Control tokens that end a turn wherever they occur, by the text that model families give them: files often
/// name only one of the two that their template uses.
pub const END_TEXTS: &[&str] = &[
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<|return|>",
];

/// Tokenizer, template and limits of one model. Shared behind an `Arc`; all methods take `&self`.
pub struct TextModel {
    /// Longest sequence, prompt and output together, tokens.
    pub context_tokens: u32,
    pub(crate) encoder: Encoder,
    pub(crate) pieces: Arc<Pieces>,
    /// An error is kept: a checkpoint without a usable template still serves plain completions.
    pub(crate) template: Option<Result<ChatTemplate, String>>,
    pub(crate) bos_id: Option<TokenId>,
    pub(crate) eos_id: Option<TokenId>,
    pub(crate) eos_ids: Vec<TokenId>,
    pub(crate) add_bos: bool,
    pub(crate) add_eos: bool,
    /// Most bytes of input that one token can stand for.
    pub(crate) token_bytes_max: usize,
    /// Of a model that makes vectors instead of text.
    pub(crate) vectors: Option<VectorFacts>,
}

pub(crate) enum Encoder {
    ByteLevel(Box<Tokenizer>),
    /// A tokenizer.json: it knows itself what to add to a text.
    Whole(Box<Tokenizer>),
    SentencePiece(Box<SentencePiece>),
    WordPiece(WordPiece),
}

impl Encoder {
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let (tokenizer, add_special) = match self {
            Self::WordPiece(encoder) => return encoder.encode(text, add_special),
            Self::SentencePiece(encoder) => return encoder.encode(text),
            Self::ByteLevel(tokenizer) => (tokenizer, false),
            Self::Whole(tokenizer) => (tokenizer, add_special),
        };
        let encoding = tokenizer.encode_fast(text, add_special);
        let encoding = encoding.map_err(|error| TextError::Encode { message: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// How many bytes of input may become one byte of token.
    fn shrinks_by(&self) -> usize {
        match self {
            // Normalization (NFC) shortens text to no less than a third.
            Self::ByteLevel(tokenizer) if tokenizer.get_normalizer().is_some() => 3,
            _ => 1,
        }
    }
}

impl TextModel {
    /// The text side of a checkpoint: GGUF file, Hugging Face folder, encoder. Blocks for up to tenths of a second.
    pub fn open(path: &Path) -> Result<Self, TextError> {
        if EncoderCheckpoint::is_one(path) {
            return Self::from_encoder(&EncoderCheckpoint::open(path)?);
        }
        if path.is_dir() {
            return Self::from_folder(&TextFiles::open(path)?);
        }
        Self::from_gguf(&Gguf::open(path)?)
    }

    /// Builds the text side from the file's metadata. No weight is read. Blocks for tens of milliseconds.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TextError> {
        Self::from_parts(Parts::read(gguf)?)
    }

    pub(crate) fn from_parts(mut parts: Parts) -> Result<Self, TextError> {
        let eos_ids = end_tokens(&parts);
        let text_of = |id: Option<TokenId>| id.map_or_else(String::new, |id| parts.tokens[id as usize].clone());
        let (bos_text, eos_text) = (text_of(parts.bos), text_of(parts.eos));
        let template = parts.template.take().map(|source| ChatTemplate::new(source, bos_text, eos_text));
        let pieces = build_pieces(&parts);
        let longest = pieces.longest();
        let (context_tokens, bos_id, eos_id) = (parts.context_tokens, parts.bos, parts.eos);
        let (add_bos, add_eos) = (parts.add_bos, parts.add_eos);
        let encoder = build_encoder(parts)?;
        Ok(Self {
            context_tokens,
            token_bytes_max: longest.saturating_mul(encoder.shrinks_by()).max(1),
            encoder,
            pieces: Arc::new(pieces),
            template,
            bos_id,
            eos_id,
            eos_ids,
            add_bos,
            add_eos,
            vectors: None,
        })
    }

    /// Builds the text side of an encoder from its folder's tokenizer.json. Blocks for tens of milliseconds.
    pub fn from_encoder(checkpoint: &EncoderCheckpoint) -> Result<Self, TextError> {
        let (encoder, pieces) = WordPiece::read(checkpoint)?;
        let config = checkpoint.config();
        Ok(Self {
            context_tokens: u32::try_from(config.context_tokens).unwrap_or(u32::MAX),
            encoder: Encoder::WordPiece(encoder),
            pieces: Arc::new(pieces),
            template: None,
            bos_id: None,
            eos_id: None,
            eos_ids: Vec::new(),
            add_bos: false,
            add_eos: false,
            // A word that is not in the vocabulary is one token, however long it is.
            token_bytes_max: usize::MAX,
            vectors: Some(VectorFacts { dimensions: config.width, shorter: config.shorter.clone() }),
        })
    }

    /// What is known of the model's vectors; none for a model that generates text.
    pub fn vectors(&self) -> Option<&VectorFacts> {
        self.vectors.as_ref()
    }

    /// Cuts a text's end off so that `limit` tokens are left; of an encoder's the tokens around it stay.
    pub fn truncate(&self, ids: &mut Vec<TokenId>, limit: usize) {
        match &self.encoder {
            Encoder::WordPiece(encoder) => encoder.truncate(ids, limit),
            _ => ids.truncate(limit),
        }
    }

    /// Number of entries in the vocabulary: every valid id is below it.
    pub fn vocab(&self) -> usize {
        self.pieces.len()
    }

    /// Tokens that end an output: end of sequence, of turn, of message.
    pub fn eos_ids(&self) -> &[TokenId] {
        &self.eos_ids
    }

    /// The begin-of-sequence token, if there is one.
    pub fn bos_id(&self) -> Option<TokenId> {
        self.bos_id
    }

    /// Tokens of a text. Special tokens written out in the text are recognized, as Hugging Face tokenizers do.
    /// With `add_special`, the begin and end tokens that the file asks for are added: for plain prompts, not for
    /// rendered chats, whose template writes them.
    ///
    /// Linear in the text; some 100 ms for 256 KiB, so long texts belong on a blocking thread.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let (bos, eos) = match add_special {
            true => (self.bos_id.filter(|_| self.add_bos), self.eos_id.filter(|_| self.add_eos)),
            false => (None, None),
        };
        let mut ids = self.encoder.encode(text, add_special)?;
        if let Some(bos) = bos {
            ids.insert(0, bos);
        }
        ids.extend(eos);
        Ok(ids)
    }

    /// Tokens that a text of this many bytes has at least: a bound that costs nothing, to refuse what cannot fit.
    pub fn tokens_at_least(&self, text_bytes: usize) -> u64 {
        text_bytes.div_ceil(self.token_bytes_max) as u64
    }

    /// Text of whole output. Invalid UTF-8 becomes U+FFFD; ids outside the vocabulary have no text.
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special_tokens);
        let mut text = String::new();
        for id in ids {
            detokenizer.push(*id, &mut text);
        }
        detokenizer.finish(&mut text);
        if matches!(self.encoder, Encoder::WordPiece(_)) {
            // The blank before the first word.
            text.drain(..text.len() - text.trim_start().len());
        }
        text
    }

    /// Bytes that one token stands for, special tokens included: perhaps not whole characters.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.pieces.bytes(id, false)
    }

    /// Whether a token is special: no part of a text, whatever bytes stand for it.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.pieces.is_special(id)
    }

    /// A detokenizer for one output stream.
    pub fn detokenizer(&self, skip_special_tokens: bool) -> Detokenizer {
        Detokenizer::new(self.pieces.clone(), skip_special_tokens)
    }

    /// Why chats cannot be served, if they cannot: there is no template, or it cannot be used.
    pub fn template_error(&self) -> Option<String> {
        self.template().err().map(|error| error.to_string())
    }

    /// The prompt of a conversation with these tools, with the opening of the assistant's answer at its end. A template
    /// that knows no tools has them written into its messages in the Hermes form.
    pub fn render_chat(&self, messages: &[ChatMessage], tools: &[Tool]) -> Result<String, TextError> {
        self.template()?.render(messages, tools)
    }

    /// How the model writes calls of tools.
    pub fn tool_format(&self) -> ToolFormat {
        self.template().map_or(ToolFormat::Hermes, ChatTemplate::tool_format)
    }

    fn template(&self) -> Result<&ChatTemplate, TextError> {
        match &self.template {
            None => Err(TextError::NoTemplate),
            Some(Ok(template)) => Ok(template),
            Some(Err(message)) => Err(TextError::TemplateSyntax { message: message.clone() }),
        }
    }
}

fn end_tokens(parts: &Parts) -> Vec<TokenId> {
    let mut ids: Vec<TokenId> = parts.eos.into_iter().chain(parts.other_ends.iter().copied()).collect();
    for (id, token) in parts.tokens.iter().enumerate() {
        if parts.kinds[id] == TokenKind::Control && END_TEXTS.contains(&token.as_str()) {
            ids.push(id as TokenId);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn build_pieces(parts: &Parts) -> Pieces {
    let decoder = ByteDecoder::new();
    let mut pieces = Pieces::with_capacity(parts.tokens.len());
    let mut utf8 = [0; 4];
    for (token, kind) in parts.tokens.iter().zip(&parts.kinds) {
        pieces.push(*kind == TokenKind::Control, |out| match (&parts.method, kind) {
            (_, TokenKind::Control | TokenKind::UserDefined) => out.extend_from_slice(token.as_bytes()),
            (Method::ByteLevel { .. }, _) => decoder.append(token, out),
            (Method::SentencePiece { .. }, TokenKind::Byte) => out.extend(sentencepiece::byte_of(token)),
            (Method::SentencePiece { .. }, TokenKind::Normal) => {
                for character in token.chars() {
                    let character = if character == sentencepiece::SPACE { ' ' } else { character };
                    out.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
                }
            }
        });
    }
    pieces
}

fn build_encoder(parts: Parts) -> Result<Encoder, TextError> {
    match parts.method {
        Method::SentencePiece { scores, unknown, add_space_prefix } => {
            let encoder = SentencePiece::new(parts.tokens, &parts.kinds, &scores, unknown, add_space_prefix);
            Ok(Encoder::SentencePiece(Box::new(encoder)))
        }
        Method::ByteLevel { pre, merges } => {
            let tokenizer = build_tokenizer(&pre, parts.tokens, &parts.kinds, merges)?;
            Ok(Encoder::ByteLevel(Box::new(tokenizer)))
        }
    }
}

fn build_tokenizer(
    pre: &str,
    tokens: Vec<String>,
    kinds: &[TokenKind],
    merges: Vec<(String, String)>,
) -> Result<Tokenizer, TextError> {
    let family = family(pre)?;
    let added = |(token, kind): (&String, &TokenKind)| match kind {
        TokenKind::Normal | TokenKind::Byte => None,
        kind => Some(AddedToken::from(token.clone(), *kind == TokenKind::Control).normalized(false)),
    };
    let added: Vec<AddedToken> = tokens.iter().zip(kinds).filter_map(added).collect();
    let vocab: Vocab = tokens.into_iter().enumerate().map(|(id, token)| (token, id as TokenId)).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(family.ignore_merges)
        .build()
        .map_err(|error| TextError::Build { message: error.to_string() })?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_normalizer(family.normalizer);
    tokenizer.with_pre_tokenizer(Some(family.pre_tokenizer));
    tokenizer.add_tokens(&added);
    Ok(tokenizer)
}
