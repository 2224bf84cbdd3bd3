//! A model's vocabulary as a trie, from which guides are made. Built once for each model, when the first constrained
//! request comes: that takes tenths of a second for a large vocabulary, which a cold start does not have.

use crate::compile::{compile, on_deep_stack};
use crate::{GrammarError, Guide};
use engine_wire::TokenId;
use engine_wire::constraint::Constraint;
use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use std::sync::Arc;

/// Longest token that may be part of constrained text, bytes: the trie counts levels in 10 bits.
const MAX_TOKEN_BYTES: usize = 1000;
/// Bytes of all tokens together: the trie counts its nodes in 22 bits.
const MAX_VOCABULARY_BYTES: usize = (1 << 22) - 1;
/// Most tokens, in the trie's 24 bits.
const MAX_TOKENS: usize = (1 << 24) - 2;

/// Bounds of one guide. Reaching one ends its request. The figures in comments are llguidance's, for one core.
pub(crate) fn limits() -> ParserLimits {
    ParserLimits {
        // Ways in which one position may be read at a time.
        max_items_in_row: 2000,
        // Work to build the lexer: 50 units take 1 us, so 4 ms; where expressions are intersected much more.
        initial_lexer_fuel: 200_000,
        // Work for one mask: 14 units take 1 us, so 7 ms.
        step_lexer_fuel: 100_000,
        step_max_items: 50_000,
        // 1 to 2 KiB each, so 30 MiB at the very most.
        max_lexer_states: 16_000,
        max_grammar_size: 100_000,
        // Walks the whole vocabulary for each large lexeme: as dear as the masks that it would save.
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Parts of the vocabulary whose masks are worked out once: tokens that are plain inside a JSON string. Without them each
/// mask inside a string would walk most of the trie.
fn slices() -> Vec<String> {
    [r#"[^"\\\x00-\x1F\x7F]{1,10}"#, r#"[^"\\\x00-\x1F\x7F]+"#].map(str::to_owned).to_vec()
}

/// The vocabulary of one model. All methods take `&self`; guides share it.
pub struct Vocabulary {
    factory: Arc<ParserFactory>,
    bytes: usize,
}

impl Vocabulary {
    /// `tokens` are the bytes that each token stands for, in order of id; empty for special tokens, which are no text.
    /// `ends` are the tokens that end an output.
    pub fn new(tokens: Vec<Vec<u8>>, ends: &[TokenId]) -> Result<Self, GrammarError> {
        Self::with_slices(tokens, ends, &slices())
    }

    fn with_slices(mut tokens: Vec<Vec<u8>>, ends: &[TokenId], slices: &[String]) -> Result<Self, GrammarError> {
        tokens.iter_mut().filter(|token| token.len() > MAX_TOKEN_BYTES).for_each(Vec::clear);
        let text_bytes: usize = tokens.iter().map(Vec::len).sum();
        if tokens.is_empty() || tokens.len() > MAX_TOKENS || text_bytes > MAX_VOCABULARY_BYTES {
            let message = format!(
                "{} tokens of {text_bytes} bytes together; at most {MAX_TOKENS} of {MAX_VOCABULARY_BYTES} bytes are supported",
                tokens.len()
            );
            return Err(GrammarError::Vocabulary { message });
        }
        let ends: Vec<TokenId> = ends.iter().copied().filter(|end| (*end as usize) < tokens.len()).collect();
        let info = TokRxInfo::new(tokens.len() as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &tokens);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        let environment: TokEnv = Arc::new(Environment { trie });
        let made = ParserFactory::new(&environment, InferenceCapabilities::default(), slices);
        let mut factory = made.map_err(|error| GrammarError::Vocabulary { message: error.to_string() })?;
        *factory.limits_mut() = limits();
        factory.quiet();
        let bytes = memory_bytes(tokens.len(), text_bytes, slices.len());
        Ok(Self { factory: Arc::new(factory), bytes })
    }

    /// Bytes without a model: what a constraint is checked against where none is loaded.
    pub(crate) fn of_bytes() -> Result<Self, GrammarError> {
        let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        tokens.push(Vec::new());
        Self::new(tokens, &[256])
    }

    /// A guide for one output. Takes milliseconds for a large schema.
    pub fn guide(&self, constraint: &Constraint) -> Result<Guide, GrammarError> {
        let grammar = compile(constraint)?;
        let factory = self.factory.clone();
        on_deep_stack(move || Guide::new(&factory, grammar))
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.factory.tok_env().tok_trie().vocab_size()
    }

    /// Memory that it holds, estimated from above.
    pub fn memory_bytes(&self) -> usize {
        self.bytes
    }
}

/// Each slice holds up to three tries beside the whole one, each at most with a description of every token (8 bytes), its
/// place in the order (4) and its text, and a node (8 bytes) for each byte of text.
fn memory_bytes(tokens: usize, text_bytes: usize, slices: usize) -> usize {
    (2 + 3 * (slices + 1)) * (12 * tokens + 9 * text_bytes)
}

/// What llguidance sees of a tokenizer. How a text is cut into tokens is left to the model, so no text is ever tokenized
/// here, and no token is forced that merely is the usual one.
struct Environment {
    trie: TokTrie,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(text)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
