//! What can be wrong with a configuration, a submission or a completed step.

use thiserror::Error;

/// The scheduler cannot be built.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("the KV cache has {kv_blocks} blocks, which hold no sequence: give it more memory")]
    NoBlocks { kv_blocks: usize },
    #[error("a step of {step_tokens} tokens cannot hold {max_running} running sequences of one token each")]
    Budget { step_tokens: usize, max_running: usize },
}

/// A sequence is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SubmitError {
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("a sequence by this name is already here")]
    DuplicateId,
    #[error(
        "{prefix_tokens} tokens leave no room for output: context and KV cache hold {max_sequence_tokens} tokens of one sequence"
    )]
    TooLong { prefix_tokens: usize, max_sequence_tokens: usize },
    #[error("{max_waiting} sequences wait already")]
    QueueFull { max_waiting: usize },
}

/// The results do not belong to the step in flight. The step stays in flight.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StepError {
    #[error("this step is not in flight")]
    NotInFlight,
    #[error("the step has {expected} logits rows, not {got}")]
    RowCount { expected: usize, got: usize },
}
