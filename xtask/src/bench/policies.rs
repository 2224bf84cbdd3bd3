//! For every policy, the front of SLO attainment against device-seconds, over the traces of a folder: at cold starts of 2, 10 and 60 s, for
//! a single model and for a hundred sparse ones. Every policy is tuned alike on the first part of a trace and frozen.

use super::report::{Report, Row, Samples, Target};
use crate::layout;
use crate::shell::{cargo, make_folder, stdout, step};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

const COLD_STARTS_S: [&str; 3] = ["2", "10", "60"];
const MODELS: [&str; 2] = ["1", "100"];
/// Requests of each trace, from its beginning: what makes a day-long trace affordable.
const REQUESTS: &str = "20000";
/// Trials of each policy.
const TRIALS: &str = "13";

#[derive(Deserialize)]
struct Study {
    gaps: Vec<Gap>,
    closed_mean: Option<f64>,
    dominated_by: Vec<String>,
}

#[derive(Deserialize)]
struct Gap {
    attainment: f64,
    ours: f64,
    best_baseline: f64,
    baseline: String,
    oracle: f64,
}

/// Every trace, number of models and cold start.
pub fn measure(folder: &Path) -> Result<Report> {
    let mut report = Report::new("policies");
    let (mut closed, mut dominated, mut studies) = (Vec::new(), 0, Vec::new());
    for trace in traces(folder)? {
        let name = trace.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for models in MODELS {
            for cold_start_s in COLD_STARTS_S {
                let case = format!("{name}, {models} models, cold start {cold_start_s} s");
                let json = step(&case, || study(&trace, models, cold_start_s))?;
                let study: Study =
                    serde_json::from_value(json.clone()).context("the study's answer is not as expected")?;
                rows(&mut report, &case, &study);
                closed.extend(study.closed_mean);
                dominated += study.dominated_by.len();
                studies.push(serde_json::json!({ "case": case, "study": json }));
            }
        }
    }
    make_folder(&layout::target().join("bench"))?;
    let path = layout::target().join("bench/policies-fronts.json");
    std::fs::write(&path, serde_json::to_string_pretty(&studies)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("every front: {}", path.display());
    let mean = closed.iter().sum::<f64>() / closed.len().max(1) as f64;
    report.targets.push(Target::at_least("share of the gap to the oracle that is closed".to_owned(), mean, 0.5));
    report.targets.push(Target::at_most("baselines that dominate".to_owned(), dominated as f64, 0.0));
    Ok(report)
}

fn study(trace: &Path, models: &str, cold_start_s: &str) -> Result<Value> {
    let path = trace.display().to_string();
    let run = ["run", "--release", "--quiet", "--package", "controller-sim", "--example", "study", "--", "policies"];
    let args: Vec<&str> = run.into_iter().chain([path.as_str(), models, cold_start_s, REQUESTS, TRIALS]).collect();
    Ok(serde_json::from_str(&stdout(&mut cargo(&args))?)?)
}

/// Device-seconds at each attainment: ours beside the best baseline, the oracle as the floor.
fn rows(report: &mut Report, case: &str, study: &Study) {
    for gap in &study.gaps {
        let samples = Samples { ours: vec![gap.ours], peer: vec![gap.best_baseline] };
        let case = format!("{case}, {:.0}% in SLO | {}", 100.0 * gap.attainment, gap.baseline);
        report.rows.push(Row::of_quantile(case, "dev s", 0.5, &samples).with_floor(Some(gap.oracle)));
    }
}

/// The traces of a folder, by name.
fn traces(folder: &Path) -> Result<Vec<PathBuf>> {
    let folder = folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.to_string_lossy();
        if [".csv", ".jsonl", ".csv.gz", ".jsonl.gz"].iter().any(|ending| name.ends_with(ending)) {
            paths.push(path);
        }
    }
    paths.sort();
    ensure!(!paths.is_empty(), "no .csv, .jsonl or .gz in {}", folder.display());
    Ok(paths)
}
