//! Between text and tokens: tokenizer, chat template, incremental detokenizer, stop strings.
//! Used by the gateway (so that the hop carries ids) and by an engine that serves clients itself.

/// Tokenizer, template and limits of one model.
pub struct TextModel {
    /// Longest sequence, prompt and output together, tokens.
    pub context_tokens: u32,
}
