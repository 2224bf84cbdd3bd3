//! From ggml's formats to the layout that kernels read, by the words in `kernels/formats.cuh` and one row after the other:
//! what the device's own packing must give, byte for byte.

mod blocks;

use blocks::Block;
use engine_cuda::format::Format;
use engine_store::GgmlType;

/// A matrix as it lies in a file: rows one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    pub kind: GgmlType,
    pub rows: usize,
    pub cols: usize,
    pub bytes: &'a [u8],
}

/// Packs a matrix. Rows and columns that make units whole are zero.
pub fn pack(matrix: Stored<'_>) -> Vec<u8> {
    let format = Format::of(matrix.kind).expect("a known type");
    let row_bytes = matrix.kind.bytes(matrix.cols as u64).expect("whole blocks") as usize;
    let mut out = vec![0; format.bytes(matrix.rows, matrix.cols)];
    for (band, out) in out.chunks_exact_mut(format.band_bytes(matrix.cols)).enumerate() {
        let rows = &matrix.bytes[band * 16 * row_bytes..(band * 16 + 16).min(matrix.rows) * row_bytes];
        pack_band(format, matrix.cols, rows, row_bytes, out);
    }
    out
}

/// Up to 16 rows.
fn pack_band(format: Format, cols: usize, rows: &[u8], row_bytes: usize, out: &mut [u8]) {
    for (row, stored) in rows.chunks_exact(row_bytes).enumerate() {
        for (index, unit) in out.chunks_exact_mut(format.unit_bytes()).enumerate() {
            let first = index * format.unit_cols;
            let cols = format.unit_cols.min(cols - first);
            match format.kind {
                GgmlType::F32 => pack_f32(&stored[first * 4..(first + cols) * 4], row, unit),
                GgmlType::F16 | GgmlType::BF16 => pack_halves(&stored[first * 2..(first + cols) * 2], row, unit),
                kind => pack_quantised(kind, format, stored, first..first + cols, row, unit),
            }
        }
    }
}

/// Where a lane has a number: (block of 32 columns, lane, half, v = 4 s + j).
fn place(row: usize, col: usize) -> (usize, usize, usize, usize) {
    let in_block = col % 32;
    let (step, t, j) = (in_block / 16, in_block / 4 % 4, in_block % 4);
    (col / 32, row % 8 * 4 + t, row / 8, step * 4 + j)
}

fn pack_f32(numbers: &[u8], row: usize, unit: &mut [u8]) {
    for (col, number) in numbers.as_chunks::<4>().0.iter().enumerate() {
        let (block, lane, half, v) = place(row, col);
        let at = (((block * 2 + v / 4) * 2 + half) * 32 + lane) * 16 + v % 4 * 4;
        unit[at..at + 4].copy_from_slice(number);
    }
}

fn pack_halves(numbers: &[u8], row: usize, unit: &mut [u8]) {
    for (col, number) in numbers.as_chunks::<2>().0.iter().enumerate() {
        let (block, lane, half, v) = place(row, col);
        // Registers of the A operand: rows g, g + 8, then the same of the other two columns.
        let register = half + 2 * (v % 4 / 2);
        let at = ((block * 2 + v / 4) * 32 + lane) * 16 + register * 4 + v % 2 * 2;
        unit[at..at + 2].copy_from_slice(number);
    }
}

fn pack_quantised(
    kind: GgmlType,
    format: Format,
    stored: &[u8],
    cols: std::ops::Range<usize>,
    row: usize,
    unit: &mut [u8],
) {
    let (low, rest) = unit.split_at_mut(format.tiles() * format.low_bytes);
    let (high, scales) = rest.split_at_mut(format.tiles() * format.high_bytes);
    let first_block = cols.start / 32;
    for index in first_block..cols.end / 32 {
        let block = Block::read(kind, stored, index);
        let in_unit = index - first_block;
        let (tile, b) = (in_unit / 2, in_unit % 2);
        for (col, value) in block.values.iter().enumerate() {
            let (_, lane, half, v) = place(row, col);
            let low = &mut low[tile * format.low_bytes..];
            if format.low_bytes == 1024 {
                low[b * 512 + lane * 16 + (2 * half + v / 4) * 4 + v / 2 % 2 + 2 * (v % 2)] = *value;
                continue;
            }
            let nibble = v / 2 + 4 * (v % 2);
            low[lane * 16 + (2 * b + half) * 4 + nibble / 2] |= (value & 15) << (nibble % 2 * 4);
            let high = &mut high[tile * format.high_bytes..];
            let (word, bit) = match format.high_bytes {
                128 => (lane, 4 * (2 * b + half) + v / 2 + 16 * (v % 2)),
                256 => (lane * 2 + b, 2 * (4 * half + v / 2) + 16 * (v % 2)),
                _ => continue,
            };
            // No value's bits cross a byte.
            high[word * 4 + bit / 8] |= (value >> 4) << (bit % 8);
        }
        put_scales(kind, &block, in_unit, row, scales);
    }
}

fn put_scales(kind: GgmlType, block: &Block, index: usize, row: usize, scales: &mut [u8]) {
    let (g, half) = (row % 8, row / 8);
    let mut put = |at: usize, bytes: &[u8]| scales[at..at + bytes.len()].copy_from_slice(bytes);
    match kind {
        GgmlType::Q4_1 | GgmlType::Q5_1 => {
            put((index * 8 + g) * 8 + half * 2, &block.d);
            put((index * 8 + g) * 8 + 4 + half * 2, &block.m);
        }
        GgmlType::Q4_K | GgmlType::Q5_K => {
            put((index * 8 + g) * 4 + half * 2, &block.small[0]);
            put(256 + g * 8 + half * 4, &block.d);
            put(256 + g * 8 + half * 4 + 2, &block.m);
        }
        GgmlType::Q2_K => {
            for (part, small) in block.small.iter().enumerate() {
                put(((index * 2 + part) * 8 + g) * 4 + half * 2, small);
            }
            put(512 + g * 8 + half * 4, &block.d);
            put(512 + g * 8 + half * 4 + 2, &block.m);
        }
        GgmlType::Q3_K | GgmlType::Q6_K => {
            for (part, small) in block.small.iter().enumerate() {
                put(((index * 2 + part) * 8 + g) * 2 + half, &small[..1]);
            }
            put(256 + g * 4 + half * 2, &block.d);
        }
        _ => put((index * 8 + g) * 4 + half * 2, &block.d),
    }
}
