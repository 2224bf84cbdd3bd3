//! Choosing tokens, against the CPU's sampler: the very same draws.

use crate::{bench::Bench, tiny};
use engine_cuda::kernels::{ChoiceArgs, ChooseArgs};
use engine_runtime::sample;
use engine_wire::sampling::Sampling;

/// Choices of the device for rows of logits.
fn chosen(bench: &mut Bench, logits: &[f32], vocab: usize, choices: &[(Sampling, usize)]) -> Vec<i32> {
    let args = |(sampling, position): &(Sampling, usize)| ChoiceArgs {
        seed: sampling.seed,
        position: *position as u64,
        scale: if sampling.temperature == 0.0 { 0.0 } else { (1.0 / sampling.temperature).min(f32::MAX) },
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        top_k: sampling.top_k,
    };
    let choices: Vec<ChoiceArgs> = choices.iter().map(args).collect();
    let args = ChooseArgs {
        logits: bench.upload(logits),
        choices: bench.upload(&choices),
        tokens: bench.take(4 * choices.len()),
        vocab: vocab as i32,
    };
    // SAFETY: all sizes as laid out above.
    unsafe { bench.device.choose(args, choices.len()) }.expect("a launch");
    bench.download(args.tokens, choices.len())
}

fn sampling(temperature: f32, top_k: u32, top_p: f32, min_p: f32, seed: u64) -> Sampling {
    Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::default() }
}

/// Logits with many equals, both zeros among them.
fn logits(vocab: usize, salt: usize) -> Vec<f32> {
    (0..vocab)
        .map(|i| match i % 5 {
            0 => (8.0 * tiny::noise(i + salt)).round(),
            1 => 0.0 * tiny::noise(i),
            _ => 6.0 * tiny::noise(i * 3 + salt),
        })
        .collect()
}

#[test]
fn draws_are_those_of_the_cpu() {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    let parameters = [
        (0.0, 0, 1.0, 0.0),
        (1.0, 1, 0.5, 0.0),
        (1.0, 0, 1.0, 0.0),
        (0.3, 0, 1.0, 0.0),
        (1.0, 7, 1.0, 0.0),
        (1.0, 40, 1.0, 0.0),
        (1.0, 0, 0.9, 0.0),
        (2.0, 0, 0.5, 0.0),
        (1.0, 0, 1.0, 0.1),
        (1.5, 50, 0.8, 0.05),
        (0.7, 100_000, 0.95, 0.0),
        (1e-38, 0, 0.9, 0.0),
        (1.0, 3, 1e-6, 1.0),
    ];
    let results = gpu.in_each_order(|order| {
        let mut bench = Bench::new();
        let mut all = Vec::new();
        for (vocab, draws) in [(1, 1), (5, 3), (300, 6), (2500, 4)] {
            for (salt, (temperature, top_k, top_p, min_p)) in parameters.iter().enumerate() {
                let row = logits(vocab, salt);
                let choices: Vec<(Sampling, usize)> = (0..draws)
                    .map(|draw| (sampling(*temperature, *top_k, *top_p, *min_p, draw as u64 * 977), 3 + draw * 11))
                    .collect();
                let found = chosen(&mut bench, &row.repeat(draws), vocab, &choices);
                for ((sampling, position), found) in choices.iter().zip(&found) {
                    let expected = sample(&row, sampling, *position).expect("good logits");
                    assert_eq!(*found, expected as i32, "{vocab}, {sampling:?}, {position}, {order:?}");
                }
                all.extend(found);
            }
        }
        all
    });
    assert!(results.iter().all(|other| *other == results[0]));
    assert_eq!(gpu.fault(), "");
}

#[test]
fn one_bad_logit_is_told_whatever_the_choice() {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    let mut bench = Bench::new();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = logits(600, 1);
        rows.extend(logits(600, 1));
        rows[577] = bad;
        for temperature in [0.0, 1.0] {
            let choice = (sampling(temperature, 0, 1.0, 0.0, 5), 9);
            let found = chosen(&mut bench, &rows, 600, &[choice.clone(), choice]);
            assert_eq!(found[0], -1);
            assert!(found[1] >= 0);
        }
    }
    assert_eq!(gpu.fault(), "");
}
