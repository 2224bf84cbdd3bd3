//! `cargo xtask ci`: every check, cheapest first, so that a slip is found early. The first failure ends it.

use crate::shell::{cargo, run};
use crate::{codegen, gpu, probes, test, tidy};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// A stage's name and work.
type Stage = (&'static str, fn() -> Result<()>);

const STAGES: &[Stage] = &[
    ("format", || run(&mut cargo(&["fmt", "--all", "--check"]))),
    ("tidy", tidy::run),
    ("generated files", || codegen::run(true)),
    ("clippy", clippy),
    ("probes", probes::check),
    ("CUDA kernels", gpu::check),
    ("tests", test::run_all),
];

fn clippy() -> Result<()> {
    run(&mut cargo(&["clippy", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
}

/// All stages, then how long each took.
pub fn run_all() -> Result<()> {
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for (name, work) in STAGES {
        eprintln!("=== ci: {name}");
        let begun = Instant::now();
        work().with_context(|| format!("ci stopped at stage `{name}`"))?;
        times.push((name, begun.elapsed()));
    }
    eprintln!("=== ci passed");
    for (name, time) in times {
        eprintln!("{name:>16} {:>7.1} s", time.as_secs_f64());
    }
    Ok(())
}
