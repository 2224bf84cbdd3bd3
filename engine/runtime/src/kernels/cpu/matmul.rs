//! Matrix products over the thread pool. Work is cut by output rows and tokens only, never along a sum.

use super::{
    integer,
    matrix::{GROUP, Matrix},
    pool::{Pool, SharedMut},
    quant::Quantised,
    real,
    simd::Isa,
};

/// Activations of a step: `tokens` rows, in f32 and, where integer kernels are wanted, in int8 too.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub tokens: usize,
    pub real: &'a [f32],
    pub quantised: Option<&'a Quantised>,
}

/// `out[token][row] (+)= matrix[row] . input[token]`, `out` being `tokens` x `matrix.rows`.
pub struct Job<'a> {
    pub matrix: &'a Matrix,
    pub out: &'a mut [f32],
    /// Add to what is there (a residual connection) instead of replacing it.
    pub accumulate: bool,
}

/// Tokens per pass over the weights: their activations should stay in the second-level cache.
const TOKENS_PER_PASS: usize = 128;
/// Row groups per item: enough to make an item worth its hand-out, few enough to balance the threads.
const GROUPS_PER_ITEM_ONE: usize = 6;
const GROUPS_PER_ITEM_MANY: usize = 2;

struct Part<'a> {
    matrix: &'a Matrix,
    out: SharedMut<'a, f32>,
    accumulate: bool,
    items: usize,
}

/// Runs several products of the same input as one parallel region.
pub fn multiply(pool: &mut Pool, isa: Isa, input: Input<'_>, jobs: Vec<Job<'_>>) {
    let per_item = if input.tokens == 1 { GROUPS_PER_ITEM_ONE } else { GROUPS_PER_ITEM_MANY };
    let parts: Vec<Part<'_>> = jobs.into_iter().map(|job| part(job, input.tokens, per_item)).collect();
    let items_per_pass: usize = parts.iter().map(|part| part.items).sum();
    let passes = input.tokens.div_ceil(TOKENS_PER_PASS);
    pool.run(passes * items_per_pass, &|item| {
        let first = item / items_per_pass * TOKENS_PER_PASS;
        let tokens = first..(first + TOKENS_PER_PASS).min(input.tokens);
        let mut rest = item % items_per_pass;
        for part in &parts {
            if rest < part.items {
                let groups = rest * per_item..((rest + 1) * per_item).min(part.matrix.groups());
                return run_item(isa, part, groups, input, tokens);
            }
            rest -= part.items;
        }
    });
}

fn part<'a>(job: Job<'a>, tokens: usize, per_item: usize) -> Part<'a> {
    assert_eq!(job.out.len(), tokens * job.matrix.rows, "output of a product has the wrong size");
    Part {
        matrix: job.matrix,
        out: SharedMut::new(job.out),
        accumulate: job.accumulate,
        items: job.matrix.groups().div_ceil(per_item),
    }
}

fn run_item(
    isa: Isa,
    part: &Part<'_>,
    groups: std::ops::Range<usize>,
    input: Input<'_>,
    tokens: std::ops::Range<usize>,
) {
    let rows = part.matrix.rows;
    let sink = |token: usize, group: usize, values: &[f32; GROUP]| {
        let row = group * GROUP;
        // SAFETY: an item is handed out once, and each (token, group) belongs to one item, so nobody else
        // touches these elements.
        let out = unsafe { part.out.slice(token * rows + row, GROUP.min(rows - row)) };
        for (out, value) in out.iter_mut().zip(values) {
            *out = if part.accumulate { *out + value } else { *value };
        }
    };
    match input.quantised.filter(|_| part.matrix.is_integer()) {
        Some(quantised) => integer::multiply(isa, part.matrix, groups, quantised, tokens, sink),
        None => real::multiply(isa, part.matrix, groups, input.real, tokens, sink),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_store::{GgmlType, TensorData};
    use half::{bf16, f16};

    /// Neither is a multiple of what the kernels take at once; the second suits the K formats.
    fn cols(kind: GgmlType) -> usize {
        if kind.block_len() > 96 { 512 } else { 96 }
    }

    /// Noise in [-1, 1), the same on every run.
    fn noise(index: usize) -> f32 {
        (index as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b) as i32 as f32
            / (1u32 << 31) as f32
    }

    fn matrix(kind: GgmlType, rows: usize) -> Matrix {
        let cols = cols(kind);
        let elements = rows * cols;
        let half = |x: f32| f16::from_f32(x).to_le_bytes();
        let block = |block: usize, scales: &[f32], len: usize| -> Vec<u8> {
            let scales = scales.iter().flat_map(|scale| half(scale * (1.5 + noise(block))));
            scales.chain((0..len).map(|i| (noise(block * 31 + i) * 1e6) as i32 as u8)).collect()
        };
        let bytes: Vec<u8> = match kind {
            GgmlType::F32 => (0..elements).flat_map(|i| noise(i).to_le_bytes()).collect(),
            GgmlType::F16 => (0..elements).flat_map(|i| half(noise(i))).collect(),
            GgmlType::BF16 => (0..elements).flat_map(|i| bf16::from_f32(noise(i)).to_le_bytes()).collect(),
            GgmlType::Q4_0 => (0..elements / 32).flat_map(|i| block(i, &[0.1], 16)).collect(),
            GgmlType::Q4_1 => (0..elements / 32).flat_map(|i| block(i, &[0.1, -0.8], 16)).collect(),
            GgmlType::Q5_0 => (0..elements / 32).flat_map(|i| block(i, &[0.05], 20)).collect(),
            GgmlType::Q5_1 => (0..elements / 32).flat_map(|i| block(i, &[0.05, -0.8], 20)).collect(),
            GgmlType::Q8_0 => (0..elements / 32).flat_map(|i| block(i, &[0.01], 32)).collect(),
            // Both scales first, and scales of 6 bits.
            GgmlType::Q4_K => (0..elements / 256).flat_map(|i| block(i, &[0.0005, 0.003], 140)).collect(),
            GgmlType::Q5_K => (0..elements / 256).flat_map(|i| block(i, &[0.0003, 0.003], 172)).collect(),
            // The scales last.
            GgmlType::Q2_K => (0..elements / 256).flat_map(|i| turned(block(i, &[0.02, 0.02], 80), 4)).collect(),
            GgmlType::Q3_K => (0..elements / 256).flat_map(|i| turned(block(i, &[0.004], 108), 2)).collect(),
            GgmlType::Q6_K => (0..elements / 256).flat_map(|i| turned(block(i, &[0.0002], 208), 2)).collect(),
            other => panic!("a runnable type without a test: {other}"),
        };
        Matrix::new(TensorData::from_bytes(kind, vec![cols as u64, rows as u64], bytes).expect("right size"))
    }

    fn turned(mut block: Vec<u8>, by: usize) -> Vec<u8> {
        block.rotate_left(by);
        block
    }

    /// Products of every row and token, on `isa`, with int8 activations or without.
    fn run(isa: Isa, matrix: &Matrix, input: &[f32], integer: bool) -> Vec<f32> {
        let mut pool = Pool::new(2, |_| {}).expect("two threads");
        let tokens = input.len() / matrix.cols;
        let mut quantised = Quantised::default();
        quantised.resize(tokens, matrix.cols);
        quantised.fill(&mut pool, isa, input);
        let mut out = vec![0.5; tokens * matrix.rows];
        let input = Input { tokens, real: input, quantised: integer.then_some(&quantised) };
        multiply(&mut pool, isa, input, vec![Job { matrix, out: &mut out, accumulate: true }]);
        out
    }

    #[test]
    fn all_formats_sizes_and_instruction_sets_agree() {
        for kind in engine_store::RUNNABLE_TYPES {
            let cols = cols(kind);
            for rows in [1, 8, 21, 40] {
                let matrix = matrix(kind, rows);
                for tokens in [1, 2, 3, 5, 11, 150] {
                    let input: Vec<f32> = (0..tokens * cols).map(|i| noise(i + 7) * 3.0).collect();
                    let mut weights = vec![0.0; cols];
                    for integer in [false, true] {
                        let out = run(Isa::detect(), &matrix, &input, integer);
                        assert_eq!(
                            out,
                            run(Isa::Portable, &matrix, &input, integer),
                            "{kind} {rows} {tokens} {integer}"
                        );
                        let tolerance = if integer && matrix.is_integer() { 0.5 } else { 1e-4 };
                        for (index, found) in out.iter().enumerate() {
                            matrix.dequantise_row(index % rows, &mut weights);
                            let x = &input[index / rows * cols..][..cols];
                            let exact = 0.5 + x.iter().zip(&weights).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                            let tolerance = tolerance + exact.abs() * 1e-5;
                            assert!((f64::from(*found) - exact).abs() < tolerance, "{kind}: {found}, expected {exact}");
                        }
                    }
                }
            }
        }
    }
}
