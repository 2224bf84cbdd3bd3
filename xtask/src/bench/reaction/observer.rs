//! What one observer knew of the load, and when: a running total of requests over time. All observers are held to the
//! same two questions: how long after a request left was it counted, and from when on was the rate known.

const NS_PER_S: f64 = 1e9;
/// What left last gets this long to be counted, ns.
const AFTER_END_NS: u64 = 500_000_000;
/// Steps at which the rate is looked at, ns.
const GRID_NS: u64 = 1_000_000;

/// A total as it was known from each time on, in order of time; none before the first.
pub struct Observer(pub Vec<(u64, f64)>);

/// When requests left, CLOCK_MONOTONIC ns, ascending, and the step of their rate.
pub struct Load {
    pub sent_ns: Vec<u64>,
    pub step_ns: u64,
    pub end_ns: u64,
    /// After the step, 1/s.
    pub rate_per_s: f64,
}

impl Load {
    /// Whoever counts each request as it leaves: no observer can know more.
    pub fn ideal(&self) -> Observer {
        Observer(self.sent_ns.iter().enumerate().map(|(before, at_ns)| (*at_ns, (before + 1) as f64)).collect())
    }

    /// Requests that left before the step.
    pub fn before_step(&self) -> usize {
        self.sent_ns.partition_point(|at_ns| *at_ns < self.step_ns)
    }
}

impl Observer {
    /// Looks at another observer only every `period_ns`, first at `first_ns`.
    pub fn sampled(&self, first_ns: u64, period_ns: u64, end_ns: u64) -> Self {
        let looks = (first_ns..end_ns).step_by(usize::try_from(period_ns).unwrap_or(usize::MAX));
        Self(looks.filter_map(|at_ns| Some((at_ns, self.known(at_ns)?))).collect())
    }

    /// The total known at a time.
    pub fn known(&self, at_ns: u64) -> Option<f64> {
        let later = self.0.partition_point(|(seen_ns, _)| *seen_ns <= at_ns);
        Some(self.0[later.checked_sub(1)?].1)
    }

    /// When the total had reached `count`.
    pub fn reached(&self, count: f64) -> Option<u64> {
        // A count of halves (a request shared among models) is the whole by rounding.
        self.0.iter().find(|(_, total)| *total + 0.25 >= count).map(|(at_ns, _)| *at_ns)
    }

    /// Of each request after the step: from its leaving until it was counted, ms. What was not counted by the end
    /// took at least until then, and is told by the second figure.
    pub fn delays_ms(&self, load: &Load) -> (Vec<f64>, usize) {
        let (mut uncounted, until_ns) = (0, load.end_ns + AFTER_END_NS);
        let mut delay_ms = |(before, sent_ns): (usize, &u64)| {
            let seen_ns = self.reached((before + 1) as f64).filter(|at_ns| *at_ns <= until_ns);
            uncounted += usize::from(seen_ns.is_none());
            seen_ns.unwrap_or(until_ns).saturating_sub(*sent_ns) as f64 / 1e6
        };
        let delays = load.sent_ns.iter().enumerate().skip(load.before_step()).map(&mut delay_ms).collect();
        (delays, uncounted)
    }

    /// Seconds after the step from which on the mean rate since the step, as known, stays within `share` of the true
    /// one; none if it does not by the end.
    pub fn rate_known_s(&self, load: &Load, share: f64) -> Option<f64> {
        let before = load.before_step() as f64;
        let is_off = |at_ns: &u64| {
            let since_s = (at_ns - load.step_ns) as f64 / NS_PER_S;
            let rate = (self.known(*at_ns).unwrap_or(0.0) - before) / since_s;
            (rate / load.rate_per_s - 1.0).abs() > share
        };
        let grid = (load.step_ns + GRID_NS..load.end_ns).step_by(GRID_NS as usize);
        let last_off_ns = grid.filter(is_off).last().unwrap_or(load.step_ns);
        let known_ns = last_off_ns + GRID_NS;
        (known_ns < load.end_ns).then(|| (known_ns - load.step_ns) as f64 / NS_PER_S)
    }
}

/// How long a Poisson process must be watched until its rate is known to within `share` with 95% probability, s: its
/// count n has the standard deviation of its root, so n must be (1.96 / share)².
pub fn poisson_bound_s(rate_per_s: f64, share: f64) -> f64 {
    (1.96 / share).powi(2) / rate_per_s
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        // Ten a second for a second, then a hundred a second for ten.
        let before = (0..10).map(|n| n * 100_000_000);
        let after = (0..1000).map(|n| 1_000_000_000 + n * 10_000_000);
        Load {
            sent_ns: before.chain(after).collect(),
            step_ns: 1_000_000_000,
            end_ns: 11_000_000_000,
            rate_per_s: 100.0,
        }
    }

    #[test]
    fn the_ideal_observer_waits_for_nothing() {
        let load = load();
        let (delays, uncounted) = load.ideal().delays_ms(&load);
        assert_eq!((delays.len(), uncounted), (1000, 0));
        assert!(delays.iter().all(|delay| *delay == 0.0));
        // The first arrival stands at the step itself, so the rate is high by one request: a tenth of it after 100 ms.
        let known_s = load.ideal().rate_known_s(&load, 0.1).expect("it is known");
        assert!((0.09..0.12).contains(&known_s), "{known_s}");
    }

    #[test]
    fn whoever_looks_seldom_or_sees_what_is_served_knows_late_or_never() {
        let load = load();
        let seldom = load.ideal().sampled(0, 4_000_000_000, load.end_ns);
        let (delays, uncounted) = seldom.delays_ms(&load);
        // Looks are at 0, 4 and 8 s, and the last three seconds are never counted.
        assert_eq!(uncounted, 299);
        assert_eq!(delays[0], 3000.0);
        let served = Observer(load.ideal().0.iter().map(|(at_ns, total)| (*at_ns, total / 3.0)).collect());
        assert_eq!(served.rate_known_s(&load, 0.1), None);
        assert!(Observer(vec![]).rate_known_s(&load, 0.1).is_none());
    }

    #[test]
    fn the_bound_is_that_of_a_poisson_count() {
        assert!((poisson_bound_s(100.0, 0.1) - 3.8416).abs() < 1e-9);
    }
}
