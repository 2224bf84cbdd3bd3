//! A weight matrix as it lies in the checkpoint, seen in bands of sixteen rows.

use super::{arena::Arena, integer, quant};
use engine_store::{GgmlType, TensorData};
use std::{ops::Range, sync::Arc};

/// Rows that kernels work on together: one per f32 lane of AVX-512.
pub const BAND: usize = 16;

/// Where the checkpoint's bytes move to, in huge pages.
struct Home {
    arena: Arc<Arena>,
    start: usize,
    /// Bytes there already, whole bands: those after them are read from the checkpoint.
    moved: usize,
}

/// `rows` x `cols`, row-major, quantised along the rows.
pub struct Matrix {
    data: TensorData,
    home: Option<Home>,
    pub rows: usize,
    pub cols: usize,
    pub kind: GgmlType,
    row_bytes: usize,
    /// The last band when `rows` is no multiple of sixteen, filled up by repeating the last row.
    tail: Vec<u8>,
}

impl Matrix {
    /// A validated two-dimensional tensor (`dims` = [columns, rows]) of a runnable type, with or without what
    /// [`crate::CpuBands`] puts after it.
    pub fn new(data: TensorData) -> Self {
        let (cols, rows) = (data.dims()[0] as usize, data.dims()[1] as usize);
        let kind = data.kind();
        let row_bytes = (cols as u64 / kind.block_len() * kind.block_bytes()) as usize;
        let whole = rows / BAND * BAND;
        let tail = match rows - whole {
            0 => Vec::new(),
            _ if data.len() >= (whole + BAND) * row_bytes => Vec::new(),
            _ => (whole..whole + BAND)
                .flat_map(|row| data[row.min(rows - 1) * row_bytes..][..row_bytes].iter().copied())
                .collect(),
        };
        Self { data, home: None, rows, cols, kind, row_bytes, tail }
    }

    /// Bytes that lie in a file; none when they were made at load.
    pub(super) fn file_bytes(&self) -> usize {
        if self.data.is_mapped() { self.data.len() } else { 0 }
    }

    /// The bytes in the file.
    pub(super) fn file(&self) -> &[u8] {
        &self.data
    }

    /// Where in the arena it begins, and how many bytes are there already.
    pub(super) fn home(&self) -> Option<(usize, usize)> {
        self.home.as_ref().map(|home| (home.start, home.moved))
    }

    pub(super) fn set_home(&mut self, arena: Arc<Arena>, start: usize) {
        self.home = Some(Home { arena, start, moved: 0 });
    }

    /// Reads the first `moved` bytes from the arena from now on.
    pub(super) fn set_moved(&mut self, moved: usize) {
        if let Some(home) = &mut self.home {
            home.moved = moved;
        }
        self.release();
    }

    /// Takes the file's pages that are no longer read out of memory.
    pub(super) fn release(&self) {
        if let Some(home) = &self.home {
            self.data.release(0..home.moved);
        }
    }

    #[inline]
    fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        match &self.home {
            Some(home) if range.end <= home.moved => {
                Some(home.arena.bytes(home.start + range.start..home.start + range.end))
            }
            _ => self.data.get(range),
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
        self.bytes(band * bytes..(band + 1) * bytes).unwrap_or(&self.tail)
    }

    /// Whether the integer kernels know the type.
    pub fn is_integer(&self) -> bool {
        integer::supports(self.kind)
    }

    /// Writes one row as f32.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        let stored = self.bytes(row * self.row_bytes..(row + 1) * self.row_bytes);
        quant::dequantise(self.kind, stored.expect("a row of the matrix"), out);
    }
}
