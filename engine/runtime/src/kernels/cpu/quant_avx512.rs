//! Rounding activations to int8 with AVX-512: the bits of `quant::quantise_row`.

use super::quant::{BLOCK, SMALLEST, Scale, scale_of};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn quantise(x: &[f32], q: &mut [[i8; BLOCK]], scale: &mut [Scale]) {
    for ((x, q), scale) in x.as_chunks::<BLOCK>().0.iter().zip(q).zip(scale) {
        // SAFETY: two registers of sixteen f32 from an array of 32.
        let (a, b) = unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))) };
        // Magnitudes are ordered as their bits are, and infinity and NaN stand above all others.
        let magnitude = _mm512_set1_epi32(i32::MAX);
        let (bits_a, bits_b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
        let high = _mm512_max_epu32(_mm512_and_si512(bits_a, magnitude), _mm512_and_si512(bits_b, magnitude));
        let high = f32::from_bits(_mm512_reduce_max_epu32(high));
        if !high.is_finite() {
            (*q, *scale) = ([0; BLOCK], Scale { step: f32::NAN, sum: f32::NAN, ..Scale::default() });
            continue;
        }
        let inverse = _mm512_set1_ps(if high >= SMALLEST { 127.0 / high } else { 0.0 });
        let low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)));
        let upper = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)));
        let bytes = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), upper);
        // SAFETY: writes 32 bytes to an array of 32.
        unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), bytes) };
        // Four bytes per lane, then the four lanes of each half.
        let sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
        let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b01_00_11_10>(sums));
        let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b10_11_00_01>(sums));
        *scale = scale_of(high, [_mm256_extract_epi32::<0>(sums), _mm256_extract_epi32::<4>(sums)]);
    }
}
