//! What goes between the scheduler and whoever computes its steps.

use crate::forward::{Batch, TokenId};
use crate::sequence::{EndReason, SequenceId};

/// Whether a submitted sequence has anything left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    Queued,
    /// The tokens emitted elsewhere had already ended it.
    Ended(EndReason),
}

/// Names a step, so that its results cannot be taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepId(pub(crate) u64);

/// One step to compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub id: StepId,
    pub batch: Batch,
    /// One for each logits row of the batch, in order.
    pub rows: Vec<LogitsRow>,
    /// Sequences that join the batch for the first time with this step.
    pub admitted: Vec<Admitted>,
}

/// A sequence that joins the batch for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub id: SequenceId,
    /// Tokens of its prompt that came from the prefix cache.
    pub cached_tokens: usize,
}

/// The token that a logits row decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogitsRow {
    pub sequence: SequenceId,
    /// Position of the token to be sampled: the key of its random draw.
    pub position: usize,
    /// Whether tokens that would end the sequence must not be drawn, because `min_tokens` are not there yet.
    pub suppress_stop: bool,
    /// The token that was drafted for this position, from which the sequence's next row goes on. When another one
    /// is drawn, the rows after it mean nothing: they are answered by [`Sampled::Skipped`].
    pub draft: Option<TokenId>,
}

/// What became of one logits row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampled {
    Token(TokenId),
    /// The token ends its sequence, whatever the sequence's limits say: nothing may follow it.
    Last(TokenId),
    /// The row was unusable; its sequence is lost.
    Failed,
    /// A row before it of the same sequence drew another token than was drafted, or was unusable.
    Skipped,
}

/// What a completed step means for a sequence, in batch order; several tokens where drafts were right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceEvent {
    Token { id: SequenceId, token: TokenId },
    Ended { id: SequenceId, reason: EndReason },
    Failed { id: SequenceId },
}
