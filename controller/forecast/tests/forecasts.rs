//! What is promised of forecasts, on series made up from a seed: coverage through level shifts, sound numbers whatever
//! comes in, state that can be stored.

use controller_forecast::{Arrived, Level, Predictor, QUANTILES, Signals};
use proptest::prelude::*;

/// Uniform numbers in 0..1 from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A Poisson count, by the gaps of its process.
    fn poisson(&mut self, mean: f64) -> f64 {
        let (mut at, mut count) = (0.0, -1.0);
        while at < mean {
            at -= (1.0 - self.roll()).ln();
            count += 1.0;
        }
        count
    }
}

/// Share of outcomes at or below the 0.9 quantile and the share in the 300 bins after each shift of level.
fn check(shift_every: usize, factor: f64) -> (f64, f64) {
    let mut dice = Dice(7);
    let mut level = Level::new(10.0, &[3]);
    let mut stated = vec![0.0; 4000];
    let (mut within, mut counted) = ([0.0; 2], [0.0; 2]);
    for bin in 0..4000_usize {
        let mean = if (bin / shift_every).is_multiple_of(2) { 10.0 } else { 10.0 * factor };
        let count = dice.poisson(mean);
        if bin >= 1000 {
            for (kind, counts) in [true, bin % shift_every < 300].into_iter().enumerate() {
                counted[kind] += f64::from(counts);
                within[kind] += f64::from(counts && count <= stated[bin]);
            }
        }
        level.observe(count, Signals::default());
        if level.refit_is_due() && bin < 1500 {
            level.refit();
        }
        if let Some(ahead) = stated.get_mut(bin + 3) {
            *ahead = level.quantiles(0)[5];
        }
    }
    (within[0] / counted[0], within[1] / counted[1])
}

#[test]
fn stated_coverage_holds_through_level_shifts() {
    for (shift_every, factor) in [(500, 1.0), (500, 4.0), (500, 0.2)] {
        let (all, after_shift) = check(shift_every, factor);
        assert!((all - 0.9).abs() <= 0.02, "shift to {factor}: {all}");
        assert!((after_shift - 0.9).abs() <= 0.04, "shift to {factor}: {after_shift} in the bins after");
    }
}

/// Numbers as a counter that is broken, or a clock that jumps, would give them.
fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![8 => 0.0..100.0f64, 1 => any::<f64>(), 1 => Just(f64::NAN), 1 => Just(1e300)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn whatever_comes_in_what_goes_out_is_sound(
        observed in prop::collection::vec((any_number(), any_number(), any_number(), -1.0..20.0f64), 1..40),
    ) {
        let mut predictor = Predictor::default();
        let mut now_s = 0.0;
        for (requests, tokens, backlog, step_s) in observed {
            now_s += step_s;
            let signals = Signals { connections_per_s: tokens, backlog };
            predictor.observe(now_s, Arrived { requests, prefill_tokens: tokens, decode_tokens: tokens, signals });
            predictor.observe(tokens, Arrived::default());
            predictor.turn(requests.to_bits() % 5, now_s);
            predictor.refit();
        }
        let forecast = predictor.forecast();
        let numbers = forecast.scenarios.iter().flat_map(|path| {
            path.requests.iter().chain(&path.prefill_tokens).chain(&path.decode_tokens).chain([&path.weight])
        });
        for number in numbers {
            prop_assert!(number.is_finite() && *number >= 0.0, "{number}");
        }
        let quantiles = QUANTILES.map(|q| predictor.rate_quantile(30.0, q));
        prop_assert!(quantiles.is_sorted(), "{quantiles:?}");
        let likely = predictor.arrival_probability(now_s, 60.0);
        prop_assert!((0.0..=1.0).contains(&likely), "{likely}");
    }
}

/// A model with steady traffic for ten minutes.
fn busy() -> Predictor {
    let mut dice = Dice(3);
    let mut predictor = Predictor::default();
    for second in 0..600 {
        let requests = dice.poisson(5.0);
        let arrived = Arrived {
            requests,
            prefill_tokens: 100.0 * requests,
            decode_tokens: 20.0 * requests,
            ..Arrived::default()
        };
        predictor.observe(f64::from(second), arrived);
        predictor.refit();
    }
    predictor
}

#[test]
fn state_that_was_stored_goes_on_as_it_was() {
    let predictor = busy();
    let stored = serde_json::to_string(&predictor).expect("plain data");
    let restored: Predictor = serde_json::from_str(&stored).expect("what was written");
    let older = stored.replacen("\"format\":2", "\"format\":1", 1);
    assert!(older != stored && serde_json::from_str::<Predictor>(&older).is_err(), "another version is left alone");
    let [ours, theirs] = [predictor, restored].map(|mut one| {
        one.observe(600.0, Arrived { requests: 7.0, ..Arrived::default() });
        one.rate_quantile(10.0, 0.9)
    });
    assert!((ours - theirs).abs() < 1e-6, "{ours} {theirs}");
}

#[test]
fn a_forecast_of_steady_traffic_surrounds_its_rate_and_a_new_model_borrows_its_spread() {
    let known = busy();
    let forecast = known.forecast();
    assert_eq!(forecast.ends_s, [1.0, 3.0, 6.0, 10.0, 30.0, 60.0, 300.0, 600.0]);
    for step in 1..forecast.ends_s.len() {
        let (low, high) = (forecast.rate_quantile(step, 0.25), forecast.rate_quantile(step, 0.95));
        assert!(low < 5.5 && high > 4.5, "step {step}: {low} to {high}");
    }
    let spread = |predictor: &Predictor| predictor.rate_quantile(1.0, 0.95) - predictor.rate_quantile(1.0, 0.5);
    let mut lent = Predictor::like(&known);
    let mut alone = Predictor::default();
    for second in 0..5 {
        for new in [&mut lent, &mut alone] {
            new.observe(f64::from(second), Arrived { requests: 5.0, ..Arrived::default() });
        }
    }
    assert!(spread(&lent) > 2.0 * spread(&alone), "{} {}", spread(&lent), spread(&alone));
}

#[test]
fn what_is_stored_of_a_busy_model_is_bounded() {
    let mut dice = Dice(11);
    let mut predictor = Predictor::default();
    for second in 0..9_000 {
        predictor.observe(f64::from(second), Arrived { requests: dice.poisson(5.0), ..Arrived::default() });
        predictor.refit();
    }
    let bytes = serde_json::to_string(&predictor.kept()).expect("plain data").len();
    assert!(bytes < 1_000_000, "{bytes} bytes");
}
