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
mod structured;
mod tokenize;
mod tools;

pub use embeddings::{
    EmbeddingData, EmbeddingList, EmbeddingRequest, EmbeddingUsage, EmbeddingVector, MAX_EMBEDDING_INPUTS, Truncation,
    parse_embedding,
};
pub use fields::RequestError;
pub use messages::{ChatMessage, Role};
pub use options::{GenerateOptions, MAX_CHOICES, MAX_LOGIT_BIAS, MAX_STOP_STRINGS};
pub use request::{ChatRequest, CompletionRequest, Prompt, parse_chat, parse_completion};
pub use response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatFinish, ChatLogprobs, ChatReply,
    ChatTokenLogprob, CompletionChoice, CompletionLogprobs, FunctionDelta, FunctionReply, LogprobMap, ModelList,
    ModelObject, PromptTokensDetails, TextCompletion, ToolCallDelta, ToolCallReply, TopLogprob, Usage,
};
pub use tokenize::{
    DetokenizeRequest, Detokenized, TokenizeInput, TokenizeRequest, Tokenized, parse_detokenize, parse_tokenize,
};
pub use tools::{MAX_FUNCTION_NAME_BYTES, MAX_TOOLS, MAX_TOOLS_BYTES, Tool, ToolCall, ToolChoice, ToolOptions};
