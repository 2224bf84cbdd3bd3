//! Tensors as the file stores them: a type, dimensions and bytes.

use crate::mapping::Mapping;
use std::{fmt, ops::Deref, ops::Range};

/// ggml's tensor types (ggml.h, `enum ggml_type`), known by block length and block size whether or not
/// the runtime can compute with them, so that any file can be inspected.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
}

/// (number in the file, type, elements per block, bytes per block)
const TYPES: [(u32, GgmlType, u64, u64); 32] = [
    (0, GgmlType::F32, 1, 4),
    (1, GgmlType::F16, 1, 2),
    (2, GgmlType::Q4_0, 32, 18),
    (3, GgmlType::Q4_1, 32, 20),
    (6, GgmlType::Q5_0, 32, 22),
    (7, GgmlType::Q5_1, 32, 24),
    (8, GgmlType::Q8_0, 32, 34),
    (9, GgmlType::Q8_1, 32, 36),
    (10, GgmlType::Q2_K, 256, 84),
    (11, GgmlType::Q3_K, 256, 110),
    (12, GgmlType::Q4_K, 256, 144),
    (13, GgmlType::Q5_K, 256, 176),
    (14, GgmlType::Q6_K, 256, 210),
    (15, GgmlType::Q8_K, 256, 292),
    (16, GgmlType::IQ2_XXS, 256, 66),
    (17, GgmlType::IQ2_XS, 256, 74),
    (18, GgmlType::IQ3_XXS, 256, 98),
    (19, GgmlType::IQ1_S, 256, 50),
    (20, GgmlType::IQ4_NL, 32, 18),
    (21, GgmlType::IQ3_S, 256, 110),
    (22, GgmlType::IQ2_S, 256, 82),
    (23, GgmlType::IQ4_XS, 256, 136),
    (24, GgmlType::I8, 1, 1),
    (25, GgmlType::I16, 1, 2),
    (26, GgmlType::I32, 1, 4),
    (27, GgmlType::I64, 1, 8),
    (28, GgmlType::F64, 1, 8),
    (29, GgmlType::IQ1_M, 256, 56),
    (30, GgmlType::BF16, 1, 2),
    (34, GgmlType::TQ1_0, 256, 54),
    (35, GgmlType::TQ2_0, 256, 66),
    (39, GgmlType::MXFP4, 32, 17),
];

impl GgmlType {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.0 == number).map(|row| row.1)
    }

    /// By the name that [`fmt::Display`] gives it.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        TYPES.iter().map(|row| row.1).find(|kind| kind.to_string() == name)
    }

    fn row(self) -> &'static (u32, GgmlType, u64, u64) {
        &TYPES[self as usize]
    }

    /// Elements in one quantisation block; 1 for plain types.
    pub fn block_len(self) -> u64 {
        self.row().2
    }

    /// Bytes of one quantisation block.
    pub fn block_bytes(self) -> u64 {
        self.row().3
    }

    /// Bytes of `elements` consecutive elements; None when they are no whole number of blocks or too many.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where a tensor lies. Offsets are from the start of the file and checked against its length.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: GgmlType,
    pub(crate) range: Range<usize>,
}

/// A tensor, borrowed from the file. `dims[0]` is the contiguous dimension (a matrix is `[columns, rows]`).
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub dims: &'a [u64],
    pub kind: GgmlType,
    pub bytes: &'a [u8],
}

impl TensorView<'_> {
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {} ({} bytes)", self.name, self.dims, self.kind, self.bytes.len())
    }
}

/// A tensor's bytes with a share in the mapping, for holders that outlive the borrow.
#[derive(Clone)]
pub struct TensorData {
    pub(crate) mapping: Mapping,
    pub(crate) range: Range<usize>,
    pub(crate) kind: GgmlType,
    pub(crate) dims: Vec<u64>,
}

impl TensorData {
    /// A tensor made in memory; None when `bytes` is not what `kind` and `dims` take.
    pub fn from_bytes(kind: GgmlType, dims: Vec<u64>, bytes: Vec<u8>) -> Option<Self> {
        let elements = dims.iter().try_fold(1u64, |total, dim| total.checked_mul(*dim))?;
        if dims.first()?.checked_rem(kind.block_len())? != 0 || kind.bytes(elements)? != bytes.len() as u64 {
            return None;
        }
        let range = 0..bytes.len();
        Some(Self { mapping: Mapping::Memory(std::sync::Arc::new(bytes)), range, kind, dims })
    }

    pub fn kind(&self) -> GgmlType {
        self.kind
    }

    pub fn dims(&self) -> &[u64] {
        &self.dims
    }

    /// Whether the bytes lie in a file that is mapped in small pages for good: they are read faster from huge pages, where
    /// a copy of one's own can be. What is large in a segment is not, since there all who map it can have huge pages.
    pub fn is_mapped(&self) -> bool {
        match &self.mapping {
            Mapping::File(_) => true,
            Mapping::Segment(map) => !map.is_large(),
            Mapping::Memory(_) => false,
        }
    }

    /// Takes the pages that hold only these of the tensor's bytes out of the process's memory. They come back, from the
    /// page cache or the file, when they are read again.
    pub fn release(&self, range: Range<usize>) {
        let end = self.range.end.min(self.range.start + range.end);
        self.mapping.release(self.range.start + range.start..end);
    }
}

impl Deref for TensorData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.mapping.bytes()[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_indexed_by_discriminant() {
        for (index, (number, kind, _, _)) in TYPES.iter().enumerate() {
            assert_eq!(*kind as usize, index);
            assert_eq!(GgmlType::from_number(*number), Some(*kind));
        }
        assert_eq!(GgmlType::from_number(4), None);
        assert_eq!(GgmlType::Q4_1.bytes(64), Some(40));
        assert_eq!(GgmlType::Q4_1.bytes(33), None);
        assert_eq!(GgmlType::I64.bytes(u64::MAX), None);
    }
}
