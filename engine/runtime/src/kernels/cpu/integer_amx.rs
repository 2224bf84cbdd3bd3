//! The integer kernels with AMX: 16 tokens times 16 rows times a block's 32 columns in one `tdpbssd`.
//!
//! A block's sums leave the tile registers through memory, since they can be read no other way, and are folded by
//! AVX-512, whose work it is that bounds the speed. So the next block's product is issued before the last one's sums
//! are folded.

// See integer_avx2.rs: vectors go through plain loops, never through closures.
#![allow(clippy::needless_range_loop)]

use super::{
    amx::{self, Sums, TILE, Tiles},
    formats,
    integer::{Set, Task},
    integer_avx512::each_packed,
    matrix::BAND,
    quant::BLOCK,
    simd::Avx512,
    unpack_avx512::Packed,
};
use std::arch::x86_64::*;

/// Proof that the CPU has AMX for bytes and this process may use it.
#[derive(Clone, Copy)]
pub(super) struct Amx(());

impl Amx {
    pub(super) fn new(set: Avx512) -> Option<Self> {
        set.amx().then_some(Self(()))
    }
}

/// From how many tokens on tiles are faster than VNNI.
pub(super) fn pays(tokens: usize) -> bool {
    tokens >= 6
}

impl Set for Amx {
    fn multiply<const KIND: u8>(self, task: &Task<'_>) {
        // SAFETY: the value proves that the features are there.
        unsafe { multiply::<KIND>(task) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn multiply<const KIND: u8>(task: &Task<'_>) {
    let (start, end) = (task.tokens.start, task.tokens.end);
    let whole = start + (end - start) / TILE * TILE;
    // SAFETY: a value of `Amx` was made, so permission was given.
    let tiles = unsafe { Tiles::new(BLOCK / formats::parts(KIND), end - whole) };
    each_packed::<KIND, true>(task, |packed, row| {
        for token in (start..whole).step_by(TILE) {
            tile::<KIND, false, TILE>(&tiles, packed, row, task, token);
        }
        match end - whole {
            0 => {}
            1..=8 => tile::<KIND, true, 8>(&tiles, packed, row, task, whole),
            _ => tile::<KIND, true, TILE>(&tiles, packed, row, task, whole),
        }
    });
}

/// A band times a tile of at most `T` tokens from `token` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn tile<const KIND: u8, const NARROW: bool, const T: usize>(
    tiles: &Tiles,
    packed: &[Packed],
    row: usize,
    task: &Task<'_>,
    token: usize,
) {
    let blocks = packed.len();
    let scales = &task.input.tile(token)[..blocks];
    let count = T.min(task.tokens.end - token);
    let bytes = &task.input.bytes_from(token)[..count * blocks];
    let parts = formats::parts(KIND);
    let mut sums = [Sums([[0; TILE]; TILE]); 2];
    let mut acc = [_mm512_setzero_ps(); T];
    let products = blocks * parts;
    // SAFETY: tiles are configured; product `i` reads `count` rows of a block's part, inside `bytes`, and that part of
    // a packed block.
    unsafe { product::<KIND, NARROW>(tiles, bytes, blocks, packed, 0, &mut sums[0]) };
    for i in 0..products {
        if i + 1 < products {
            // SAFETY: as above.
            unsafe { product::<KIND, NARROW>(tiles, bytes, blocks, packed, i + 1, &mut sums[(i + 1) % 2]) };
        }
        let (block, scale) = (&packed[i / parts], &scales[i / parts]);
        fold::<T>(&mut acc, &sums[i % 2], &block.d[i % parts], scale);
        if formats::has_min(KIND) {
            fold_min::<T>(&mut acc, &block.m, scale);
        }
    }
    for t in 0..T {
        if t < count {
            let mut values = [0.0; BAND];
            // SAFETY: writes sixteen f32 into an array of sixteen.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), acc[t]) };
            task.out.put(token + t, row, &values);
        }
    }
}

/// Product `index` of a tile: part `index % parts` of block `index / parts`.
#[inline(always)]
unsafe fn product<const KIND: u8, const NARROW: bool>(
    _: &Tiles,
    bytes: &[[i8; BLOCK]],
    blocks: usize,
    packed: &[Packed],
    index: usize,
    sums: &mut Sums,
) {
    let parts = formats::parts(KIND);
    let (block, part) = (index / parts, index % parts);
    let a = bytes[block].as_ptr().wrapping_add(part * BLOCK / parts).cast();
    let w = packed[block].w[part * 8 / parts].as_ptr();
    // SAFETY: by the caller.
    unsafe {
        if index.is_multiple_of(2) {
            amx::product::<false, NARROW>(a, blocks * BLOCK, w, sums);
        } else {
            amx::product::<true, NARROW>(a, blocks * BLOCK, w, sums);
        }
    }
}

/// Folds integer sums into the f32 sums, as `integer` says.
///
/// While tiles are in use, one of the two units that multiply and convert floats stands still, but both go on adding.
/// So integers become floats by addition: 1.5 * 2^23 plus a whole number below 2^22 has that number in its low bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn fold<const T: usize>(acc: &mut [__m512; T], sums: &Sums, d: &[f32; BAND], scale: &[[f32; TILE]; 2]) {
    let magic = _mm512_set1_ps(12_582_912.0);
    // SAFETY: reads sixteen f32.
    let d = unsafe { _mm512_loadu_ps(d.as_ptr()) };
    for t in 0..T {
        // SAFETY: reads sixteen i32, aligned by the type.
        let dot = unsafe { _mm512_load_si512(sums.0[t].as_ptr().cast()) };
        let lifted = _mm512_castsi512_ps(_mm512_add_epi32(dot, _mm512_castps_si512(magic)));
        let step = _mm512_mul_ps(d, _mm512_set1_ps(scale[0][t]));
        acc[t] = _mm512_fmadd_ps(step, _mm512_sub_ps(lifted, magic), acc[t]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn fold_min<const T: usize>(acc: &mut [__m512; T], m: &[f32; BAND], scale: &[[f32; TILE]; 2]) {
    // SAFETY: reads sixteen f32.
    let m = unsafe { _mm512_loadu_ps(m.as_ptr()) };
    for t in 0..T {
        acc[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(scale[1][t]), acc[t]);
    }
}
