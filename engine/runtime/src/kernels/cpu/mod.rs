//! CPU kernels. AVX-512 or AVX2 (with FMA and F16C) is chosen at run time; the portable code computes the very same
//! bits, because all take every sum in the same order and all fuse the same multiply-adds.

pub mod attention;
mod attention_chunk;
pub mod elementwise;
mod formats;
pub mod integer;
#[cfg(target_arch = "x86_64")]
mod integer_avx2;
mod integer_portable;
pub mod kv;
pub mod kv_format;
pub mod matmul;
pub mod matrix;
pub mod peak;
pub mod pool;
pub mod quant;
pub mod real;
pub mod simd;
#[cfg(target_arch = "x86_64")]
mod unpack_avx2;
pub mod wide;
#[cfg(target_arch = "x86_64")]
mod wide_avx512;
