//! A weight matrix as it lies in the checkpoint, seen in groups of eight rows.

use super::{integer, quant};
use engine_store::{GgmlType, TensorData};

/// Rows that kernels work on together: one per f32 lane.
pub const GROUP: usize = 8;

/// `rows` x `cols`, row-major, quantised along the rows.
pub struct Matrix {
    data: TensorData,
    pub rows: usize,
    pub cols: usize,
    pub kind: GgmlType,
    row_bytes: usize,
    /// The last group when `rows` is no multiple of eight, filled up by repeating the last row.
    tail: Vec<u8>,
}

impl Matrix {
    /// A validated two-dimensional tensor (`dims` = [columns, rows]) of a runnable type.
    pub fn new(data: TensorData) -> Self {
        let (cols, rows) = (data.dims()[0] as usize, data.dims()[1] as usize);
        let (kind, row_bytes) = (data.kind(), data.len() / rows);
        let whole = rows / GROUP * GROUP;
        let tail = match rows - whole {
            0 => Vec::new(),
            _ => (whole..whole + GROUP)
                .flat_map(|row| data[row.min(rows - 1) * row_bytes..][..row_bytes].iter().copied())
                .collect(),
        };
        Self { data, rows, cols, kind, row_bytes, tail }
    }

    pub fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The bytes of eight rows.
    pub fn group(&self, group: usize) -> &[u8] {
        let bytes = GROUP * self.row_bytes;
        self.data.get(group * bytes..(group + 1) * bytes).unwrap_or(&self.tail)
    }

    /// Whether the integer kernels know the type.
    pub fn is_integer(&self) -> bool {
        integer::supports(self.kind)
    }

    /// Writes one row as f32.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        quant::dequantise(self.kind, &self.data[row * self.row_bytes..][..self.row_bytes], out);
    }
}
