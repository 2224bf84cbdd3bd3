//! A batch step, checked and laid out: which position, KV slot and output row each token has.

use crate::adapters::{AdapterWeights, Adapters};
use crate::kernels::cpu::{attention::Span, kv::Slot};
use engine_core::{AdapterId, Batch, ForwardError, ForwardShape, malformed};
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

/// Checks a batch ([`Batch::check`]) and lays it out.
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
    batch.check(shape, window_tokens)?;
    let total = batch.tokens.len();
    let mut plan = Plan {
        positions: Vec::with_capacity(total),
        slots: Vec::with_capacity(total),
        spans: Vec::new(),
        logit_rows: Vec::new(),
        adapted: Vec::new(),
    };
    let mut adapted: BTreeMap<AdapterId, Vec<usize>> = BTreeMap::new();
    for sequence in &batch.sequences {
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
        let weights = adapters.get(adapter).ok_or_else(|| malformed(format!("adapter {adapter} is not loaded")))?;
        plan.adapted.push(Adapted { weights, rows });
    }
    Ok(plan)
}
