//! `cargo xtask gpu`: CUDA kernels compiled ahead of time, and what a machine with a GPU needs to test and measure them.
//!
//! A plain `cargo build` embeds the committed images in engine/cuda/cubins and needs no CUDA. `build` makes them, `check`
//! proves that they are what the sources compile to, byte by byte, and that no kernel outgrew its budget.

mod budget;
mod bundle;
mod compile;
mod record;
mod toolchain;

pub use bundle::bundle;

use crate::layout;
use crate::shell::step;
use anyhow::{Result, ensure};
use budget::Budget;
use compile::{Built, Resources};
use std::path::PathBuf;

/// Where kernels stand.
fn sources() -> PathBuf {
    layout::root().join("engine/cuda/kernels")
}

/// Where their images are committed.
fn images() -> PathBuf {
    layout::root().join("engine/cuda/cubins")
}

/// `cargo xtask gpu build`: compiles every kernel and writes images, record and the budget of kernels that have none.
pub fn build() -> Result<()> {
    let built = compile_all()?;
    print_table(&built);
    record::write(&built)?;
    let mut budget = Budget::read()?;
    budget.complete(&built)?;
    println!("wrote {} images to engine/cuda/cubins", built.images.len());
    keep(&budget, &built)
}

/// `cargo xtask gpu check`: the committed images are what the sources compile to, and every kernel keeps its budget.
pub fn check() -> Result<()> {
    let built = compile_all()?;
    print_table(&built);
    record::compare(&built)?;
    println!("gpu: {} committed images are what their sources compile to", built.images.len());
    keep(&Budget::read()?, &built)
}

fn compile_all() -> Result<Built> {
    let toolchain = toolchain::install()?;
    step("compile the CUDA kernels", || compile::all(&toolchain))
}

fn keep(budget: &Budget, built: &Built) -> Result<()> {
    let problems = budget.problems(built);
    for problem in &problems {
        eprintln!("gpu: {problem}");
    }
    ensure!(
        problems.is_empty(),
        "{} kernel(s) are not within engine/cuda/cubins/budget.toml, listed above",
        problems.len()
    );
    Ok(())
}

/// A row for each kernel and architecture.
fn print_table(built: &Built) {
    println!("{:<24} {:<8} {:>9} {:>13} {:>11}", "kernel", "arch", "registers", "shared bytes", "spill bytes");
    for Resources { kernel, arch, registers, shared_bytes, spill_bytes } in &built.resources {
        println!("{kernel:<24} {arch:<8} {registers:>9} {shared_bytes:>13} {spill_bytes:>11}");
    }
}
