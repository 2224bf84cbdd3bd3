//! A weight matrix as it lies in the checkpoint, seen in bands of sixteen rows.

use super::{integer, quant, settle::Settled};
use engine_store::{GgmlType, TensorData};
use std::sync::OnceLock;

/// Rows that kernels work on together: one per f32 lane of AVX-512.
pub const BAND: usize = 16;

/// `rows` x `cols`, row-major, quantised along the rows.
pub struct Matrix {
    data: TensorData,
    /// The same bytes in huge pages, once they have been moved there.
    settled: OnceLock<Settled>,
    pub rows: usize,
    pub cols: usize,
    pub kind: GgmlType,
    row_bytes: usize,
    /// The last band when `rows` is no multiple of sixteen, filled up by repeating the last row.
    tail: Vec<u8>,
}

impl Matrix {
    /// A validated two-dimensional tensor (`dims` = [columns, rows]) of a runnable type.
    pub fn new(data: TensorData) -> Self {
        let (cols, rows) = (data.dims()[0] as usize, data.dims()[1] as usize);
        let (kind, row_bytes) = (data.kind(), data.len() / rows);
        let whole = rows / BAND * BAND;
        let tail = match rows - whole {
            0 => Vec::new(),
            _ => (whole..whole + BAND)
                .flat_map(|row| data[row.min(rows - 1) * row_bytes..][..row_bytes].iter().copied())
                .collect(),
        };
        Self { data, settled: OnceLock::new(), rows, cols, kind, row_bytes, tail }
    }

    /// All rows.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        match self.settled.get() {
            Some(settled) => settled,
            None => &self.data,
        }
    }

    /// Reads from this copy from now on, and lets go of the checkpoint's pages.
    pub(super) fn settle(&self, copy: Settled) {
        if self.settled.set(copy).is_ok() {
            self.data.release();
        }
    }

    pub fn bands(&self) -> usize {
        self.rows.div_ceil(BAND)
    }

    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The bytes of sixteen rows.
    pub fn band(&self, band: usize) -> &[u8] {
        let bytes = BAND * self.row_bytes;
        self.bytes().get(band * bytes..(band + 1) * bytes).unwrap_or(&self.tail)
    }

    /// Whether the integer kernels know the type.
    pub fn is_integer(&self) -> bool {
        integer::supports(self.kind)
    }

    /// Writes one row as f32.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        quant::dequantise(self.kind, &self.bytes()[row * self.row_bytes..][..self.row_bytes], out);
    }
}
