//! Each kernel against its definition in f64, on the emulated device, in three orders of threads.

#[path = "../common/tiny.rs"]
mod tiny;

mod attention;
mod bench;
mod elementwise;
mod pack;
mod packing;
mod products;
mod sampling;
