//! Joins what gateway and kernel say of the same requests, so that each is counted once.
//!
//! The gateway names requests; the kernel sees them begin, also while the gateway is stalled. A request
//! that the kernel saw and the gateway has not read yet is demand without a name. Their number is the
//! difference of the two totals above its floor: requests that never get a name (garbage that the HTTP
//! parser refuses) lift the difference for good, events that the kernel lost lower it for good, and the
//! floor follows whatever has lasted for a whole window. Requests at the engines' ports are the same
//! requests one hop later, and so are never added.

use super::Observations;
use controller_core::Nanos;
use controller_core::snapshot::{Demand, Fidelity, ModelName};
use std::collections::{BTreeMap, VecDeque};

/// What lasts this long is part of the floor.
const WINDOW_S: u64 = 30;
/// A model's share of recent arrivals halves in this time, s.
const SHARE_HALF_LIFE_S: f64 = 30.0;
const NS_PER_S: u64 = 1_000_000_000;

/// The join's memory: recent differences and recent shares.
#[derive(Clone, Debug, Default)]
pub struct Reconciler {
    floor: Option<i64>,
    /// (second, lowest, highest difference in it), oldest first; at most a window of them.
    seconds: VecDeque<(u64, i64, i64)>,
    shares: BTreeMap<ModelName, Share>,
    last_ns: Nanos,
    /// The difference at the last look.
    difference: Option<i64>,
    /// Connections at the last look.
    connections: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    arrivals_total: u64,
    recent: f64,
    /// As [`Demand::unnamed_total`].
    unnamed_total: f64,
    /// As [`Demand::connections_total`].
    connections_total: f64,
}

impl Reconciler {
    /// Demand on each of `models`.
    pub fn join<'a>(
        &mut self,
        observations: &Observations,
        models: impl Iterator<Item = &'a ModelName> + Clone,
    ) -> BTreeMap<ModelName, Demand> {
        self.update_shares(observations, models.clone());
        let (fidelity, unidentified) = match self.unidentified(observations) {
            Some(unidentified) => (Fidelity::Kernel, unidentified as f64),
            None => (Fidelity::Gateway, 0.0),
        };
        let count = models.clone().count().max(1) as f64;
        let recent_sum: f64 = self.shares.values().map(|share| share.recent).sum();
        let news = self.news(observations) as f64;
        let connections = self.connected(observations);
        for share in self.shares.values_mut() {
            let part = if recent_sum > 0.0 { share.recent / recent_sum } else { 1.0 / count };
            share.unnamed_total += news * part;
            share.connections_total += connections * part;
        }
        let demand_of = |model: &ModelName| {
            let counted = observations.gateway.models.get(model).cloned().unwrap_or_default();
            let recent = self.shares.get(model).map_or(0.0, |share| share.recent);
            // With no arrivals to go by, every model is as likely.
            let share = if recent_sum > 0.0 { recent / recent_sum } else { 1.0 / count };
            Demand {
                observed_at_ns: observations.now_ns,
                fidelity,
                arrivals_total: counted.arrivals_total,
                unidentified: unidentified * share,
                unnamed_total: self.shares.get(model).map_or(0.0, |share| share.unnamed_total),
                connections_total: self.shares.get(model).map_or(0.0, |share| share.connections_total),
                turns_total: counted.turns_total,
                turns: counted.turns,
                held: counted.held,
                in_flight: counted.in_flight,
                prompt_tokens_total: counted.prompt_tokens_total,
                output_tokens_total: counted.output_tokens_total,
            }
        };
        models.map(|model| (model.clone(), demand_of(model))).collect()
    }

    fn update_shares<'a>(&mut self, observations: &Observations, models: impl Iterator<Item = &'a ModelName> + Clone) {
        let elapsed_s = observations.now_ns.saturating_sub(self.last_ns) as f64 / NS_PER_S as f64;
        let decay = if self.last_ns == 0 { 1.0 } else { (-elapsed_s / SHARE_HALF_LIFE_S).exp2() };
        self.last_ns = observations.now_ns;
        let mut shares = BTreeMap::new();
        for model in models {
            let mut share = self.shares.get(model).copied().unwrap_or_default();
            let total = observations.gateway.models.get(model).map_or(0, |demand| demand.arrivals_total);
            // A total that fell means that the gateway began anew.
            let arrived = total.checked_sub(share.arrivals_total).unwrap_or(total);
            share.arrivals_total = total;
            share.recent = share.recent * decay + arrived as f64;
            // Below this it only keeps rounding errors alive.
            if share.recent < 1e-6 {
                share.recent = 0.0;
            }
            shares.insert(model.clone(), share);
        }
        self.shares = shares;
    }

    /// By how much the difference grew since the last look. A side that counts no more, or anew, says nothing.
    fn news(&mut self, observations: &Observations) -> i64 {
        let last = std::mem::replace(&mut self.difference, difference(observations));
        let (Some(last), Some(now)) = (last, self.difference) else { return 0 };
        now - last
    }

    /// Connections made since the last look. A kernel that counts anew says nothing.
    fn connected(&mut self, observations: &Observations) -> f64 {
        let now = observations.kernel.map(|kernel| kernel.connections_total);
        let last = std::mem::replace(&mut self.connections, now);
        last.zip(now).map_or(0.0, |(last, now)| now.saturating_sub(last) as f64)
    }

    /// Requests begun and not named; none when either side does not count.
    fn unidentified(&mut self, observations: &Observations) -> Option<u64> {
        let Some(difference) = difference(observations) else {
            // Whoever counts again has missed something meanwhile.
            self.floor = None;
            self.seconds.clear();
            return None;
        };
        let second = observations.now_ns / NS_PER_S;
        match self.seconds.back_mut() {
            Some((last, lowest, highest)) if *last == second => {
                *lowest = difference.min(*lowest);
                *highest = difference.max(*highest);
            }
            _ => self.seconds.push_back((second, difference, difference)),
        }
        while self.seconds.front().is_some_and(|(first, ..)| first + WINDOW_S < second) {
            self.seconds.pop_front();
        }
        let mut floor = *self.floor.get_or_insert(difference);
        let covers_window = self.seconds.front().is_some_and(|(first, ..)| first + WINDOW_S <= second);
        if covers_window {
            let lowest = self.seconds.iter().map(|(_, lowest, _)| *lowest).min().unwrap_or(floor);
            let highest = self.seconds.iter().map(|(.., highest)| *highest).max().unwrap_or(floor);
            floor = floor.clamp(lowest, highest);
        }
        self.floor = Some(floor);
        Some((difference - floor).max(0) as u64)
    }
}

/// Requests that the kernel counts and the gateway does not.
fn difference(observations: &Observations) -> Option<i64> {
    let kernel = observations.kernel?.offered_total();
    Some(kernel - i64::try_from(observations.gateway.requests_seen_total?).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::{GatewayReading, KernelReading, ModelDemand};
    use super::*;

    /// One reading per row: (second, kernel total, gateway's seen total, arrivals of a, arrivals of b).
    type Row = (u64, Option<u64>, Option<u64>, u64, u64);

    /// Feeds the rows and compares the last answer: (unidentified of a, of b, fidelity).
    fn check(what: &str, rows: &[Row], expected: (f64, f64, Fidelity)) {
        let models = ["a".to_owned(), "b".to_owned()];
        let mut reconciler = Reconciler::default();
        let mut last = BTreeMap::new();
        for (second, kernel, seen, a, b) in rows {
            let demand = |arrivals_total: &u64| ModelDemand { arrivals_total: *arrivals_total, ..Default::default() };
            let observations = Observations {
                now_ns: second * NS_PER_S,
                gateway: GatewayReading {
                    requests_seen_total: *seen,
                    models: BTreeMap::from([("a".to_owned(), demand(a)), ("b".to_owned(), demand(b))]),
                },
                kernel: kernel.map(|requests_total| KernelReading { requests_total, ..KernelReading::default() }),
                instances: BTreeMap::new(),
            };
            last = reconciler.join(&observations, models.iter());
        }
        let found = (last["a"].unidentified, last["b"].unidentified, last["a"].fidelity);
        let near = |left: f64, right: f64| (left - right).abs() < 1e-9;
        assert!(near(found.0, expected.0) && near(found.1, expected.1) && found.2 == expected.2, "{what}: {found:?}");
    }

    #[test]
    fn requests_are_counted_once() {
        use Fidelity::{Gateway, Kernel};
        check("no probes", &[(1, None, Some(5), 5, 0)], (0.0, 0.0, Gateway));
        check("a gateway that does not count", &[(1, Some(9), None, 5, 0)], (0.0, 0.0, Gateway));
        check("both agree", &[(1, Some(0), Some(0), 0, 0), (2, Some(5), Some(5), 5, 0)], (0.0, 0.0, Kernel));
        check(
            "a stalled gateway, arrivals three to one",
            &[(1, Some(0), Some(0), 0, 0), (2, Some(4), Some(4), 3, 1), (2, Some(12), Some(4), 3, 1)],
            (6.0, 2.0, Kernel),
        );
        check("no arrivals to go by", &[(1, Some(0), Some(0), 0, 0), (2, Some(6), Some(0), 0, 0)], (3.0, 3.0, Kernel));
        check(
            "after the stall nothing is left",
            &[(1, Some(0), Some(0), 0, 0), (2, Some(8), Some(0), 0, 0), (3, Some(8), Some(8), 8, 0)],
            (0.0, 0.0, Kernel),
        );
        check("probes attached to a running gateway", &[(1, Some(0), Some(70), 70, 0)], (0.0, 0.0, Kernel));
        let rows = [
            (1, Some(0), Some(0), 0, 0),
            (2, Some(4), Some(4), 4, 0),
            (3, None, Some(30), 30, 0),
            (4, Some(4), Some(30), 30, 0),
            (4, Some(6), Some(30), 30, 0),
        ];
        check("probes that were off for a while", &rows, (2.0, 0.0, Kernel));
        check(
            "kernel events that come late are no negative demand",
            &[(1, Some(0), Some(0), 0, 0), (2, Some(3), Some(5), 5, 0), (3, Some(5), Some(5), 5, 0)],
            (0.0, 0.0, Kernel),
        );
    }

    /// The forecast goes by the growth of offered load, which follows a stall for as long as it lasts.
    #[test]
    fn offered_load_outlasts_the_floor() {
        let models = ["a".to_owned()];
        let mut reconciler = Reconciler::default();
        let mut offered = |second: u64, requests: u64, (syns, connections): (u64, u64), seen: u64| {
            let observations = Observations {
                now_ns: second * NS_PER_S,
                gateway: GatewayReading {
                    requests_seen_total: Some(seen),
                    models: BTreeMap::from([(
                        "a".to_owned(),
                        ModelDemand { arrivals_total: seen, ..Default::default() },
                    )]),
                },
                kernel: Some(KernelReading {
                    requests_total: requests,
                    syns_total: syns,
                    connections_total: connections,
                }),
                instances: BTreeMap::new(),
            };
            let demand = &reconciler.join(&observations, models.iter())["a"];
            demand.arrivals_total as f64 + demand.unnamed_total
        };
        assert_eq!(offered(1, 7, (7, 7), 7), 7.0);
        // The server accepts nothing: five requests a second reach the backlog, and from second 60 on only SYNs do.
        for second in 2..=60 {
            assert_eq!(offered(second, 7 + 5 * (second - 1), (7, 7), 7), 7.0 + 5.0 * (second - 1) as f64);
        }
        for second in 61..=120 {
            let syns = 7 + 5 * (second - 60);
            assert_eq!(offered(second, 302, (syns, 7), 7), 7.0 + 5.0 * (second - 1) as f64);
        }
        // It goes on, and names them all: nothing is counted twice.
        assert_eq!(offered(121, 602, (307, 307), 602), 602.0);
    }

    #[test]
    fn what_lasts_becomes_the_floor() {
        use Fidelity::Kernel;
        let settled = |difference_up: u64, difference_down: u64| -> Vec<Row> {
            let mut rows = vec![(1, Some(100), Some(100), 1, 0)];
            rows.extend((2..=40).map(|s| (s, Some(100 + difference_up), Some(100 + difference_down), 1, 0)));
            rows
        };
        check("garbage never gets a name", &settled(3, 0), (0.0, 0.0, Kernel));
        check("but counts until that is sure", &settled(3, 0)[..20], (3.0, 0.0, Kernel));
        let mut rows = settled(0, 3);
        rows.push((41, Some(102), Some(103), 1, 0));
        check("events lost by the kernel hide no later demand", &rows, (2.0, 0.0, Kernel));
    }

    #[test]
    fn a_gateway_that_begins_anew_is_no_flood() {
        let rows = [
            (1, Some(0), Some(0), 0, 0),
            (2, Some(4), Some(4), 4, 0),
            (3, Some(4), Some(4), 1, 3),
            (3, Some(8), Some(4), 1, 3),
        ];
        let decay = (-1.0_f64 / SHARE_HALF_LIFE_S).exp2();
        let recent = 4.0 * decay + 1.0;
        let share = recent / (recent + 3.0);
        check("totals fell", &rows, (4.0 * share, 4.0 * (1.0 - share), Fidelity::Kernel));
    }
}
