//! The seam to a device: run one batch step.

use thiserror::Error;

/// A token of the vocabulary.
pub type TokenId = u32;
/// Index of a KV block in the device's pool.
pub type BlockId = u32;
/// Name that a device gave a low-rank adapter when it took it; never given again while the device lives.
pub type AdapterId = u32;

/// What a device offers, fixed while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardShape {
    pub vocab: usize,
    /// Tokens per KV block.
    pub kv_block_tokens: usize,
    /// KV blocks in the pool.
    pub kv_blocks: usize,
    /// Longest sequence, tokens.
    pub context_tokens: usize,
}

/// Tokens to compute in one step, for any number of sequences at any mix of prefill and decode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// New tokens of all sequences, each sequence's run contiguous, in `sequences` order.
    pub tokens: Vec<TokenId>,
    pub sequences: Vec<BatchSequence>,
}

/// One sequence's part of a [`Batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct BatchSequence {
    /// Number of new tokens of this sequence in `Batch::tokens`, at least 1.
    pub new_tokens: usize,
    /// Position of the first new token; KV for all earlier positions is already in the blocks.
    pub start: usize,
    /// KV block of position `p` is `blocks[p / kv_block_tokens]`; long enough for the new tokens. Where the device
    /// told a window, blocks that lie before all that the new tokens see may be [`NO_BLOCK`](crate::NO_BLOCK).
    pub blocks: Vec<BlockId>,
    /// How many of the last new tokens logits are wanted of: none in all but the last prefill chunk, then one, and
    /// more where drafts are verified.
    pub logits: usize,
    /// The adapter that changes the weights for this sequence; none for the model as it is.
    pub adapter: Option<AdapterId>,
}

/// A step failed. The sequences in it are lost, the device may go on.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ForwardError {
    /// In the first row of a sequence. Whoever asks for more checks them, since they may rest on tokens that are
    /// only guesses.
    #[error("non-finite logits in sequence {sequence} of the batch")]
    NonFinite { sequence: usize },
    #[error("device failed: {message}")]
    Device { message: String },
    /// No step on it will succeed again: whoever holds it ends, and its sequences go on elsewhere.
    #[error("{message}")]
    Lost { message: String },
}

/// Runs batch steps on one device.
///
/// Contract: a sequence's logits are bitwise the same whatever else is in the batch, however its
/// prefill was cut into steps, and whatever the number of threads.
pub trait Forward: Send {
    fn shape(&self) -> ForwardShape;

    /// Latest tokens that any layer attends to, the token itself included; none when some layer attends to all.
    fn window_tokens(&self) -> Option<usize> {
        None
    }

    /// Writes one row of `vocab` logits for each token whose logits are wanted, in batch order, into `out`
    /// (resized as needed).
    fn forward(&mut self, batch: &Batch, out: &mut Vec<f32>) -> Result<(), ForwardError>;
}
