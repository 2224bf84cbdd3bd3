//! The integer kernels with AVX2.
//!
//! Eight rows are transposed on the fly (unpack_avx2.rs), so that each 32-bit lane holds four consecutive
//! columns of one row. The eight `maddubs` of a block then add up inside the lanes: no horizontal sum, and for
//! 4-bit weights even the i16 sums of a whole block fit (8 * 2 * 15 * 127 = 30480). One token works from registers; several tokens share one unpacked copy.

// Vectors go through plain loops here, never through closures: the library functions that would call the
// closure (`array::map`, `from_fn`) lack the target features, and nothing would be inlined across them.
#![allow(clippy::needless_range_loop)]

use super::{
    formats::{self, Q3_K, Q6_K, Q8_0},
    integer::Sink,
    matrix::{GROUP, Matrix},
    quant::{BLOCK, Quantised, QuantisedRow},
    unpack_avx2::unpack,
};
use std::{arch::x86_64::*, cell::RefCell, ops::Range};

/// One block of eight rows, unpacked: bytes by (four columns, row), scales and minima by row.
#[repr(C, align(32))]
#[derive(Clone, Copy)]
struct Packed {
    w: [[u8; 32]; 8],
    d: [[f32; 8]; 2],
    m: [f32; 8],
}

const EMPTY: Packed = Packed { w: [[0; 32]; 8], d: [[0.0; 8]; 2], m: [0.0; 8] };

thread_local! {
    static SCRATCH: RefCell<Vec<Packed>> = const { RefCell::new(Vec::new()) };
}

/// Row groups that share each broadcast activation.
const PAIR: usize = 2;
/// Tokens that share each load of weights.
const TILE: usize = 4;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply<const KIND: u8>(
    matrix: &Matrix,
    groups: Range<usize>,
    input: &Quantised,
    tokens: Range<usize>,
    mut sink: impl Sink,
) {
    assert!(matrix.row_bytes() == formats::row_bytes(KIND, input.blocks()));
    if tokens.len() == 1 {
        for group in groups {
            let out = one_token::<KIND>(matrix.group(group), matrix.row_bytes(), input.row(tokens.start));
            sink(tokens.start, group, &out);
        }
        return;
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let blocks = input.blocks();
        scratch.resize(scratch.len().max(PAIR * blocks), EMPTY);
        let (first, second) = scratch[..PAIR * blocks].split_at_mut(blocks);
        let mut group = groups.start;
        while group < groups.end {
            pack::<KIND>(matrix.group(group), matrix.row_bytes(), first);
            if group + 1 < groups.end {
                pack::<KIND>(matrix.group(group + 1), matrix.row_bytes(), second);
                tiles::<KIND, PAIR>([first, second], group, input, tokens.clone(), &mut sink);
            } else {
                tiles::<KIND, 1>([first], group, input, tokens.clone(), &mut sink);
            }
            group += PAIR;
        }
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tiles<const KIND: u8, const G: usize>(
    packed: [&[Packed]; G],
    group: usize,
    input: &Quantised,
    tokens: Range<usize>,
    sink: &mut impl Sink,
) {
    let mut token = tokens.start;
    while token < tokens.end {
        match tokens.end - token {
            1 => token = tile::<KIND, G, 1>(packed, group, input, token, sink),
            2 => token = tile::<KIND, G, 2>(packed, group, input, token, sink),
            3 => token = tile::<KIND, G, 3>(packed, group, input, token, sink),
            _ => token = tile::<KIND, G, TILE>(packed, group, input, token, sink),
        }
    }
}

/// Four activations in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn broadcast(q: &[i8; BLOCK], dword: usize) -> __m256i {
    let (words, _) = q.as_chunks::<4>();
    let [a, b, c, d] = words[dword];
    _mm256_set1_epi32(i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]))
}

/// Adds four products per lane: to i32 sums for 8-bit weights, to i16 sums otherwise, which hold all columns
/// of one part (`formats::parts`).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn step<const KIND: u8>(sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
    match KIND {
        // |w| * sign(a, w): the first factor must be unsigned. 2 * 128 * 127 still fits i16, and so does a
        // whole part of 6-bit weights: 8 * 32 * 127 = 32512.
        Q8_0 | Q6_K | Q3_K => {
            let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
            if KIND == Q8_0 {
                return _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
            }
            _mm256_add_epi16(sum, products)
        }
        _ => _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a)),
    }
}

/// Folds one part's integer sums into the f32 sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fold<const KIND: u8>(acc: __m256, sum: __m256i, d: __m256, scale: &[f32; 2]) -> __m256 {
    let dot = if KIND == Q8_0 { sum } else { _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) };
    _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(scale[0])), _mm256_cvtepi32_ps(dot), acc)
}

/// Adds one block's minima.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fold_min<const KIND: u8>(acc: __m256, m: __m256, scale: &[f32; 2]) -> __m256 {
    if formats::has_min(KIND) { _mm256_fmadd_ps(m, _mm256_set1_ps(scale[1]), acc) } else { acc }
}

/// Bytes of eight rows that 32 columns take.
const fn stretch(kind: u8) -> usize {
    GROUP * formats::stored_bytes(kind) / formats::blocks_stored(kind)
}

/// How far ahead of the current group weights are fetched: farther than memory's latency, nearer than the
/// first-level cache is large.
const PREFETCH_BYTES: usize = 6144;

/// Fetches the lines of a stretch of a matrix. Groups follow one another in memory, but within a group the
/// kernel walks eight rows at once in steps of 18 to 34 bytes, which the hardware prefetchers follow badly.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch(from: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // A hint: it never faults, whatever the address, also past the last row.
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast());
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn one_token<const KIND: u8>(bytes: &[u8], row_bytes: usize, input: QuantisedRow<'_>) -> [f32; 8] {
    let (q, scale) = input;
    assert!(bytes.len() == GROUP * row_bytes && formats::row_bytes(KIND, q.len()) == row_bytes);
    let parts = formats::parts(KIND);
    let mut acc = _mm256_setzero_ps();
    for (index, (q, scale)) in q.iter().zip(scale).enumerate() {
        prefetch(bytes.as_ptr().wrapping_add(PREFETCH_BYTES + index * stretch(KIND)), stretch(KIND));
        // SAFETY: `index` is below the number of blocks in each of the eight rows, by the assertion.
        let block = unsafe { unpack::<KIND>(bytes.as_ptr(), row_bytes, index) };
        for part in 0..parts {
            let mut sum = _mm256_setzero_si256();
            for dword in part * 8 / parts..(part + 1) * 8 / parts {
                sum = step::<KIND>(sum, block.w[dword], broadcast(q, dword));
            }
            acc = fold::<KIND>(acc, sum, block.d[part], scale);
        }
        acc = fold_min::<KIND>(acc, block.m, scale);
    }
    to_array(acc)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack<const KIND: u8>(bytes: &[u8], row_bytes: usize, out: &mut [Packed]) {
    assert!(bytes.len() == GROUP * row_bytes && formats::row_bytes(KIND, out.len()) == row_bytes);
    for (index, out) in out.iter_mut().enumerate() {
        prefetch(bytes.as_ptr().wrapping_add(PREFETCH_BYTES + index * stretch(KIND)), stretch(KIND));
        // SAFETY: `index` is below the number of blocks in each of the eight rows, by the assertion; stores go
        // to the arrays of `out`, whose alignment is 32.
        unsafe {
            let block = unpack::<KIND>(bytes.as_ptr(), row_bytes, index);
            for dword in 0..8 {
                _mm256_store_si256(out.w[dword].as_mut_ptr().cast(), block.w[dword]);
            }
            for part in 0..2 {
                _mm256_store_ps(out.d[part].as_mut_ptr(), block.d[part]);
            }
            _mm256_store_ps(out.m.as_mut_ptr(), block.m);
        }
    }
}

/// `G` groups of rows times `T` tokens from `token` on; returns the next token.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const KIND: u8, const G: usize, const T: usize>(
    packed: [&[Packed]; G],
    group: usize,
    input: &Quantised,
    token: usize,
    sink: &mut impl Sink,
) -> usize {
    let blocks = input.blocks();
    let packed: [&[Packed]; G] = packed.map(|rows| &rows[..blocks]);
    let rows: [QuantisedRow<'_>; T] = std::array::from_fn(|t| {
        let (q, scale) = input.row(token + t);
        (&q[..blocks], &scale[..blocks])
    });
    let mut acc = [[_mm256_setzero_ps(); T]; G];
    let parts = formats::parts(KIND);
    for index in 0..blocks {
        for part in 0..parts {
            let mut sum = [[_mm256_setzero_si256(); T]; G];
            for dword in part * 8 / parts..(part + 1) * 8 / parts {
                let mut w = [_mm256_setzero_si256(); G];
                for g in 0..G {
                    // SAFETY: reads 32 bytes of an array of 32, aligned by the type.
                    w[g] = unsafe { _mm256_load_si256(packed[g][index].w[dword].as_ptr().cast()) };
                }
                for t in 0..T {
                    let a = broadcast(&rows[t].0[index], dword);
                    for g in 0..G {
                        sum[g][t] = step::<KIND>(sum[g][t], w[g], a);
                    }
                }
            }
            for g in 0..G {
                // SAFETY: reads an array of eight f32, aligned by the type.
                let d = unsafe { _mm256_load_ps(packed[g][index].d[part].as_ptr()) };
                for t in 0..T {
                    acc[g][t] = fold::<KIND>(acc[g][t], sum[g][t], d, &rows[t].1[index]);
                }
            }
        }
        for g in 0..G {
            // SAFETY: reads an array of eight f32, aligned by the type.
            let m = unsafe { _mm256_load_ps(packed[g][index].m.as_ptr()) };
            for t in 0..T {
                acc[g][t] = fold_min::<KIND>(acc[g][t], m, &rows[t].1[index]);
            }
        }
    }
    for g in 0..G {
        for t in 0..T {
            sink(token + t, group + g, &to_array(acc[g][t]));
        }
    }
    token + T
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_array(v: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: writes eight f32 into an array of eight.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}
