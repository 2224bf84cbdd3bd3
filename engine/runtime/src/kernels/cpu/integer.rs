//! Quantised weights times int8 activations, sixteen rows at a time, lanes across rows.
//!
//! For each part of a block (32 columns, or two times 16: `formats::parts`) the integer dot product is exact;
//! the f32 sum then runs in column order with `acc = fma(d * step, dot, acc)` and, for formats with a minimum,
//! once per block with `acc = fma(m, step * sum, acc)`. That order is the same for one token or many and on every
//! instruction set: results are bitwise equal.

use super::{
    formats::{Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0},
    matmul::{Ahead, Out},
    matrix::Matrix,
    quant::Quantised,
    simd::Isa,
};
#[cfg(target_arch = "x86_64")]
use super::{integer_amx, integer_avx512};
use engine_store::GgmlType;
use std::ops::Range;

/// Rows `bands` of a matrix times rows `tokens` of its input.
pub(super) struct Task<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) bands: Range<usize>,
    pub(super) ahead: Ahead,
    pub(super) input: &'a Quantised,
    /// Begins at a multiple of sixteen.
    pub(super) tokens: Range<usize>,
    pub(super) out: Out<'a>,
}

/// What an instruction set brings. A value of the type proves that the CPU has it.
pub(super) trait Set: Copy {
    /// `KIND` is the format of the matrix, one that [`supports`] knows.
    fn multiply<const KIND: u8>(self, task: &Task<'_>);
}

/// Whether these kernels know the type. Q2_K, whose minimum changes every 16 columns, goes the f32 way.
pub(super) fn supports(kind: GgmlType) -> bool {
    use GgmlType as G;
    matches!(kind, G::Q4_0 | G::Q4_1 | G::Q5_0 | G::Q5_1 | G::Q8_0 | G::Q3_K | G::Q4_K | G::Q5_K | G::Q6_K)
}

pub(super) fn multiply(isa: Isa, task: &Task<'_>) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(set) => {
            if let Some(amx) = integer_amx::Amx::new(set).filter(|_| integer_amx::pays(task.tokens.len())) {
                dispatch(amx, task);
            } else if let Some(vnni) = integer_avx512::Vnni::new(set) {
                dispatch(vnni, task);
            } else {
                dispatch(set.avx2(), task);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(set) => dispatch(set, task),
        Isa::Portable => dispatch(super::simd::Portable, task),
    }
}

fn dispatch(set: impl Set, task: &Task<'_>) {
    match task.matrix.kind {
        GgmlType::Q4_0 => set.multiply::<Q4_0>(task),
        GgmlType::Q4_1 => set.multiply::<Q4_1>(task),
        GgmlType::Q5_0 => set.multiply::<Q5_0>(task),
        GgmlType::Q5_1 => set.multiply::<Q5_1>(task),
        GgmlType::Q3_K => set.multiply::<Q3_K>(task),
        GgmlType::Q4_K => set.multiply::<Q4_K>(task),
        GgmlType::Q5_K => set.multiply::<Q5_K>(task),
        GgmlType::Q6_K => set.multiply::<Q6_K>(task),
        _ => set.multiply::<Q8_0>(task),
    }
}
