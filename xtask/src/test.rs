//! `cargo xtask test`: everything that the tests need, then all of them.

use crate::setup;
use crate::shell::{cargo, run, step};
use anyhow::Result;

/// Set-up, the binary that black-box tests start, and the tests.
pub fn run_all() -> Result<()> {
    setup::all()?;
    build_binary()?;
    step("tests of the whole workspace", || run(&mut cargo(&["test", "--release", "--workspace"])))
}

/// The product itself; black-box tests and deployment run it as a process.
pub fn build_binary() -> Result<()> {
    step("building foreshock (some minutes the first time)", || {
        run(&mut cargo(&["build", "--release", "--package", "foreshock"]))
    })
}
