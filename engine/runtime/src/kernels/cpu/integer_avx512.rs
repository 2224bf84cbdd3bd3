//! The integer kernels with AVX-512 VNNI: `vpdpbusd` adds four products per lane to i32 sums, sixteen rows at once, the
//! activations coming from memory as one broadcast dword.
//!
//! Its first factor is unsigned: signed weights are lifted by their offset (`formats::offset_bits`), and the sums begin
//! with what that will add, negated. One token works from registers; several share one unpacked copy.

// See integer_avx2.rs: vectors go through plain loops, never through closures.
#![allow(clippy::needless_range_loop)]

use super::{
    formats,
    integer::{Set, Task},
    matrix::BAND,
    quant::{BLOCK, QuantisedRow, Scale},
    simd::Avx512,
    unpack_avx512::{EMPTY, Packed, ROW_BYTES_MAX, Rows, is_small, pack, unpack},
};
use std::{arch::x86_64::*, cell::RefCell};

thread_local! {
    static SCRATCH: RefCell<Vec<Packed>> = const { RefCell::new(Vec::new()) };
}

/// Tokens that share each load of weights.
const TILE: usize = 8;

/// Proof that the CPU has AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub(super) struct Vnni(());

impl Vnni {
    pub(super) fn new(set: Avx512) -> Option<Self> {
        set.vnni().then_some(Self(()))
    }
}

impl Set for Vnni {
    fn multiply<const KIND: u8>(self, task: &Task<'_>) {
        // SAFETY: the value proves that the features are there.
        unsafe { multiply::<KIND>(task) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn multiply<const KIND: u8>(task: &Task<'_>) {
    if is_small(KIND) && task.tokens.len() == 1 {
        check::<KIND>(task);
        for band in task.bands.clone() {
            let sum = one_token::<KIND>(task, band);
            task.out.put(task.tokens.start, band * BAND, &sum);
        }
        return;
    }
    each_packed::<KIND, false>(task, |packed, row| {
        let (mut token, end) = (task.tokens.start, task.tokens.end);
        while token < end {
            token += match end - token {
                1 => tile::<KIND, 1>(packed, row, task, token),
                2 | 3 => tile::<KIND, 2>(packed, row, task, token),
                4..TILE => tile::<KIND, 4>(packed, row, task, token),
                _ => tile::<KIND, TILE>(packed, row, task, token),
            };
        }
    });
}

/// Every band of the task, unpacked, and its first row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn each_packed<const KIND: u8, const SIGNED: bool>(task: &Task<'_>, multiply: impl Fn(&[Packed], usize)) {
    check::<KIND>(task);
    let blocks = task.input.blocks();
    let mut scratch = SCRATCH.take();
    scratch.resize(scratch.len().max(blocks), EMPTY);
    for band in task.bands.clone() {
        let bytes = task.matrix.band(band);
        let packed = &mut scratch[..blocks];
        let stored = formats::blocks_stored(KIND);
        let rows = Rows::new(bytes.as_ptr(), task.matrix.row_bytes());
        for (index, packed) in packed.chunks_exact_mut(stored).enumerate() {
            let bytes_stored = formats::stored_bytes(KIND);
            prefetch(task, bytes.as_ptr().wrapping_add(index * bytes_stored * BAND), bytes_stored * BAND);
            // SAFETY: sixteen rows of `blocks` blocks, by `check`.
            unsafe { pack::<KIND, SIGNED>(rows.skip(index * bytes_stored), packed) };
        }
        multiply(packed, band * BAND);
    }
    SCRATCH.set(scratch);
}

/// That all the kernels read lies in the matrix.
fn check<const KIND: u8>(task: &Task<'_>) {
    let (row_bytes, blocks) = (task.matrix.row_bytes(), task.input.blocks());
    assert!(row_bytes == formats::row_bytes(KIND, blocks) && row_bytes <= ROW_BYTES_MAX);
    assert!(task.bands.clone().all(|band| task.matrix.band(band).len() == BAND * row_bytes));
}

/// How far ahead of the current block weights are fetched into the second-level cache, and into the first.
const FAR_BYTES: usize = 16 << 10;
const NEAR_BYTES: usize = 3 << 10;

/// One band times the task's one token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn one_token<const KIND: u8>(task: &Task<'_>, band: usize) -> [f32; BAND] {
    let (q, scale) = task.input.row(task.tokens.start);
    let bytes = task.matrix.band(band);
    let stored = formats::stored_bytes(KIND);
    let rows = Rows::new(bytes.as_ptr(), task.matrix.row_bytes());
    let mut acc = _mm512_setzero_ps();
    for (index, (q, scale)) in q.iter().zip(scale).enumerate() {
        prefetch(task, bytes.as_ptr().wrapping_add(index * stored * BAND), stored * BAND);
        // SAFETY: `index` is below the number of blocks in each of the sixteen rows, by `check`.
        let block = unsafe { unpack::<KIND, false>(rows.skip(index * stored)) };
        let mut sum = begin::<KIND>(scale, 0);
        for dword in 0..8 {
            sum = _mm512_dpbusd_epi32(sum, block.w[dword], broadcast(q, dword));
        }
        acc = fold(acc, sum, block.d[0], scale);
        acc = fold_min::<KIND>(acc, block.m, scale);
    }
    to_array(acc)
}

/// Fetches a stretch of what follows. Within a band the kernel walks sixteen rows at once in steps of 18 to 34 bytes,
/// which the hardware prefetchers follow badly, but bands follow one another in memory. The first-level cache can wait
/// for too few lines at a time to reach memory's bandwidth, hence the two distances.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn prefetch(task: &Task<'_>, from: *const u8, bytes: usize) {
    let (far, near) = (task.ahead.of(from, FAR_BYTES), task.ahead.of(from, NEAR_BYTES));
    for line in (0..bytes).step_by(64) {
        // Hints: they never fault, whatever the address.
        _mm_prefetch::<_MM_HINT_T1>(far.wrapping_add(line).cast());
        _mm_prefetch::<_MM_HINT_T0>(near.wrapping_add(line).cast());
    }
}

/// What the integer sums of a part begin with.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn begin<const KIND: u8>(scale: &Scale, part: usize) -> __m512i {
    let negative = if formats::parts(KIND) == 1 { scale.negative } else { scale.negative_halves[part] };
    match formats::offset_bits(KIND) {
        Some(bits) => _mm512_sll_epi32(_mm512_set1_epi32(negative), _mm_cvtsi32_si128(bits as i32)),
        None => _mm512_setzero_si512(),
    }
}

/// Four activations in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn broadcast(q: &[i8; BLOCK], dword: usize) -> __m512i {
    let (words, _) = q.as_chunks::<4>();
    let [a, b, c, d] = words[dword];
    _mm512_set1_epi32(i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]))
}

/// Folds one part's integer sums into the f32 sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn fold(acc: __m512, dot: __m512i, d: __m512, scale: &Scale) -> __m512 {
    _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(scale.step)), _mm512_cvtepi32_ps(dot), acc)
}

/// Adds one block's minima.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn fold_min<const KIND: u8>(acc: __m512, m: __m512, scale: &Scale) -> __m512 {
    if formats::has_min(KIND) { _mm512_fmadd_ps(m, _mm512_set1_ps(scale.sum), acc) } else { acc }
}

/// A band times `T` tokens from `token` on; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn tile<const KIND: u8, const T: usize>(packed: &[Packed], row: usize, task: &Task<'_>, token: usize) -> usize {
    let rows: [QuantisedRow<'_>; T] = std::array::from_fn(|t| {
        let (q, scale) = task.input.row(token + t);
        (&q[..packed.len()], &scale[..packed.len()])
    });
    let parts = formats::parts(KIND);
    let mut acc = [_mm512_setzero_ps(); T];
    for (index, block) in packed.iter().enumerate() {
        for part in 0..parts {
            let mut sum = [_mm512_setzero_si512(); T];
            for t in 0..T {
                sum[t] = begin::<KIND>(&rows[t].1[index], part);
            }
            for dword in part * 8 / parts..(part + 1) * 8 / parts {
                // SAFETY: reads an array of 64 bytes, aligned by the type.
                let w = unsafe { _mm512_load_si512(block.w[dword].as_ptr().cast()) };
                for t in 0..T {
                    sum[t] = _mm512_dpbusd_epi32(sum[t], w, broadcast(&rows[t].0[index], dword));
                }
            }
            // SAFETY: reads an array of sixteen f32, aligned by the type.
            let d = unsafe { _mm512_load_ps(block.d[part].as_ptr()) };
            for t in 0..T {
                acc[t] = fold(acc[t], sum[t], d, &rows[t].1[index]);
            }
        }
        // SAFETY: reads an array of sixteen f32, aligned by the type.
        let m = unsafe { _mm512_load_ps(block.m.as_ptr()) };
        for t in 0..T {
            acc[t] = fold_min::<KIND>(acc[t], m, &rows[t].1[index]);
        }
    }
    for t in 0..T {
        task.out.put(token + t, row, &to_array(acc[t]));
    }
    T
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn to_array(v: __m512) -> [f32; BAND] {
    let mut out = [0.0; BAND];
    // SAFETY: writes sixteen f32 into an array of sixteen.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) };
    out
}
