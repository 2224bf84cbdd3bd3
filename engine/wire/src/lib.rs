//! The types that travel: the OpenAI API (`openai`), the gateway-to-engine hop (`hop`, an extension of
//! the completions API with token ids on it) and the engine's control socket (`control`).
//!
//! Serde only, so that every process and test can speak them without pulling in a runtime.

pub mod constraint;
pub mod control;
pub mod hop;
pub mod openai;
pub mod openapi;
pub mod sampling;
pub mod token;

/// A token of a model's vocabulary.
pub type TokenId = u32;
