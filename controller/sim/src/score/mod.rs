//! How good a forecast is: ours beside simple ones, on traces, by what was stated before each bin ended.
//!
//! Each trace is cut into bins; the first part is for tuning, the rest is counted. Everybody forecasts the same bins
//! with the same knowledge, one after the other. Baselines are tuned per horizon and quantile on the first part alone,
//! which is the most that a fixed method can be given.

mod baselines;
mod measure;
mod series;

pub use baselines::Method;
pub use measure::{Score, Situation};
pub use series::Series;

use controller_forecast::{Level, QUANTILES, Signals};
use serde::Serialize;

/// Places among [`QUANTILES`] of the quantiles that are scored, and those quantiles.
const PLACES: [usize; 3] = [3, 5, 8];
pub const SCORED: [f64; 3] = [QUANTILES[PLACES[0]], QUANTILES[PLACES[1]], QUANTILES[PLACES[2]]];
/// Share of a trace that is for tuning.
const FIRST_PART: f64 = 0.6;

/// Stated quantiles of each bin, in requests per bin; what is before the first forecast is 0.
pub type Stated = Vec<[f64; 3]>;

/// One method at one horizon of one trace.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub trace: String,
    pub bin_s: f64,
    pub horizon_s: f64,
    pub method: String,
    pub score: Score,
}

/// What one method stated of a series, so many bins ahead.
#[derive(Clone, Debug, Serialize)]
pub struct Statement {
    pub method: &'static str,
    pub ahead: usize,
    pub stated: Stated,
}

/// What all methods state of a series, at all horizons.
pub fn statements(series: &Series) -> Vec<Statement> {
    let from = first_part(series.counts.len());
    let ours = ours(series);
    let mut all = Vec::new();
    for (ahead, stated) in series.ahead.iter().copied().zip(ours) {
        all.push(Statement { method: "foreshock", ahead, stated });
        for method in Method::ALL {
            all.push(Statement { method: method.name(), ahead, stated: method.state(series, ahead, from) });
        }
    }
    all
}

/// The score of each statement.
pub fn compare(series: &Series, statements: &[Statement]) -> Vec<Row> {
    let from = first_part(series.counts.len());
    let row = |statement: &Statement| Row {
        trace: series.name.clone(),
        bin_s: series.bin_s,
        horizon_s: statement.ahead as f64 * series.bin_s,
        method: statement.method.to_owned(),
        score: measure::score(series, statement.ahead, from, &statement.stated),
    };
    statements.iter().map(row).collect()
}

/// The first bin that is counted.
pub fn first_part(bins: usize) -> usize {
    (bins as f64 * FIRST_PART) as usize
}

/// What our forecaster states, by horizon. It refits when it says that it is due, as it does live.
fn ours(series: &Series) -> Vec<Stated> {
    let mut stated = vec![vec![[0.0; 3]; series.counts.len()]; series.ahead.len()];
    let mut level = Level::new(series.bin_s, &series.ahead);
    for (now, count) in series.counts.iter().enumerate() {
        level.observe(*count, Signals::default());
        if level.refit_is_due() {
            level.refit();
        }
        for (at, ahead) in series.ahead.iter().enumerate() {
            if let Some(bin) = stated[at].get_mut(now + ahead) {
                *bin = PLACES.map(|place| level.quantiles(at)[place]);
            }
        }
    }
    stated
}
