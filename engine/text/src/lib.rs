//! Between text and tokens: tokenizer, chat template, incremental detokenizer, stop strings.
//! Used by the gateway (so that the hop carries ids) and by an engine that serves clients itself.
//!
//! Everything is read from the checkpoint, a GGUF file or a Hugging Face folder, so no second download can disagree
//! with it.

mod byte_level;
mod detokenize;
mod encoder;
mod error;
mod hermes;
mod hugging_face;
mod model;
mod parts;
mod pretokenize;
mod python;
mod sentencepiece;
mod stop;
mod template;
mod tool_format;

pub use detokenize::Detokenizer;
pub use encoder::VectorFacts;
/// What [`TextModel::from_gguf`] and [`TextModel::from_encoder`] read.
pub use engine_store::{EncoderCheckpoint, Gguf};
pub use error::TextError;
pub use hugging_face::end_tokens;
pub use model::{END_TEXTS, TextModel};
pub use stop::{StopMatch, StopMatcher};
pub use tool_format::ToolFormat;
