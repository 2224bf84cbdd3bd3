//! Real checkpoints against the reference implementation, the reference tokens being fed whatever the device would
//! choose: the same argmax wherever the reference is sure, and logits near its own.

use crate::common::{Case, GEMMA3, Model, SMOLLM2, argmax, gpu, options};
use engine_core::Batch;
use engine_cuda::{Choice, CudaOptions};

/// All reference steps of some cases in one batch: logits by case and step.
fn teacher_forced(model: &Model, cases: &[Case], options: CudaOptions) -> Vec<Vec<Vec<f32>>> {
    let mut driver = model.device(options);
    let mut batch = Batch::default();
    for case in cases {
        let steps = case.greedy_ids.len();
        let tokens = [&case.prompt_ids[..], &case.greedy_ids[..steps - 1]].concat();
        driver.sequence(&tokens, 0).add(&mut batch, tokens.len(), steps);
    }
    let mut rows = driver.run(&batch).into_iter();
    cases.iter().map(|case| rows.by_ref().take(case.greedy_ids.len()).collect()).collect()
}

fn check(model: &Model, count: usize, options: CudaOptions, sure: f32, near: f32) {
    let gpu = gpu();
    let mut cases = model.golden().cases;
    cases.truncate(count);
    let found = teacher_forced(model, &cases, options);
    let (mut agreed, mut steps, mut worst) = (0, 0, 0f32);
    for (index, (case, rows)) in cases.iter().zip(&found).enumerate() {
        for (id, expected) in case.first_step_top5.ids.iter().zip(&case.first_step_top5.logits) {
            let found = rows[0][*id as usize];
            worst = worst.max((found - expected).abs());
            assert!((found - expected).abs() < near, "case {index}, token {id}: {found}, expected {expected}");
        }
        for (step, row) in rows.iter().enumerate() {
            let same = argmax(row) == case.greedy_ids[step];
            assert!(same || case.top1_minus_top2[step] <= sure, "case {index}, step {step}");
            (agreed, steps) = (agreed + usize::from(same), steps + 1);
        }
    }
    assert_eq!(gpu.fault(), "");
    println!("{agreed} of {steps} steps agree; first logits within {worst}");
    assert!(agreed * 20 >= steps * 19, "{agreed} of {steps} steps agree");
}

#[test]
fn smollm2_follows_the_reference() {
    check(&SMOLLM2, 2, options(), 0.5, 0.5);
}

#[test]
fn gemma3_follows_the_reference() {
    check(&GEMMA3, 2, options(), 0.5, 1.0);
}

/// Free-running: each sequence is fed its own tokens, chosen on the device, by graph from the second step on.
#[test]
fn smollm2_generates_the_reference_tokens() {
    let gpu = gpu();
    let mut cases = SMOLLM2.golden().cases;
    cases.truncate(2);
    let mut driver = SMOLLM2.device(CudaOptions { graphs: true, step_tokens: 64, ..options() });
    let mut sequences: Vec<_> = cases.iter().map(|case| driver.sequence(&case.prompt_ids, 8)).collect();
    for _ in 0..6 {
        let mut batch = Batch::default();
        for sequence in &mut sequences {
            let rest = sequence.tokens.len() - sequence.done;
            sequence.add(&mut batch, rest, 1);
        }
        let mut chosen = Vec::new();
        driver.device.forward_choosing(&batch, &[Choice::GREEDY; 2], &mut chosen).expect("a step");
        let tokens = chosen.into_iter().flatten();
        sequences.iter_mut().zip(tokens).for_each(|(sequence, token)| sequence.tokens.push(token));
    }
    for (case, sequence) in cases.iter().zip(&sequences) {
        assert_eq!(sequence.tokens[case.prompt_ids.len()..], case.greedy_ids[..6]);
    }
    assert_eq!((driver.device.captured_graphs(), gpu.fault()), (1, String::new()));
}
