//! What a device is given, and what it refuses.

use crate::{error::CudaError, kernels::PAGE_TOKENS};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    #[default]
    Bf16,
    /// e4m3: half the memory, three bits of mantissa.
    Fp8,
}

/// What a device is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Which device.
    pub ordinal: usize,
    /// Size of the KV pool, bytes. Less is taken where the device has not as much.
    pub kv_bytes: u64,
    pub kv_format: KvFormat,
    /// Tokens per KV block, a multiple of 16.
    pub kv_block_tokens: usize,
    /// Tokens that run through the layers at once; longer steps are cut.
    pub step_tokens: usize,
    /// bf16 numbers that make an input of a product: 1 as is usual, 2 for 16 bits of precision at twice the arithmetic.
    pub planes: usize,
    /// Whether decode steps run as graphs.
    pub graphs: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            kv_bytes: 1 << 30,
            kv_format: KvFormat::Bf16,
            kv_block_tokens: PAGE_TOKENS,
            step_tokens: 1024,
            planes: 1,
            graphs: true,
        }
    }
}

pub(crate) fn check(options: &CudaOptions) -> Result<(), CudaError> {
    let wrong = |option, message| Err(CudaError::Option { option, message });
    let block = options.kv_block_tokens;
    if block == 0 || !block.is_multiple_of(PAGE_TOKENS) || block > 1024 {
        return wrong("kv_block_tokens", format!("{block} is no multiple of {PAGE_TOKENS} up to 1024"));
    }
    if !(1..=2).contains(&options.planes) {
        return wrong("planes", format!("{} is neither 1 nor 2", options.planes));
    }
    if !(1..=8192).contains(&options.step_tokens) {
        return wrong("step_tokens", format!("{} is outside 1..=8192", options.step_tokens));
    }
    Ok(())
}
