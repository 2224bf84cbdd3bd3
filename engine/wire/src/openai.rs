//! The OpenAI API: requests as checked values, answers as they are serialized.
//!
//! Requests are not plain serde structs, because a client must be told which parameter is wrong, what was
//! expected and what came instead, in the words that OpenAI's own API uses; see [`fields`] for how.

mod embeddings;
mod fields;
mod messages;
mod options;
mod request;
mod response;
mod tokenize;

pub use embeddings::{
    EmbeddingData, EmbeddingList, EmbeddingRequest, EmbeddingUsage, EmbeddingVector, MAX_EMBEDDING_INPUTS, Truncation,
    parse_embedding,
};
pub use fields::RequestError;
pub use messages::{ChatMessage, Role};
pub use options::{GenerateOptions, MAX_CHOICES, MAX_LOGIT_BIAS, MAX_STOP_STRINGS};
pub use request::{ChatRequest, CompletionRequest, Prompt, parse_chat, parse_completion};
pub use response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs, ChatReply, ChatTokenLogprob,
    CompletionChoice, CompletionLogprobs, LogprobMap, ModelList, ModelObject, PromptTokensDetails, TextCompletion,
    TopLogprob, Usage,
};
pub use tokenize::{
    DetokenizeRequest, Detokenized, TokenizeInput, TokenizeRequest, Tokenized, parse_detokenize, parse_tokenize,
};
