//! A trace as counts in bins, with the horizons that it is long enough for.

use crate::trace::{Load, Trace};

/// Bins and horizons, s: seconds ahead on any trace, minutes ahead on traces of days.
const SHORT: (f64, [f64; 3]) = (10.0, [10.0, 30.0, 60.0]);
const LONG: (f64, [f64; 3]) = (60.0, [60.0, 300.0, 600.0]);
/// A trace of days is at least this long, s.
const DAYS_S: f64 = 2.0 * 86_400.0;
/// Fewest bins that a comparison is made on.
const FEWEST: usize = 60;
/// Grids of arrival times that are looked for, ns; some recorders flush every few seconds.
const GRIDS_NS: [u64; 5] = [10_000_000_000, 5_000_000_000, 3_000_000_000, 2_000_000_000, 1_000_000_000];
/// How far from a grid a time may be, ns, and the share of times that must be on it.
const ON_GRID: (u64, f64) = (5_000_000, 0.9);

/// Counts of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub bin_s: f64,
    /// Horizons, in bins.
    pub ahead: Vec<usize>,
    pub counts: Vec<f64>,
}

impl Series {
    /// The series of one trace: none where it is too short for any.
    pub fn of(name: &str, trace: &Trace) -> Vec<Self> {
        let grid_s = grid_s(trace);
        let mut widths = vec![SHORT];
        if trace.duration_s() >= DAYS_S {
            widths.push(LONG);
        }
        let mut found: Vec<Self> = Vec::new();
        for (bin_s, horizons_s) in widths {
            // Whole steps of the grid, so that no bin gets one flush more than its neighbour.
            let bin_s = (bin_s / grid_s).ceil() * grid_s;
            if found.iter().any(|series| series.bin_s >= bin_s) {
                continue;
            }
            let mut ahead: Vec<usize> = horizons_s.iter().map(|s| (s / bin_s).round().max(1.0) as usize).collect();
            ahead.dedup();
            // The last bin may be cut short by the end of the trace.
            let mut counts = trace.bins(bin_s);
            if counts.len() as f64 * bin_s > trace.duration_s() + 1e-6 {
                counts.pop();
            }
            if counts.len() >= FEWEST {
                found.push(Self { name: name.to_owned(), bin_s, ahead, counts });
            }
        }
        found
    }
}

/// The grid that the trace's own times lie on, s: its bins, or the period at which arrivals were flushed.
fn grid_s(trace: &Trace) -> f64 {
    match &trace.load {
        Load::Counts { bin_ns, .. } => *bin_ns as f64 / 1e9,
        Load::Requests(arrivals) => {
            let on_grid = |grid: u64| {
                let near = |at: u64| (at % grid).min(grid - at % grid) <= ON_GRID.0;
                let on = arrivals.iter().filter(|arrival| near(arrival.at_ns)).count();
                on as f64 >= ON_GRID.1 * arrivals.len() as f64
            };
            GRIDS_NS.into_iter().find(|grid| on_grid(*grid)).map_or(1e-3, |grid| grid as f64 / 1e9)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Arrival, Repairs};

    fn check(gap_s: f64, duration_s: f64) -> Vec<(f64, Vec<usize>, usize)> {
        let count = (duration_s / gap_s) as u64;
        let at = |n: u64| Arrival { at_ns: crate::ns(n as f64 * gap_s), ..Arrival::default() };
        let load = Load::Requests((0..=count).map(at).collect());
        let trace = Trace {
            models: vec!["m".into()],
            load,
            duration_ns: crate::ns(duration_s) + 1,
            repairs: Repairs::default(),
        };
        Series::of("t", &trace)
            .into_iter()
            .map(|series| (series.bin_s.round(), series.ahead, series.counts.len()))
            .collect()
    }

    #[test]
    fn bins_are_whole_steps_of_the_grid_and_horizons_fit_the_length() {
        assert_eq!(check(0.37, 1_200.0), [(10.0, vec![1, 3, 6], 120)]);
        assert_eq!(check(3.0, 1_200.0), [(12.0, vec![1, 3, 5], 100)]);
        assert_eq!(check(0.37, 300.0), []);
        assert_eq!(check(17.3, 200_000.0), [(10.0, vec![1, 3, 6], 20_000), (60.0, vec![1, 5, 10], 3_333)]);
    }
}
