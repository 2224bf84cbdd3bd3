//! A trace of requests from counts of several models per step of time, with their mean lengths: what a deployment's metrics keep.

use super::{Arrival, COUNTED_SPREAD, Repairs, Trace, length};
use crate::ns;
use crate::random::Random;

/// Most requests of one step, of one model: beyond it a counter is not believed.
const STEP_MAX: f64 = 1e7;

/// One model's requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    pub model: String,
    /// In each step.
    pub counts: Vec<f64>,
    /// Mean lengths, tokens.
    pub prompt_tokens: f64,
    pub output_tokens: f64,
}

/// The requests, uniform within their step and with lengths drawn around the mean; one seed gives one outcome.
pub fn of_counts(counted: &[Counted], step_s: f64, seed: u64) -> Trace {
    let mut random = Random::new(seed).fork(17);
    let mut models: Vec<&Counted> = counted.iter().collect();
    models.sort_by(|a, b| a.model.cmp(&b.model));
    // The median of a lognormal distribution lies below its mean by this factor.
    let median = (-COUNTED_SPREAD * COUNTED_SPREAD / 2.0).exp();
    let mut arrivals = Vec::new();
    for (model, counted) in models.iter().enumerate() {
        for (step, count) in counted.counts.iter().enumerate() {
            for _ in 0..count.clamp(0.0, STEP_MAX).round() as u64 {
                arrivals.push(Arrival {
                    at_ns: ns((step as f64 + random.unit()) * step_s),
                    model: model as u32,
                    prompt_tokens: length(median * counted.prompt_tokens, &mut random),
                    output_tokens: length(median * counted.output_tokens, &mut random),
                    ..Arrival::default()
                });
            }
        }
    }
    arrivals.sort_by_key(|arrival| arrival.at_ns);
    let names = models.iter().map(|counted| counted.model.clone()).collect();
    let steps = counted.iter().map(|counted| counted.counts.len()).max().unwrap_or(0);
    let trace = Trace::of_requests(names, arrivals, Repairs::default());
    Trace { duration_ns: ns(steps as f64 * step_s).max(trace.duration_ns), ..trace }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_become_requests_of_their_step() {
        let counted = |model: &str, counts: &[f64]| Counted {
            model: model.to_owned(),
            counts: counts.to_vec(),
            prompt_tokens: 400.0,
            output_tokens: 100.0,
        };
        let trace = of_counts(&[counted("b", &[0.0, 500.0]), counted("a", &[2.0, f64::NAN, -1.0])], 10.0, 1);
        assert_eq!((trace.models.join(" "), trace.requests(), trace.duration_s()), ("a b".to_owned(), 502, 30.0));
        let arrivals = trace.window(0, trace.duration_ns, 1);
        assert!(arrivals[..2].iter().all(|arrival| arrival.model == 0 && arrival.at_ns < ns(10.0)));
        assert!(arrivals[2..].iter().all(|arrival| (ns(10.0)..ns(20.0)).contains(&arrival.at_ns)));
        let mean = arrivals.iter().map(|arrival| f64::from(arrival.prompt_tokens)).sum::<f64>() / 502.0;
        assert!((350.0..450.0).contains(&mean), "{mean}");
    }
}
