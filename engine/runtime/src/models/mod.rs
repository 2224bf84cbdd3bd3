//! Model architectures, each one readable file over the shared kernels.

pub mod bert;
pub mod gemma3;
pub mod layers;
pub mod llama;
