//! Studies over many runs: fronts of attainment against device time for every policy, and what a tick costs as the fleet grows.
//! `cargo xtask bench` runs them through the binary.

mod fronts;
mod tick;

pub use fronts::{Front, Gap, Options, Point, Study, fronts};
pub use tick::{Cost, tick_cost};
