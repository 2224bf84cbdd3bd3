//! ggml's quantised formats (ggml-quants.c), decoded 32 columns at a time: the one definition that
//! dequantisation, the portable kernels and, bit for bit, all others follow.
//!
//! A decoded value is `d * w + m`, `d` and `m` holding for 16 columns each.

use super::quant::{BLOCK, half};
use engine_store::GgmlType;

pub(super) const Q4_0: u8 = 0;
pub(super) const Q4_1: u8 = 1;
pub(super) const Q8_0: u8 = 2;
pub(super) const Q5_0: u8 = 3;
pub(super) const Q5_1: u8 = 4;
pub(super) const Q2_K: u8 = 5;
pub(super) const Q3_K: u8 = 6;
pub(super) const Q4_K: u8 = 7;
pub(super) const Q5_K: u8 = 8;
pub(super) const Q6_K: u8 = 9;

/// Bytes of one block as it is stored, of 32 columns or, in the K formats, of 256.
pub(super) const fn stored_bytes(kind: u8) -> usize {
    match kind {
        Q4_0 => 18,
        Q4_1 => 20,
        Q8_0 => 34,
        Q5_0 => 22,
        Q5_1 => 24,
        Q2_K => 84,
        Q3_K => 110,
        Q4_K => 144,
        Q5_K => 176,
        _ => 210,
    }
}

/// Blocks of 32 columns in one stored block.
pub(super) const fn blocks_stored(kind: u8) -> usize {
    if kind >= Q2_K { 8 } else { 1 }
}

/// Bytes of a row of `blocks` blocks of 32 columns.
pub(super) const fn row_bytes(kind: u8, blocks: usize) -> usize {
    blocks / blocks_stored(kind) * stored_bytes(kind)
}

/// Whether values have a minimum: an f32 offset for 32 columns.
pub(super) const fn has_min(kind: u8) -> bool {
    matches!(kind, Q4_1 | Q5_1 | Q4_K | Q5_K)
}

/// Into how many parts a block's dot product is cut: two where the scale changes after 16 columns.
pub(super) const fn parts(kind: u8) -> usize {
    if matches!(kind, Q2_K | Q3_K | Q6_K) { 2 } else { 1 }
}

/// What is added to a decoded value, in powers of two, to make it unsigned: dot products of unsigned bytes are made
/// good by `-(sum of activations) << bits`. None where stored values are unsigned and a minimum follows.
pub(super) const fn offset_bits(kind: u8) -> Option<u32> {
    match kind {
        Q3_K => Some(2),
        Q4_0 => Some(3),
        Q5_0 => Some(4),
        Q6_K => Some(5),
        Q8_0 => Some(7),
        _ => None,
    }
}

/// 32 columns of one row.
pub(super) struct Decoded {
    pub(super) w: [i8; BLOCK],
    /// Scale of each half.
    pub(super) d: [f32; 2],
    /// Minimum of each half, zero in formats without.
    pub(super) m: [f32; 2],
}

/// Block `index` of 32 columns of a row.
pub(super) fn decode<const KIND: u8>(row: &[u8], index: usize) -> Decoded {
    let start = index / blocks_stored(KIND) * stored_bytes(KIND);
    let block = &row[start..start + stored_bytes(KIND)];
    let j = index % blocks_stored(KIND);
    match KIND {
        Q4_0 => uniform(small(&block[2..], None, 8), half(block, 0), 0.0),
        Q4_1 => uniform(small(&block[4..], None, 0), half(block, 0), half(block, 2)),
        Q5_0 => uniform(small(&block[6..], Some(&block[2..6]), 16), half(block, 0), 0.0),
        Q5_1 => uniform(small(&block[8..], Some(&block[4..8]), 0), half(block, 0), half(block, 2)),
        Q8_0 => uniform(std::array::from_fn(|i| block[2 + i] as i8), half(block, 0), 0.0),
        Q2_K => q2_k(block, j),
        Q3_K => q3_k(block, j),
        Q4_K => q4_k(block, j),
        Q5_K => q5_k(block, j),
        _ => q6_k(block, j),
    }
}

fn uniform(w: [i8; BLOCK], d: f32, m: f32) -> Decoded {
    Decoded { w, d: [d; 2], m: [m; 2] }
}

/// Low nibbles are columns 0..16, high nibbles 16..32; `fifth` holds one more bit by column.
fn small(qs: &[u8], fifth: Option<&[u8]>, offset: i8) -> [i8; BLOCK] {
    std::array::from_fn(|i| {
        let nibble = (qs[i % 16] >> (i / 16 * 4)) & 15;
        let bit = fifth.map_or(0, |bits| (bits[i / 8] >> (i % 8)) & 1);
        (nibble | (bit << 4)) as i8 - offset
    })
}

/// Six-bit scale and minimum of sub-block `j`, packed in twelve bytes (`get_scale_min_k4`).
fn scale_min(scales: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        ((scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4), (scales[j + 4] >> 4) | (scales[j] >> 6 << 4))
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8], j: usize) -> Decoded {
    let (scale, min) = scale_min(&block[4..16], j);
    let w = std::array::from_fn(|i| ((block[16 + j / 2 * 32 + i] >> (j % 2 * 4)) & 15) as i8);
    uniform(w, half(block, 0) * scale, -(half(block, 2) * min))
}

fn q5_k(block: &[u8], j: usize) -> Decoded {
    let (scale, min) = scale_min(&block[4..16], j);
    let w = std::array::from_fn(|i| {
        let nibble = (block[48 + j / 2 * 32 + i] >> (j % 2 * 4)) & 15;
        (nibble | (((block[16 + i] >> j) & 1) << 4)) as i8
    });
    uniform(w, half(block, 0) * scale, -(half(block, 2) * min))
}

fn q6_k(block: &[u8], j: usize) -> Decoded {
    let (n, k) = (j / 4, j % 4);
    let w = std::array::from_fn(|i| {
        let low = (block[64 * n + 32 * (k % 2) + i] >> (k / 2 * 4)) & 15;
        let high = (block[128 + 32 * n + i] >> (2 * k)) & 3;
        (low | (high << 4)) as i8 - 32
    });
    let d = half(block, 208);
    Decoded { w, d: std::array::from_fn(|part| d * f32::from(block[192 + 2 * j + part] as i8)), m: [0.0; 2] }
}

fn q3_k(block: &[u8], j: usize) -> Decoded {
    let (n, k) = (j / 4, j % 4);
    let w = std::array::from_fn(|i| {
        let low = (block[32 + 32 * n + i] >> (2 * k)) & 3;
        let high = (block[i] >> j) & 1;
        (low | (high << 2)) as i8 - 4
    });
    let scales = &block[96..108];
    let d = half(block, 108);
    let scale = |s: usize| {
        let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
        let high = (scales[8 + s % 4] >> (s / 4 * 2)) & 3;
        f32::from((low | (high << 4)) as i8 - 32)
    };
    Decoded { w, d: std::array::from_fn(|part| d * scale(2 * j + part)), m: [0.0; 2] }
}

fn q2_k(block: &[u8], j: usize) -> Decoded {
    let (n, k) = (j / 4, j % 4);
    let w = std::array::from_fn(|i| ((block[16 + 32 * n + i] >> (2 * k)) & 3) as i8);
    let (d, min) = (half(block, 80), half(block, 82));
    let scale = |part: usize| block[2 * j + part];
    Decoded {
        w,
        d: std::array::from_fn(|part| d * f32::from(scale(part) & 15)),
        m: std::array::from_fn(|part| -(min * f32::from(scale(part) >> 4))),
    }
}

/// Writes a row of a quantised type as f32; false when `kind` is none of them.
pub(super) fn dequantise(kind: GgmlType, bytes: &[u8], out: &mut [f32]) -> bool {
    match kind {
        GgmlType::Q4_0 => expand::<Q4_0>(bytes, out),
        GgmlType::Q4_1 => expand::<Q4_1>(bytes, out),
        GgmlType::Q5_0 => expand::<Q5_0>(bytes, out),
        GgmlType::Q5_1 => expand::<Q5_1>(bytes, out),
        GgmlType::Q8_0 => expand::<Q8_0>(bytes, out),
        GgmlType::Q2_K => expand::<Q2_K>(bytes, out),
        GgmlType::Q3_K => expand::<Q3_K>(bytes, out),
        GgmlType::Q4_K => expand::<Q4_K>(bytes, out),
        GgmlType::Q5_K => expand::<Q5_K>(bytes, out),
        GgmlType::Q6_K => expand::<Q6_K>(bytes, out),
        _ => return false,
    }
    true
}

fn expand<const KIND: u8>(bytes: &[u8], out: &mut [f32]) {
    for (index, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        let block = decode::<KIND>(bytes, index);
        for (i, out) in out.iter_mut().enumerate() {
            *out = block.d[i / 16] * f32::from(block.w[i]) + block.m[i / 16];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// A block of zeros in which some bytes and halves are set, and some of its values.
    fn check(kind: GgmlType, halves: &[(usize, f32)], bytes: &[(usize, u8)], expected: &[(usize, f32)]) {
        let mut block = vec![0u8; kind.block_bytes() as usize];
        for (at, x) in halves {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(*x).to_le_bytes());
        }
        for (at, x) in bytes {
            block[*at] = *x;
        }
        let mut out = vec![0.0; kind.block_len() as usize];
        assert!(dequantise(kind, &block, &mut out));
        for (index, x) in expected {
            assert_eq!(out[*index], *x, "{kind}, column {index}");
        }
    }

    #[test]
    fn formats_follow_ggml() {
        check(GgmlType::Q4_1, &[(0, 0.5), (2, -1.0)], &[(4, 0xf3)], &[(0, 0.5), (16, 6.5), (1, -1.0)]);
        check(GgmlType::Q4_0, &[(0, 0.5)], &[(2, 0xf3)], &[(0, -2.5), (16, 3.5), (1, -4.0)]);
        check(GgmlType::Q8_0, &[(0, 0.5)], &[(2, 0xff), (33, 127)], &[(0, -0.5), (31, 63.5)]);
        // The fifth bits of columns 0 and 17.
        check(GgmlType::Q5_0, &[(0, 0.5)], &[(2, 1), (4, 2), (6, 0xf3)], &[(0, 1.5), (16, -0.5), (17, 0.0), (1, -8.0)]);
        check(GgmlType::Q5_1, &[(0, 0.5), (2, 1.0)], &[(4, 1), (8, 0xf3)], &[(0, 10.5), (16, 8.5), (1, 1.0)]);
    }

    #[test]
    fn k_formats_follow_ggml() {
        // Sub-block 0: scale 3, minimum 2; sub-block 5: scale 0x21, minimum 0x12, its upper bits apart.
        let scales = [(4, 3), (8, 2), (13, 0x21), (5, 0x80), (9, 0x40)];
        let expected = [(0, 0.5 * 3.0 * 7.0 - 0.25 * 2.0), (33, 0.0)];
        check(GgmlType::Q4_K, &[(0, 0.5), (2, 0.25)], &[&scales[..], &[(16, 0x07), (80, 0xf0)]].concat(), &expected);
        let sixth = [(160, 0.5 * 33.0 * 15.0 - 0.25 * 18.0)];
        check(GgmlType::Q4_K, &[(0, 0.5), (2, 0.25)], &[&scales[..], &[(80, 0xf0)]].concat(), &sixth);
        let fifth_bit = [(0, 0.5 * 3.0 * 23.0 - 0.25 * 2.0), (160, 0.5 * 33.0 * 31.0 - 0.25 * 18.0)];
        let bytes = [&scales[..], &[(16, 0x21), (48, 0x07), (112, 0xf0)]].concat();
        check(GgmlType::Q5_K, &[(0, 0.5), (2, 0.25)], &bytes, &fifth_bit);
        // Columns 0 and 240, the first and the last scale.
        let bytes = [(192, 0xfe), (207, 3), (0, 0x05), (128, 0x02), (112, 0xa0), (176, 0xc0)];
        check(GgmlType::Q6_K, &[(208, 0.5)], &bytes, &[(0, -5.0), (240, 0.5 * 3.0 * 26.0), (16, 0.0)]);
        // Scale 0: 0x21 - 32 = 1; scale 15: 0x1f - 32 = -1.
        let bytes = [(96, 0x01), (104, 0x02), (103, 0xf0), (107, 0x40), (0, 1), (32, 0x03), (80, 0x80)];
        check(GgmlType::Q3_K, &[(108, 0.5)], &bytes, &[(0, 1.5), (1, -2.0), (240, 1.0), (241, 2.0)]);
        let bytes = [(0, 0x23), (15, 0x14), (16, 0x02), (64, 0xc0)];
        check(GgmlType::Q2_K, &[(80, 0.5), (82, 0.25)], &bytes, &[(0, 2.5), (1, -0.5), (240, 5.75), (16, 0.0)]);
    }
}
