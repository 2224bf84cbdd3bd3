//! The contract of `Forward`, bit for bit: logits do not depend on what else is in the batch, on how a
//! prefill was cut, or on the number of threads. Streams resume on other instances because of this.

use crate::support::{Driver, GEMMA3, Model, SMOLLM2, bits};
use engine_core::TokenId;
use engine_runtime::{Compute, kernels::cpu::simd::Isa};

/// Long enough for several tiles of queries, KV blocks and token tiles, and a multiple of none of them.
fn text(model: &Model, len: usize, salt: usize) -> Vec<TokenId> {
    let pool: Vec<TokenId> = model.golden().cases.iter().flat_map(|case| case.prompt_ids.clone()).collect();
    (0..len).map(|index| pool[(index * 7 + salt) % pool.len()]).collect()
}

/// The logits after `tokens`, computed in one step, alone, on one thread.
fn alone(model: &Model, compute: Compute, tokens: &[TokenId]) -> Vec<u32> {
    let mut driver = model.device_on(compute, 1, Isa::detect());
    let mut sequence = driver.sequence(tokens, 0);
    bits(&driver.finish(&mut sequence))
}

/// `tokens` cut into `parts`, with other sequences in every batch.
fn mixed(model: &Model, driver: &mut Driver, tokens: &[TokenId], parts: &[usize]) -> Vec<u32> {
    let others: Vec<Vec<TokenId>> = (0..3).map(|salt| text(model, 450, salt + 11)).collect();
    let mut others: Vec<_> = others.iter().map(|tokens| driver.sequence(tokens, 0)).collect();
    let mut sequence = driver.sequence(tokens, 0);
    let mut last = Vec::new();
    for (index, &part) in parts.iter().enumerate() {
        // One neighbour before and two behind, decoding and prefilling by turns.
        let [before, behind, far] = &mut others[..] else { unreachable!("three others") };
        let steps = [1 + index % 2 * 19, part, 1, 5];
        let logits = driver.step(&mut [before, &mut sequence, behind, far], &steps);
        if sequence.done == tokens.len() {
            last = bits(&logits[0]);
        }
    }
    assert_eq!(sequence.done, tokens.len(), "the parts must cover the tokens");
    last
}

fn check(model: &Model, compute: Compute, len: usize, parts: &[usize]) {
    let tokens = text(model, len, 0);
    let expected = alone(model, compute, &tokens);
    for threads in [1, 2, 3] {
        let mut driver = model.device_on(compute, threads, Isa::detect());
        assert!(
            mixed(model, &mut driver, &tokens, parts) == expected,
            "{model:?}, {compute:?}, {threads} threads, {parts:?}"
        );
    }
}

#[test]
fn fast_logits_do_not_depend_on_chunks_batch_or_threads() {
    check(&SMOLLM2, Compute::Fast, 150, &[150]);
    check(&SMOLLM2, Compute::Fast, 150, &[131, 1, 1, 17]);
    check(&SMOLLM2, Compute::Fast, 150, &[3, 13, 1, 33, 2, 97, 1]);
    // Prefill in one go equals prefill and token-by-token decode.
    check(&SMOLLM2, Compute::Fast, 40, &[1; 40]);
}

/// Longer than the sliding window.
#[test]
fn gemma3_logits_do_not_depend_on_chunks_batch_or_threads() {
    check(&GEMMA3, Compute::Fast, 560, &[530, 1, 1, 28]);
    check(&GEMMA3, Compute::Fast, 40, &[3, 13, 1, 23]);
    check(&GEMMA3, Compute::F32, 37, &[16, 1, 1, 19]);
}

#[test]
fn f32_logits_do_not_depend_on_chunks_batch_or_threads() {
    check(&SMOLLM2, Compute::F32, 37, &[16, 1, 1, 19]);
}

#[test]
fn a_block_left_by_another_sequence_changes_nothing() {
    let tokens = text(&SMOLLM2, 21, 0);
    let expected = alone(&SMOLLM2, Compute::Fast, &tokens);
    let mut driver = SMOLLM2.device_on(Compute::Fast, 2, Isa::detect());
    let mut sequence = driver.sequence(&text(&SMOLLM2, 32, 5), 0);
    driver.finish(&mut sequence);
    sequence.tokens.clone_from(&tokens);
    sequence.done = 0;
    assert!(bits(&driver.finish(&mut sequence)) == expected);
}

#[test]
fn malformed_batches_are_refused_with_a_reason() {
    use engine_core::{Batch, BatchSequence, ForwardError};
    let mut driver = SMOLLM2.device_on(Compute::Fast, 1, Isa::detect());
    let good = BatchSequence { new_tokens: 1, start: 0, blocks: vec![0], logits: 1, adapter: None };
    let mut check = |token: TokenId, sequence: BatchSequence, part: &str| {
        let batch = Batch { tokens: vec![token], sequences: vec![sequence] };
        match driver.device.forward(&batch, &mut Vec::new()) {
            Err(ForwardError::Device { message }) => assert!(message.contains(part), "{message}"),
            other => panic!("{other:?}, expected an error about {part:?}"),
        }
    };
    check(60_000, good.clone(), "outside the vocabulary");
    check(1, BatchSequence { new_tokens: 2, ..good.clone() }, "the sequences have 2");
    check(1, BatchSequence { start: 16, ..good.clone() }, "has 1 KV blocks, needs 2");
    check(1, BatchSequence { start: usize::MAX, ..good.clone() }, "past the context");
    check(1, BatchSequence { blocks: vec![u32::MAX], ..good }, "outside the pool");
}
