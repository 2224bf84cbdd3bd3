//! The forecast beside simple ones, on the traces of a folder and on made-up ones. The scoring program is an example
//! of the simulator, which knows trace formats and forecaster; here its figures are held to their targets.

use super::report::{Report, Row, Samples, Target};
use crate::layout;
use crate::setup::python_packages;
use crate::shell::{cargo, command, make_folder, run, step};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What ours is held against: the strongest of the simple methods.
const PEER: &str = "ewma fixed";
const OURS: &str = "foreshock";
/// Made-up traces are looked at for coverage, and are no part of the mean.
const MADE_UP: &str = "made up";
/// Bounds of ours over the peer's 0.9-pinball loss: on average over traces, and anywhere.
const AT_MOST: (f64, f64) = (0.92, 1.02);

#[derive(Deserialize)]
struct Line {
    trace: String,
    bin_s: f64,
    horizon_s: f64,
    method: String,
    score: Score,
}

#[derive(Deserialize)]
struct Score {
    /// At 0.5, 0.9 and 0.99, requests/s.
    pinball: [f64; 3],
    all: Situation,
    ramps: Situation,
    after_idle: Situation,
}

#[derive(Deserialize)]
struct Situation {
    holds: [bool; 3],
}

/// One method on some bins, as the Python program scores it.
#[derive(Deserialize)]
struct Fitted {
    trace: String,
    horizon_s: f64,
    method: String,
    pinball: [f64; 3],
}

const STATSFORECAST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bench/fitted.py");
/// The version that was tried.
const STATSFORECAST_PACKAGE: &str = "statsforecast==2.1.1";

/// Scores, and compares; with statsforecast's automatic models as well where that is asked for.
pub fn measure(traces: &Path, statsforecast: bool) -> Result<Report> {
    let traces = traces.canonicalize().with_context(|| format!("no folder {}", traces.display()))?;
    make_folder(&layout::target().join("bench"))?;
    let json = layout::target().join("bench/forecast-rows.json");
    let (traces, json_text) = (traces.display().to_string(), json.display().to_string());
    let example = ["run", "--release", "--quiet", "--package", "controller-sim", "--example", "forecast", "--"];
    let args: Vec<&str> = example.into_iter().chain(["--traces", &traces, "--json", &json_text]).collect();
    let stated = layout::target().join("bench/forecast-stated.json").display().to_string();
    let args: Vec<&str> = if statsforecast { [&args[..], &["--stated", &stated]].concat() } else { args };
    step("scoring forecasts", || run(&mut cargo(&args)))?;
    let text = std::fs::read_to_string(&json).with_context(|| format!("cannot read {json_text}"))?;
    let mut report = report(&serde_json::from_str::<Vec<Line>>(&text)?)?;
    if statsforecast {
        report.rows.extend(fitted_rows(&fit(&stated)?));
    }
    Ok(report)
}

/// Fits AutoARIMA and AutoETS with Python, on some of the bins.
fn fit(stated: &str) -> Result<Vec<Fitted>> {
    let venv = layout::target().join("statsforecast");
    let python = venv.join("bin/python");
    python_packages(&venv, "statsforecast", STATSFORECAST_PACKAGE)?;
    let rows = layout::target().join("bench/forecast-statsforecast.json");
    let rows_text = rows.display().to_string();
    step("fitting AutoARIMA and AutoETS (many minutes)", || {
        run(&mut command(&python, &[STATSFORECAST, stated, &rows_text]))
    })?;
    let text = std::fs::read_to_string(&rows).with_context(|| format!("cannot read {rows_text}"))?;
    Ok(serde_json::from_str(&text)?)
}

/// Ours beside each of the others, over the same bins.
fn fitted_rows(fitted: &[Fitted]) -> Vec<Row> {
    let beside = |ours: &Fitted| {
        let same = |other: &&Fitted| other.trace == ours.trace && other.horizon_s == ours.horizon_s;
        let fits = |other: &&Fitted| other.method.starts_with("Auto");
        let row = |other: &Fitted| {
            let samples = Samples { ours: vec![ours.pinball[1]], peer: vec![other.pinball[1]] };
            let case =
                format!("{} {:.0} s ahead, some bins, 0.9 pinball | {}", ours.trace, ours.horizon_s, other.method);
            Row::of_quantile(case, "req/s", 0.5, &samples)
        };
        fitted.iter().filter(same).filter(fits).map(row).collect::<Vec<_>>()
    };
    fitted.iter().filter(|ours| ours.method == OURS).flat_map(beside).collect()
}

fn report(lines: &[Line]) -> Result<Report> {
    let mut report = Report::new("forecast");
    let mut by_trace: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut off = 0;
    for ours in lines.iter().filter(|line| line.method == OURS) {
        let same = |line: &&Line| {
            (&line.trace, line.bin_s, line.horizon_s) == (&ours.trace, ours.bin_s, ours.horizon_s)
                && line.method == PEER
        };
        let peer = lines.iter().find(same).with_context(|| format!("no {PEER} beside {}", ours.trace))?;
        let samples = Samples { ours: vec![ours.score.pinball[1]], peer: vec![peer.score.pinball[1]] };
        let case = format!("{} {:.0} s ahead, 0.9 pinball", ours.trace, ours.horizon_s);
        let row = Row::of_quantile(case, "req/s", 0.5, &samples);
        if !ours.trace.starts_with(MADE_UP) {
            by_trace.entry(&ours.trace).or_default().push(row.ratio);
        }
        let situations = [&ours.score.all, &ours.score.ramps, &ours.score.after_idle];
        off += situations.iter().flat_map(|situation| situation.holds).filter(|holds| !holds).count();
        report.rows.push(row);
    }
    ensure!(!by_trace.is_empty(), "nothing was scored");
    let means: Vec<f64> = by_trace.values().map(|ratios| geometric_mean(ratios)).collect();
    let highest = by_trace.values().flatten().copied().fold(0.0, f64::max);
    report.targets = vec![
        Target::at_most(
            format!("0.9 pinball over that of {PEER}, mean over traces"),
            geometric_mean(&means),
            AT_MOST.0,
        ),
        Target::at_most("the same, where it is highest".to_owned(), highest, AT_MOST.1),
        Target::at_most("coverages further off than chance explains".to_owned(), off as f64, 0.0),
    ];
    Ok(report)
}

fn geometric_mean(ratios: &[f64]) -> f64 {
    (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_held_to_the_targets() {
        let line = |trace: &str, method: &str, loss: f64, holds: bool| {
            let situation = || Situation { holds: [true, holds, true] };
            let score =
                Score { pinball: [1.0, loss, 1.0], all: situation(), ramps: situation(), after_idle: situation() };
            Line { trace: trace.into(), bin_s: 10.0, horizon_s: 60.0, method: method.into(), score }
        };
        let lines = [
            line("a", OURS, 0.8, true),
            line("a", PEER, 1.0, false),
            line("made up: b", OURS, 2.0, false),
            line("made up: b", PEER, 1.0, true),
        ];
        let report = report(&lines).expect("every line has its peer");
        let values: Vec<f64> = report.targets.iter().map(|target| (target.value * 100.0).round() / 100.0).collect();
        assert_eq!(values, [0.8, 0.8, 3.0]);
    }
}
