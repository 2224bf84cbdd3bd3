//! The integer kernels in plain Rust: the definition that the AVX2 code must reproduce bit for bit.

use super::{
    integer::{Q4_0, Q4_1, Q8_0, Sink, block_bytes, values_at},
    matrix::{GROUP, Matrix},
    quant::{BLOCK, Quantised, half},
};
use std::ops::Range;

pub(super) fn multiply<const KIND: u8>(
    matrix: &Matrix,
    groups: Range<usize>,
    input: &Quantised,
    tokens: Range<usize>,
    mut sink: impl Sink,
) {
    for group in groups {
        let bytes = matrix.group(group);
        let row = |index: usize| &bytes[index * matrix.row_bytes()..][..matrix.row_bytes()];
        for token in tokens.clone() {
            let out: [f32; GROUP] = std::array::from_fn(|index| dot_row::<KIND>(row(index), input, token));
            sink(token, group, &out);
        }
    }
}

fn dot_row<const KIND: u8>(row: &[u8], input: &Quantised, token: usize) -> f32 {
    let (q, scale) = input.row(token);
    let mut sum = 0.0f32;
    for ((block, q), scale) in row.chunks_exact(block_bytes(KIND)).zip(q).zip(scale) {
        let d = half(block, 0);
        let dot = dot_block::<KIND>(&block[values_at(KIND)..], q);
        sum = (d * scale[0]).mul_add(dot as f32, sum);
        match KIND {
            Q4_1 => sum = half(block, 2).mul_add(scale[1], sum),
            // Q4_0 stores q + 8.
            Q4_0 => sum = (d * -8.0).mul_add(scale[1], sum),
            _ => {}
        }
    }
    sum
}

fn dot_block<const KIND: u8>(values: &[u8], q: &[i8; BLOCK]) -> i32 {
    if KIND == Q8_0 {
        return values.iter().zip(q).map(|(w, a)| i32::from(*w as i8) * i32::from(*a)).sum();
    }
    let (low, high) = q.split_at(16);
    let pairs = values.iter().zip(low.iter().zip(high));
    pairs.map(|(w, (a, b))| i32::from(w & 15) * i32::from(*a) + i32::from(w >> 4) * i32::from(*b)).sum()
}
