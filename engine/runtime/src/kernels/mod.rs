//! Kernels by device. Everything unsafe in this crate stands below this folder, behind safe functions.

pub mod cpu;
