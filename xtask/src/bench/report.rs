//! The table and the JSON file that every benchmark ends in.

use crate::layout;
use crate::shell::make_folder;
use anyhow::{Context, Result};
use serde::Serialize;

/// One benchmark's outcome, written as it stands.
#[derive(Serialize)]
pub struct Report {
    pub name: &'static str,
    pub machine: String,
    pub rows: Vec<Row>,
    pub targets: Vec<Target>,
}

/// One comparison. `ours`, `peer` and `ratio` (ours over peer) are of `samples`' summary in `case`.
#[derive(Serialize)]
pub struct Row {
    pub case: String,
    pub unit: &'static str,
    pub ours: f64,
    pub peer: f64,
    pub ratio: f64,
    /// What the machine would allow at best, in the same unit, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    pub samples: Samples,
}

/// Every sample, in the order taken.
#[derive(Clone, Default, Serialize)]
pub struct Samples {
    pub ours: Vec<f64>,
    pub peer: Vec<f64>,
}

/// What the figures are held to.
#[derive(Serialize)]
pub struct Target {
    pub name: String,
    pub value: f64,
    pub target: f64,
    pub met: bool,
    /// Whether the target is a lower bound; otherwise it is an upper one.
    #[serde(skip)]
    pub at_least: bool,
}

impl Row {
    /// A row whose figures are the `share`-quantile of the samples.
    pub fn of_quantile(case: String, unit: &'static str, share: f64, samples: &Samples) -> Self {
        let (ours, peer) = (quantile(&samples.ours, share), quantile(&samples.peer, share));
        Self { case, unit, ours, peer, ratio: ours / peer, floor: None, samples: samples.clone() }
    }

    /// The same row beside the best that the machine would allow.
    pub fn with_floor(self, floor: Option<f64>) -> Self {
        Self { floor, ..self }
    }
}

impl Target {
    /// Met when the value is no more than the bound.
    pub fn at_most(name: String, value: f64, target: f64) -> Self {
        Self { name, value, target, met: value <= target, at_least: false }
    }

    /// Met when the value is no less than the bound.
    pub fn at_least(name: String, value: f64, target: f64) -> Self {
        Self { name, value, target, met: value >= target, at_least: true }
    }
}

impl Report {
    /// A report of this machine.
    pub fn new(name: &'static str) -> Self {
        Self { name, machine: machine(), rows: Vec::new(), targets: Vec::new() }
    }

    /// Prints the table and writes target/bench/NAME.json.
    pub fn finish(&self) -> Result<()> {
        println!("\n{} on {}", self.name, self.machine);
        let width = self.rows.iter().map(|row| row.case.len()).max().unwrap_or(4).max(4);
        println!(
            "{:<width$} {:>6} {:>10} {:>10} {:>7} {:>8}  spread (least to most: ours | peer)",
            "case", "unit", "ours", "peer", "ratio", "of floor"
        );
        for row in &self.rows {
            println!(
                "{:<width$} {:>6} {:>10.2} {:>10.2} {:>7.3} {:>8}  {} | {}",
                row.case,
                row.unit,
                row.ours,
                row.peer,
                row.ratio,
                row.floor.map_or_else(String::new, |floor| format!("{:.0}%", 100.0 * row.ours / floor)),
                spread(&row.samples.ours),
                spread(&row.samples.peer)
            );
        }
        for target in &self.targets {
            let verdict = if target.met { "met" } else { "MISSED" };
            let bound = if target.at_least { "at least" } else { "at most" };
            println!("target {verdict}: {} = {:.3} ({bound} {})", target.name, target.value, target.target);
        }
        let folder = layout::target().join("bench");
        make_folder(&folder)?;
        let path = folder.join(format!("{}.json", self.name));
        std::fs::write(&path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("every sample: {}", path.display());
        Ok(())
    }
}

/// The `share`-quantile by linear interpolation between order statistics; NaN of nothing.
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// The middle sample.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

fn spread(samples: &[f64]) -> String {
    format!("{:.2}-{:.2}", quantile(samples, 0.0), quantile(samples, 1.0))
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores, {model}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let check = |samples: &[f64], share, want| assert_eq!(quantile(samples, share), want, "{samples:?} {share}");
        check(&[3.0, 1.0, 2.0], 0.5, 2.0);
        check(&[1.0, 2.0], 0.5, 1.5);
        check(&[5.0], 0.99, 5.0);
        check(&[0.0, 10.0], 0.99, 9.9);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn the_file_has_the_agreed_fields() {
        let samples = Samples { ours: vec![1.0], peer: vec![2.0] };
        let mut report = Report::new("x");
        report.rows.push(Row::of_quantile("c".to_owned(), "ms", 0.5, &samples));
        report.targets.push(Target::at_most("t".to_owned(), 0.5, 1.0));
        let json = serde_json::to_value(&report).expect("serialises");
        assert_eq!(
            json["rows"][0],
            serde_json::json!({"case": "c", "unit": "ms", "ours": 1.0, "peer": 2.0, "ratio": 0.5, "samples": {"ours": [1.0], "peer": [2.0]}})
        );
        assert_eq!(json["targets"][0], serde_json::json!({"name": "t", "value": 0.5, "target": 1.0, "met": true}));
    }
}
