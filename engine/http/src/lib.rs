//! The OpenAI routes over a small [`Backend`], mounted by the gateway and by every engine alike, so
//! that a client sees the same API whichever it talks to.
//!
//! Text lives here (templates, tokenizer, stop strings); below the Backend there are only tokens.
//! The server that carries the routes is here too, because warp's has no time-outs: see [`serve`].

pub mod access;
pub mod backend;
mod body;
mod choice;
pub mod clock;
pub mod context;
mod embeddings;
pub mod error;
mod forward;
mod limits;
mod logprobs;
mod prepare;
mod respond;
mod routes;
mod server;
mod sse;
mod stall;
mod tokenize;
mod tools;
pub mod vllm;
mod whole;

pub use access::{AccessHook, AccessOutcome, AccessRecord};
pub use backend::{Backend, ModelCard, StreamEvent, TokenStream};
pub use body::read_body;
pub use context::{PeerAddr, RequestContext, context};
pub use error::ApiError;
pub use forward::{ForwardPart, ForwardRequest, ForwardUsage, Forwarded, ForwardedWhole};
pub use limits::Limits;
pub use respond::{error_response, json_response};
pub use routes::{RouteOptions, metrics_route, routes, with_fallback};
pub use server::{ServeOptions, serve};
