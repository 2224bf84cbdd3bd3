//! The OpenAI API: requests as checked values, answers as they are serialized.
//!
//! Requests are not plain serde structs, because a client must be told which parameter is wrong, what was
//! expected and what came instead, in the words that OpenAI's own API uses; see [`fields`] for how.

mod fields;
mod messages;
mod request;
mod response;

pub use fields::RequestError;
pub use messages::{ChatMessage, Role};
pub use request::{
    ChatRequest, CompletionRequest, GenerateOptions, MAX_STOP_STRINGS, Prompt, parse_chat, parse_completion,
};
pub use response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatReply, CompletionChoice, ModelList,
    ModelObject, PromptTokensDetails, TextCompletion, Usage,
};
