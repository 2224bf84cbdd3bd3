//! Model architectures, each one readable file over the shared kernels.

pub mod llama;
