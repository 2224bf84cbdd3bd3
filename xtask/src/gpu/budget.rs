//! What each kernel may take of the hardware: engine/cuda/cubins/budget.toml, a line for each kernel, raised by hand alone.

use super::compile::{Built, Resources};
use super::images;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

const HEAD: &str = "\
# What each kernel may take at most, on any architecture that it is compiled for: registers of a thread, bytes that it
# spills to memory (stores and loads). `cargo xtask gpu check` fails above a line and without one; `cargo xtask gpu build`
# adds lines for new kernels and removes those of kernels that are gone. To raise a line, edit it, and say why in the commit.
";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Limit {
    registers: u32,
    spill_bytes: u32,
}

/// Limits by the kernel's name.
#[derive(Debug, Default)]
pub struct Budget(BTreeMap<String, Limit>);

fn file() -> PathBuf {
    images().join("budget.toml")
}

impl Budget {
    /// The committed one; empty where there is none yet.
    pub fn read() -> Result<Self> {
        if !file().exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(file()).with_context(|| format!("cannot read {}", file().display()))?;
        parse(&text)
    }

    /// Adds what kernels without a line take now, removes lines of kernels that are gone, and writes the file.
    pub fn complete(&mut self, built: &Built) -> Result<()> {
        let measured = largest(&built.resources);
        self.0.retain(|kernel, _| measured.contains_key(kernel));
        for (kernel, limit) in measured {
            self.0.entry(kernel).or_insert(limit);
        }
        let lines = self.0.iter().map(|(kernel, limit)| {
            format!("{kernel} = {{ registers = {}, spill_bytes = {} }}\n", limit.registers, limit.spill_bytes)
        });
        let text: String = std::iter::once(HEAD.to_owned()).chain(lines).collect();
        fs::write(file(), text).with_context(|| format!("cannot write {}", file().display()))
    }

    /// Kernels above their line, kernels without one, lines without a kernel.
    pub fn problems(&self, built: &Built) -> Vec<String> {
        let over = built.resources.iter().filter_map(|one| self.problem(one));
        let measured = largest(&built.resources);
        let gone = self.0.keys().filter(|kernel| !measured.contains_key(*kernel));
        over.chain(gone.map(|kernel| format!("budget.toml has a line for {kernel}, which is no kernel"))).collect()
    }

    fn problem(&self, one: &Resources) -> Option<String> {
        let Resources { kernel, arch, registers, spill_bytes, .. } = one;
        let Some(limit) = self.0.get(kernel) else {
            return Some(format!("{kernel} has no line in budget.toml; `cargo xtask gpu build` adds it"));
        };
        if *registers <= limit.registers && *spill_bytes <= limit.spill_bytes {
            return None;
        }
        Some(format!(
            "{kernel} takes {registers} registers and spills {spill_bytes} bytes on {arch}; its budget is {} and {}",
            limit.registers, limit.spill_bytes
        ))
    }
}

/// The most that each kernel takes on any architecture.
fn largest(resources: &[Resources]) -> BTreeMap<String, Limit> {
    let mut most: BTreeMap<String, Limit> = BTreeMap::new();
    for one in resources {
        let limit = most.entry(one.kernel.clone()).or_default();
        limit.registers = limit.registers.max(one.registers);
        limit.spill_bytes = limit.spill_bytes.max(one.spill_bytes);
    }
    most
}

/// The file is TOML, of which one shape of line is used.
fn parse(text: &str) -> Result<Budget> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let limits = lines.map(|(number, line)| {
        parse_line(line).with_context(|| {
            format!("budget.toml:{number}: expected `kernel = {{ registers = N, spill_bytes = N }}`, found `{line}`")
        })
    });
    Ok(Budget(limits.collect::<Result<_>>()?))
}

fn parse_line(line: &str) -> Option<(String, Limit)> {
    let (kernel, rest) = line.split_once('=')?;
    let inside = rest.trim().strip_prefix('{')?.strip_suffix('}')?;
    let (registers, spill_bytes) = inside.split_once(',')?;
    let value = |field: &str, name: &str| {
        let (key, value) = field.split_once('=')?;
        (key.trim() == name).then(|| value.trim().parse().ok())?
    };
    let limit = Limit { registers: value(registers, "registers")?, spill_bytes: value(spill_bytes, "spill_bytes")? };
    Some((kernel.trim().to_owned(), limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(resources: &[(&str, &str, u32, u32)]) -> Built {
        let one = |(kernel, arch, registers, spill_bytes): &(&str, &str, u32, u32)| Resources {
            kernel: (*kernel).to_owned(),
            arch: (*arch).to_owned(),
            registers: *registers,
            shared_bytes: 0,
            spill_bytes: *spill_bytes,
        };
        Built {
            images: Vec::new(),
            resources: resources.iter().map(one).collect(),
            sources_sha256: String::new(),
            toolchain: String::new(),
        }
    }

    #[test]
    fn kernels_outside_their_budget_are_named() {
        let budget = parse(
            "# a comment\nnorm = { registers = 32, spill_bytes = 0 }\nold = { registers = 1, spill_bytes = 0 }\n",
        )
        .expect("valid");
        let check = |resources: &[(&str, &str, u32, u32)], want: &[&str]| {
            let problems = budget.problems(&built(resources));
            assert_eq!(problems.len(), want.len(), "{problems:?}");
            for (problem, want) in problems.iter().zip(want) {
                assert!(problem.contains(want), "{problem}");
            }
        };
        check(&[("norm", "sm_80", 32, 0), ("old", "sm_80", 1, 0)], &[]);
        check(&[("norm", "sm_80", 32, 0), ("norm", "sm_90a", 33, 0), ("old", "sm_80", 1, 0)], &["33 registers"]);
        check(&[("norm", "sm_80", 30, 4), ("old", "sm_80", 1, 0)], &["spills 4 bytes on sm_80"]);
        check(&[("norm", "sm_80", 30, 0), ("new", "sm_80", 1, 0)], &["new has no line", "old, which is no kernel"]);
    }

    #[test]
    fn a_line_of_another_shape_is_refused() {
        let check = |line: &str| assert!(parse(line).is_err(), "{line}");
        check("norm = 32");
        check("norm = { registers = 32 }");
        check("norm = { registers = many, spill_bytes = 0 }");
        check("norm = { spill_bytes = 0, registers = 32 }");
    }
}
