//! `cargo xtask gpu bundle`.
use anyhow::Result;
pub fn bundle() -> Result<()> {
    Ok(())
}
