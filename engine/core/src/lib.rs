//! The pure heart of the engine: sequences, the continuous-batching scheduler and paged KV blocks.
//!
//! No clock, no thread, no I/O: a step is a function of what was submitted, so the same code runs live
//! behind a CPU or a GPU and inside the simulator behind a cost model.

pub mod forward;

pub use forward::{Batch, BatchSequence, BlockId, Forward, ForwardError, ForwardShape, TokenId};
