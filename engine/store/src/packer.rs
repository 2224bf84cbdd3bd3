//! How kernels want their weights: a device's packer is passed in at ingestion, so that nothing is repacked at load and
//! this crate knows no device.

use crate::TensorShape;
use std::io::{self, Write};

/// Lays tensors out as the kernels of a device read them.
pub trait Packer: Sync {
    /// Names the layout and its version: of a-z, 0-9 and -. Another layout of the same model is another model in the
    /// store.
    fn layout(&self) -> &str;

    /// Writes a tensor. `stored` are its bytes as [`crate::Checkpoint::tensor_data`] gives them; the same
    /// tensor must always give the same bytes, at least as many as are stored, and they begin with the tensor's own.
    ///
    /// # Errors
    /// Those of `out`.
    fn pack(&self, tensor: TensorShape<'_>, stored: &[u8], out: &mut dyn Write) -> io::Result<()>;
}

/// Leaves tensors as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsStored;

impl Packer for AsStored {
    fn layout(&self) -> &str {
        "stored-1"
    }

    fn pack(&self, _: TensorShape<'_>, stored: &[u8], out: &mut dyn Write) -> io::Result<()> {
        out.write_all(stored)
    }
}
