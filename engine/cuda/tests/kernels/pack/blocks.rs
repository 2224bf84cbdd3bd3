//! ggml's quantised formats (ggml-quants.c), taken apart 32 columns at a time: whole numbers and scales as they are
//! stored, nothing multiplied out.

use engine_store::GgmlType;

/// 32 columns of one row.
pub(super) struct Block {
    /// Unsigned, before the format's offset is subtracted; two's complement in Q8_0.
    pub(super) values: [u8; 32],
    /// f16.
    pub(super) d: [u8; 2],
    /// f16: the minimum, or its scale.
    pub(super) m: [u8; 2],
    /// In K formats, scale and minimum of each half (the same of both where 32 columns share them).
    pub(super) small: [[u8; 2]; 2],
}

impl Block {
    /// Block `index` of a row. The type is a quantised one.
    pub(super) fn read(kind: GgmlType, row: &[u8], index: usize) -> Self {
        let blocks_stored = kind.block_len() as usize / 32;
        let bytes = kind.block_bytes() as usize;
        let block = &row[index / blocks_stored * bytes..][..bytes];
        let j = index % blocks_stored;
        let half = |at: usize| [block[at], block[at + 1]];
        let plain = |values, d, m| Self { values, d, m, small: [[0; 2]; 2] };
        match kind {
            GgmlType::Q4_0 => plain(small(&block[2..], None), half(0), [0; 2]),
            GgmlType::Q4_1 => plain(small(&block[4..], None), half(0), half(2)),
            GgmlType::Q5_0 => plain(small(&block[6..], Some(&block[2..6])), half(0), [0; 2]),
            GgmlType::Q5_1 => plain(small(&block[8..], Some(&block[4..8])), half(0), half(2)),
            GgmlType::Q8_0 => plain(std::array::from_fn(|i| block[2 + i]), half(0), [0; 2]),
            GgmlType::Q2_K => Self::q2_k(block, j),
            GgmlType::Q3_K => Self::q3_k(block, j),
            GgmlType::Q6_K => Self::q6_k(block, j),
            _ => Self::q4_or_q5_k(block, j, kind == GgmlType::Q5_K),
        }
    }

    fn q4_or_q5_k(block: &[u8], j: usize, fifth: bool) -> Self {
        let quants = &block[if fifth { 48 } else { 16 }..];
        let values = std::array::from_fn(|i| {
            let nibble = (quants[j / 2 * 32 + i] >> (j % 2 * 4)) & 15;
            let bit = if fifth { (block[16 + i] >> j) & 1 } else { 0 };
            nibble | (bit << 4)
        });
        Self { values, d: [block[0], block[1]], m: [block[2], block[3]], small: [scale_min(&block[4..16], j); 2] }
    }

    fn q6_k(block: &[u8], j: usize) -> Self {
        let (n, k) = (j / 4, j % 4);
        let values = std::array::from_fn(|i| {
            let low = (block[64 * n + 32 * (k % 2) + i] >> (k / 2 * 4)) & 15;
            let high = (block[128 + 32 * n + i] >> (2 * k)) & 3;
            low | (high << 4)
        });
        let small = std::array::from_fn(|part| [block[192 + 2 * j + part], 0]);
        Self { values, d: [block[208], block[209]], m: [0; 2], small }
    }

    fn q3_k(block: &[u8], j: usize) -> Self {
        let (n, k) = (j / 4, j % 4);
        let values = std::array::from_fn(|i| {
            let low = (block[32 + 32 * n + i] >> (2 * k)) & 3;
            let high = (block[i] >> j) & 1;
            low | (high << 2)
        });
        let scales = &block[96..108];
        let scale = |s: usize| {
            let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
            let high = (scales[8 + s % 4] >> (s / 4 * 2)) & 3;
            (low | (high << 4)).wrapping_sub(32)
        };
        let small = std::array::from_fn(|part| [scale(2 * j + part), 0]);
        Self { values, d: [block[108], block[109]], m: [0; 2], small }
    }

    fn q2_k(block: &[u8], j: usize) -> Self {
        let (n, k) = (j / 4, j % 4);
        let values = std::array::from_fn(|i| (block[16 + 32 * n + i] >> (2 * k)) & 3);
        let small = std::array::from_fn(|part| [block[2 * j + part] & 15, block[2 * j + part] >> 4]);
        Self { values, d: [block[80], block[81]], m: [block[82], block[83]], small }
    }
}

/// Low nibbles are columns 0..16, high nibbles 16..32; `fifth` holds one more bit by column.
fn small(quants: &[u8], fifth: Option<&[u8]>) -> [u8; 32] {
    std::array::from_fn(|i| {
        let nibble = (quants[i % 16] >> (i / 16 * 4)) & 15;
        let bit = fifth.map_or(0, |bits| (bits[i / 8] >> (i % 8)) & 1);
        nibble | (bit << 4)
    })
}

/// Six-bit scale and minimum of sub-block `j`, packed in twelve bytes (`get_scale_min_k4`).
fn scale_min(scales: &[u8], j: usize) -> [u8; 2] {
    if j < 4 {
        return [scales[j] & 63, scales[j + 4] & 63];
    }
    [(scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4), (scales[j + 4] >> 4) | (scales[j] >> 6 << 4)]
}
