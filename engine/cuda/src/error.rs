//! What can go wrong between this process and a GPU, each with what its reader can do about it.

use cudarc::driver::{DriverError, sys::CUresult};
use engine_core::ForwardError;
use engine_store::CheckpointError;
use thiserror::Error;

/// A device cannot be had, or failed.
#[derive(Debug, Error)]
pub enum CudaError {
    #[error("no CUDA driver: libcuda.so.1 is not on this machine")]
    NoLibrary,
    #[error(
        "the CUDA driver is too old: it speaks CUDA {}.{}, version {}.{} is needed (driver 580 or later)",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    DriverTooOld { found: i32, needed: i32 },
    #[error("the CUDA driver finds no device")]
    NoDevice,
    #[error("no CUDA device {ordinal}: there are {count}")]
    NoSuchDevice { ordinal: usize, count: usize },
    #[error("{name} has compute capability {major}.{minor}, kernels need 8.0")]
    DeviceTooOld { name: String, major: i32, minor: i32 },
    #[error("this build holds no kernel {kernel:?} for compute capability {major}.{minor}")]
    NoImage { kernel: String, major: i32, minor: i32 },
    #[error("out of device memory: {purpose} needs {bytes} bytes, {free} are free")]
    OutOfMemory { purpose: &'static str, bytes: u64, free: u64 },
    #[error("device lost: {message}")]
    Lost { message: String },
    #[error("{call}: {message}")]
    Driver { call: &'static str, message: String },
    #[error("option {option}: {message}")]
    Option { option: &'static str, message: String },
    #[error("{message}")]
    Model { message: String },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl CudaError {
    /// What the driver's answer to `call` means.
    pub(crate) fn new(call: &'static str, error: DriverError) -> Self {
        let text = |text: Result<&std::ffi::CStr, DriverError>| text.map(|text| text.to_string_lossy().into_owned());
        let name = text(error.error_name()).unwrap_or_else(|_| format!("{:?}", error.0));
        let message = match text(error.error_string()) {
            Ok(string) => format!("{name} ({string})"),
            Err(_) => name,
        };
        match error.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => Self::NoDevice,
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUresult::CUDA_ERROR_UNKNOWN => Self::Lost { message: format!("{call}: {message}") },
            _ => Self::Driver { call, message },
        }
    }
}

impl From<CudaError> for ForwardError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Lost { .. } => Self::Lost { message: error.to_string() },
            _ => Self::Device { message: error.to_string() },
        }
    }
}

/// Names the call in the error.
pub(crate) trait During<T> {
    fn during(self, call: &'static str) -> Result<T, CudaError>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, call: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::new(call, error))
    }
}
