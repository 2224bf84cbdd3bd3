//! Scores the forecaster beside simple ones: `forecast --traces DIR --json FILE [--stated FILE]`. Every file of the folder that is a
//! trace is scored, and beside them traces made up from a seed, whose regimes no recorded one has. Prints a table and
//! writes the rows as JSON, and on request what was stated of every bin, for others to be scored beside it;
//! `cargo xtask bench forecast` runs this and holds the figures to their targets.

use controller_sim::score::{Row, Series, Situation, compare, first_part, statements};
use controller_sim::trace::{self, Options, generate::Shape, generate::generate};
use std::path::{Path, PathBuf};

/// Seed of the traces that are made up.
const SEED: u64 = 20;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let (folder, json, stated) = arguments()?;
    let mut series = recorded(&folder)?;
    if series.is_empty() {
        return Err(format!("{} holds no trace that is long enough", folder.display()).into());
    }
    series.extend(made_up());
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    println!("{}", heading());
    for series in &series {
        eprintln!("scoring {} in bins of {} s", series.name, series.bin_s.round());
        let statements = statements(series);
        let found = compare(series, &statements);
        for row in &found {
            println!("{}", line(row));
        }
        rows.extend(found);
        if stated.is_some() {
            let (name, bin_s, from) = (&series.name, series.bin_s, first_part(series.counts.len()));
            all.push(serde_json::json!({
                "name": name, "bin_s": bin_s, "from": from, "counts": series.counts, "statements": statements,
            }));
        }
    }
    if let Some(stated) = stated {
        std::fs::write(stated, serde_json::to_vec(&all)?)?;
    }
    std::fs::write(json, serde_json::to_vec_pretty(&rows)?)?;
    Ok(())
}

fn arguments() -> Outcome<(PathBuf, PathBuf, Option<PathBuf>)> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let place = |name: &str| words.iter().position(|word| word == name);
    let after = |name: &str| place(name).and_then(|at| words.get(at + 1)).map(PathBuf::from);
    match (after("--traces"), after("--json")) {
        (Some(folder), Some(json)) => Ok((folder, json, after("--stated"))),
        _ => Err("usage: forecast --traces DIR --json FILE [--stated FILE]".into()),
    }
}

/// Traces are told by their ending; whatever else lies in the folder is left alone.
fn recorded(folder: &Path) -> Outcome<Vec<Series>> {
    let entries = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files: Vec<PathBuf> = entries.collect::<std::io::Result<_>>()?;
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let plain = name.trim_end_matches(".gz");
        if ![".csv", ".jsonl"].iter().any(|ending| plain.ends_with(ending)) {
            continue;
        }
        let trace = trace::read_file(&file, Options { repair: true })?;
        let stem = plain.rsplit_once('.').map_or(plain, |(stem, _)| stem);
        found.extend(Series::of(stem, &trace));
    }
    Ok(found)
}

fn made_up() -> Vec<Series> {
    let shapes = [
        ("made up: poisson", Shape::Poisson { rate_per_s: 3.0 }, 20_000.0),
        ("made up: bursty", Shape::Bursty { rate_per_s: 0.2, times: 20.0 }, 40_000.0),
        ("made up: diurnal", Shape::Diurnal { peak_per_s: 5.0, period_s: 86_400.0 }, 4.0 * 86_400.0),
        ("made up: flash crowd", Shape::FlashCrowd { rate_per_s: 1.0, times: 30.0 }, 20_000.0),
        ("made up: sparse", Shape::Sparse { models: 1, rate_per_s: 0.02 }, 86_400.0),
    ];
    let series = |(name, shape, duration_s)| Series::of(name, &generate(shape, duration_s, SEED));
    shapes.into_iter().flat_map(series).collect()
}

fn heading() -> String {
    format!(
        "{:<38} {:>6} {:<15} {:>6} {:>27} {:>8} {:>17} {:>8} {:>8}",
        "trace", "ahead", "method", "WAPE", "pinball 0.5 / 0.9 / 0.99", "width", "coverage", "ramps", "idle"
    )
}

fn line(row: &Row) -> String {
    let score = &row.score;
    let [median, high, highest] = score.pinball;
    let [at_median, at_high, at_highest] = score.all.coverage;
    // An exclamation mark where coverage is further from what was stated than chance explains.
    let flag = |holds: bool| if holds { ' ' } else { '!' };
    let apart = |situation: &Situation| match situation.bins {
        0 => "-".to_owned(),
        _ => format!("{:.2}{}", situation.coverage[1], flag(situation.holds[1])),
    };
    let all = flag(score.all.holds == [true; 3]);
    format!(
        "{:<38} {:>4} s {:<15} {:>6.3} {median:>9.4}{high:>9.4}{highest:>9.4} {:>8.3} \
         {at_median:>5.2}{at_high:>5.2}{at_highest:>6.3}{all} {:>8} {:>8}",
        row.trace,
        row.horizon_s.round(),
        row.method,
        score.wape,
        score.width,
        apart(&score.ramps),
        apart(&score.after_idle),
    )
}
