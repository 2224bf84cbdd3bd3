//! The integer kernels in plain Rust: the definition that the AVX2 code must reproduce bit for bit.

use super::{
    formats::{self, Decoded},
    integer::Sink,
    matrix::{GROUP, Matrix},
    quant::{BLOCK, Quantised},
};
use std::{cell::RefCell, ops::Range};

thread_local! {
    /// The blocks of one row.
    static SCRATCH: RefCell<Vec<Decoded>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn multiply<const KIND: u8>(
    matrix: &Matrix,
    groups: Range<usize>,
    input: &Quantised,
    tokens: Range<usize>,
    mut sink: impl Sink,
) {
    SCRATCH.with_borrow_mut(|decoded| {
        let blocks = input.blocks();
        for group in groups {
            let bytes = matrix.group(group);
            decoded.clear();
            for row in bytes.chunks_exact(matrix.row_bytes()) {
                decoded.extend((0..blocks).map(|index| formats::decode::<KIND>(row, index)));
            }
            for token in tokens.clone() {
                let row = |index: usize| &decoded[index * blocks..][..blocks];
                let out: [f32; GROUP] = std::array::from_fn(|index| dot_row::<KIND>(row(index), input, token));
                sink(token, group, &out);
            }
        }
    });
}

fn dot_row<const KIND: u8>(row: &[Decoded], input: &Quantised, token: usize) -> f32 {
    let (q, scale) = input.row(token);
    let parts = formats::parts(KIND);
    let mut sum = 0.0f32;
    for ((block, q), scale) in row.iter().zip(q).zip(scale) {
        for part in 0..parts {
            let columns = part * BLOCK / parts..(part + 1) * BLOCK / parts;
            let pairs = block.w[columns.clone()].iter().zip(&q[columns]);
            let dot: i32 = pairs.map(|(w, a)| i32::from(*w) * i32::from(*a)).sum();
            sum = (block.d[part] * scale[0]).mul_add(dot as f32, sum);
        }
        if formats::has_min(KIND) {
            sum = block.m[0].mul_add(scale[1], sum);
        }
    }
    sum
}
