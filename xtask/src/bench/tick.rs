//! What one tick of the controller costs with 10 to 10,000 models and as many devices: time, and how it grows.

use super::report::{Report, Row, Samples, Target, median};
use crate::shell::{cargo, stdout, step};
use anyhow::{Context, Result};
use serde::Deserialize;

const SIZES: [&str; 4] = ["10", "100", "1000", "10000"];
/// Bound of a tick at the largest size, ms.
const AT_MOST_MS: f64 = 100.0;

#[derive(Deserialize)]
struct Cost {
    models: usize,
    ms: Vec<f64>,
    resident_bytes: u64,
}

/// Ticks over simulated snapshots of each size. The peer of a row is the size before, so that its ratio is the growth.
pub fn measure() -> Result<Report> {
    let run = ["run", "--release", "--quiet", "--package", "controller-sim", "--example", "study", "--", "tick"];
    let args: Vec<&str> = run.into_iter().chain(SIZES).collect();
    let text = step("ticking", || stdout(&mut cargo(&args)))?;
    let costs: Vec<Cost> = serde_json::from_str(&text).context("the study's answer is not as expected")?;
    let mut report = Report::new("tick");
    let mut before = Samples::default();
    for cost in &costs {
        let samples = Samples { ours: cost.ms.clone(), peer: std::mem::take(&mut before.ours) };
        let mib = cost.resident_bytes as f64 / f64::from(1 << 20);
        let case = format!("{} models and devices, {mib:.0} MiB | the size before", cost.models);
        report.rows.push(Row::of_quantile(case, "ms", 0.5, &samples));
        before = samples;
    }
    if let Some(largest) = costs.last() {
        let name = format!("a tick for {} models and devices, ms", largest.models);
        report.targets.push(Target::at_most(name, median(&largest.ms), AT_MOST_MS));
    }
    Ok(report)
}
