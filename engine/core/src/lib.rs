//! The pure heart of the engine: sequences, the continuous-batching scheduler and paged KV blocks.
//!
//! No clock, no thread, no I/O: a step is a function of what was submitted, so the same code runs live
//! behind a CPU or a GPU and inside the simulator behind a cost model.

pub mod blocks;
pub mod error;
pub mod forward;
pub mod scheduler;
pub mod sequence;

pub use blocks::BlockPool;
pub use error::{ConfigError, StepError, SubmitError};
pub use forward::{Batch, BatchSequence, BlockId, Forward, ForwardError, ForwardShape, TokenId};
pub use scheduler::{
    LogitsRow, Sampled, Scheduler, SchedulerConfig, SchedulerStats, SequenceEvent, Step, StepId, Submitted,
};
pub use sequence::{EndReason, EndRule, Limits, SequenceId, Submission};
