//! Sixteen rows of a quantised matrix, transposed on the fly from the checkpoint's layout with AVX-512: each 32-bit lane gets
//! four consecutive columns of one row. The values are those of `formats::decode`; with an offset (`formats::offset_bits`)
//! they are signed or, for `vpdpbusd`, unsigned.

// See integer_avx2.rs: vectors go through plain loops, never through closures.
#![allow(clippy::needless_range_loop)]

use super::{
    formats::{self, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K},
    matrix::BAND,
};
use std::arch::x86_64::*;

/// One block of 32 columns of sixteen rows, in registers: bytes by four columns, the scale of each half, the minimum.
#[derive(Clone, Copy)]
pub(super) struct Unpacked {
    pub(super) w: [__m512i; 8],
    pub(super) d: [__m512; 2],
    pub(super) m: __m512,
}

/// The same in memory. Of the scales only the first is filled where `formats::parts` is one, and the minimum only where
/// there is one.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Packed {
    pub(super) w: [[u8; 64]; 8],
    pub(super) d: [[f32; BAND]; 2],
    pub(super) m: [f32; BAND],
}

pub(super) const EMPTY: Packed = Packed { w: [[0; 64]; 8], d: [[0.0; BAND]; 2], m: [0.0; BAND] };

/// The same stored block of sixteen rows. Readable in full, by whoever makes one.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    base: *const u8,
    row_bytes: usize,
    /// Where each row begins.
    offsets: __m512i,
}

/// Bytes from the begin of a row may be gathered by 32-bit offsets.
pub(super) const ROW_BYTES_MAX: usize = i32::MAX as usize / BAND;

impl Rows {
    /// Of the rows that begin at `base`, `row_bytes` apart.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) fn new(base: *const u8, row_bytes: usize) -> Self {
        let rows = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        Self { base, row_bytes, offsets: _mm512_mullo_epi32(rows, _mm512_set1_epi32(row_bytes as i32)) }
    }

    /// `bytes` further on in each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(super) fn skip(self, bytes: usize) -> Self {
        Self { base: self.base.wrapping_add(bytes), ..self }
    }

    /// 16 bytes of each row from `at` on -> four registers with one dword of every row.
    ///
    /// # Safety
    /// They must lie in the block; as with all functions here.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn transposed(self, at: usize) -> [__m512i; 4] {
        // SAFETY: within the block.
        let (r0, r1, r2, r3) = unsafe { (self.quad(0, at), self.quad(1, at), self.quad(2, at), self.quad(3, at)) };
        let (a, b) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpacklo_epi32(r2, r3));
        let (c, d) = (_mm512_unpackhi_epi32(r0, r1), _mm512_unpackhi_epi32(r2, r3));
        [
            _mm512_unpacklo_epi64(a, b),
            _mm512_unpackhi_epi64(a, b),
            _mm512_unpacklo_epi64(c, d),
            _mm512_unpackhi_epi64(c, d),
        ]
    }

    /// 16 bytes of `row` and of those four, eight and twelve below.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn quad(self, row: usize, at: usize) -> __m512i {
        // SAFETY: within the block.
        unsafe {
            let (first, four) = (self.base.add(row * self.row_bytes + at), 4 * self.row_bytes);
            let x = _mm512_castsi128_si512(_mm_loadu_si128(first.cast()));
            let x = _mm512_inserti32x4::<1>(x, _mm_loadu_si128(first.add(four).cast()));
            let x = _mm512_inserti32x4::<2>(x, _mm_loadu_si128(first.add(2 * four).cast()));
            _mm512_inserti32x4::<3>(x, _mm_loadu_si128(first.add(3 * four).cast()))
        }
    }

    /// 32 bytes of each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn bytes(self, at: usize) -> [__m512i; 8] {
        // SAFETY: within the block.
        let (low, high) = unsafe { (self.transposed(at), self.transposed(at + 16)) };
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }

    /// 16 bytes of each row: the low nibbles, then the high ones.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn nibbles(self, at: usize) -> [__m512i; 8] {
        // SAFETY: within the block.
        let x = unsafe { self.transposed(at) };
        let mut w = [_mm512_setzero_si512(); 8];
        for i in 0..4 {
            w[i] = bits::<0>(x[i], 15);
            w[i + 4] = bits::<4>(x[i], 15);
        }
        w
    }

    /// One dword of each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn dwords(self, at: usize) -> __m512i {
        // SAFETY: within the block; offsets fit i32 by ROW_BYTES_MAX.
        unsafe { _mm512_i32gather_epi32::<1>(self.offsets, self.base.add(at).cast()) }
    }

    /// Two half floats of each row, widened.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn half_pair(self, at: usize) -> [__m512; 2] {
        // SAFETY: within the block.
        half_pair(unsafe { self.dwords(at) })
    }
}

/// Lanes of two half floats -> the lower ones and the upper ones, widened.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn half_pair(x: __m512i) -> [__m512; 2] {
    #[rustfmt::skip]
    let split = _mm512_set_epi16(
        31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1,
        30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0,
    );
    let x = _mm512_permutexvar_epi16(split, x);
    [_mm512_cvtph_ps(_mm512_castsi512_si256(x)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(x))]
}

/// `(x >> SHIFT) & mask` in every byte; bits that come from the byte above are outside the mask.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn bits<const SHIFT: u32>(x: __m512i, mask: i8) -> __m512i {
    _mm512_and_si512(_mm512_srli_epi16::<SHIFT>(x), _mm512_set1_epi8(mask))
}

/// `(x >> shift) & mask` in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn lane_bits(x: __m512i, shift: usize, mask: i32) -> __m512i {
    _mm512_and_si512(_mm512_srl_epi32(x, _mm_cvtsi32_si128(shift as i32)), _mm512_set1_epi32(mask))
}

/// Unsigned values as they are wanted.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn signed<const KIND: u8, const SIGNED: bool>(mut w: [__m512i; 8]) -> [__m512i; 8] {
    match formats::offset_bits(KIND) {
        Some(bits) if SIGNED => {
            let offset = _mm512_set1_epi8((1u8 << bits) as i8);
            for w in &mut w {
                *w = _mm512_sub_epi8(*w, offset);
            }
            w
        }
        _ => w,
    }
}

/// Adds 16 to each column whose bit is set in its row's dword.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn with_fifth(mut w: [__m512i; 8], bits: __m512i) -> [__m512i; 8] {
    let lanes = _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0);
    let sixteen = _mm512_set1_epi8(16);
    for byte in 0..4 {
        // Each lane's byte in all four places, of which each place tests its own bit.
        let spread = _mm512_shuffle_epi8(bits, _mm512_or_si512(lanes, _mm512_set1_epi8(byte as i8)));
        for (half, places) in [(0, 0x0804_0201u32 as i32), (1, 0x8040_2010u32 as i32)] {
            let set = _mm512_test_epi8_mask(spread, _mm512_set1_epi32(places));
            let dword = 2 * byte + half;
            w[dword] = _mm512_mask_add_epi8(w[dword], set, w[dword], sixteen);
        }
    }
    w
}

/// Whether [`unpack`] knows a format: those stored in blocks of 32 columns.
pub(super) const fn is_small(kind: u8) -> bool {
    formats::blocks_stored(kind) == 1
}

/// One block of a small format.
///
/// # Safety
/// `rows` must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn unpack<const KIND: u8, const SIGNED: bool>(rows: Rows) -> Unpacked {
    // SAFETY: every offset lies inside the stored block. Where one half float is wanted, two are read.
    let (w, [d, m]) = unsafe {
        match KIND {
            Q4_0 => (rows.nibbles(2), rows.half_pair(0)),
            Q4_1 => (rows.nibbles(4), rows.half_pair(0)),
            Q5_0 => (with_fifth(rows.nibbles(6), rows.dwords(2)), rows.half_pair(0)),
            Q5_1 => (with_fifth(rows.nibbles(8), rows.dwords(4)), rows.half_pair(0)),
            _ => {
                let mut w = rows.bytes(2);
                if !SIGNED {
                    for w in &mut w {
                        *w = _mm512_xor_si512(*w, _mm512_set1_epi8(i8::MIN));
                    }
                }
                return Unpacked { w, d: [rows.half_pair(0)[0]; 2], m: _mm512_setzero_ps() };
            }
        }
    };
    Unpacked { w: signed::<KIND, SIGNED>(w), d: [d; 2], m }
}

/// Unpacks one stored block into `out`, whose length is `formats::blocks_stored`.
///
/// # Safety
/// `rows` must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn pack<const KIND: u8, const SIGNED: bool>(rows: Rows, out: &mut [Packed]) {
    // SAFETY: by the caller.
    unsafe {
        match KIND {
            Q4_K | Q5_K => q45_k::<KIND>(rows, out),
            Q6_K => q6_k::<SIGNED>(rows, out),
            Q3_K => q3_k::<SIGNED>(rows, out),
            _ => store(unpack::<KIND, SIGNED>(rows), &mut out[0]),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store(block: Unpacked, out: &mut Packed) {
    store_bytes(block.w, out);
    // SAFETY: writes arrays of sixteen f32, aligned by the type.
    unsafe {
        _mm512_store_ps(out.d[0].as_mut_ptr(), block.d[0]);
        _mm512_store_ps(out.m.as_mut_ptr(), block.m);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store_bytes(w: [__m512i; 8], out: &mut Packed) {
    for i in 0..8 {
        // SAFETY: writes an array of 64 bytes, aligned by the type.
        unsafe { _mm512_store_si512(out.w[i].as_mut_ptr().cast(), w[i]) };
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store_scale(scale: __m512, out: &mut [f32; BAND]) {
    // SAFETY: writes sixteen f32.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), scale) };
}

/// `d` times a whole number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn times(d: __m512, x: __m512i) -> __m512 {
    _mm512_mul_ps(d, _mm512_cvtepi32_ps(x))
}

/// A stored block of Q4_K or Q5_K: eight blocks of 32 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q45_k<const KIND: u8>(rows: Rows, out: &mut [Packed]) {
    // SAFETY: both formats begin with two half floats and twelve bytes of scales and minima.
    let head = unsafe { rows.transposed(0) };
    let [d, m] = half_pair(head[0]);
    let m = _mm512_sub_ps(_mm512_setzero_ps(), m);
    for j in 0..8 {
        let (scale, min) = if j < 4 {
            (lane_bits(head[1], 8 * j, 63), lane_bits(head[2], 8 * j, 63))
        } else {
            let shift = 8 * (j - 4);
            let (upper_scale, upper_min) = (lane_bits(head[1], shift + 6, 3), lane_bits(head[2], shift + 6, 3));
            (
                _mm512_or_si512(lane_bits(head[3], shift, 15), _mm512_slli_epi32::<4>(upper_scale)),
                _mm512_or_si512(lane_bits(head[3], shift + 4, 15), _mm512_slli_epi32::<4>(upper_min)),
            )
        };
        store_scale(times(d, scale), &mut out[j].d[0]);
        store_scale(times(m, min), &mut out[j].m);
    }
    let (fifth, data) = if KIND == Q5_K {
        // SAFETY: 32 bytes after the head.
        (unsafe { rows.bytes(16) }, 48)
    } else {
        ([_mm512_setzero_si512(); 8], 16)
    };
    for pair in 0..4 {
        // SAFETY: four times 32 bytes end the block.
        let x = unsafe { rows.bytes(data + 32 * pair) };
        let (mut low, mut high) = (x, x);
        for i in 0..8 {
            (low[i], high[i]) = (bits::<0>(x[i], 15), bits::<4>(x[i], 15));
            if KIND == Q5_K {
                let (even, odd) = (_mm512_set1_epi8(1 << (2 * pair)), _mm512_set1_epi8((2u8 << (2 * pair)) as i8));
                let sixteen = _mm512_set1_epi8(16);
                low[i] = _mm512_mask_add_epi8(low[i], _mm512_test_epi8_mask(fifth[i], even), low[i], sixteen);
                high[i] = _mm512_mask_add_epi8(high[i], _mm512_test_epi8_mask(fifth[i], odd), high[i], sixteen);
            }
        }
        store_bytes(low, &mut out[2 * pair]);
        store_bytes(high, &mut out[2 * pair + 1]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q6_k<const SIGNED: bool>(rows: Rows, out: &mut [Packed]) {
    // SAFETY: the 16 bytes of scales, and the last half float with the scales before it.
    let (scales, d) = unsafe { (rows.transposed(192), rows.half_pair(206)[1]) };
    for s in 0..16 {
        let top = _mm512_sll_epi32(scales[s / 4], _mm_cvtsi32_si128(24 - 8 * (s % 4) as i32));
        store_scale(times(d, _mm512_srai_epi32::<24>(top)), &mut out[s / 2].d[s % 2]);
    }
    for n in 0..2 {
        // SAFETY: 128 bytes of low bits, then 64 of high ones.
        let (a, b, high) = unsafe { (rows.bytes(64 * n), rows.bytes(64 * n + 32), rows.bytes(128 + 32 * n)) };
        let mut w = [[_mm512_setzero_si512(); 8]; 4];
        for i in 0..8 {
            let h = high[i];
            w[0][i] = joined::<4>(bits::<0>(a[i], 15), bits::<0>(h, 3));
            w[1][i] = joined::<4>(bits::<0>(b[i], 15), bits::<2>(h, 3));
            w[2][i] = joined::<4>(bits::<4>(a[i], 15), bits::<4>(h, 3));
            w[3][i] = joined::<4>(bits::<4>(b[i], 15), bits::<6>(h, 3));
        }
        for k in 0..4 {
            store_bytes(signed::<Q6_K, SIGNED>(w[k]), &mut out[4 * n + k]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn q3_k<const SIGNED: bool>(rows: Rows, out: &mut [Packed]) {
    // SAFETY: scale `s` has its low bits in byte 96 + s % 8 and its upper bits in byte 104 + s % 4; the half float
    // ends the block.
    let (low_scales, upper_scales, d) =
        unsafe { ([rows.dwords(96), rows.dwords(100)], rows.dwords(104), rows.half_pair(106)[1]) };
    for s in 0..16 {
        let low = lane_bits(low_scales[s % 8 / 4], s % 4 * 8 + s / 8 * 4, 15);
        let upper = _mm512_slli_epi32::<4>(lane_bits(upper_scales, s % 4 * 8 + s / 4 * 2, 3));
        let scale = _mm512_sub_epi32(_mm512_or_si512(low, upper), _mm512_set1_epi32(32));
        store_scale(times(d, scale), &mut out[s / 2].d[s % 2]);
    }
    // SAFETY: the first 32 bytes are the upper bits of all columns, the next 64 their low bits.
    let (high, low) = unsafe { (rows.bytes(0), [rows.bytes(32), rows.bytes(64)]) };
    for j in 0..8 {
        let mut w = high;
        for i in 0..8 {
            let (low, three) = (low[j / 4][i], _mm512_set1_epi8(3));
            let low = _mm512_and_si512(_mm512_srl_epi16(low, _mm_cvtsi32_si128(2 * (j % 4) as i32)), three);
            let set = _mm512_test_epi8_mask(high[i], _mm512_set1_epi8((1u8 << j) as i8));
            w[i] = _mm512_mask_add_epi8(low, set, low, _mm512_set1_epi8(4));
        }
        store_bytes(signed::<Q3_K, SIGNED>(w), &mut out[j]);
    }
}

/// Low bits and, `SHIFT` above them, others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn joined<const SHIFT: u32>(low: __m512i, high: __m512i) -> __m512i {
    _mm512_or_si512(low, _mm512_slli_epi16::<SHIFT>(high))
}
