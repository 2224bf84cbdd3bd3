//! Weights of any type, dequantised, times f32 activations: the reference, and the path of F16 and F32
//! weights. Lanes run across eight rows; each row's sum runs in column order, whatever the tile.

// See integer_avx2.rs: vectors go through plain loops, never through closures.
#![allow(clippy::needless_range_loop)]

use super::{
    integer::Sink,
    matrix::{GROUP, Matrix},
    simd::{Isa, Kernel, Simd},
};
use std::{cell::RefCell, ops::Range};

thread_local! {
    /// One row, and the group by (column, row).
    static SCRATCH: RefCell<(Vec<f32>, Vec<[f32; GROUP]>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Multiplies the rows of `groups` with rows `tokens` of `input` (row-major, `matrix.cols` wide).
pub fn multiply(
    isa: Isa,
    matrix: &Matrix,
    groups: Range<usize>,
    input: &[f32],
    tokens: Range<usize>,
    mut sink: impl Sink,
) {
    SCRATCH.with_borrow_mut(|(row, columns)| {
        row.resize(matrix.cols, 0.0);
        columns.resize(matrix.cols, [0.0; GROUP]);
        for group in groups {
            for lane in 0..GROUP {
                matrix.dequantise_row((group * GROUP + lane).min(matrix.rows - 1), row);
                for (column, x) in columns.iter_mut().zip(row.iter()) {
                    column[lane] = *x;
                }
            }
            isa.run(Tiles { columns, group, input, tokens: tokens.clone(), sink: &mut sink });
        }
    });
}

struct Tiles<'a, K> {
    columns: &'a [[f32; GROUP]],
    group: usize,
    input: &'a [f32],
    tokens: Range<usize>,
    sink: &'a mut K,
}

impl<K: Sink> Kernel for Tiles<'_, K> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut token = self.tokens.start;
        while token < self.tokens.end {
            token = match self.tokens.end - token {
                1 => tile::<S, 1>(s, &self, token).sink(token, self.group, self.sink),
                2 | 3 => tile::<S, 2>(s, &self, token).sink(token, self.group, self.sink),
                4..=7 => tile::<S, 4>(s, &self, token).sink(token, self.group, self.sink),
                _ => tile::<S, 8>(s, &self, token).sink(token, self.group, self.sink),
            }
        }
    }
}

struct Results<const T: usize>([[f32; 8]; T]);

impl<const T: usize> Results<T> {
    #[inline(always)]
    fn sink(self, token: usize, group: usize, sink: &mut impl Sink) -> usize {
        for (t, out) in self.0.iter().enumerate() {
            sink(token + t, group, out);
        }
        token + T
    }
}

#[inline(always)]
fn tile<S: Simd, const T: usize>(s: S, job: &Tiles<'_, impl Sink>, token: usize) -> Results<T> {
    let width = job.columns.len();
    let rows: [&[f32]; T] = std::array::from_fn(|t| &job.input[(token + t) * width..][..width]);
    let mut acc = [s.zero(); T];
    for (index, column) in job.columns.iter().enumerate() {
        let w = s.load(column);
        for t in 0..T {
            acc[t] = s.fma(w, s.splat(rows[t][index]), acc[t]);
        }
    }
    let mut out = [[0.0; 8]; T];
    for t in 0..T {
        s.store(acc[t], &mut out[t]);
    }
    Results(out)
}
