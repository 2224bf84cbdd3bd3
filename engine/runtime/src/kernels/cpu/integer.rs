//! Quantised weights times int8 activations, eight rows at a time, lanes across rows.
//!
//! For each block of 32 columns the integer dot product is exact; the f32 sum over blocks then runs in
//! column order with `acc = fma(d * s, dot, acc)` and, for formats with a minimum, `acc = fma(m, s * sum, acc)`.
//! That order is the same for one token or many and for AVX2 or portable code: results are bitwise equal.

#[cfg(target_arch = "x86_64")]
use super::integer_avx2;
use super::{integer_portable, matrix::Matrix, quant::Quantised, simd::Isa};
use engine_store::GgmlType;
use std::ops::Range;

pub(super) const Q4_0: u8 = 0;
pub(super) const Q4_1: u8 = 1;
pub(super) const Q8_0: u8 = 2;

pub(super) const fn block_bytes(kind: u8) -> usize {
    match kind {
        Q4_0 => 18,
        Q4_1 => 20,
        _ => 34,
    }
}

/// Offset of the quantised values in a block: after the scale, and the minimum if there is one.
pub(super) const fn values_at(kind: u8) -> usize {
    if kind == Q4_1 { 4 } else { 2 }
}

/// Takes the eight results of (token, group).
pub trait Sink: FnMut(usize, usize, &[f32; 8]) {}
impl<F: FnMut(usize, usize, &[f32; 8])> Sink for F {}

/// Multiplies the rows of `groups` with the activations of `tokens`.
pub fn multiply(
    isa: Isa,
    matrix: &Matrix,
    groups: Range<usize>,
    input: &Quantised,
    tokens: Range<usize>,
    sink: impl Sink,
) {
    match matrix.kind {
        GgmlType::Q4_0 => multiply_kind::<Q4_0>(isa, matrix, groups, input, tokens, sink),
        GgmlType::Q4_1 => multiply_kind::<Q4_1>(isa, matrix, groups, input, tokens, sink),
        _ => multiply_kind::<Q8_0>(isa, matrix, groups, input, tokens, sink),
    }
}

fn multiply_kind<const KIND: u8>(
    isa: Isa,
    matrix: &Matrix,
    groups: Range<usize>,
    input: &Quantised,
    tokens: Range<usize>,
    sink: impl Sink,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the Avx2 token proves that the features are there.
        Isa::Avx2(_) => unsafe { integer_avx2::multiply::<KIND>(matrix, groups, input, tokens, sink) },
        Isa::Portable => integer_portable::multiply::<KIND>(matrix, groups, input, tokens, sink),
    }
}
