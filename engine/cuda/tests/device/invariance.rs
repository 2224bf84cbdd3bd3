//! The contract of `Forward`, bit for bit: logits do not depend on what else is in the batch, on how a prefill was cut, on
//! the size of the device's buffers, or on whether a step runs as a graph.

use crate::{
    common::{Driver, GEMMA3, SMOLLM2, Sequence, bits, emulated, gpu, options},
    tiny::{TINY, Tiny, VOCAB},
};
use engine_core::{Batch, BatchSequence, Forward, ForwardError};
use engine_cuda::{CudaForward, CudaOptions, KvFormat};
use engine_store::{Checkpoint, GgmlType};

fn text(len: usize, salt: usize, vocab: usize) -> Vec<u32> {
    (0..len).map(|index| ((index * 31 + salt * 7 + index * index) % vocab) as u32).collect()
}

fn driver(checkpoint: &Checkpoint, options: CudaOptions) -> Driver {
    Driver::new(CudaForward::load(checkpoint, options).expect("a supported model"))
}

/// The logits after `tokens`, computed in one step, alone.
fn alone(checkpoint: &Checkpoint, options: CudaOptions, tokens: &[u32]) -> Vec<u32> {
    let mut driver = driver(checkpoint, options);
    let mut sequence = driver.sequence(tokens, 0);
    bits(&driver.step(&mut [&mut sequence], &[tokens.len()])[0])
}

/// `tokens` cut into `parts`, with other sequences in every batch.
fn mixed(driver: &mut Driver, tokens: &[u32], parts: &[usize]) -> Vec<u32> {
    let vocab = driver.device.shape().vocab;
    let mut others: Vec<Sequence> = (0..3).map(|salt| driver.sequence(&text(500, salt + 11, vocab), 0)).collect();
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

fn check(tiny: Tiny, options: CudaOptions, len: usize, cuts: &[&[usize]]) {
    let gpu = gpu();
    let checkpoint = tiny.checkpoint();
    let tokens = text(len, 0, VOCAB);
    let expected = alone(&checkpoint, options.clone(), &tokens);
    for (index, parts) in cuts.iter().enumerate() {
        for step_tokens in [options.step_tokens, 23] {
            let mut driver = driver(&checkpoint, CudaOptions { step_tokens, ..options.clone() });
            let found = mixed(&mut driver, &tokens, parts);
            assert!(found == expected, "{tiny:?}, {options:?}, cut {index}, {step_tokens} tokens at once");
        }
    }
    assert_eq!(gpu.fault(), "");
}

#[test]
fn logits_do_not_depend_on_chunks_batch_or_buffers() {
    let cuts: [&[usize]; 3] = [&[150], &[131, 1, 1, 17], &[3, 13, 1, 33, 2, 97, 1]];
    check(TINY, options(), 150, &cuts);
    check(Tiny { window: Some(40), ..TINY }, options(), 150, &cuts);
    check(Tiny { architecture: "gemma3", layers: 6, window: Some(40), ..TINY }, options(), 150, &cuts[2..]);
    check(TINY, CudaOptions { planes: 2, kv_format: KvFormat::Fp8, kv_block_tokens: 48, ..options() }, 150, &cuts[2..]);
    // Prefill in one go equals prefill and token-by-token decode.
    check(TINY, options(), 40, &[&[1; 40]]);
    // Several splits of attention.
    check(TINY, options(), 560, &[&[530, 1, 1, 28]]);
}

#[test]
fn real_models_keep_the_contract() {
    let gpu = gpu();
    for (model, len, parts) in [(&SMOLLM2, 21, &[13, 1, 7][..]), (&GEMMA3, 12, &[9, 1, 2])] {
        let checkpoint = model.checkpoint();
        let small = CudaOptions { step_tokens: 64, ..options() };
        let tokens = text(len, 1, 40_000);
        let mut driver = driver(&checkpoint, small);
        let mut sequence = driver.sequence(&tokens, 0);
        let expected = bits(&driver.step(&mut [&mut sequence], &[len])[0]);
        let (mut cut, mut other) = (driver.sequence(&tokens, 0), driver.sequence(&text(9, 5, 40_000), 0));
        let mut found = Vec::new();
        for part in parts {
            found = driver.step(&mut [&mut cut, &mut other], &[*part, 3]);
        }
        assert!(bits(&found[0]) == expected, "{model:?}");
    }
    assert_eq!(gpu.fault(), "");
}

#[test]
fn graphs_give_the_bits_of_plain_steps_while_everything_in_the_batch_changes() {
    let gpu = gpu();
    let checkpoint = Tiny { window: None, ..TINY }.checkpoint();
    let run = |graphs: bool| {
        let mut driver = driver(&checkpoint, CudaOptions { graphs, ..options() });
        let mut sequences: Vec<Sequence> =
            [250, 3, 17].map(|len| driver.sequence(&text(len + 12, len, VOCAB), 0)).into();
        for sequence in &mut sequences {
            let prefill = sequence.tokens.len() - 12;
            driver.step(&mut [sequence], &[prefill]);
        }
        let mut out = Vec::new();
        for step in 0..12 {
            // Three sequences, then two, then three in another order; the longest crosses into its second split.
            let mut batch = Batch::default();
            let order: &[usize] = [&[0, 1, 2][..], &[2, 1, 0], &[0, 2]][step % 3];
            order.iter().for_each(|index| sequences[*index].add(&mut batch, 1, 1));
            out.extend(driver.run(&batch).iter().map(|row| bits(row)));
        }
        (out, driver.device.captured_graphs())
    };
    let (plain, none) = run(false);
    let before = gpu.counters();
    let (replayed, captured) = run(true);
    let after = gpu.counters();
    assert_eq!(none, 0);
    assert!(captured >= 2, "{captured} graphs");
    assert!(gpu.is_real() || after.graph_launches - before.graph_launches >= 6, "{after:?}");
    assert!(plain == replayed, "graphs give other bits");
    assert_eq!(gpu.fault(), "");
}

#[test]
fn devices_with_little_shared_memory_give_the_same_bits() {
    let Some(gpu) = emulated() else { return };
    // What needs most of it: the widest weights, and the widest heads.
    let tiny = Tiny { kind: GgmlType::F32, heads: 4, kv_heads: 1, head_dim: 256, ..TINY };
    let (checkpoint, tokens) = (tiny.checkpoint(), text(70, 8, VOCAB));
    let expected = alone(&checkpoint, options(), &tokens);
    gpu.devices(1, (8, 6), 13_000);
    assert!(alone(&checkpoint, options(), &tokens) == expected);
    assert_eq!(gpu.fault(), "");
}

#[test]
fn groups_wider_than_a_warp_decode_without_graphs() {
    let gpu = gpu();
    let wide = Tiny { heads: 20, kv_heads: 1, ..TINY };
    let checkpoint = wide.checkpoint();
    let tokens = text(40, 4, VOCAB);
    let expected = alone(&checkpoint, options(), &tokens);
    let mut driver = driver(&checkpoint, CudaOptions { graphs: true, ..options() });
    assert!(mixed(&mut driver, &tokens, &[30, 1, 1, 1, 7]) == expected);
    let mut pair = [driver.sequence(&tokens, 0), driver.sequence(&tokens, 0)];
    for sequence in &mut pair {
        driver.step(&mut [sequence], &[36]);
    }
    let mut rows = Vec::new();
    for count in [1, 2, 1, 2] {
        let mut batch = Batch::default();
        pair[..count].iter_mut().filter(|one| one.done < 40).for_each(|one| one.add(&mut batch, 1, 1));
        rows = driver.run(&batch);
    }
    assert!(bits(&rows[0]) == expected, "the first sequence is through");
    assert_eq!((driver.device.captured_graphs(), gpu.fault()), (0, String::new()));
}

#[test]
fn deferred_work_and_orders_of_threads_change_nothing() {
    let gpu = gpu();
    let checkpoint = TINY.checkpoint();
    let tokens = text(60, 2, VOCAB);
    let results = gpu.in_each_order(|_| alone(&checkpoint, options(), &tokens));
    assert!(results.iter().all(|bits| *bits == results[0]));
    gpu.defer(5);
    assert!(alone(&checkpoint, options(), &tokens) == results[0], "work done late gives other bits");
    assert_eq!(gpu.fault(), "");
}

#[test]
fn a_step_waits_for_its_results_alone() {
    let gpu = gpu();
    let mut driver = driver(&TINY.checkpoint(), options());
    let mut sequence = driver.sequence(&text(30, 1, VOCAB), 0);
    let before = gpu.counters().synchronisations;
    driver.step(&mut [&mut sequence], &[30]);
    assert!(gpu.counters().synchronisations - before <= 2, "{:?}", gpu.counters());
}

#[test]
fn blocks_that_are_copied_serve_as_the_first_do() {
    let _gpu = gpu();
    let mut driver = driver(&TINY.checkpoint(), options());
    let tokens = text(33, 3, VOCAB);
    let mut first = driver.sequence(&tokens, 0);
    let expected = bits(&driver.step(&mut [&mut first], &[33])[0]);
    let mut second = driver.sequence(&tokens, 0);
    let pairs: Vec<(u32, u32)> = first.blocks().iter().copied().zip(second.blocks().iter().copied()).collect();
    driver.device.copy_blocks(&pairs).expect("blocks of the pool");
    second.done = 32;
    assert!(bits(&driver.step(&mut [&mut second], &[1])[0]) == expected);
    driver.device.copy_blocks(&[(0, u32::MAX)]).expect_err("outside the pool");
}

#[test]
fn malformed_batches_are_refused_with_a_reason() {
    let _gpu = gpu();
    let mut driver = driver(&TINY.checkpoint(), options());
    let good = BatchSequence { new_tokens: 1, start: 0, blocks: vec![0], logits: 1, adapter: None };
    let mut check = |token: u32, sequence: BatchSequence, part: &str| {
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
    check(1, BatchSequence { adapter: Some(4), ..good.clone() }, "adapter 4");
    check(1, BatchSequence { logits: 2, ..good.clone() }, "logits of 2");
    check(1, BatchSequence { blocks: vec![u32::MAX], ..good }, "outside the pool");
}
