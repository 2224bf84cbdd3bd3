//! The hybrid histogram policy of Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020), with its defaults.
//!
//! Idle times of each model are counted in 240 bins of a minute. When they are told well by the histogram, the model is unloaded
//! when idle, warmed after 0.9 times their 5th percentile, and kept until 1.1 times the 99th. When most are out of
//! bounds, a time series model of them says when: 15% before and after its forecast, here an AR(1) for the paper's ARIMA.
//! Else it is kept for the four hours that the histogram spans. More than one instance is a matter of what is there:
//! each is kept like the model's last one.

use super::{Knobs, target};
use crate::NS_PER_S;
use crate::fleet::{ModelSight, Policy, Tick, View};
use std::collections::VecDeque;

const LOOK_NS: u64 = NS_PER_S;
const BINS: usize = 240;
const BIN_S: f64 = 60.0;
/// The coefficient of variation of the bins' counts from which they tell something.
const REPRESENTATIVE_CV: f64 = 2.0;
const OUT_OF_BOUNDS_SHARE: f64 = 0.5;
const HEAD: (f64, f64) = (0.9, 0.05);
const TAIL: (f64, f64) = (1.1, 0.99);
const MARGIN: f64 = 0.15;
/// Idle times that the time series model looks at.
const SERIES: usize = 50;

pub(super) struct HybridHistogram {
    knobs: Knobs,
    models: Vec<App>,
}

#[derive(Clone, Debug)]
struct App {
    bins: Vec<u32>,
    counted: u32,
    out_of_bounds: u32,
    series: VecDeque<f64>,
    idle_since_ns: Option<u64>,
    /// Counts that were needed, highest first, each with when it was last needed.
    needed: VecDeque<(u64, u32)>,
}

/// After how long of idleness it is loaded, and until when it stays, s.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Windows {
    warm_s: f64,
    until_s: f64,
}

impl HybridHistogram {
    pub(super) fn new(knobs: Knobs, models: usize) -> Self {
        Self { knobs, models: vec![App::new(); models] }
    }
}

impl Policy for HybridHistogram {
    fn name(&self) -> &'static str {
        "hybrid-histogram"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let target = target(self.knobs, view, f64::from(view.max_batch));
        let keep = self.knobs.keep.unwrap_or(1.0);
        let decided = self.models.iter_mut().zip(view.models).enumerate();
        let counts = decided.map(|(model, (app, sight))| (model as u32, app.decide(view.now_ns, sight, target, keep)));
        Tick::counts(counts.collect(), view.now_ns + LOOK_NS)
    }

    /// An invocation that finds nothing starts a container.
    fn eager(&self) -> bool {
        true
    }

    fn restart(&mut self) {
        self.models.fill(App::new());
    }
}

impl App {
    fn new() -> Self {
        Self {
            bins: vec![0; BINS],
            counted: 0,
            out_of_bounds: 0,
            series: VecDeque::new(),
            idle_since_ns: None,
            needed: VecDeque::new(),
        }
    }

    fn decide(&mut self, now_ns: u64, sight: &ModelSight, target: f64, keep: f64) -> u32 {
        if sight.load() == 0 && sight.last_arrival_ns.is_none() {
            return 0;
        }
        if sight.load() > 0 {
            if let Some(since_ns) = self.idle_since_ns.take() {
                let until_ns = sight.last_arrival_ns.unwrap_or(now_ns).clamp(since_ns, now_ns);
                self.record((until_ns - since_ns) as f64 / 1e9);
            }
            let count = (f64::from(sight.load()) / target).ceil() as u32;
            self.needed.retain(|(_, other)| *other > count);
            self.needed.push_back((now_ns, count));
        }
        let windows = self.windows();
        let until_s = windows.until_s * keep;
        while let [(at_ns, _), (_, _), ..] = self.needed.make_contiguous() {
            let since_s = now_ns.saturating_sub(*at_ns) as f64 / 1e9;
            if since_s < until_s {
                break;
            }
            self.needed.pop_front();
        }
        let most = self.needed.front().map_or(0, |(_, count)| *count);
        if sight.load() > 0 {
            return most;
        }
        let since_ns = *self.idle_since_ns.get_or_insert(now_ns);
        let idle_s = (now_ns - since_ns) as f64 / 1e9;
        if idle_s < windows.warm_s || idle_s >= until_s { 0 } else { most.max(1) }
    }

    fn record(&mut self, idle_s: f64) {
        match self.bins.get_mut((idle_s / BIN_S) as usize) {
            Some(bin) => {
                *bin += 1;
                self.counted += 1;
            }
            None => self.out_of_bounds += 1,
        }
        self.series.push_back(idle_s);
        if self.series.len() > SERIES {
            self.series.pop_front();
        }
    }

    fn windows(&self) -> Windows {
        let all = self.counted + self.out_of_bounds;
        if all > 0 && f64::from(self.out_of_bounds) > OUT_OF_BOUNDS_SHARE * f64::from(all) {
            let next_s = self.next_idle_s();
            return Windows { warm_s: (1.0 - MARGIN) * next_s, until_s: (1.0 + MARGIN) * next_s };
        }
        if self.variation() < REPRESENTATIVE_CV {
            return Windows { warm_s: 0.0, until_s: BINS as f64 * BIN_S };
        }
        let (head, tail) = (self.percentile(HEAD.1) as f64, (self.percentile(TAIL.1) + 1) as f64);
        Windows { warm_s: HEAD.0 * head * BIN_S, until_s: TAIL.0 * tail * BIN_S }
    }

    /// The bin that a share of the idle times lies in or below.
    fn percentile(&self, share: f64) -> usize {
        let rank = (share * f64::from(self.counted)).ceil().max(1.0) as u32;
        let mut below = 0;
        self.bins
            .iter()
            .position(|count| {
                below += count;
                below >= rank
            })
            .unwrap_or(BINS - 1)
    }

    /// Standard deviation over mean of the bins' counts; 0 of none.
    fn variation(&self) -> f64 {
        let mean = f64::from(self.counted) / BINS as f64;
        if mean <= 0.0 {
            return 0.0;
        }
        let variance = self.bins.iter().map(|count| (f64::from(*count) - mean).powi(2)).sum::<f64>() / BINS as f64;
        variance.sqrt() / mean
    }

    /// The next idle time by an autoregression of order 1, fitted by least squares, s.
    fn next_idle_s(&self) -> f64 {
        let n = self.series.len() as f64;
        let mean = self.series.iter().sum::<f64>() / n.max(1.0);
        let apart: Vec<f64> = self.series.iter().map(|idle_s| idle_s - mean).collect();
        let squares: f64 = apart.iter().map(|a| a * a).sum();
        let products: f64 = apart.windows(2).map(|pair| pair[0] * pair[1]).sum();
        let slope = if squares > 0.0 { (products / squares).clamp(-1.0, 1.0) } else { 0.0 };
        (mean + slope * apart.last().copied().unwrap_or(0.0)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_examples() {
        let check = |idle_s: &[(f64, usize)], warm_s: f64, until_s: f64| {
            let mut app = App::new();
            idle_s.iter().for_each(|(idle_s, times)| (0..*times).for_each(|_| app.record(*idle_s)));
            let windows = app.windows();
            assert!((windows.warm_s - warm_s).abs() < 1e-6 && (windows.until_s - until_s).abs() < 1e-6, "{windows:?}");
        };
        // Nothing is known: four hours.
        check(&[], 0.0, 14_400.0);
        // Every ten minutes or so: warmed at 0.9 * 10 min, kept until 1.1 * 12 min.
        check(&[(630.0, 50), (690.0, 50)], 540.0, 792.0);
        // Within the minute: never unloaded, kept until 1.1 min.
        check(&[(5.0, 100)], 0.0, 66.0);
        // Five hours apart: out of bounds, so by the time series.
        check(&[(18_000.0, 10)], 15_300.0, 20_700.0);
    }

    #[test]
    fn it_unloads_and_warms() {
        let mut app = App::new();
        (0..100).for_each(|_| app.record(630.0));
        let sight = |load: u32| ModelSight { in_flight: load, last_arrival_ns: Some(1), ..ModelSight::default() };
        let mut at = |s: u64, load| app.decide(s * NS_PER_S, &sight(load), 4.0, 1.0);
        assert_eq!(at(10, 5), 2);
        assert_eq!(at(20, 0), 0);
        assert_eq!(at(20 + 539, 0), 0);
        assert!(at(20 + 540, 0) >= 1);
        assert_eq!(at(20 + 727, 0), 0);
    }
}
