//! Feeds the parsers of foreign bytes with inputs that grow towards new code (libFuzzer). The compiler's own coverage pass
//! does the instrumentation, so that the project's stable toolchain is enough; assertions and overflow checks are on.

use crate::layout;
use crate::shell::{cargo, command, run, step};
use anyhow::{Context, Result, bail};
use std::fs;

/// What libFuzzer needs of every crate: counters of edges, and of what comparisons compare with.
const INSTRUMENTED: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions=y -Coverflow-checks=y";
/// Named, so that build scripts are not instrumented.
const PLATFORM: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

/// Fuzzes one target, or each in turn, for so long; what it learns is kept in target/fuzz/corpus for the next time.
pub fn all(only: Option<&str>, seconds: u64) -> Result<()> {
    let known = targets()?;
    let chosen: Vec<&String> = known.iter().filter(|name| only.is_none_or(|only| only == *name)).collect();
    if chosen.is_empty() {
        bail!("there is no fuzz target {}; there are: {}", only.unwrap_or_default(), known.join(", "));
    }
    let built = layout::target().join("fuzz");
    step("building the fuzz targets (some minutes the first time)", || {
        let mut build = cargo(&["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", PLATFORM]);
        build.arg("--target-dir").arg(&built).env("RUSTFLAGS", INSTRUMENTED);
        chosen.iter().for_each(|name| {
            build.args(["--bin", name]);
        });
        run(&mut build)
    })?;
    for name in chosen {
        let corpus = built.join("corpus").join(name);
        fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
        let found = format!("{}/", corpus.parent().unwrap_or(&corpus).display());
        step(&format!("fuzzing {name} for {seconds} s"), || {
            let mut fuzz =
                command(built.join(PLATFORM).join("release").join(name), &["-print_final_stats=1", "-verbosity=0"]);
            fuzz.arg(&corpus).arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={found}{name}-"));
            run(&mut fuzz).with_context(|| format!("the input is kept in {found}{name}-*"))
        })?;
    }
    Ok(())
}

/// The names of the files in fuzz/fuzz_targets.
fn targets() -> Result<Vec<String>> {
    let folder = layout::root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let stem = |entry: fs::DirEntry| Some(entry.path().file_stem()?.to_str()?.to_owned());
    let mut names: Vec<String> = entries.flatten().filter_map(stem).collect();
    names.sort();
    Ok(names)
}
