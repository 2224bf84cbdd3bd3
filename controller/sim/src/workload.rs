//! Open-loop arrivals: they come by the clock, whether or not earlier ones were answered.

use crate::random::Random;
use crate::{NS_PER_S, ns};

/// The shape of one model's traffic.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// Independent arrivals at a steady rate, 1/s.
    Poisson { rate_per_s: f64 },
    /// So many requests within a second, every so often.
    Bursts { every_s: f64, size: u32 },
    /// From nothing to the peak rate and back, as a half sine over the period.
    RiseAndFall { peak_per_s: f64, period_s: f64 },
    /// A request now and then.
    Sparse { mean_gap_s: f64 },
}

/// One request to come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    pub at_ns: u64,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
}

impl Workload {
    /// All arrivals before `until_s`, in order.
    pub fn arrivals(&self, until_s: f64, random: &mut Random) -> Vec<Arrival> {
        let mut times = self.times_s(until_s, random);
        times.sort_by(f64::total_cmp);
        times
            .into_iter()
            .map(|at_s| Arrival {
                // Nothing arrives in the very first millisecond, so that time 0 can mean "never".
                at_ns: ns(at_s).max(NS_PER_S / 1000),
                prompt_tokens: random.between(8, 64) as u32,
                output_tokens: random.between(8, 96) as u32,
            })
            .collect()
    }

    fn times_s(&self, until_s: f64, random: &mut Random) -> Vec<f64> {
        match *self {
            Self::Poisson { rate_per_s } => poisson(rate_per_s, until_s, random, |_| 1.0),
            Self::Sparse { mean_gap_s } => poisson(1.0 / mean_gap_s, until_s, random, |_| 1.0),
            Self::RiseAndFall { peak_per_s, period_s } => {
                let shape = |at_s: f64| (std::f64::consts::PI * (at_s % period_s) / period_s).sin();
                poisson(peak_per_s, until_s, random, shape)
            }
            Self::Bursts { every_s, size } => {
                let mut times = Vec::new();
                let mut start_s = random.unit() * every_s;
                while start_s < until_s {
                    times.extend((0..size).map(|_| (start_s + random.unit()).min(until_s)));
                    start_s += every_s;
                }
                times
            }
        }
    }
}

/// A Poisson process, thinned to a share of its rate that varies over time (Lewis and Shedler, 1979).
fn poisson(rate_per_s: f64, until_s: f64, random: &mut Random, share: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut times = Vec::new();
    let mut at_s = random.exponential(1.0 / rate_per_s);
    while at_s < until_s {
        if random.chance(share(at_s)) {
            times.push(at_s);
        }
        at_s += random.exponential(1.0 / rate_per_s);
    }
    times
}
