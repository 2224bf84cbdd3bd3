//! The CUDA device: kernels, memory and models behind the `Forward` seam.
//!
//! The driver is loaded when a device is opened, so one binary runs with and without a GPU. Kernels lie in `kernels/`
//! and are compiled ahead of time (`cubins/`). Logits are bitwise the same whatever the batch, the chunks of a prefill
//! and the kernel's form: see the heads of `kernels/matmul.cuh` and `kernels/attention.cuh`.

mod arena;
mod buffers;
mod choose;
#[doc(hidden)]
pub mod device;
mod error;
#[doc(hidden)]
pub mod format;
mod forward;
#[doc(hidden)]
pub mod kernels;
mod kv;
mod layers;
mod modules;
mod options;
mod plan;
mod results;
mod weights;

#[doc(hidden)]
pub use arena::Arena;
pub use choose::Choice;
pub use error::CudaError;
pub use forward::CudaForward;
pub use options::{CudaOptions, KvFormat};
