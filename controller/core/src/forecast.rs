//! The forecast: arrivals of one model as weighted scenarios, and the estimator that reacts at once.
//!
//! Two exponentially weighted rates (fast and slow) are fed from deltas of running totals, so a lost or
//! doubled snapshot changes nothing. Their difference gives the trend, as in Brown's double exponential
//! smoothing; the index of dispersion of the counts (variance over mean, 1 for Poisson) gives the spread.
//! Scenarios are paths over time; quantiles are views of them. `expect` joins these with the learned forecast.

use crate::burst::Left;
use crate::snapshot::Demand;
use crate::{NS_PER_MS, Nanos, seconds_between};
use serde::{Deserialize, Serialize};

/// Time constant of the fast rate, s: a few ticks, so that a burst shows at once.
const FAST_S: f64 = 3.0;
/// Time constant of the slow rate, s: what traffic has been like lately.
const SLOW_S: f64 = 30.0;
/// Steps of a scenario; the step length follows the horizon.
const STEPS: usize = 8;
/// The scenarios' places in the spread: probability of a band, and normal score and rank of its middle. The quantiles
/// that are asked for (0.1, 0.5, 0.9) are middles, and the upper bands are narrow, since a plan is made or broken there.
const BANDS: [(f64, f64, f64); 7] = [
    (0.20, -1.281_552, 0.1),
    (0.20, -0.524_401, 0.3),
    (0.20, 0.0, 0.5),
    (0.25, 0.597_760, 0.725),
    (0.10, 1.281_552, 0.9),
    (0.04, 1.880_794, 0.97),
    (0.01, 2.575_829, 0.995),
];
/// Time over which a trend goes on, s: what was a slope over half a minute says little of the next.
const TREND_S: f64 = 10.0;
/// No rate is believed above this, 1/s; it keeps arithmetic finite whatever a counter says.
const MAX_RATE_PER_S: f64 = 1e6;
/// A rate that is none, 1/s.
const LEAST_RATE_PER_S: f64 = 1e-6;
/// Share of a request, likely this model's, that the kernel saw and the gateway has not named.
const UNIDENTIFIED_LEAST: f64 = 0.5;
/// How long such a request must have been waiting before it warms a model at zero, ns.
const UNIDENTIFIED_NS: Nanos = 50 * NS_PER_MS;
/// How far a rise has to be news to be called a burst.
const BURST_NEWS: f64 = 0.5;
/// Bounds of the index of dispersion.
const DISPERSION: (f64, f64) = (1.0, 20.0);

/// Numbers by the rank of the scenarios.
pub(crate) type Ranks = [f64; BANDS.len()];
/// Those ranks.
const RANKS: Ranks = {
    let mut ranks = [0.0; BANDS.len()];
    let mut at = 0;
    while at < BANDS.len() {
        ranks[at] = BANDS[at].2;
        at += 1;
    }
    ranks
};

/// Weighted paths of demand for one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    pub scenarios: Vec<Scenario>,
    /// Length of one step, s.
    pub step_s: f64,
    /// Rate of the next arrival given the silence so far, 1/s: what keep-alive goes by.
    pub hazard_per_s: f64,
    /// How often holding an instance that is started now, and ready at the horizon, would be paid back by the next request.
    pub ahead_per_s: f64,
}

/// One path. Entry `i` of each list covers the time from `i` to `i + 1` steps from now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// Probability; the weights of a forecast sum to 1.
    pub weight: f64,
    pub requests: Vec<f64>,
    pub prefill_tokens: Vec<f64>,
    pub decode_tokens: Vec<f64>,
}

impl Forecast {
    /// The `q` quantile over scenarios of the request rate in the last step, 1/s.
    pub fn rate_quantile(&self, q: f64) -> f64 {
        let mut rates: Vec<(f64, f64)> = self
            .scenarios
            .iter()
            .map(|scenario| (scenario.requests.last().copied().unwrap_or(0.0) / self.step_s.max(1e-9), scenario.weight))
            .collect();
        rates.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut below = 0.0;
        for (rate, weight) in &rates {
            below += weight;
            if below + 1e-9 >= q {
                return *rate;
            }
        }
        rates.last().map_or(0.0, |(rate, _)| *rate)
    }

    /// The time that the forecast is for, s.
    pub fn horizon_s(&self) -> f64 {
        self.step_s * STEPS as f64
    }

    /// Probability that a request arrives within so many seconds, given the silence so far.
    pub fn arrival_probability(&self, within_s: f64) -> f64 {
        1.0 - (-self.hazard_per_s * within_s.max(0.0)).exp()
    }
}

/// What arrived between two observations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Delta {
    pub at_ns: Nanos,
    /// Less than 0 where a request that was shared among models turns out to be another one's.
    pub requests: f64,
    pub prompt_tokens: f64,
    pub output_tokens: f64,
    /// Connections opened, 1/s, and requests that only the kernel has seen, at the end.
    pub connections_per_s: f64,
    pub backlog: f64,
}

/// What is remembered of one model's arrivals.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ArrivalEstimator {
    mark: Option<Mark>,
    fast_per_s: f64,
    slow_per_s: f64,
    dispersion: f64,
    window_count: f64,
    window_s: f64,
    prompt_tokens_per_request: f64,
    output_tokens_per_request: f64,
    /// Rate over the time since the observation before, 1/s.
    pub(crate) last_rate_per_s: f64,
    /// Since when there has been a request that only the kernel has seen.
    unidentified_since_ns: Option<Nanos>,
    /// When an arrival was last counted.
    pub(crate) last_arrival_ns: Option<Nanos>,
}

/// The totals at the last observation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Mark {
    at_ns: Nanos,
    arrivals: u64,
    unnamed: f64,
    prompt_tokens: u64,
    output_tokens: u64,
    #[serde(default)]
    connections: f64,
}

impl ArrivalEstimator {
    /// Takes in the totals as observed, and gives what is new in them. An observation no newer than the last one is
    /// ignored.
    pub fn observe(&mut self, now_ns: Nanos, demand: &Demand) -> Option<Delta> {
        let at_ns = if demand.observed_at_ns == 0 { now_ns } else { demand.observed_at_ns.min(now_ns) };
        let unidentified = finite(demand.unidentified);
        let mark = Mark {
            at_ns,
            arrivals: demand.arrivals_total,
            unnamed: if demand.unnamed_total.is_finite() { demand.unnamed_total.clamp(-1e12, 1e12) } else { 0.0 },
            prompt_tokens: demand.prompt_tokens_total,
            output_tokens: demand.output_tokens_total,
            connections: finite(demand.connections_total),
        };
        let Some(last) = self.mark.clone() else {
            self.dispersion = DISPERSION.0;
            self.unidentified_since_ns = (unidentified >= UNIDENTIFIED_LEAST).then_some(at_ns);
            self.mark = Some(mark);
            return Some(Delta { at_ns, ..Delta::default() });
        };
        if at_ns <= last.at_ns {
            return None;
        }
        let restarted = mark.arrivals < last.arrivals;
        let base = if restarted { Mark { unnamed: mark.unnamed, ..Mark::default() } } else { last.clone() };
        let named = (mark.arrivals - base.arrivals) as f64;
        // Signed on purpose: a request that was first shared among models and then named to another one is taken back.
        let arrived = named + mark.unnamed - base.unnamed;
        let since_ns = self.unidentified_since_ns.or(Some(at_ns));
        self.unidentified_since_ns = since_ns.filter(|_| unidentified >= UNIDENTIFIED_LEAST);
        if arrived > 0.0 {
            self.last_arrival_ns = Some(at_ns);
        }
        let over_s = seconds_between(last.at_ns, at_ns);
        self.learn_rate(arrived, over_s);
        let delta = Delta {
            at_ns,
            requests: arrived,
            prompt_tokens: mark.prompt_tokens.saturating_sub(base.prompt_tokens) as f64,
            output_tokens: mark.output_tokens.saturating_sub(base.output_tokens) as f64,
            connections_per_s: (mark.connections - last.connections).max(0.0) / over_s,
            backlog: unidentified,
        };
        self.learn_tokens(named, &delta);
        self.mark = Some(mark);
        Some(delta)
    }

    /// Whether a request that the kernel saw has not been named for so long that the gateway must be too
    /// busy to do it. A probe of the gateway's own endpoints is gone sooner.
    pub(crate) fn waits_unidentified(&self, now_ns: Nanos) -> bool {
        self.unidentified_since_ns.is_some_and(|since| now_ns.saturating_sub(since) >= UNIDENTIFIED_NS)
    }

    /// Forgets the totals and times, not the rates: for a new epoch, where counters and clock start anew.
    pub(crate) fn rebase(&mut self) {
        self.mark = None;
        self.last_arrival_ns = None;
        self.unidentified_since_ns = None;
        self.last_rate_per_s = 0.0;
    }

    fn learn_rate(&mut self, arrived: f64, dt_s: f64) {
        let rate = arrived / dt_s;
        self.last_rate_per_s = rate.clamp(0.0, MAX_RATE_PER_S);
        self.fast_per_s = blend(self.fast_per_s, rate, dt_s / FAST_S);
        self.slow_per_s = blend(self.slow_per_s, rate, dt_s / SLOW_S);
        self.window_count += arrived;
        self.window_s += dt_s;
        if self.window_s < 1.0 {
            return;
        }
        let expected = (self.slow_per_s * self.window_s).max(0.25);
        let index = (self.window_count - expected).powi(2) / expected;
        self.dispersion = (0.9 * self.dispersion + 0.1 * index.min(100.0)).clamp(DISPERSION.0, DISPERSION.1);
        self.window_count = 0.0;
        self.window_s = 0.0;
    }

    fn learn_tokens(&mut self, named: f64, delta: &Delta) {
        if named < 1.0 {
            return;
        }
        let share = 1.0 - (-named / 16.0).exp();
        let (prompt, output) = (delta.prompt_tokens / named, delta.output_tokens / named);
        self.prompt_tokens_per_request += share * (prompt.min(1e9) - self.prompt_tokens_per_request);
        self.output_tokens_per_request += share * (output.min(1e9) - self.output_tokens_per_request);
    }

    /// The slow rate and the excess over it, 1/s, where the rate has risen by more than chance explains.
    pub(crate) fn burst(&self) -> Option<(f64, f64)> {
        let apart = self.fast_per_s - self.slow_per_s;
        let news = significance(apart, self.slow_per_s, self.dispersion.max(DISPERSION.0));
        (apart > 0.0 && news >= BURST_NEWS).then_some((self.slow_per_s, apart * news))
    }

    /// The forecast over `horizon_s`, given what is left of a burst by then. `learned` gives, for a time
    /// ahead in s, the rates that are known by other means to be at these ranks, where they are; each path is the higher
    /// of the two at its rank. A model that has had no request for long has no paths.
    pub(crate) fn forecast(
        &self,
        horizon_s: f64,
        left: Left,
        learned: impl Fn(f64, Ranks) -> Option<Ranks>,
    ) -> Forecast {
        let horizon_s = horizon_s.clamp(0.1, 600.0);
        let step_s = horizon_s / STEPS as f64;
        let mut forecast = Forecast { scenarios: Vec::new(), step_s, hazard_per_s: 0.0, ahead_per_s: 0.0 };
        let known: [Option<Ranks>; STEPS] = std::array::from_fn(|step| learned((step as f64 + 1.0) * step_s, RANKS));
        if self.slow_per_s + self.fast_per_s < LEAST_RATE_PER_S && known[0].is_none() {
            return forecast;
        }
        let outlook = self.outlook(left);
        for (at, (weight, score, _)) in BANDS.into_iter().enumerate() {
            let rate = |step: usize| {
                let ahead_s = damped_s((step as f64 + 1.0) * step_s + FAST_S);
                let mean = (outlook.level_per_s + outlook.slope * ahead_s).max(0.0);
                let fast = (mean + score * outlook.spread_per_s).clamp(0.0, MAX_RATE_PER_S);
                known[step].map_or(fast, |ranks| ranks[at].clamp(fast, MAX_RATE_PER_S))
            };
            let requests: Vec<f64> = (0..STEPS).map(|step| rate(step) * step_s).collect();
            forecast.scenarios.push(Scenario {
                weight,
                prefill_tokens: requests.iter().map(|n| n * self.prompt_tokens_per_request).collect(),
                decode_tokens: requests.iter().map(|n| n * self.output_tokens_per_request).collect(),
                requests,
            });
        }
        forecast
    }

    fn outlook(&self, left: Left) -> Outlook {
        let dispersion = self.dispersion.max(DISPERSION.0);
        let apart = self.fast_per_s - self.slow_per_s;
        let news = significance(apart, self.slow_per_s, dispersion);
        // What has fallen stays down; how sure that is, is the fast rate's own variance.
        let (share, spread_per_s) = match apart > 0.0 {
            true => (left.share(), apart * news * left.spread()),
            false => (1.0, (dispersion * self.fast_per_s * news / (2.0 * FAST_S)).sqrt()),
        };
        let believed = apart * news * share;
        let settled = dispersion * self.slow_per_s / (2.0 * SLOW_S);
        Outlook {
            level_per_s: self.slow_per_s + believed,
            slope: believed / (SLOW_S - FAST_S),
            spread_per_s: (settled + spread_per_s * spread_per_s).sqrt(),
        }
    }
}

/// Where the two rates say that arrivals go.
struct Outlook {
    level_per_s: f64,
    /// 1/s².
    slope: f64,
    /// Standard deviation of the rate that is believed.
    spread_per_s: f64,
}

/// The time for which a trend that wears off counts (a damped trend: Gardner and McKenzie, 1985).
fn damped_s(ahead_s: f64) -> f64 {
    TREND_S * (1.0 - (-ahead_s / TREND_S).exp())
}

/// How far a difference between the fast and the slow rate is news rather than noise, 0..1: z²/(z² + 4) of
/// its distance in standard deviations. The variance of an exponentially weighted rate of a process with
/// index of dispersion D is D·rate/2τ. Under steady load the slow rate speaks; a burst is believed at once.
fn significance(apart: f64, slow_per_s: f64, dispersion: f64) -> f64 {
    let variance = dispersion * slow_per_s.max(1.0 / SLOW_S) / (2.0 * FAST_S);
    let z2 = apart * apart / variance;
    z2 / (z2 + 4.0)
}

/// One step of an exponentially weighted mean over irregular intervals.
fn blend(old: f64, sample: f64, dt_over_tau: f64) -> f64 {
    let keep = (-dt_over_tau).exp();
    (keep * old + (1.0 - keep) * sample).clamp(0.0, MAX_RATE_PER_S)
}

/// A reported fraction of requests, made safe.
fn finite(reported: f64) -> f64 {
    if reported.is_finite() { reported.clamp(0.0, MAX_RATE_PER_S) } else { 0.0 }
}
