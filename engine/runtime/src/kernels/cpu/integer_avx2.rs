//! The integer kernels with AVX2.
//!
//! Eight rows are transposed on the fly (unpack_avx2.rs), so that each 32-bit lane holds four consecutive
//! columns of one row. The eight `maddubs` of a block then add up inside the lanes: no horizontal sum, and for
//! 4-bit weights even the i16 sums of a whole block fit (8 * 2 * 15 * 127 = 30480). One token works from registers; several tokens share one unpacked copy.

// Vectors go through plain loops here, never through closures: the library functions that would call the
// closure (`array::map`, `from_fn`) lack the target features, and nothing would be inlined across them.
#![allow(clippy::needless_range_loop)]

use super::{
    formats::{self, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q6_K, Q8_0},
    integer::{Set, Task},
    matrix::BAND,
    quant::{BLOCK, QuantisedRow, Scale},
    simd::Avx2,
    unpack_avx2::unpack,
};
use std::{arch::x86_64::*, cell::RefCell, ops::Range};

/// Rows of a vector.
const GROUP: usize = 8;
/// Groups of a band, which share each broadcast activation.
const PAIR: usize = BAND / GROUP;
/// Tokens that share each load of weights.
const TILE: usize = 4;

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

impl Set for Avx2 {
    fn multiply<const KIND: u8>(self, task: &Task<'_>) {
        // SAFETY: a value of Avx2 proves that the features are there.
        unsafe { multiply::<KIND>(task) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply<const KIND: u8>(task: &Task<'_>) {
    let (row_bytes, blocks) = (task.matrix.row_bytes(), task.input.blocks());
    assert!(row_bytes == formats::row_bytes(KIND, blocks));
    if task.tokens.len() == 1 {
        for band in task.bands.clone() {
            for (index, bytes) in task.matrix.band(band).chunks_exact(GROUP * row_bytes).enumerate() {
                let out = one_token::<KIND>(bytes, row_bytes, task.input.row(task.tokens.start));
                task.out.put(task.tokens.start, band * BAND + index * GROUP, &out);
            }
        }
        return;
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(scratch.len().max(PAIR * blocks), EMPTY);
        let (first, second) = scratch[..PAIR * blocks].split_at_mut(blocks);
        for band in task.bands.clone() {
            let (upper, lower) = task.matrix.band(band).split_at(GROUP * row_bytes);
            pack::<KIND>(upper, row_bytes, first);
            pack::<KIND>(lower, row_bytes, second);
            tiles::<KIND>([first, second], band * BAND, task);
        }
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tiles<const KIND: u8>(packed: [&[Packed]; PAIR], row: usize, task: &Task<'_>) {
    let Range { start: mut token, end } = task.tokens;
    while token < end {
        match end - token {
            1 => tile::<KIND, 1>(packed, row, task, token),
            2 => tile::<KIND, 2>(packed, row, task, token),
            3 => tile::<KIND, 3>(packed, row, task, token),
            _ => tile::<KIND, TILE>(packed, row, task, token),
        }
        token += TILE.min(end - token);
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

/// Into how many runs a block's products are cut: i16 sums hold a block of 4-bit weights (32 * 15 * 127 in two lanes),
/// half a block of 5 and 6 bits.
const fn runs(kind: u8) -> usize {
    if matches!(kind, Q4_0 | Q4_1 | Q4_K | Q8_0) { 1 } else { 2 }
}

/// Adds four products per lane: to i32 sums for 8-bit weights, to i16 sums of one run otherwise.
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

/// Integer products of one part, from those of one run or two.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn whole<const KIND: u8>(runs: [__m256i; 2], scale: &Scale) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    let sum = match KIND {
        Q8_0 => runs[0],
        Q4_0 | Q4_1 | Q4_K | Q3_K | Q6_K => _mm256_madd_epi16(runs[0], ones),
        _ => _mm256_add_epi32(_mm256_madd_epi16(runs[0], ones), _mm256_madd_epi16(runs[1], ones)),
    };
    match formats::offset_bits(KIND) {
        // Unsigned as unpacked.
        Some(bits) if matches!(KIND, Q4_0 | Q5_0) => _mm256_add_epi32(sum, _mm256_set1_epi32(scale.negative << bits)),
        _ => sum,
    }
}

/// Folds one part's integer products into the f32 sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fold(acc: __m256, dot: __m256i, d: __m256, scale: &Scale) -> __m256 {
    _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(scale.step)), _mm256_cvtepi32_ps(dot), acc)
}

/// Adds one block's minima.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fold_min<const KIND: u8>(acc: __m256, m: __m256, scale: &Scale) -> __m256 {
    if formats::has_min(KIND) { _mm256_fmadd_ps(m, _mm256_set1_ps(scale.sum), acc) } else { acc }
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
    let (parts, runs) = (formats::parts(KIND), runs(KIND));
    let mut acc = _mm256_setzero_ps();
    for (index, (q, scale)) in q.iter().zip(scale).enumerate() {
        prefetch(bytes.as_ptr().wrapping_add(PREFETCH_BYTES + index * stretch(KIND)), stretch(KIND));
        // SAFETY: `index` is below the number of blocks in each of the eight rows, by the assertion.
        let block = unsafe { unpack::<KIND>(bytes.as_ptr(), row_bytes, index) };
        for part in 0..parts {
            let mut sums = [_mm256_setzero_si256(); 2];
            for run in 0..runs / parts {
                for dword in (part + run) * 8 / runs..(part + run + 1) * 8 / runs {
                    sums[run] = step::<KIND>(sums[run], block.w[dword], broadcast(q, dword));
                }
            }
            acc = fold(acc, whole::<KIND>(sums, scale), block.d[part], scale);
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

/// A band times `T` tokens from `token` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const KIND: u8, const T: usize>(packed: [&[Packed]; PAIR], row: usize, task: &Task<'_>, token: usize) {
    let blocks = task.input.blocks();
    let packed: [&[Packed]; PAIR] = packed.map(|rows| &rows[..blocks]);
    let rows: [QuantisedRow<'_>; T] = std::array::from_fn(|t| {
        let (q, scale) = task.input.row(token + t);
        (&q[..blocks], &scale[..blocks])
    });
    let mut acc = [[_mm256_setzero_ps(); T]; PAIR];
    let (parts, runs) = (formats::parts(KIND), runs(KIND));
    for index in 0..blocks {
        for part in 0..parts {
            let mut sums = [[[_mm256_setzero_si256(); 2]; T]; PAIR];
            for run in 0..runs / parts {
                for dword in (part + run) * 8 / runs..(part + run + 1) * 8 / runs {
                    let mut w = [_mm256_setzero_si256(); PAIR];
                    for g in 0..PAIR {
                        // SAFETY: reads 32 bytes of an array of 32, aligned by the type.
                        w[g] = unsafe { _mm256_load_si256(packed[g][index].w[dword].as_ptr().cast()) };
                    }
                    for t in 0..T {
                        let a = broadcast(&rows[t].0[index], dword);
                        for g in 0..PAIR {
                            sums[g][t][run] = step::<KIND>(sums[g][t][run], w[g], a);
                        }
                    }
                }
            }
            for g in 0..PAIR {
                // SAFETY: reads an array of eight f32, aligned by the type.
                let d = unsafe { _mm256_load_ps(packed[g][index].d[part].as_ptr()) };
                for t in 0..T {
                    let scale = &rows[t].1[index];
                    acc[g][t] = fold(acc[g][t], whole::<KIND>(sums[g][t], scale), d, scale);
                }
            }
        }
        for g in 0..PAIR {
            // SAFETY: reads an array of eight f32, aligned by the type.
            let m = unsafe { _mm256_load_ps(packed[g][index].m.as_ptr()) };
            for t in 0..T {
                acc[g][t] = fold_min::<KIND>(acc[g][t], m, &rows[t].1[index]);
            }
        }
    }
    for g in 0..PAIR {
        for t in 0..T {
            task.out.put(token + t, row + g * GROUP, &to_array(acc[g][t]));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_array(v: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: writes eight f32 into an array of eight.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
    out
}
