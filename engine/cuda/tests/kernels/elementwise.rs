//! Norms and gates.

use crate::{bench::Bench, tiny};
use engine_cuda::kernels::{GateArgs, NormArgs};

fn normed(x: &[f64], weight: &[f32], epsilon: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + epsilon).sqrt() * f64::from(*w)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// Within half a unit of the last place of bf16 (of 16 bits with two planes), and of f32's own rounding.
fn near(found: f64, expected: f64, planes: usize) -> bool {
    let precision = if planes == 1 { 1.0 / 256.0 } else { 1.0 / 65536.0 };
    (found - expected).abs() <= expected.abs() * (1.001 * precision + 2e-6) + 1e-7
}

#[test]
fn norms_with_and_without_a_branch_are_exact_to_the_rounding_of_their_output() {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    for (width, planes) in [(576, 1), (200, 2), (64, 1), (1000, 1)] {
        let results = gpu.in_each_order(|_| {
            let mut bench = Bench::new();
            let rows = 5;
            let numbers = |seed: usize, count: usize| -> Vec<f32> {
                (0..count).map(|i| 4.0 * tiny::noise(seed * 50_000 + i)).collect()
            };
            let (x, branch) = (numbers(1, rows * width), numbers(2, rows * width));
            let (weight, branch_weight) = (numbers(3, width), numbers(4, width));
            let wanted = [3i32, 0, 4];
            let args = NormArgs {
                x: bench.upload(&x),
                branch: bench.upload(&branch),
                branch_weight: bench.upload(&branch_weight),
                weight: bench.upload(&weight),
                rows: bench.upload(&wanted),
                to: bench.activations(wanted.len(), width, planes),
                width: width as i32,
                epsilon: 1e-5,
            };
            // SAFETY: all sizes as laid out above.
            unsafe { bench.device.norm(args, wanted.len()) }.expect("a launch");
            let (found, sums) = bench.read(args.to, wanted.len(), width);
            let joined: Vec<f32> = bench.download(args.x, rows * width);
            for (token, row) in wanted.iter().enumerate() {
                let row = *row as usize * width..(*row as usize + 1) * width;
                let branch = normed(&wide(&branch[row.clone()]), &branch_weight, 1e-5);
                let sum: Vec<f64> = wide(&x[row.clone()]).iter().zip(&branch).map(|(x, add)| x + add).collect();
                for (found, sum) in joined[row].iter().zip(&sum) {
                    assert!((f64::from(*found) - sum).abs() < 1e-5 * (1.0 + sum.abs()), "{found}, {sum}");
                }
                let expected = normed(&sum, &weight, 1e-5);
                for (col, expected) in expected.iter().enumerate() {
                    let found = found[token * width + col];
                    assert!(near(found, *expected, planes), "{width}, {planes}, {col}: {found}, {expected}");
                }
                check_sums(&found[token * width..][..width], &sums[token * args.to.stride as usize / 16..]);
            }
            // A row that was not wanted is as it was.
            assert_eq!(joined[width..2 * width], x[width..2 * width]);
            (found.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), joined)
        });
        assert!(results.iter().all(|other| *other == results[0]), "{width}: depends on the order of threads");
    }
    assert_eq!(gpu.fault(), "");
}

fn check_sums(row: &[f64], sums: &[f32]) {
    for (group, sum) in row.chunks(16).zip(sums) {
        let expected: f64 = group.iter().sum();
        let size: f64 = group.iter().map(|x| x.abs()).sum();
        assert!((f64::from(*sum) - expected).abs() <= 1e-6 * (size + 1e-6), "{sum}, {expected}");
    }
}

#[test]
fn gates_follow_their_definitions() {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    for (width, planes, gelu) in [(96, 1, 0), (96, 2, 1), (1536, 1, 1), (40, 2, 0)] {
        let mut bench = Bench::new();
        let tokens = 3;
        let mut gate_up: Vec<f32> = (0..tokens * 2 * width).map(|i| 6.0 * tiny::noise(i + 5)).collect();
        gate_up[0] = -1e30;
        gate_up[1] = 200.0;
        let to = bench.activations(tokens, width, planes);
        let args = GateArgs { gate_up: bench.upload(&gate_up), to, width: width as i32, gelu };
        // SAFETY: all sizes as laid out above.
        unsafe { bench.device.gate(args, tokens) }.expect("a launch");
        let (found, sums) = bench.read(to, tokens, width);
        for (token, row) in gate_up.chunks(2 * width).enumerate() {
            for col in 0..width {
                let (x, up) = (f64::from(row[col]), f64::from(row[width + col]));
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                let expected =
                    if gelu == 1 { 0.5 * x * (1.0 + inner.tanh()) * up } else { x / (1.0 + (-x).exp()) * up };
                let found = found[token * width + col];
                assert!(near(found, expected, planes), "{width}, {gelu}, {col} of {x}: {found}, {expected}");
            }
            check_sums(&found[token * width..][..width], &sums[token * to.stride as usize / 16..]);
        }
    }
    assert_eq!(gpu.fault(), "");
}
