//! Weights of any type, dequantised, times f32 activations: the reference, and the path of F16 and F32
//! weights. Lanes run across sixteen rows; each row's sum runs in column order, whatever the tile.

// See integer_avx2.rs: vectors go through plain loops, never through closures.
#![allow(clippy::needless_range_loop)]

use super::{
    matmul::Out,
    matrix::{BAND, Matrix},
    simd::{Isa, Kernel, Simd},
};
use std::{cell::RefCell, ops::Range};

thread_local! {
    /// One row, and the band by (column, row).
    static SCRATCH: RefCell<(Vec<f32>, Vec<[f32; BAND]>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Multiplies the rows of `bands` with rows `tokens` of `input` (row-major, `matrix.cols` wide).
pub(super) fn multiply(
    isa: Isa,
    matrix: &Matrix,
    bands: Range<usize>,
    input: &[f32],
    tokens: Range<usize>,
    out: Out<'_>,
) {
    SCRATCH.with_borrow_mut(|(row, columns)| {
        row.resize(matrix.cols, 0.0);
        columns.resize(matrix.cols, [0.0; BAND]);
        for band in bands {
            for lane in 0..BAND {
                matrix.dequantise_row((band * BAND + lane).min(matrix.rows - 1), row);
                for (column, x) in columns.iter_mut().zip(row.iter()) {
                    column[lane] = *x;
                }
            }
            isa.run(Tiles { columns, row: band * BAND, input, tokens: tokens.clone(), out });
        }
    });
}

struct Tiles<'a> {
    columns: &'a [[f32; BAND]],
    row: usize,
    input: &'a [f32],
    tokens: Range<usize>,
    out: Out<'a>,
}

impl Kernel for Tiles<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut token = self.tokens.start;
        while token < self.tokens.end {
            token = match self.tokens.end - token {
                1 => tile::<S, 1>(s, &self, token),
                2 => tile::<S, 2>(s, &self, token),
                3..=5 => tile::<S, 3>(s, &self, token),
                _ => tile::<S, 6>(s, &self, token),
            }
        }
    }
}

/// Sixteen rows times `T` tokens: twelve sums, two vectors of weights and an activation fill the registers of AVX2.
/// Returns the next token.
#[inline(always)]
fn tile<S: Simd, const T: usize>(s: S, job: &Tiles<'_>, token: usize) -> usize {
    let width = job.columns.len();
    let rows: [&[f32]; T] = std::array::from_fn(|t| &job.input[(token + t) * width..][..width]);
    let mut acc = [[s.zero(); 2]; T];
    for (index, column) in job.columns.iter().enumerate() {
        let (halves, _) = column.as_chunks::<8>();
        let w = [s.load(&halves[0]), s.load(&halves[1])];
        for t in 0..T {
            let a = s.splat(rows[t][index]);
            acc[t] = [s.fma(w[0], a, acc[t][0]), s.fma(w[1], a, acc[t][1])];
        }
    }
    for t in 0..T {
        for half in 0..2 {
            job.out.put(token + t, job.row + half * 8, &s.array(acc[t][half]));
        }
    }
    token + T
}
