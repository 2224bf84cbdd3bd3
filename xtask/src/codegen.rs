//! Generated files are committed and compared in CI, so that a reader of the repository sees them and
//! they cannot drift from the tables they come from.

use crate::layout;
use anyhow::{Context, Result, bail};

/// Writes the generated files, or with `check` only compares them.
pub fn run(check: bool) -> Result<()> {
    let mut stale = Vec::new();
    for (name, content) in telemetry::generated_files() {
        let path = layout::root().join(name);
        if std::fs::read_to_string(&path).is_ok_and(|current| current == content) {
            continue;
        }
        if check {
            stale.push(name);
            continue;
        }
        std::fs::write(&path, content).with_context(|| format!("cannot write {name}"))?;
        eprintln!("wrote {name}");
    }
    if !stale.is_empty() {
        bail!("out of date: {}. Run `cargo xtask codegen` and commit the result", stale.join(", "));
    }
    Ok(())
}
