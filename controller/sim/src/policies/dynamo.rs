//! NVIDIA Dynamo's planner with its defaults (its documentation, "Planner").
//!
//! Every 180 s the rate and the lengths of requests are forecast, here by its Kalman filter, and the replicas are those whose profiled
//! throughput carries them. Between, every 5 s, one more when all are full and one fewer when the rest would do; never
//! below the forecast's count, nor below one.

use super::Knobs;
use crate::NS_PER_S;
use crate::fleet::{Config, EngineCost, ModelSight, Policy, Tick, View};

const REACTIVE_NS: u64 = 5 * NS_PER_S;
const PREDICTIVE_S: f64 = 180.0;
/// Share of an instance's profiled throughput that is counted on.
const FILL: f64 = 0.9;
/// Requests per place in the batch above which one is added, and below which, over one fewer, one is removed.
const FULL: f64 = 0.9;
const SPARE: f64 = 0.5;

pub(super) struct Dynamo {
    knobs: Knobs,
    engine: EngineCost,
    models: Vec<Pool>,
    next_forecast_ns: u64,
}

#[derive(Clone, Debug, Default)]
struct Pool {
    rate: Kalman,
    seen: (u64, u64, u64),
    least: u32,
}

/// A local linear trend, with the noise that the planner assumes by default.
#[derive(Clone, Debug)]
struct Kalman {
    level: f64,
    trend: f64,
    /// Covariance of the two: level, both, trend.
    spread: (f64, f64, f64),
}

const NOISE: (f64, f64, f64) = (1.0, 0.1, 10.0);

impl Default for Kalman {
    fn default() -> Self {
        Self { level: 0.0, trend: 0.0, spread: (1e3, 0.0, 1e3) }
    }
}

impl Kalman {
    /// Takes an observation and forecasts the next.
    fn next(&mut self, seen: f64) -> f64 {
        let (level_noise, trend_noise, seen_noise) = NOISE;
        let (a, b, c) = self.spread;
        let predicted = self.level + self.trend;
        let (a, b, c) = (a + 2.0 * b + c + level_noise, b + c, c + trend_noise);
        let (gain_level, gain_trend) = (a / (a + seen_noise), b / (a + seen_noise));
        let apart = seen - predicted;
        self.level = predicted + gain_level * apart;
        self.trend += gain_trend * apart;
        self.spread = ((1.0 - gain_level) * a, (1.0 - gain_level) * b, c - gain_trend * b);
        (self.level + self.trend).max(0.0)
    }
}

impl Dynamo {
    pub(super) fn new(knobs: Knobs, config: &Config, models: usize) -> Self {
        Self { knobs, engine: config.engine, models: vec![Pool::default(); models], next_forecast_ns: 0 }
    }
}

impl Policy for Dynamo {
    fn name(&self) -> &'static str {
        "dynamo"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        let interval_s = PREDICTIVE_S * self.knobs.keep.unwrap_or(1.0);
        let forecasts = view.now_ns >= self.next_forecast_ns;
        if forecasts {
            self.next_forecast_ns = view.now_ns + crate::ns(interval_s);
        }
        let fill = self.knobs.fill.unwrap_or(FILL);
        let mut counts = Vec::with_capacity(view.models.len());
        for (model, (pool, sight)) in self.models.iter_mut().zip(view.models).enumerate() {
            if forecasts {
                pool.forecast(sight, interval_s, &self.engine, fill);
            }
            counts.push((model as u32, pool.react(sight, view.max_batch, fill / FILL)));
        }
        Tick::counts(counts, view.now_ns + REACTIVE_NS)
    }

    fn restart(&mut self) {
        self.models.fill(Pool::default());
        self.next_forecast_ns = 0;
    }
}

impl Pool {
    fn forecast(&mut self, sight: &ModelSight, interval_s: f64, engine: &EngineCost, fill: f64) {
        let (arrivals, prompt, output) = self.seen;
        let finished = sight.output_tokens_total.saturating_sub(output) as f64;
        self.seen = (sight.arrivals_total, sight.prompt_tokens_total, sight.output_tokens_total);
        let requests = sight.arrivals_total.saturating_sub(arrivals) as f64;
        if requests == 0.0 {
            let _unused = self.rate.next(0.0);
            self.least = 0;
            return;
        }
        let mean = |tokens: f64| (tokens / requests).max(1.0) as u32;
        let prompt_tokens = mean(sight.prompt_tokens_total.saturating_sub(prompt) as f64);
        let per_s = self.rate.next(requests) / interval_s;
        self.least = (per_s * engine.work_s(prompt_tokens, mean(finished)) / fill.max(0.05)).ceil() as u32;
    }

    fn react(&self, sight: &ModelSight, max_batch: u32, fill: f64) -> u32 {
        let (have, load) = (sight.have(), f64::from(sight.load()));
        let place = f64::from(max_batch) * fill;
        let full = sight.starting == 0 && load > FULL * place * f64::from(have);
        let spare = have > 1 && load < SPARE * place * f64::from(have - 1);
        let reacted = have + u32::from(full) - u32::from(spare && !full);
        reacted.max(self.least).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_follows_levels_and_trends() {
        let mut steady = Kalman::default();
        let last = (0..50).map(|_| steady.next(100.0)).last();
        assert!(last.is_some_and(|next| (next - 100.0).abs() < 1.0), "{last:?}");
        let mut rising = Kalman::default();
        let last = (0..50).map(|at| rising.next(10.0 * f64::from(at))).last();
        assert!(last.is_some_and(|next| (next - 500.0).abs() < 5.0), "{last:?}");
    }

    #[test]
    fn worked_examples() {
        let pool = |least| Pool { least, ..Pool::default() };
        let sight = |ready: u32, load: u32| ModelSight { ready, in_flight: load, ..ModelSight::default() };
        // All full: one more. Half would do: one fewer. The forecast's count is the least.
        assert_eq!(pool(0).react(&sight(2, 30), 16, 1.0), 3);
        assert_eq!(pool(0).react(&sight(4, 20), 16, 1.0), 3);
        assert_eq!(pool(0).react(&sight(4, 40), 16, 1.0), 4);
        assert_eq!(pool(6).react(&sight(4, 20), 16, 1.0), 6);
        assert_eq!(pool(0).react(&sight(0, 0), 16, 1.0), 1);
        // 180 requests a minute apart of 1,000 and 100 tokens: 3/s at 0.2 s of prompt and 0.2375 s of steps over 0.9.
        let mut busy = pool(0);
        let engine = EngineCost { itl_base_ms: 25.0, itl_per_sequence_ms: 0.8125, ..EngineCost::default() };
        for at in 1..=40 {
            let arrivals_total = 540 * at;
            let totals = (1_000 * arrivals_total, 100 * arrivals_total);
            let seen = ModelSight {
                arrivals_total,
                prompt_tokens_total: totals.0,
                output_tokens_total: totals.1,
                ..ModelSight::default()
            };
            busy.forecast(&seen, 180.0, &engine, 0.9);
        }
        assert_eq!(busy.least, 2);
    }
}
