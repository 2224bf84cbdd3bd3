//! Computing in f32 reproduces the reference implementation token by token.

use crate::support::{Driver, GEMMA3, Model, SMOLLM2};
use engine_core::TokenId;
use engine_runtime::{Compute, sampling::argmax};

#[test]
fn f32_reproduces_every_reference_token() {
    check(&SMOLLM2, &mut SMOLLM2.device(Compute::F32));
}

#[test]
fn f32_reproduces_every_reference_token_of_gemma3() {
    check(&GEMMA3, &mut GEMMA3.device(Compute::F32));
}

pub fn check(model: &Model, driver: &mut Driver) {
    let cases = model.golden().cases;
    // Free-running: each sequence is fed its own tokens.
    let mut sequences: Vec<_> = cases.iter().map(|case| driver.sequence(&case.prompt_ids, 32)).collect();
    for step in 0..32 {
        let parts: Vec<usize> = sequences.iter().map(|sequence| sequence.tokens.len() - sequence.done).collect();
        let logits = driver.step(&mut sequences.iter_mut().collect::<Vec<_>>(), &parts);
        for (index, logits) in logits.iter().enumerate() {
            if step == 0 {
                let top = &cases[index].first_step_top5;
                for (id, expected) in top.ids.iter().zip(&top.logits) {
                    let found = logits[*id as usize];
                    assert!((found - expected).abs() < 2e-3, "case {index}, token {id}: {found}, expected {expected}");
                }
            }
            sequences[index].tokens.push(argmax(logits).expect("finite logits"));
        }
    }
    for (index, (case, sequence)) in cases.iter().zip(&sequences).enumerate() {
        let generated: &[TokenId] = &sequence.tokens[case.prompt_ids.len()..];
        assert_eq!(generated, case.greedy_ids, "case {index}");
    }
}
