//! One model's tokenizer, template and limits.

use crate::TextError;
use crate::byte_level::ByteDecoder;
use crate::detokenize::{Detokenizer, Pieces};
use crate::parts::{Parts, TokenKind};
use crate::pretokenize::family;
use crate::template::ChatTemplate;
use engine_store::Gguf;
use engine_wire::TokenId;
use engine_wire::openai::ChatMessage;
use std::sync::Arc;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Tokenizer};

/// Control tokens that end a turn wherever they occur, by the text that model families give them: files often
/// name only one of the two that their template uses.
const END_TEXTS: &[&str] = &[
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
    tokenizer: Tokenizer,
    pieces: Arc<Pieces>,
    /// An error is kept: a checkpoint without a usable template still serves plain completions.
    template: Option<Result<ChatTemplate, String>>,
    bos_id: Option<TokenId>,
    eos_id: Option<TokenId>,
    eos_ids: Vec<TokenId>,
    add_bos: bool,
    add_eos: bool,
    /// Most bytes of input that one token can stand for.
    token_bytes_max: usize,
}

impl TextModel {
    /// Builds the text side from the file's metadata. No weight is read. Blocks for tens of milliseconds.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TextError> {
        Self::from_parts(Parts::read(gguf)?)
    }

    pub(crate) fn from_parts(parts: Parts) -> Result<Self, TextError> {
        let eos_ids = end_tokens(&parts);
        let text_of = |id: Option<TokenId>| id.map_or_else(String::new, |id| parts.tokens[id as usize].clone());
        let (bos_text, eos_text) = (text_of(parts.bos), text_of(parts.eos));
        let template = parts.template.map(|source| ChatTemplate::new(source, bos_text, eos_text));
        let pieces = build_pieces(&parts.tokens, &parts.kinds);
        let longest = pieces.longest();
        let tokenizer = build_tokenizer(&parts.pre, parts.tokens, &parts.kinds, parts.merges)?;
        let tokenizer_normalizes = tokenizer.get_normalizer().is_some();
        Ok(Self {
            context_tokens: parts.context_tokens,
            tokenizer,
            pieces: Arc::new(pieces),
            template,
            bos_id: parts.bos,
            eos_id: parts.eos,
            eos_ids,
            add_bos: parts.add_bos,
            add_eos: parts.add_eos,
            // Normalization (NFC) shortens text to no less than a third.
            token_bytes_max: longest.saturating_mul(if tokenizer_normalizes { 3 } else { 1 }).max(1),
        })
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
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| TextError::Encode { message: error.to_string() })?;
        let (bos, eos) = match add_special {
            true => (self.bos_id.filter(|_| self.add_bos), self.eos_id.filter(|_| self.add_eos)),
            false => (None, None),
        };
        let mut ids = Vec::with_capacity(encoding.len() + 2);
        ids.extend(bos);
        ids.extend_from_slice(encoding.get_ids());
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
        text
    }

    /// Bytes that one token stands for, special tokens included: perhaps not whole characters.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.pieces.bytes(id, false)
    }

    /// A detokenizer for one output stream.
    pub fn detokenizer(&self, skip_special_tokens: bool) -> Detokenizer {
        Detokenizer::new(self.pieces.clone(), skip_special_tokens)
    }

    /// Why chats cannot be served, if they cannot: there is no template, or it cannot be used.
    pub fn template_error(&self) -> Option<String> {
        self.template().err().map(|error| error.to_string())
    }

    /// The prompt of a conversation, with the opening of the assistant's answer at its end.
    pub fn render_chat(&self, messages: &[ChatMessage]) -> Result<String, TextError> {
        self.template()?.render(messages)
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

fn build_pieces(tokens: &[String], kinds: &[TokenKind]) -> Pieces {
    let decoder = ByteDecoder::new();
    let mut pieces = Pieces::with_capacity(tokens.len());
    for (token, kind) in tokens.iter().zip(kinds) {
        pieces.push(*kind == TokenKind::Control, |out| match kind {
            TokenKind::Normal => decoder.append(token, out),
            _ => out.extend_from_slice(token.as_bytes()),
        });
    }
    pieces
}

fn build_tokenizer(
    pre: &str,
    tokens: Vec<String>,
    kinds: &[TokenKind],
    merges: Vec<(String, String)>,
) -> Result<Tokenizer, TextError> {
    let family = family(pre)?;
    let added = |(token, kind): (&String, &TokenKind)| match kind {
        TokenKind::Normal => None,
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
