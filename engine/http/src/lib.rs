//! The OpenAI routes over a small [`Backend`], mounted by the gateway and by every engine alike, so
//! that a client sees the same API whichever it talks to.
//!
//! Text lives here (templates, tokenizer, stop strings); below the Backend there are only tokens.

pub mod backend;
pub mod context;
pub mod error;

pub use backend::{Backend, ModelCard, TokenStream};
pub use context::RequestContext;
pub use error::ApiError;
