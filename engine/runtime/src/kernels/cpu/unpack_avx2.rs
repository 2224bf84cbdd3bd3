//! Eight rows of a quantised matrix, transposed on the fly from the checkpoint's layout with AVX2: each 32-bit
//! lane gets four consecutive columns of one row. The values are those of `formats::decode`, but for the offsets of Q4_0 and
//! Q5_0, which the kernel makes good.

// See integer_avx2.rs: vectors go through plain loops, never through closures.
#![allow(clippy::needless_range_loop)]

use super::formats::{self, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q8_0};
use std::arch::x86_64::*;

/// One block of 32 columns of eight rows: registers of bytes, the scale of each half, the minimum.
pub(super) struct Unpacked {
    pub(super) w: [__m256i; 8],
    pub(super) d: [__m256; 2],
    pub(super) m: __m256,
}

/// Unpacks block `index` of 32 columns of the eight rows that begin at `row`, `row_bytes` apart.
///
/// # Safety
/// Each of the eight rows must be readable and have that block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack<const KIND: u8>(row: *const u8, row_bytes: usize, index: usize) -> Unpacked {
    let stored = formats::blocks_stored(KIND);
    // SAFETY: every function reads inside the stored block, which the caller vouches for in all rows.
    unsafe {
        let rows = Rows { base: row.add(index / stored * formats::stored_bytes(KIND)), row_bytes };
        let j = (index % stored) as i32;
        match KIND {
            Q4_0 => {
                let d = rows.halves(0);
                uniform(rows.nibbles(2), d, _mm256_setzero_ps())
            }
            Q4_1 => {
                let [d, m] = half_pair(rows.dwords(0));
                uniform(rows.nibbles(4), d, m)
            }
            Q5_0 => {
                let d = rows.halves(0);
                let w = with_fifth(rows.nibbles(6), rows.dwords(2));
                uniform(w, d, _mm256_setzero_ps())
            }
            Q5_1 => {
                let [d, m] = half_pair(rows.dwords(0));
                uniform(with_fifth(rows.nibbles(8), rows.dwords(4)), d, m)
            }
            Q8_0 => uniform(rows.bytes(2), rows.halves(0), _mm256_setzero_ps()),
            Q4_K => q4_k(rows, j),
            Q5_K => q5_k(rows, j),
            Q3_K => q3_k(rows, j),
            _ => q6_k(rows, j),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn uniform(w: [__m256i; 8], d: __m256, m: __m256) -> Unpacked {
    Unpacked { w, d: [d; 2], m }
}

/// The same stored block of eight rows. Readable in full, by whoever makes one.
#[derive(Clone, Copy)]
struct Rows {
    base: *const u8,
    row_bytes: usize,
}

impl Rows {
    /// 16 bytes of each row from `at` on -> four registers with one dword of every row.
    ///
    /// # Safety
    /// They must lie in the block; as with all functions here.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn transposed(self, at: usize) -> [__m256i; 4] {
        // SAFETY: within the block.
        let (r0, r1, r2, r3) = unsafe { (self.pair(0, at), self.pair(1, at), self.pair(2, at), self.pair(3, at)) };
        let (a, b) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpacklo_epi32(r2, r3));
        let (c, d) = (_mm256_unpackhi_epi32(r0, r1), _mm256_unpackhi_epi32(r2, r3));
        [
            _mm256_unpacklo_epi64(a, b),
            _mm256_unpackhi_epi64(a, b),
            _mm256_unpacklo_epi64(c, d),
            _mm256_unpackhi_epi64(c, d),
        ]
    }

    /// 16 bytes of `row` and 16 of the row four below.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pair(self, row: usize, at: usize) -> __m256i {
        // SAFETY: within the block.
        unsafe {
            let low = self.base.add(row * self.row_bytes + at);
            let high = _mm_loadu_si128(low.add(4 * self.row_bytes).cast());
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(_mm_loadu_si128(low.cast())), high)
        }
    }

    /// 32 bytes of each row.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn bytes(self, at: usize) -> [__m256i; 8] {
        // SAFETY: within the block.
        let (low, high) = unsafe { (self.transposed(at), self.transposed(at + 16)) };
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }

    /// 16 bytes of each row: the low nibbles, then the high ones.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn nibbles(self, at: usize) -> [__m256i; 8] {
        // SAFETY: within the block.
        let low = unsafe { self.transposed(at) };
        let mask = _mm256_set1_epi8(15);
        let mut w = [_mm256_setzero_si256(); 8];
        for i in 0..4 {
            w[i] = _mm256_and_si256(low[i], mask);
            w[i + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(low[i]), mask);
        }
        w
    }

    /// One half float of each row, widened.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn halves(self, at: usize) -> __m256 {
        // SAFETY: within the block.
        let x = |row: usize| unsafe { self.base.add(row * self.row_bytes + at).cast::<u16>().read_unaligned() as i16 };
        _mm256_cvtph_ps(_mm_setr_epi16(x(0), x(1), x(2), x(3), x(4), x(5), x(6), x(7)))
    }

    /// One dword of each row.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dwords(self, at: usize) -> __m256i {
        // SAFETY: within the block.
        let x = |row: usize| unsafe { self.base.add(row * self.row_bytes + at).cast::<i32>().read_unaligned() };
        _mm256_setr_epi32(x(0), x(1), x(2), x(3), x(4), x(5), x(6), x(7))
    }
}

/// Lanes of two half floats -> the lower ones and the upper ones, widened.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn half_pair(x: __m256i) -> [__m256; 2] {
    let split = _mm256_setr_epi8(
        0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
    );
    let x = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(x, split));
    [_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(x))]
}

/// Adds 16 to each column whose bit is set in its row's dword.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_fifth(mut w: [__m256i; 8], bits: __m256i) -> [__m256i; 8] {
    let lanes = _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
    for byte in 0..4 {
        // Each lane's byte in all four places, of which each place tests its own bit.
        let spread = _mm256_shuffle_epi8(bits, _mm256_add_epi8(lanes, _mm256_set1_epi8(byte as i8)));
        for (k, places) in [(0, 0x0804_0201u32 as i32), (1, 0x8040_2010u32 as i32)] {
            let places = _mm256_set1_epi32(places);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, places), places);
            let dword = 2 * byte + k;
            w[dword] = _mm256_or_si256(w[dword], _mm256_and_si256(set, _mm256_set1_epi8(16)));
        }
    }
    w
}

/// `(x >> shift) & mask` in every byte; bits that come from the byte above are outside the mask.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bits(x: __m256i, shift: i32, mask: i8) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi16(x, _mm_cvtsi32_si128(shift)), _mm256_set1_epi8(mask))
}

/// `(x >> shift) & mask` in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn lane_bits(x: __m256i, shift: i32, mask: i32) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi32(x, _mm_cvtsi32_si128(shift)), _mm256_set1_epi32(mask))
}

/// Scale and minimum of sub-block `j` from the first 16 bytes of a Q4_K or Q5_K block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale_min(rows: Rows, j: i32) -> [__m256; 2] {
    // SAFETY: both formats begin with these 16 bytes.
    let head = unsafe { rows.transposed(0) };
    let (scale, min) = if j < 4 {
        (lane_bits(head[1], 8 * j, 63), lane_bits(head[2], 8 * j, 63))
    } else {
        let shift = 8 * (j - 4);
        let upper = |x: __m256i| _mm256_slli_epi32::<4>(lane_bits(x, shift + 6, 3));
        (
            _mm256_or_si256(lane_bits(head[3], shift, 15), upper(head[1])),
            _mm256_or_si256(lane_bits(head[3], shift + 4, 15), upper(head[2])),
        )
    };
    let [d, m] = half_pair(head[0]);
    let min = _mm256_mul_ps(m, _mm256_cvtepi32_ps(min));
    [_mm256_mul_ps(d, _mm256_cvtepi32_ps(scale)), _mm256_mul_ps(min, _mm256_set1_ps(-1.0))]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_k(rows: Rows, j: i32) -> Unpacked {
    // SAFETY: offsets of the format, inside its 144 bytes.
    let ([d, m], mut w) = unsafe { (scale_min(rows, j), rows.bytes(16 + j as usize / 2 * 32)) };
    for i in 0..8 {
        w[i] = bits(w[i], j % 2 * 4, 15);
    }
    uniform(w, d, m)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q5_k(rows: Rows, j: i32) -> Unpacked {
    // SAFETY: offsets of the format, inside its 176 bytes.
    let ([d, m], mut w, high) = unsafe { (scale_min(rows, j), rows.bytes(48 + j as usize / 2 * 32), rows.bytes(16)) };
    for i in 0..8 {
        let fifth = _mm256_slli_epi16::<4>(bits(high[i], j, 1));
        w[i] = _mm256_or_si256(bits(w[i], j % 2 * 4, 15), fifth);
    }
    uniform(w, d, m)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_k(rows: Rows, j: i32) -> Unpacked {
    let (n, k) = (j as usize / 4, j % 4);
    // SAFETY: offsets of the format, inside its 210 bytes.
    let (mut w, high, scales, d) = unsafe {
        (
            rows.bytes(64 * n + 32 * (k as usize % 2)),
            rows.bytes(128 + 32 * n),
            rows.dwords(192 + j as usize / 2 * 4),
            rows.halves(208),
        )
    };
    for i in 0..8 {
        let upper = _mm256_slli_epi16::<4>(bits(high[i], 2 * k, 3));
        w[i] = _mm256_sub_epi8(_mm256_or_si256(bits(w[i], k / 2 * 4, 15), upper), _mm256_set1_epi8(32));
    }
    let scale = |byte: i32| {
        let top = _mm256_sll_epi32(scales, _mm_cvtsi32_si128(24 - 8 * byte));
        _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(top)))
    };
    let first = j % 2 * 2;
    Unpacked { w, d: [scale(first), scale(first + 1)], m: _mm256_setzero_ps() }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q3_k(rows: Rows, j: i32) -> Unpacked {
    let (n, k) = (j as usize / 4, j % 4);
    // SAFETY: offsets of the format, inside its 110 bytes; scale `s` has its low bits in byte s % 8 and its
    // upper bits in byte 8 + s % 4.
    let (mut w, high, low_scales, high_scales, d) = unsafe {
        let first = 2 * j as usize;
        (
            rows.bytes(32 + 32 * n),
            rows.bytes(0),
            rows.dwords(96 + first % 8 / 4 * 4),
            rows.dwords(104),
            rows.halves(108),
        )
    };
    for i in 0..8 {
        let upper = _mm256_slli_epi16::<2>(bits(high[i], j, 1));
        w[i] = _mm256_sub_epi8(_mm256_or_si256(bits(w[i], 2 * k, 3), upper), _mm256_set1_epi8(4));
    }
    let scale = |s: i32| {
        let low = lane_bits(low_scales, s % 4 * 8 + s / 8 * 4, 15);
        let upper = _mm256_slli_epi32::<4>(lane_bits(high_scales, s % 4 * 8 + s / 4 * 2, 3));
        let x = _mm256_sub_epi32(_mm256_or_si256(low, upper), _mm256_set1_epi32(32));
        _mm256_mul_ps(d, _mm256_cvtepi32_ps(x))
    };
    Unpacked { w, d: [scale(2 * j), scale(2 * j + 1)], m: _mm256_setzero_ps() }
}
