//! How many instances a forecast is worth: the count at which one more would cost more to hold than the late answers that
//! it saves.
//!
//! An answer is late where an instance has more requests at once than it is useful to fill it with. Under a rate the
//! requests that are there at once are, but for chance, as many as arrive while one of them is served, which takes the
//! longer the fuller an instance is; by chance they vary as independent arrivals do. So ten instances are filled further
//! than two with the same risk, and nobody sets a utilisation. Every scenario has its share in the risk.

use crate::forecast::Forecast;

/// What one instance does with so many requests at once: each takes `alone_s`, and `each_s` more for every one there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Service {
    pub(crate) alone_s: f64,
    pub(crate) each_s: f64,
    /// Requests at once up to which it is useful to fill an instance.
    pub(crate) concurrency: f64,
}

impl Service {
    /// Time that a request takes among so many, s.
    pub(crate) fn residence_s(&self, requests: f64) -> f64 {
        self.alone_s + self.each_s * requests
    }

    /// Requests per second that are served with so many at once.
    pub(crate) fn rate(&self, requests: f64) -> f64 {
        requests / self.residence_s(requests).max(1e-9)
    }

    /// Requests at one instance up to which none is late: those that it is useful to fill it with, and those that wait
    /// and begin within the target for the first token.
    pub(crate) fn bound(&self, ttft_ms: f64) -> f64 {
        let wait_s = if ttft_ms.is_finite() { (ttft_ms / 1e3).clamp(0.0, 60.0) } else { 0.0 };
        self.concurrency + wait_s * self.rate(self.concurrency)
    }

    /// Requests at once that a rate comes to; without end where it is more than an instance can do.
    fn present(&self, rate_per_s: f64) -> f64 {
        let left = 1.0 - rate_per_s * self.each_s;
        if left > 1e-9 { rate_per_s * self.alone_s / left } else { f64::INFINITY }
    }

    /// Share of answers that are late with so many instances at a rate, when `excess` requests are there now beyond
    /// what the rate explains.
    fn late_share(&self, instances: f64, rate_per_s: f64, excess: impl Fn(f64) -> f64) -> f64 {
        let settled = instances * self.present(rate_per_s / instances);
        if !settled.is_finite() {
            return 1.0;
        }
        let mean = settled + excess(settled);
        upper_tail((instances * self.concurrency + 0.5 - mean) / mean.max(0.25).sqrt())
    }
}

/// What is weighed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prices {
    pub(crate) holding_cost_per_s: f64,
    /// Cost of an answer that is late.
    pub(crate) late_cost: f64,
    pub(crate) most: u32,
}

/// A count and the share of answers that are late with it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Staffing {
    pub(crate) instances: u32,
    pub(crate) late_share: f64,
}

/// The risk of a forecast with any number of instances.
pub(crate) struct Risk<'a> {
    pub(crate) service: Service,
    pub(crate) forecast: &'a Forecast,
    /// Requests that are there now.
    pub(crate) load: f64,
}

impl Risk<'_> {
    /// Share of answers late, and the rate of late ones per second, over all scenarios at the horizon's end.
    fn late(&self, instances: u32) -> (f64, f64) {
        let horizon_s = self.forecast.horizon_s();
        let stays = (-horizon_s / self.service.residence_s(self.service.concurrency).max(1e-3)).exp();
        let excess = |settled: f64| (self.load - settled).max(0.0) * stays;
        let (mut share, mut per_s) = (0.0, 0.0);
        for scenario in &self.forecast.scenarios {
            let rate = scenario.requests.last().copied().unwrap_or(0.0) / self.forecast.step_s.max(1e-9);
            let late = self.service.late_share(f64::from(instances.max(1)), rate, excess);
            share += scenario.weight * late;
            per_s += scenario.weight * late * rate;
        }
        (share, per_s)
    }

    /// Share of answers that are late with so many.
    pub(crate) fn late_share(&self, instances: u32) -> f64 {
        self.late(instances).0
    }

    /// Late answers per second with so many.
    pub(crate) fn late_per_s(&self, instances: u32) -> f64 {
        self.late(instances).1
    }

    /// The count of least cost, at least one.
    pub(crate) fn cheapest(&self, prices: &Prices) -> Staffing {
        let full = self.service.rate(self.service.concurrency).max(1e-9);
        let count = |q: f64, share: f64| (self.forecast.rate_quantile(q) / (share * full)).ceil();
        let first = count(0.5, 1.0).clamp(1.0, f64::from(prices.most.max(1))) as u32;
        let mut best = (f64::INFINITY, Staffing { instances: first, late_share: 1.0 });
        for instances in first..=prices.most.max(1) {
            let (late_share, late_per_s) = self.late(instances);
            let cost = prices.holding_cost_per_s * f64::from(instances) + prices.late_cost * late_per_s;
            if cost < best.0 {
                best = (cost, Staffing { instances, late_share });
            }
            // From here on nothing is saved that could pay for another one.
            if prices.late_cost * late_per_s <= prices.holding_cost_per_s {
                break;
            }
        }
        best.1
    }
}

/// Probability that a standard normal figure is above `z`: Abramowitz and Stegun 26.2.17, to eight digits.
fn upper_tail(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - upper_tail(-z);
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
    let sum = series.iter().rev().fold(0.0, |sum, factor| (sum + factor) * t);
    (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::Scenario;

    fn forecast(rates: &[f64]) -> Forecast {
        let scenario =
            |rate: &f64| Scenario { weight: 1.0 / rates.len() as f64, requests: vec![*rate], ..Scenario::default() };
        Forecast { scenarios: rates.iter().map(scenario).collect(), step_s: 1.0, ..Forecast::default() }
    }

    /// 16 at once take 0.7 s of an instance each.
    const SERVICE: Service = Service { alone_s: 5.3, each_s: 0.4, concurrency: 16.0 };
    const PRICES: Prices = Prices { holding_cost_per_s: 1.0, late_cost: 10.0, most: 1000 };

    fn cheapest(rates: &[f64], load: f64, prices: &Prices) -> Staffing {
        Risk { service: SERVICE, forecast: &forecast(rates), load }.cheapest(prices)
    }

    #[test]
    fn the_tail_is_that_of_the_normal_distribution() {
        for (z, want) in [(0.0, 0.5), (1.0, 0.158_655), (-1.0, 0.841_345), (2.0, 0.022_750), (4.0, 0.000_031_7)] {
            assert!((upper_tail(z) - want).abs() < 1e-5, "{z}");
        }
        assert_eq!((upper_tail(f64::INFINITY), upper_tail(1e9)), (0.0, 0.0));
    }

    #[test]
    fn larger_fleets_are_filled_further() {
        let full = SERVICE.rate(SERVICE.concurrency);
        let filled = |rate: f64| rate / full / f64::from(cheapest(&[rate], 0.0, &PRICES).instances);
        assert!(
            filled(2.0) < 0.8 && filled(20.0) > 0.85 && filled(200.0) > 0.93,
            "{} {} {}",
            filled(2.0),
            filled(20.0),
            filled(200.0)
        );
    }

    #[test]
    fn more_is_held_for_risk_and_less_where_holding_is_dear() {
        let at = |rates: &[f64]| cheapest(rates, 0.0, &PRICES).instances;
        assert!(at(&[4.0, 8.0]) > at(&[6.0]), "a spread forecast");
        let dear = Prices { holding_cost_per_s: 60.0, ..PRICES };
        assert!(cheapest(&[20.0], 0.0, &dear).instances < at(&[20.0]));
        assert!(cheapest(&[6.0], 200.0, &PRICES).instances > at(&[6.0]), "a crowd that is there");
        assert_eq!(cheapest(&[6.0], 0.0, &Prices { most: 3, ..PRICES }).instances, 3);
        assert_eq!((at(&[0.0]), at(&[])), (1, 1));
    }

    #[test]
    fn risk_falls_with_every_instance() {
        let forecast = forecast(&[2.0, 6.0, 9.0]);
        let risk = Risk { service: SERVICE, forecast: &forecast, load: 30.0 };
        let shares: Vec<f64> = (1..40).map(|instances| risk.late_share(instances)).collect();
        assert!(shares.windows(2).all(|pair| pair[1] <= pair[0] + 1e-12), "{shares:?}");
        assert!(shares[0] > 0.99 && shares[38] < 1e-6);
    }
}
