//! Real checkpoints against the reference implementation, the reference tokens being fed whatever the device would
//! choose: the same argmax wherever the reference is sure, and logits near its own.

use crate::common::{Case, GEMMA3, Model, SMOLLM2, argmax, gpu, options};
use engine_core::Batch;
use engine_cuda::CudaOptions;

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
    check(&SMOLLM2, 3, options(), 0.5, 0.5);
}

#[test]
fn gemma3_follows_the_reference() {
    check(&GEMMA3, 2, options(), 0.5, 1.0);
}
