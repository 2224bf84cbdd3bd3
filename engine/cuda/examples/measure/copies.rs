//! The device's own speed of copying, the yardstick of everything that memory bounds.

use crate::{Failure, Scale};
use engine_cuda::{Arena, CudaError, device::Device};

/// Bytes read and written per second by a copy on the device, 10^9.
pub fn gb_per_s(device: &Device, scale: Scale) -> Result<f64, Failure> {
    let bytes: u64 = if scale.emulated { 1 << 20 } else { 1 << 30 };
    let mut arena = Arena::new(&device.context, "copies", 2 * bytes + (4 << 20))?;
    let (from, to) = (arena.take(bytes)?, arena.take(bytes)?);
    // SAFETY: both buffers have this size and stay until the end of this function, which waits.
    let mut copy = || unsafe {
        cudarc::driver::result::memcpy_dtod_async(to.0, from.0, bytes as usize, device.stream.cu_stream())
            .map_err(Failure::from)
    };
    let wait = || device.wait(&device.stream).map_err(|error: CudaError| Failure::from(error));
    let seconds = scale.seconds(&mut copy, &wait)?;
    Ok(2.0 * bytes as f64 / seconds / 1e9)
}
