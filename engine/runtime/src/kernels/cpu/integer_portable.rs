//! The integer kernels in plain Rust: the definition that all others must reproduce bit for bit.

use super::{
    formats::{self, Decoded},
    integer::{Set, Task},
    matrix::BAND,
    quant::{BLOCK, QuantisedRow},
    simd::Portable,
};
use std::cell::RefCell;

thread_local! {
    /// The blocks of sixteen rows.
    static SCRATCH: RefCell<Vec<Decoded>> = const { RefCell::new(Vec::new()) };
}

impl Set for Portable {
    fn multiply<const KIND: u8>(self, task: &Task<'_>) {
        SCRATCH.with_borrow_mut(|decoded| {
            let blocks = task.input.blocks();
            for band in task.bands.clone() {
                decoded.clear();
                for row in task.matrix.band(band).chunks_exact(task.matrix.row_bytes()) {
                    decoded.extend((0..blocks).map(|index| formats::decode::<KIND>(row, index)));
                }
                for token in task.tokens.clone() {
                    let row = |index: usize| &decoded[index * blocks..][..blocks];
                    let out: [f32; BAND] =
                        std::array::from_fn(|index| dot_row::<KIND>(row(index), task.input.row(token)));
                    task.out.put(token, band * BAND, &out);
                }
            }
        });
    }
}

fn dot_row<const KIND: u8>(row: &[Decoded], (q, scale): QuantisedRow<'_>) -> f32 {
    let parts = formats::parts(KIND);
    let mut sum = 0.0f32;
    for ((block, q), scale) in row.iter().zip(q).zip(scale) {
        for part in 0..parts {
            let columns = part * BLOCK / parts..(part + 1) * BLOCK / parts;
            let pairs = block.w[columns.clone()].iter().zip(&q[columns]);
            let dot: i32 = pairs.map(|(w, a)| i32::from(*w) * i32::from(*a)).sum();
            sum = (block.d[part] * scale.step).mul_add(dot as f32, sum);
        }
        if formats::has_min(KIND) {
            sum = block.m[0].mul_add(scale.sum, sum);
        }
    }
    sum
}
