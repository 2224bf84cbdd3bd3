//! Why a checkpoint has no usable text side, or a text cannot become tokens.

use thiserror::Error;

/// An error of this crate.
#[derive(Debug, Error)]
pub enum TextError {
    /// A field of the file is missing or of another type.
    #[error(transparent)]
    Gguf(#[from] engine_store::GgufError),
    /// A file of a Hugging Face folder is missing or not as it should be.
    #[error(transparent)]
    Folder(#[from] engine_store::CheckpointError),
    /// An encoder's folder is not as it should be.
    #[error(transparent)]
    Encoder(#[from] engine_store::EncoderError),
    #[error("tokenizer.json cannot be used: {message}")]
    Tokenizer { message: String },
    #[error(
        "tokenizer model {model:?} is not supported; supported: \"gpt2\" (byte-level BPE), \"llama\" (SentencePiece)"
    )]
    TokenizerModel { model: String },
    #[error("pre-tokenizer {pre:?} (tokenizer.ggml.pre) is not supported; supported: {supported}")]
    PreTokenizer { pre: String, supported: String },
    #[error("metadata key {key:?}: {message}")]
    Metadata { key: &'static str, message: String },
    #[error("the tokenizer cannot be built: {message}")]
    Build { message: String },
    #[error("the text cannot be tokenized: {message}")]
    Encode { message: String },
    #[error(
        "the checkpoint has no chat template (tokenizer.chat_template of a GGUF file; chat_template.jinja or tokenizer_config.json of a folder): use /v1/completions, or a checkpoint that has one"
    )]
    NoTemplate,
    #[error("the checkpoint's chat template cannot be used: {message}")]
    TemplateSyntax { message: String },
    /// The template ran and refused these messages, or failed on them.
    #[error("the chat template refused the messages: {message}")]
    Template { message: String },
}
