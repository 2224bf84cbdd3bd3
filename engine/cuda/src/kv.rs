//! The pool of keys and values.

use crate::{
    arena::Arena,
    device::Device,
    error::CudaError,
    kernels::{KvPool, PAGE_TOKENS},
};

/// A pool of at most `bytes`: where the device has less, a smaller one. Gives the blocks in it.
pub(crate) fn kv_pool(
    device: &Device,
    kv: &mut KvPool,
    layers: usize,
    bytes: u64,
) -> Result<(Arena, usize), CudaError> {
    let block_bytes = kv.block_bytes() * layers as u64;
    let mut blocks = (bytes / block_bytes).min(i32::MAX as u64 / (kv.pages_per_block as u64 * PAGE_TOKENS as u64));
    if blocks == 0 {
        let message = format!("{bytes} bytes hold no block of {block_bytes} bytes");
        return Err(CudaError::Option { option: "kv_bytes", message });
    }
    loop {
        let mut arena = Arena::new(&device.context, "the KV pool", blocks * block_bytes)?;
        match arena.take(blocks * block_bytes) {
            Ok(pages) => {
                kv.pages = pages;
                // What is masked is multiplied by zero, and must be finite.
                // SAFETY: just taken.
                unsafe { device.clear(pages, blocks * block_bytes) }?;
                return Ok((arena, blocks as usize));
            }
            Err(CudaError::OutOfMemory { .. }) if blocks > 1 => blocks -= blocks.div_ceil(8),
            Err(error) => return Err(error),
        }
    }
}
