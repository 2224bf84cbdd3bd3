//! The checkpoints that are measured, and what the engine is held to on each.

use crate::bench::llama;
use crate::layout;
use anyhow::{Result, bail};
use std::path::PathBuf;

/// One checkpoint. Ratios are ours over the peer's.
pub struct Subject {
    pub name: &'static str,
    pub path: fn() -> Result<PathBuf>,
    pub prefill_least: f64,
    pub decode_least: f64,
    pub decode_at_2048_least: f64,
    /// Clients at once, and the least ratio of output tokens per second.
    pub serving_least: [(usize, f64); 4],
    pub ttft_most: f64,
}

/// The demo checkpoint; its weights in two types that llama.cpp repacks at load and so runs faster; another
/// architecture and set of types.
pub const SUBJECTS: [Subject; 4] = [
    Subject {
        name: "smollm2",
        path: || Ok(layout::demo_model()),
        prefill_least: 3.0,
        decode_least: 1.8,
        decode_at_2048_least: 2.5,
        serving_least: [(1, 1.8), (4, 2.5), (8, 3.0), (16, 3.0)],
        ttft_most: 0.4,
    },
    further("smollm2-q4_0", || llama::requantised("Q4_0")),
    further("smollm2-q8_0", || llama::requantised("Q8_0")),
    further("gemma3", || {
        crate::setup::gemma3()?;
        Ok(layout::gemma3_model())
    }),
];

const fn further(name: &'static str, path: fn() -> Result<PathBuf>) -> Subject {
    Subject {
        name,
        path,
        prefill_least: 1.4,
        decode_least: 1.4,
        decode_at_2048_least: 1.4,
        serving_least: [(1, 1.4), (4, 1.4), (8, 1.4), (16, 1.4)],
        ttft_most: 1.0 / 1.4,
    }
}

/// The subjects of these names; all when none is named.
pub fn chosen(names: &[String]) -> Result<Vec<&'static Subject>> {
    if names.is_empty() {
        return Ok(SUBJECTS.iter().collect());
    }
    names.iter().map(|name| by_name(name)).collect()
}

fn by_name(name: &str) -> Result<&'static Subject> {
    let Some(subject) = SUBJECTS.iter().find(|subject| subject.name == name) else {
        let known: Vec<_> = SUBJECTS.iter().map(|subject| subject.name).collect();
        bail!("no model `{name}` to measure; there are {}", known.join(", "));
    };
    Ok(subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_subjects() {
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            chosen(&wanted).map(|subjects| subjects.iter().map(|subject| subject.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).expect("all").len(), SUBJECTS.len());
        assert_eq!(names(&["gemma3", "smollm2"]).expect("both"), ["gemma3", "smollm2"]);
        let error = names(&["llama"]).expect_err("unknown").to_string();
        assert_eq!(error, "no model `llama` to measure; there are smollm2, smollm2-q4_0, smollm2-q8_0, gemma3");
    }
}
