//! The seam to a device that makes vectors of texts, and the queue that decides what is in its next step.
//!
//! A text is computed whole in one step and leaves nothing behind on the device, so there are no blocks, no chunks
//! and no preemption here: only whose turn it is, and how much a step takes.

mod queue;

use crate::forward::{ForwardError, TokenId};
pub use queue::{EncodeId, EncodeQueue, EncodeStep};

/// What an encoder offers, fixed while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeShape {
    pub vocab: usize,
    /// Numbers in a vector.
    pub dimensions: usize,
    /// Longest text, tokens.
    pub context_tokens: usize,
}

/// Texts to compute in one step, packed: no padding between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodeBatch {
    /// Tokens of all texts, one text after the other.
    pub tokens: Vec<TokenId>,
    /// Tokens of each text, at least one.
    pub lengths: Vec<usize>,
}

/// Makes vectors of texts on one device.
///
/// Contract: a text's vector is bitwise the same whatever else is in the batch, and whatever the number of threads.
pub trait Encode: Send {
    fn shape(&self) -> EncodeShape;

    /// Writes one vector of length 1 for each text, in batch order, into `out` (resized as needed). Where the
    /// arithmetic failed for a text, its numbers are not finite.
    fn encode(&mut self, batch: &EncodeBatch, out: &mut Vec<f32>) -> Result<(), ForwardError>;
}
