//! Steps whose tokens are chosen on the device: the tokens that the logits give.

use crate::{
    common::{Driver, argmax, gpu, options},
    tiny::TINY,
};
use engine_core::{Batch, ForwardError};
use engine_cuda::{Choice, CudaForward, CudaOptions};

#[test]
fn chosen_tokens_are_those_of_the_logits_plainly_and_by_graph() {
    let gpu = gpu();
    let load = || {
        Driver::new(CudaForward::load(&TINY.checkpoint(), CudaOptions { graphs: true, ..options() }).expect("a model"))
    };
    let (mut by_logits, mut by_choice) = (load(), load());
    let tokens: Vec<u32> = (0..30).map(|i| i * 7 % 80).collect();
    let mut first = [by_logits.sequence(&tokens, 8), by_logits.sequence(&tokens[..9], 8)];
    let mut second = [by_choice.sequence(&tokens, 8), by_choice.sequence(&tokens[..9], 8)];
    let mut chosen = Vec::new();
    for step in 0..6 {
        let (mut one, mut other) = (Batch::default(), Batch::default());
        for (a, b) in first.iter_mut().zip(&mut second) {
            let rest = a.tokens.len() - a.done;
            a.add(&mut one, rest, 1);
            b.add(&mut other, rest, 1);
        }
        let rows = by_logits.run(&one);
        let choices = [Choice::GREEDY, Choice { temperature: 1.0, seed: 4, position: 9 + step, ..Choice::GREEDY }];
        by_choice.device.forward_choosing(&other, &choices, &mut chosen).expect("a step");
        assert_eq!(chosen[0], Some(argmax(&rows[0])));
        let sampling = engine_wire::sampling::Sampling { temperature: 1.0, seed: 4, ..Default::default() };
        assert_eq!(chosen[1], engine_runtime::sample(&rows[1], &sampling, 9 + step).ok());
        for (index, token) in chosen.iter().enumerate() {
            first[index].tokens.push(token.expect("finite logits"));
            second[index].tokens.push(token.expect("finite logits"));
        }
    }
    assert_eq!(gpu.fault(), "");
}

#[test]
fn wrong_choices_and_bad_logits_are_errors() {
    let gpu = gpu();
    let mut driver = Driver::new(CudaForward::load(&TINY.checkpoint(), options()).expect("a model"));
    let mut batch = Batch::default();
    driver.sequence(&[1, 2], 0).add(&mut batch, 2, 1);
    let mut run = |choices: &[Choice]| driver.device.forward_choosing(&batch, choices, &mut Vec::new());
    assert!(matches!(run(&[]), Err(ForwardError::Device { .. })));
    let hot = Choice { temperature: f32::NAN, ..Choice::GREEDY };
    assert!(matches!(run(&[hot]), Err(ForwardError::Device { .. })));
    if gpu.is_real() {
        return;
    }
    gpu.corrupt("rms_norm", 1, 0, 4 * 64 * 2);
    assert_eq!(run(&[Choice::GREEDY]), Err(ForwardError::NonFinite { sequence: 0 }));
    run(&[Choice::GREEDY]).expect("the next step is well");
}
