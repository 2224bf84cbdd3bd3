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

/// All methods at all horizons of a series.
pub fn compare(series: &Series) -> Vec<Row> {
    let from = first_part(series.counts.len());
    let ours = ours(series);
    let mut rows = Vec::new();
    for (at, ahead) in series.ahead.iter().enumerate() {
        let mut methods = vec![("foreshock", ours[at].clone())];
        for method in Method::ALL {
            methods.push((method.name(), method.state(series, *ahead, from)));
        }
        for (method, stated) in methods {
            rows.push(Row {
                trace: series.name.clone(),
                bin_s: series.bin_s,
                horizon_s: *ahead as f64 * series.bin_s,
                method: method.to_owned(),
                score: measure::score(series, *ahead, from, &stated),
            });
        }
    }
    rows
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
