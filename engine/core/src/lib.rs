//! The pure heart of the engine: sequences, the continuous-batching scheduler, paged KV blocks and their
//! prefix cache.
//!
//! No clock, no thread, no I/O: a step is a function of what was submitted and of the step times that were put in, so the same code runs live
//! behind a CPU or a GPU and inside the simulator behind a cost model.

mod batch;
pub mod blocks;
pub mod cost;
pub mod encode;
pub mod error;
pub mod forward;
mod lookup;
mod prefix;
mod queue;
pub mod scheduler;
pub mod sequence;
mod sharing;
pub mod speculation;
pub mod step;

pub use batch::{all_finite, malformed};
pub use blocks::{BlockPool, NO_BLOCK};
pub use cost::StepCost;
pub use encode::{Encode, EncodeBatch, EncodeId, EncodeQueue, EncodeShape, EncodeStep};
pub use error::{ConfigError, StepError, SubmitError};
pub use forward::{AdapterId, Batch, BatchSequence, BlockId, Forward, ForwardError, ForwardShape, TokenId};
pub use scheduler::{Scheduler, SchedulerConfig, SchedulerStats};
pub use sequence::{Adapter, EndReason, EndRule, Limits, SequenceId, Submission};
pub use speculation::Speculation;
pub use step::{Admitted, LogitsRow, Sampled, SequenceEvent, Step, StepId, Submitted};
