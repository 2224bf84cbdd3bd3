//! Products of every type of weights.

use crate::{
    bench::Bench,
    pack::{Stored, pack},
    tiny,
};
use engine_cuda::{
    device::Ptr,
    format::{FORMATS, Format},
    kernels::{Form, Matrix, Output},
};
use engine_runtime::kernels::cpu::quant::dequantise;

struct Problem {
    format: Format,
    rows: usize,
    cols: usize,
    weights: Vec<f32>,
    packed: Vec<u8>,
}

impl Problem {
    fn new(format: Format, rows: usize, cols: usize) -> Self {
        let kind = format.kind;
        let bytes = tiny::weights(kind, rows * cols, 3);
        let mut weights = vec![0.0; rows * cols];
        let row_bytes = kind.bytes(cols as u64).expect("whole blocks") as usize;
        for (row, out) in weights.chunks_exact_mut(cols).enumerate() {
            dequantise(kind, &bytes[row * row_bytes..(row + 1) * row_bytes], out);
        }
        let packed = pack(Stored { kind, rows, cols, bytes: &bytes });
        Self { format, rows, cols, weights, packed }
    }

    fn matrix(&self, bench: &mut Bench) -> Matrix {
        let at = bench.upload(&self.packed);
        Matrix { format: self.format, at, rows: self.rows, cols: self.cols }
    }

    /// (sum, sum of magnitudes) by token and row.
    fn expected(&self, x: &[f64]) -> Vec<(f64, f64)> {
        let dot = |x: &[f64], row: &[f32]| {
            let products = || row.iter().zip(x).map(|(w, x)| f64::from(*w) * x);
            (products().sum(), products().map(f64::abs).sum())
        };
        x.chunks(self.cols).flat_map(|x| self.weights.chunks(self.cols).map(move |row| dot(x, row))).collect()
    }
}

/// All columns that a format takes, some that are no whole unit for plain ones.
fn columns(format: Format) -> usize {
    match format.unit_cols {
        256 => 512,
        _ if format.scale_bytes == 0 => 200,
        _ => 288,
    }
}

fn check(format: Format, planes: usize) {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    let problem = Problem::new(format, 53, columns(format));
    let tokens = 70;
    let x: Vec<f32> = (0..tokens * problem.cols).map(|i| 3.0 * tiny::noise(i + 17)).collect();
    let mut all: Option<Vec<f32>> = None;
    gpu.in_each_order(|order| {
        let mut bench = Bench::new();
        let matrix = problem.matrix(&mut bench);
        let (input, kept) = bench.stored(&x, problem.cols, planes);
        let bias: Vec<f32> = (0..problem.rows).map(tiny::noise).collect();
        let bias_at = bench.upload(&bias);
        for (form, count) in
            [(Form::Many, 70), (Form::Few8, 70), (Form::Few32, 70), (Form::Few8, 1), (Form::Few32, 9), (Form::Many, 3)]
        {
            let out = bench.upload(&vec![0.5f32; tokens * 60]);
            let output = Output { at: out, stride: 60, bias: bias_at, accumulate: true };
            // SAFETY: all sizes as laid out above.
            unsafe { bench.device.multiply(matrix, input, count, output, Some(form)) }.expect("a launch");
            let found: Vec<f32> = bench.download(out, tokens * 60);
            let name = format!("{format:?}, {planes} planes, {form:?} of {count} tokens, {order:?}");
            match &all {
                None => {
                    let expected = problem.expected(&kept);
                    for (index, (sum, size)) in expected.iter().enumerate() {
                        let (token, row) = (index / problem.rows, index % problem.rows);
                        let exact = sum + f64::from(bias[row]) + 0.5;
                        let error = (f64::from(found[token * 60 + row]) - exact).abs();
                        // Sums of f32: some units of the last place of the largest term.
                        assert!(
                            error <= 1e-6 * (size + 1.0),
                            "{name}: token {token}, row {row}: off by {error} of {size}"
                        );
                    }
                    assert!(found.iter().skip(problem.rows).step_by(60).all(|x| *x == 0.5), "{name}: past the rows");
                    all = Some(found);
                }
                Some(all) => {
                    assert_eq!(found[..count * 60], all[..count * 60], "{name}: other bits");
                    assert!(found[count * 60..].iter().all(|x| *x == 0.5), "{name}: past the tokens");
                }
            }
        }
    });
    assert_eq!(gpu.fault(), "");
}

#[test]
fn every_type_gives_exact_sums_in_the_same_bits_whatever_the_form() {
    FORMATS.into_iter().for_each(|format| check(format, 1));
}

#[test]
fn two_planes_double_the_precision_of_activations() {
    for suffix in ["bf16", "q4_1", "q6_k"] {
        check(FORMATS.into_iter().find(|format| format.suffix == suffix).expect("a format"), 2);
    }
}

#[test]
fn rows_of_the_embedding_are_decoded_exactly() {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    for format in FORMATS {
        let problem = Problem::new(format, 53, columns(format));
        let mut bench = Bench::new();
        let matrix = problem.matrix(&mut bench);
        let ids = [52, 0, 17, 8, 31, 17i32];
        let ids_at = bench.upload(&ids);
        let out = bench.take(4 * ids.len() * problem.cols);
        // SAFETY: ids are rows, and there is room for each.
        unsafe { bench.device.embed(matrix, ids_at, ids.len(), 2.0, out) }.expect("a launch");
        let found: Vec<f32> = bench.download(out, ids.len() * problem.cols);
        for (id, found) in ids.iter().zip(found.chunks(problem.cols)) {
            let row = &problem.weights[*id as usize * problem.cols..][..problem.cols];
            for (col, (found, w)) in found.iter().zip(row).enumerate() {
                // One rounding more than the reference, where scale and minimum are fused.
                assert!((found - 2.0 * w).abs() <= 2e-7 * (w.abs() + 0.5), "{format:?}, {id}, {col}: {found}, {w}");
            }
        }
    }
    assert_eq!(gpu.fault(), "");
}

#[test]
fn an_empty_batch_launches_nothing() {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    let problem = Problem::new(FORMATS[0], 16, 64);
    let mut bench = Bench::new();
    let matrix = problem.matrix(&mut bench);
    let (input, _) = bench.stored(&[0.0; 64], 64, 1);
    let output = Output { at: Ptr::NULL, stride: 16, bias: Ptr::NULL, accumulate: false };
    let before = gpu.counters().launches;
    // SAFETY: nothing is read or written.
    unsafe { bench.device.multiply(matrix, input, 0, output, None) }.expect("nothing to do");
    assert_eq!(gpu.counters().launches, before);
}
