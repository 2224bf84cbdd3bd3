//! Why a constraint cannot be used, or an output cannot go on under it.

use engine_wire::TokenId;
use thiserror::Error;

/// An error of this crate. All but `Busy` and `Vocabulary` are the request's own fault, and end only that request.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GrammarError {
    /// The source does not parse, contradicts itself, or uses what cannot be enforced.
    #[error("{message}")]
    Invalid { message: String },
    #[error("{what} has {got} {unit}, but at most {limit} are accepted")]
    TooLarge { what: &'static str, got: usize, limit: usize, unit: &'static str },
    /// A limit on work or memory was reached while the output was produced.
    #[error("the grammar is too complex: {message}")]
    TooComplex { message: String },
    /// Too many grammars are being compiled; the client may come back.
    #[error("too many grammars are being compiled at this moment")]
    Busy,
    /// No token of the model's vocabulary leads on, and the output may not end here.
    #[error("no token of the model's vocabulary continues the output as its grammar wants it")]
    DeadEnd,
    #[error("token {token} does not follow the grammar at position {position} of the output")]
    NotAllowed { token: TokenId, position: usize },
    /// The grammar engine failed in a way that it should not.
    #[error("the grammar engine failed: {message}")]
    Failed { message: String },
    #[error("the vocabulary cannot be used for grammars: {message}")]
    Vocabulary { message: String },
}

/// At most so many characters of a foreign message.
const MESSAGE_CHARS: usize = 400;

/// A foreign message, as one line of bounded length.
pub(crate) fn shortened(message: &str) -> String {
    // What llguidance appends is its own state, of no use to a client.
    let message = message.split("\n<").next().unwrap_or_default();
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MESSAGE_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
