//! CPU kernels. AMX, AVX-512 or AVX2 (with FMA and F16C) is chosen at run time; the portable code computes the very same
//! bits, because all take every sum in the same order and all fuse the same multiply-adds.

#[cfg(target_arch = "x86_64")]
mod amx;
mod arena;
pub mod attention;
mod attention_chunk;
pub mod elementwise;
pub mod encoder;
mod formats;
mod integer;
#[cfg(target_arch = "x86_64")]
mod integer_amx;
#[cfg(target_arch = "x86_64")]
mod integer_avx2;
#[cfg(target_arch = "x86_64")]
mod integer_avx512;
mod integer_portable;
pub mod kv;
pub mod kv_format;
pub mod low_rank;
pub mod matmul;
pub mod matrix;
pub mod peak;
pub mod pool;
pub mod quant;
#[cfg(target_arch = "x86_64")]
mod quant_avx512;
mod real;
pub mod settle;
mod share;
pub mod simd;
#[cfg(target_arch = "x86_64")]
mod unpack_avx2;
#[cfg(target_arch = "x86_64")]
mod unpack_avx512;
pub mod whole_attention;
pub mod wide;
#[cfg(target_arch = "x86_64")]
mod wide_avx512;
