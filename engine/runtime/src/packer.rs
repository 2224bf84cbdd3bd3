//! How the store lays weights out for the CPU kernels, so that they read them where they lie.

use crate::kernels::cpu::matrix::BAND;
use engine_store::{Packer, TensorShape};
use std::io::{self, Write};

/// Rows as they are stored, in whole bands: the last row is repeated until its band is full, which [`Matrix::new`] would
/// otherwise copy out at load.
///
/// [`Matrix::new`]: crate::kernels::cpu::matrix::Matrix::new
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuBands;

impl CpuBands {
    /// The layout's name.
    pub const LAYOUT: &str = "cpu-bands-1";
}

impl Packer for CpuBands {
    fn layout(&self) -> &str {
        Self::LAYOUT
    }

    fn pack(&self, tensor: TensorShape<'_>, stored: &[u8], out: &mut dyn Write) -> io::Result<()> {
        out.write_all(stored)?;
        let [_, rows] = tensor.dims else { return Ok(()) };
        let row = stored.len() / *rows as usize;
        let missing = rows.next_multiple_of(BAND as u64) - rows;
        (0..missing).try_for_each(|_| out.write_all(&stored[stored.len() - row..]))
    }
}
