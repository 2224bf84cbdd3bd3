//! What the machine would allow at best for a model: measured by an example of the runtime, which knows the
//! kernels' widest instruction and the checkpoint's sizes.

use crate::layout;
use crate::shell::{cargo, command, run, stdout};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

/// One model on this machine, all cores.
#[derive(Deserialize)]
pub struct Floor {
    /// Reading a buffer of the weights' size again and again.
    read_bytes_per_s: f64,
    /// Integer multiply-adds of the widest instruction in registers, counted as two operations each.
    int8_ops_per_s: f64,
    /// Weights that every step reads.
    weight_bytes: f64,
    kv_bytes_per_token: f64,
    /// Operations of one token in the matrices of all layers.
    ops_per_token: f64,
}

impl Floor {
    /// Bound by arithmetic.
    pub fn prefill_tokens_per_s(&self) -> f64 {
        self.int8_ops_per_s / self.ops_per_token
    }

    /// Bound by reading the weights and the context's keys and values.
    pub fn decode_tokens_per_s(&self, context_tokens: usize) -> f64 {
        self.read_bytes_per_s / (self.weight_bytes + self.kv_bytes_per_token * context_tokens as f64)
    }
}

/// Builds the example if need be and runs it.
pub fn measure(model: &Path) -> Result<Floor> {
    run(&mut cargo(&["build", "--release", "--quiet", "-p", "engine-runtime", "--example", "floor"]))?;
    let printed = stdout(command(layout::target().join("release/examples/floor"), &[]).arg(model))?;
    let floor: Floor = serde_json::from_str(&printed).context("the floor example printed something else")?;
    eprintln!("    floor: {:.1} GB/s, {:.0} GOP/s of int8", floor.read_bytes_per_s / 1e9, floor.int8_ops_per_s / 1e9);
    Ok(floor)
}
