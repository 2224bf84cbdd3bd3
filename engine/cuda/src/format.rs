//! The layout of weights on the device, in numbers. What lies where is said in `kernels/formats.cuh`.

use engine_store::GgmlType;

/// How one type of weights lies in units of 16 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub kind: GgmlType,
    /// What kernels' names end in.
    pub suffix: &'static str,
    /// Columns of a unit: 64, or 256.
    pub unit_cols: usize,
    /// Bytes of the lower bits of 64 columns; of whole numbers in plain types.
    pub low_bytes: usize,
    /// Bytes of the upper bits of 64 columns.
    pub high_bytes: usize,
    /// Bytes of the scales of a unit.
    pub scale_bytes: usize,
}

const fn format(
    kind: GgmlType,
    suffix: &'static str,
    unit_cols: usize,
    [low_bytes, high_bytes, scale_bytes]: [usize; 3],
) -> Format {
    Format { kind, suffix, unit_cols, low_bytes, high_bytes, scale_bytes }
}

/// All that kernels know.
pub const FORMATS: [Format; 13] = [
    format(GgmlType::F32, "f32", 64, [4096, 0, 0]),
    format(GgmlType::F16, "f16", 64, [2048, 0, 0]),
    format(GgmlType::BF16, "bf16", 64, [2048, 0, 0]),
    format(GgmlType::Q4_0, "q4_0", 64, [512, 0, 64]),
    format(GgmlType::Q4_1, "q4_1", 64, [512, 0, 128]),
    format(GgmlType::Q5_0, "q5_0", 64, [512, 128, 64]),
    format(GgmlType::Q5_1, "q5_1", 64, [512, 128, 128]),
    format(GgmlType::Q8_0, "q8_0", 64, [1024, 0, 64]),
    format(GgmlType::Q2_K, "q2_k", 256, [512, 0, 512 + 64]),
    format(GgmlType::Q3_K, "q3_k", 256, [512, 0, 256 + 32]),
    format(GgmlType::Q4_K, "q4_k", 256, [512, 0, 256 + 64]),
    format(GgmlType::Q5_K, "q5_k", 256, [512, 128, 256 + 64]),
    format(GgmlType::Q6_K, "q6_k", 256, [512, 256, 256 + 32]),
];

impl Format {
    /// The layout of a type; none if no kernel knows it.
    pub fn of(kind: GgmlType) -> Option<Self> {
        FORMATS.into_iter().find(|format| format.kind == kind)
    }

    /// Tiles of 64 columns in a unit.
    pub fn tiles(&self) -> usize {
        self.unit_cols / 64
    }

    /// Bytes of a unit: 16 rows of `unit_cols` columns.
    pub fn unit_bytes(&self) -> usize {
        self.tiles() * (self.low_bytes + self.high_bytes) + self.scale_bytes
    }

    /// Columns in memory: whole units.
    pub fn packed_cols(&self, cols: usize) -> usize {
        cols.next_multiple_of(self.unit_cols)
    }

    /// Bytes of 16 rows.
    pub fn band_bytes(&self, cols: usize) -> usize {
        self.packed_cols(cols) / self.unit_cols * self.unit_bytes()
    }

    /// Bytes of a matrix.
    pub fn bytes(&self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(16) * self.band_bytes(cols)
    }
}
