//! Where things stand: the repository and what set-up puts under target/.

use std::path::{Path, PathBuf};

/// Root of the repository. As cargo says when it runs this program: a checkout, or its build folder, may have been
/// moved since the program was built.
pub fn root() -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map(Path::to_owned).unwrap_or_default()
}

/// Build output and everything fetched.
pub fn target() -> PathBuf {
    root().join("target")
}

/// The built product.
pub fn foreshock() -> PathBuf {
    target().join("release/foreshock")
}

/// The demo checkpoint.
pub fn demo_model() -> PathBuf {
    target().join("models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// The checkpoint that tests use beside it.
pub fn gemma3_model() -> PathBuf {
    target().join("models/gemma3-270m/gemma3-270m-q4_k_m.gguf")
}

/// The encoder that tests use: a folder in Hugging Face's layout.
pub fn minilm_model() -> PathBuf {
    target().join("models/minilm")
}

/// Python environment with the clients that tests drive.
pub fn venv() -> PathBuf {
    target().join("venv")
}

/// The state folder that `foreshock serve` takes when none is named.
pub fn default_state() -> anyhow::Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    folder("XDG_STATE_HOME")
        .or_else(|| Some(folder("HOME")?.join(".local/state")))
        .map(|base| base.join("foreshock"))
        .ok_or_else(|| anyhow::anyhow!("neither XDG_STATE_HOME nor HOME is set; name a state folder with --state"))
}
