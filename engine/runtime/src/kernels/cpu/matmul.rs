//! Matrix products over the thread pool. Work is cut by output rows and tokens only, never along a sum.
//!
//! With one token a product is the reading of its weights, so each thread reads one contiguous stream and fetches ahead, past
//! the end of its share into the next region's.

use super::{
    integer::{self, Task},
    matrix::Matrix,
    pool::{Pool, SharedMut},
    quant::{Quantised, TILE},
    real, share,
    simd::Isa,
};
use std::ops::Range;

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

/// Where the results of one item go. Items write disjoint places.
#[derive(Clone, Copy)]
pub(super) struct Out<'a> {
    data: &'a SharedMut<'a, f32>,
    rows: usize,
    accumulate: bool,
}

impl Out<'_> {
    /// Results of `N` consecutive rows and one token; rows past the matrix's last are dropped.
    #[inline(always)]
    pub(super) fn put<const N: usize>(&self, token: usize, row: usize, values: &[f32; N]) {
        let count = N.min(self.rows.saturating_sub(row));
        // SAFETY: an item is handed out once, and each (token, row) belongs to one item, so nobody else touches
        // these elements.
        let out = unsafe { self.data.slice(token * self.rows + row.min(self.rows), count) };
        match <&mut [f32; N]>::try_from(&mut *out) {
            // The usual case, of a length known to the compiler.
            Ok(out) if self.accumulate => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
            Ok(out) => *out = *values,
            Err(_) => {
                for (out, value) in out.iter_mut().zip(values) {
                    *out = if self.accumulate { *out + value } else { *value };
                }
            }
        }
    }
}

/// Bytes of int8 activations per pass over the weights: they should stay in the second-level cache.
const PASS_BYTES: usize = 128 << 10;
/// With AVX-512 that cache is at least twice as large.
const PASS_BYTES_AVX512: usize = 512 << 10;
/// Parts of each thread's share, so that threads finish together.
const CHUNKS_PER_THREAD: usize = 16;
const CHUNK_BANDS_MAX: usize = 16;

/// What a thread reads after what it is working on: bytes up to `until`, then those from `then` on. Only for prefetching.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    until: *const u8,
    then: *const u8,
}

impl Ahead {
    /// The place that is read `bytes` after `from`.
    #[inline(always)]
    pub(super) fn of(self, from: *const u8, bytes: usize) -> *const u8 {
        let at = from.wrapping_add(bytes);
        if at < self.until { at } else { self.then.wrapping_add(at.addr() - self.until.addr()) }
    }
}

struct Product<'a> {
    matrix: &'a Matrix,
    out: SharedMut<'a, f32>,
    accumulate: bool,
}

/// Runs several products of the same input as one parallel region. `next` are the matrices of the region after, of which
/// each thread fetches the beginning of its share.
pub fn multiply(pool: &mut Pool, isa: Isa, input: Input<'_>, jobs: Vec<Job<'_>>, next: &[&Matrix]) {
    let pass = pass(isa, jobs.first().map_or(1, |job| job.matrix.cols));
    let products: Vec<Product<'_>> = jobs.into_iter().map(|job| product(job, input.tokens)).collect();
    let matrices: Vec<&Matrix> = products.iter().map(|product| product.matrix).collect();
    let (bands, threads) = (bands(&matrices), pool.threads());
    let chunk = (bands / (threads * CHUNKS_PER_THREAD)).clamp(1, CHUNK_BANDS_MAX);
    share::run(pool, input.tokens.div_ceil(pass) * bands, chunk, |part| {
        let mut item = part.items.start;
        while item < part.items.end {
            let first = item / bands * pass;
            let tokens = first..(first + pass).min(input.tokens);
            let (index, band) = locate(&matrices, item % bands);
            let product = &products[index];
            let count = (part.items.end - item).min(product.matrix.bands() - band);
            let share_end = product.matrix.bands().min(band + part.end - item);
            let then = match matrices.get(index + 1) {
                Some(matrix) if item + share_end - band < part.end => matrix.band(0).as_ptr(),
                _ => beginning(next, part.index, threads),
            };
            let ahead = Ahead { until: product.matrix.band(share_end - 1).as_ptr_range().end, then };
            run_item(isa, product, band..band + count, ahead, input, tokens);
            item += count;
        }
    });
}

fn bands(matrices: &[&Matrix]) -> usize {
    matrices.iter().map(|matrix| matrix.bands()).sum()
}

/// The matrix that band `band` of all lies in, and which band of that matrix it is.
fn locate(matrices: &[&Matrix], mut band: usize) -> (usize, usize) {
    for (index, matrix) in matrices.iter().enumerate() {
        if band < matrix.bands() {
            return (index, band);
        }
        band -= matrix.bands();
    }
    (matrices.len() - 1, 0)
}

/// Where thread `index` will begin to read in a region of these matrices; null when there are none.
fn beginning(matrices: &[&Matrix], index: usize, threads: usize) -> *const u8 {
    if matrices.is_empty() {
        return std::ptr::null();
    }
    let (matrix, band) = locate(matrices, share::own_range(bands(matrices), index, threads).start);
    matrices[matrix].band(band).as_ptr()
}

/// Tokens per pass over the weights, whole tiles of them.
fn pass(isa: Isa, cols: usize) -> usize {
    let bytes = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) => PASS_BYTES_AVX512,
        _ => PASS_BYTES,
    };
    (bytes / cols).next_multiple_of(TILE).max(TILE)
}

fn product<'a>(job: Job<'a>, tokens: usize) -> Product<'a> {
    assert_eq!(job.out.len(), tokens * job.matrix.rows, "output of a product has the wrong size");
    Product { matrix: job.matrix, out: SharedMut::new(job.out), accumulate: job.accumulate }
}

fn run_item(
    isa: Isa,
    product: &Product<'_>,
    bands: Range<usize>,
    ahead: Ahead,
    input: Input<'_>,
    tokens: Range<usize>,
) {
    let matrix = product.matrix;
    let out = Out { data: &product.out, rows: matrix.rows, accumulate: product.accumulate };
    match input.quantised.filter(|_| matrix.is_integer()) {
        Some(input) => integer::multiply(isa, &Task { matrix, bands, ahead, input, tokens, out }),
        None => real::multiply(isa, matrix, bands, input.real, tokens, out),
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
        multiply(&mut pool, isa, input, vec![Job { matrix, out: &mut out, accumulate: true }], &[matrix]);
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
                        let out = run(Isa::Portable, &matrix, &input, integer);
                        for isa in Isa::available() {
                            let found = run(isa, &matrix, &input, integer);
                            assert!(found == out, "{isa:?}, {kind}, {rows} rows, {tokens} tokens, {integer}");
                        }
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
