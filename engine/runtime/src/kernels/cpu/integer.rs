//! Quantised weights times int8 activations, eight rows at a time, lanes across rows.
//!
//! For each part of a block (32 columns, or two times 16: `formats::parts`) the integer dot product is exact;
//! the f32 sum then runs in column order with `acc = fma(d * s, dot, acc)` and, for formats with a minimum,
//! once per block with `acc = fma(m, s * sum, acc)`. That order is the same for one token or many and for
//! AVX2 or portable code: results are bitwise equal.

#[cfg(target_arch = "x86_64")]
use super::integer_avx2;
use super::{
    formats::{Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0},
    integer_portable,
    matrix::Matrix,
    quant::Quantised,
    simd::Isa,
};
use engine_store::GgmlType;
use std::ops::Range;

/// Takes the eight results of (token, group).
pub trait Sink: FnMut(usize, usize, &[f32; 8]) {}
impl<F: FnMut(usize, usize, &[f32; 8])> Sink for F {}

/// Whether these kernels know the type. Q2_K, whose minimum changes every 16 columns, goes the f32 way.
pub fn supports(kind: GgmlType) -> bool {
    use GgmlType as G;
    matches!(kind, G::Q4_0 | G::Q4_1 | G::Q5_0 | G::Q5_1 | G::Q8_0 | G::Q3_K | G::Q4_K | G::Q5_K | G::Q6_K)
}

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
        GgmlType::Q5_0 => multiply_kind::<Q5_0>(isa, matrix, groups, input, tokens, sink),
        GgmlType::Q5_1 => multiply_kind::<Q5_1>(isa, matrix, groups, input, tokens, sink),
        GgmlType::Q3_K => multiply_kind::<Q3_K>(isa, matrix, groups, input, tokens, sink),
        GgmlType::Q4_K => multiply_kind::<Q4_K>(isa, matrix, groups, input, tokens, sink),
        GgmlType::Q5_K => multiply_kind::<Q5_K>(isa, matrix, groups, input, tokens, sink),
        GgmlType::Q6_K => multiply_kind::<Q6_K>(isa, matrix, groups, input, tokens, sink),
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
        // SAFETY: the Avx512 token proves that AVX2's features are there too.
        Isa::Avx512(_) => unsafe { integer_avx2::multiply::<KIND>(matrix, groups, input, tokens, sink) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the Avx2 token proves that the features are there.
        Isa::Avx2(_) => unsafe { integer_avx2::multiply::<KIND>(matrix, groups, input, tokens, sink) },
        Isa::Portable => integer_portable::multiply::<KIND>(matrix, groups, input, tokens, sink),
    }
}
