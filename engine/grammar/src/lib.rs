//! Output that follows a grammar: JSON of a schema, a regular expression, a Lark grammar, a choice of texts.
//!
//! A [`Constraint`](engine_wire::constraint::Constraint) is [`check`]ed at the door, where no model is loaded, and
//! compiled by an engine against its model's [`Vocabulary`] into a [`Guide`], which says at each position which tokens
//! may come. A guide's answers are a function of the constraint and the tokens so far alone; so a stream that moves to
//! another instance, or is computed again after a preemption, goes on by the same rules.
//!
//! The work is llguidance's (an Earley parser over lazily derived regular expressions, walked along a trie of the
//! vocabulary). This crate fixes its limits, keeps its panics from spreading, and hides the rest.

mod compile;
mod compose;
mod error;
mod guide;
mod nesting;
mod vocabulary;

pub use compile::check;
pub use compose::{Part, Template};
pub use error::GrammarError;
pub use guide::{Guide, Mask};
pub use vocabulary::Vocabulary;
