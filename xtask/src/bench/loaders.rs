//! How others bring weights from a cold disk into memory.

use super::cold_start::set_cache;
use super::llama;
use crate::layout;
use crate::setup::python_packages;
use crate::shell::{command, stdout};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

const SAFETENSORS: &str = "safetensors[numpy]";
/// Loads a file and says how long that took, s. Arrays are copies: every byte has been read then.
const LOAD: &str = "\
import sys, time
from safetensors.numpy import load_file
begun = time.perf_counter()
tensors = load_file(sys.argv[1])
print(time.perf_counter() - begun, sum(tensor.nbytes for tensor in tensors.values()))
";
/// Ways in which llama.cpp reads all of a file before it says that it has loaded it: through the page cache, and past it.
/// Its usual one only maps the file.
const MODES: [&str; 2] = ["none", "dio"];

fn venv() -> PathBuf {
    layout::target().join("safetensors")
}

/// The Python package, in an environment of its own.
pub fn install() -> Result<()> {
    python_packages(&venv(), "safetensors.numpy", SAFETENSORS)
}

/// The better of llama-server's ways to load a file, from exec to its answer that it has: without a first run, without
/// changing the weights' layout, and with a small context.
pub fn llama_mb_per_s(model: &Path) -> Result<f64> {
    let bytes = std::fs::metadata(model)?.len() as f64;
    let mut best = 0f64;
    for mode in MODES {
        set_cache(model, true)?;
        let begun = Instant::now();
        let options = ["--load-mode", mode, "--no-warmup", "--no-repack", "--ctx-size", "512", "--parallel", "1"];
        llama::spawn(model, &options)?.wait_until_loaded(begun)?;
        best = best.max(bytes / 1e6 / begun.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Python's safetensors into numpy's arrays; its start and imports are left out.
pub fn safetensors_mb_per_s(file: &Path) -> Result<f64> {
    set_cache(file, true)?;
    let said = stdout(&mut command(venv().join("bin/python"), &["-c", LOAD, &file.to_string_lossy()]))?;
    let (s, bytes) = said.trim().split_once(' ').context("Python said too little")?;
    let (s, bytes): (f64, f64) = (s.parse()?, bytes.parse()?);
    Ok(bytes / 1e6 / s)
}
