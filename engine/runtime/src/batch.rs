//! A batch step, checked and laid out: which position, KV slot and output row each token has.

use crate::adapters::{AdapterWeights, Adapters};
use crate::kernels::cpu::{attention::Span, kv::Slot};
use crate::sampling::all_finite;
use engine_core::{AdapterId, Batch, BatchSequence, ForwardError, ForwardShape, NO_BLOCK};
use std::{collections::BTreeMap, sync::Arc};

/// One entry per token, span per sequence, and the rows whose logits are wanted.
pub(crate) struct Plan<'a> {
    pub(crate) positions: Vec<usize>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) spans: Vec<Span<'a>>,
    pub(crate) logit_rows: Vec<usize>,
    /// Rows by the adapter that they have; empty when none has one.
    pub(crate) adapted: Vec<Adapted>,
}

/// The rows of a step that one adapter changes.
pub(crate) struct Adapted {
    pub(crate) weights: Arc<AdapterWeights>,
    /// Ascending.
    pub(crate) rows: Vec<usize>,
}

/// Checks everything that a kernel would otherwise have to trust.
pub(crate) fn plan<'a>(batch: &'a Batch, shape: &ForwardShape, adapters: &Adapters) -> Result<Plan<'a>, ForwardError> {
    plan_within(batch, shape, adapters, None)
}

/// The same for a device of whose layers none sees more than the latest `window_tokens`.
pub(crate) fn plan_within<'a>(
    batch: &'a Batch,
    shape: &ForwardShape,
    adapters: &Adapters,
    window_tokens: Option<usize>,
) -> Result<Plan<'a>, ForwardError> {
    let total: usize = batch.sequences.iter().map(|sequence| sequence.new_tokens).sum();
    if total != batch.tokens.len() {
        return Err(bad(format!("{} tokens, but the sequences have {total}", batch.tokens.len())));
    }
    if let Some(token) = batch.tokens.iter().find(|token| **token as usize >= shape.vocab) {
        return Err(bad(format!("token {token} is outside the vocabulary of {}", shape.vocab)));
    }
    let mut plan = Plan {
        positions: Vec::with_capacity(total),
        slots: Vec::with_capacity(total),
        spans: Vec::new(),
        logit_rows: Vec::new(),
        adapted: Vec::new(),
    };
    let mut adapted: BTreeMap<AdapterId, Vec<usize>> = BTreeMap::new();
    for (index, sequence) in batch.sequences.iter().enumerate() {
        check_sequence(sequence, shape, window_tokens)
            .map_err(|message| bad(format!("sequence {index}: {message}")))?;
        let (row, start) = (plan.positions.len(), sequence.start);
        for position in start..start + sequence.new_tokens {
            plan.positions.push(position);
            let block = sequence.blocks[position / shape.kv_block_tokens];
            plan.slots.push(Slot { block, offset: position % shape.kv_block_tokens });
        }
        plan.spans.push(Span { row, tokens: sequence.new_tokens, start, blocks: &sequence.blocks });
        plan.logit_rows.extend(row + sequence.new_tokens - sequence.logits..row + sequence.new_tokens);
        if let Some(adapter) = sequence.adapter {
            adapted.entry(adapter).or_default().extend(row..row + sequence.new_tokens);
        }
    }
    for (adapter, rows) in adapted {
        let weights = adapters.get(adapter).ok_or_else(|| bad(format!("adapter {adapter} is not loaded")))?;
        plan.adapted.push(Adapted { weights, rows });
    }
    Ok(plan)
}

fn check_sequence(sequence: &BatchSequence, shape: &ForwardShape, window_tokens: Option<usize>) -> Result<(), String> {
    if sequence.new_tokens == 0 {
        return Err("no new token".into());
    }
    if sequence.logits > sequence.new_tokens {
        return Err(format!(
            "logits of {} tokens are wanted, but only {} are new",
            sequence.logits, sequence.new_tokens
        ));
    }
    let end = sequence.start.checked_add(sequence.new_tokens).filter(|end| *end <= shape.context_tokens);
    let Some(end) = end else {
        return Err(format!("reaches past the context of {} tokens", shape.context_tokens));
    };
    let needed = end.div_ceil(shape.kv_block_tokens);
    if sequence.blocks.len() < needed {
        return Err(format!("has {} KV blocks, needs {needed}", sequence.blocks.len()));
    }
    // What no new token sees is not read, and may be gone.
    let first_seen = window_tokens.map_or(0, |window_tokens| (sequence.start + 1).saturating_sub(window_tokens));
    let (passed, seen) = sequence.blocks.split_at(first_seen / shape.kv_block_tokens);
    let passed = passed.iter().filter(|block| **block != NO_BLOCK);
    match passed.chain(seen).find(|block| **block as usize >= shape.kv_blocks) {
        Some(block) => Err(format!("KV block {block} is outside the pool of {}", shape.kv_blocks)),
        None => Ok(()),
    }
}

/// Names the first sequence whose first row of logits is not all finite. Rows after it may rest on guessed tokens,
/// which must not fail a step.
pub(crate) fn check_finite(batch: &Batch, vocab: usize, logits: &[f32]) -> Result<(), ForwardError> {
    let mut rest = logits;
    for (index, sequence) in batch.sequences.iter().enumerate().filter(|(_, sequence)| sequence.logits > 0) {
        let (rows, others) = rest.split_at_checked(sequence.logits * vocab).unwrap_or((rest, &[]));
        rest = others;
        if !all_finite(&rows[..vocab.min(rows.len())]) {
            return Err(ForwardError::NonFinite { sequence: index });
        }
    }
    Ok(())
}

fn bad(message: String) -> ForwardError {
    ForwardError::Device { message: format!("malformed batch: {message}") }
}
