//! What the device can do at best: the speed of copying, for everything that memory bounds, and of cuBLASLt's matrix
//! products, where that library is, for everything that the tensor cores bound.

use crate::{Failure, Scale};
use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig, sys};
use engine_cuda::{Arena, CudaError, device::Device};
use half::bf16;

#[derive(Clone, Copy, Debug)]
pub struct Yardsticks {
    /// Bytes read and written per second by a copy on the device, 10^9.
    pub copy_gb_per_s: f64,
    /// bf16 with f32 sums, 10^12 operations per second.
    pub matrix_tflop_per_s: Option<f64>,
}

impl Yardsticks {
    pub fn of(device: &Device, scale: Scale) -> Result<Self, Failure> {
        // SAFETY: loads the library if there is one, and nothing else.
        let has_blas = unsafe { sys::is_culib_present() };
        let matrix_tflop_per_s = has_blas.then(|| matrix_tflop_per_s(device, scale)).transpose()?;
        Ok(Self { copy_gb_per_s: copy_gb_per_s(device, scale)?, matrix_tflop_per_s })
    }
}

fn copy_gb_per_s(device: &Device, scale: Scale) -> Result<f64, Failure> {
    let bytes: u64 = if scale.emulated { 1 << 20 } else { 1 << 30 };
    let mut arena = Arena::new(&device.context, "copies", 2 * bytes + (4 << 20))?;
    let (from, to) = (arena.take(bytes)?, arena.take(bytes)?);
    let mut copy = || {
        // SAFETY: both buffers have this size and stay until the end of this function, which waits.
        unsafe { cudarc::driver::result::memcpy_dtod_async(to.0, from.0, bytes as usize, device.stream.cu_stream()) }
            .map_err(Failure::from)
    };
    let wait = || device.wait(&device.stream).map_err(|error: CudaError| Failure::from(error));
    let seconds = scale.seconds(&mut copy, &wait)?;
    Ok(2.0 * bytes as f64 / seconds / 1e9)
}

fn matrix_tflop_per_s(device: &Device, scale: Scale) -> Result<f64, Failure> {
    let n: usize = if scale.emulated { 64 } else { 8192 };
    let stream = &device.stream;
    let blas = CudaBlasLT::new(stream.clone())?;
    // Small numbers that differ: zeros would let the card run faster than with real ones.
    let numbers: Vec<bf16> = (0..n * n).map(|i| bf16::from_f32(crate::tiny::noise(i))).collect();
    let (a, b) = (stream.clone_htod(&numbers)?, stream.clone_htod(&numbers)?);
    let mut out = stream.alloc_zeros::<bf16>(n * n)?;
    let (size, stride) = (n as u64, n as i64);
    let shape = MatmulConfig {
        transa: true,
        transb: false,
        transc: false,
        m: size,
        n: size,
        k: size,
        alpha: 1.0,
        lda: stride,
        ldb: stride,
        beta: 0.0,
        ldc: stride,
        stride_a: None,
        stride_b: None,
        stride_c: None,
        stride_bias: None,
        batch_size: None,
    };
    let mut multiply = || {
        // SAFETY: all three matrices have this shape.
        unsafe { blas.matmul(shape, &a, &b, &mut out, None, None) }.map_err(Failure::from)
    };
    let seconds = scale.seconds(&mut multiply, &|| stream.synchronize().map_err(Failure::from))?;
    Ok(2.0 * (n as f64).powi(3) / seconds / 1e12)
}
