//! `cargo xtask gpu bundle`: the tests and benchmarks of the CUDA backend as a folder that a machine with a driver, and
//! without Rust and network, runs with one script.

use super::{compile, toolchain};
use crate::layout;
use crate::shell::{cargo, command, make_folder, quiet, run, stdout, step};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const MOST_BYTES: u64 = 60_000_000;
/// Kernels of the emulator's own tests, by which the hardware is asked whether the emulator is right.
const PRIMITIVES: [&str; 5] = ["first", "warps", "matrices", "memory", "integers"];
const SCRIPT: &str = include_str!("run.sh");

/// What cargo tells of what it built.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Makes target/gpu-bundle and target/gpu-bundle.tar.
pub fn bundle() -> Result<()> {
    let toolchain = toolchain::install()?;
    let folder = layout::target().join("gpu-bundle");
    let _ = fs::remove_dir_all(&folder);
    make_folder(&folder.join("tests"))?;
    let built = step("build tests and benchmark of engine-cuda", executables)?;
    for (target, path) in &built {
        let is_test = target.kind.iter().any(|kind| kind == "test" || kind == "lib");
        let name = if is_test { format!("tests/{}", target.name) } else { target.name.clone() };
        quiet(command("strip", &["-o"]).arg(folder.join(name)).arg(path)).context("strip is part of binutils")?;
    }
    make_folder(&folder.join("images"))?;
    for name in PRIMITIVES {
        let source = layout::root().join(format!("engine/cuda/emulator/tests/kernels/{name}.cu"));
        compile::to_ptx(&toolchain, &source, &folder.join(format!("images/{name}.ptx")))?;
    }
    checkpoint(&folder)?;
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let bytes = size(&folder)?;
    ensure!(bytes < MOST_BYTES, "the bundle has {bytes} bytes; it must stay below {MOST_BYTES}");
    let tar = folder.with_extension("tar");
    run(command("tar", &["-cf"]).arg(&tar).arg("-C").arg(layout::target()).arg("gpu-bundle"))?;
    println!("{} ({:.1} MB), also as {}", folder.display(), bytes as f64 / 1e6, tar.display());
    println!("on the machine with a GPU: gpu-bundle/run.sh [--large], then see gpu-bundle/results");
    Ok(())
}

/// Test programs and the benchmark.
fn executables() -> Result<Vec<(Target, PathBuf)>> {
    let build =
        |words: &[&str]| stdout(cargo(words).args(["--release", "--message-format", "json-render-diagnostics"]));
    let tests = build(&["test", "--no-run", "--package", "engine-cuda"])?;
    let primitives = build(&["test", "--no-run", "--package", "engine-cuda-emulator", "--test", "primitives"])?;
    let example = build(&["build", "--package", "engine-cuda", "--example", "measure"])?;
    let all = [tests, primitives, example].concat();
    let messages = all.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    let mut built: Vec<(Target, PathBuf)> = Vec::new();
    for Message { executable, target } in messages {
        let (Some(path), Some(target)) = (executable, target) else { continue };
        // The same example comes from both calls, once with its tests.
        let is_program = target.kind.iter().any(|kind| ["test", "lib", "example"].contains(&kind.as_str()));
        built.retain(|(other, _)| other.name != target.name || other.kind != target.kind);
        if is_program {
            built.push((target, path));
        }
    }
    ensure!(built.iter().any(|(target, _)| target.name == "measure"), "cargo built no benchmark");
    Ok(built)
}

/// A small checkpoint, and the tokens that the emulator finds with it.
fn checkpoint(folder: &Path) -> Result<()> {
    let checkpoint = folder.join("small.gguf");
    let program = folder.join("measure");
    quiet(command(&program, &["make"]).arg(&checkpoint))?;
    let expected = step("find the tokens to expect, on the emulator", || {
        stdout(command(&program, &["tokens"]).arg(&checkpoint).arg("--emulated"))
    })?;
    fs::write(folder.join("expected.json"), expected).context("cannot write the expected tokens")
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
