//! What a step costs by the number of its tokens, learnt from measured steps, and how large a step may be.
//!
//! Device time is no straight line: one token reads all weights and so do eight, while five hundred are arithmetic.
//! So the curve is kept as knots, one for each half octave of tokens, each a running mean of what was measured
//! there, and read off between them. Times come in as numbers: nothing here looks at a clock, and the same
//! measurements always give the same curve.

/// Knots: two for each power of two, up to 65,536 tokens.
const KNOTS: usize = 32;
/// Weight of a new measurement, once a knot has as many as its inverse.
const GAIN: f64 = 1.0 / 8.0;
/// A measurement counts as at most this multiple of what is known: a page fault is no price.
const OUTLIER: f64 = 4.0;
/// Measurements after which a knot that got none is forgotten, so that a price that was once too high is asked again.
const FORGET_AFTER: u64 = 1024;

#[derive(Clone, Copy, Debug, Default)]
struct Knot {
    tokens: f64,
    ns: f64,
    /// 0 for a knot of which nothing is known.
    samples: u32,
    last: u64,
}

/// The time of a step as a function of its tokens.
#[derive(Clone, Debug)]
pub struct StepCost {
    knots: [Knot; KNOTS],
    measurements: u64,
}

impl Default for StepCost {
    fn default() -> Self {
        Self { knots: [Knot::default(); KNOTS], measurements: 0 }
    }
}

impl StepCost {
    /// Takes the time that a step of so many tokens took, ns.
    pub fn observe(&mut self, tokens: usize, ns: u64) {
        if tokens == 0 {
            return;
        }
        self.measurements += 1;
        let knot = &mut self.knots[index(tokens)];
        if knot.samples > 0 && self.measurements - knot.last > FORGET_AFTER {
            *knot = Knot::default();
        }
        knot.last = self.measurements;
        let (tokens, mut ns) = (tokens as f64, ns as f64);
        if knot.samples > 0 {
            ns = ns.min(OUTLIER * knot.ns);
        }
        knot.samples = knot.samples.saturating_add(1);
        let gain = (1.0 / f64::from(knot.samples)).max(GAIN);
        knot.tokens += (tokens - knot.tokens) * gain;
        knot.ns += (ns - knot.ns) * gain;
    }

    /// Time of a step of so many tokens, ns; none while nothing was measured. Never falls with the tokens. Below
    /// what was measured it is the smallest step's, above it the largest one's in proportion: both are upper bounds
    /// as long as a step has a fixed part.
    pub fn estimate_ns(&self, tokens: usize) -> Option<f64> {
        let wanted = tokens as f64;
        let mut before: Option<(f64, f64)> = None;
        for knot in self.knots.iter().filter(|knot| self.knows(knot)) {
            // What was measured is noisy; that more tokens take no less is certain.
            let ns = before.map_or(knot.ns, |(_, ns)| ns.max(knot.ns));
            if knot.tokens >= wanted {
                let Some((tokens_before, ns_before)) = before else { return Some(ns) };
                let share = (wanted - tokens_before) / (knot.tokens - tokens_before);
                return Some(ns_before + (ns - ns_before) * share);
            }
            before = Some((knot.tokens, ns));
        }
        before.map(|(tokens, ns)| ns * wanted / tokens)
    }

    /// The most tokens, `least` or more and `most` or fewer, whose step takes no longer than `limit_ns`; `least` when
    /// even that takes longer, and none while nothing was measured.
    pub fn tokens_within(&self, limit_ns: u64, least: usize, most: usize) -> Option<usize> {
        let limit_ns = limit_ns as f64;
        let (mut fits, mut too_many) = (least, most.max(least) + 1);
        self.estimate_ns(fits)?;
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            match self.estimate_ns(middle) {
                Some(ns) if ns <= limit_ns => fits = middle,
                _ => too_many = middle,
            }
        }
        Some(fits)
    }

    fn knows(&self, knot: &Knot) -> bool {
        knot.samples > 0 && self.measurements - knot.last <= FORGET_AFTER
    }
}

/// The half octave that a number of tokens lies in.
fn index(tokens: usize) -> usize {
    let octave = tokens.max(1).ilog2() as usize;
    let upper_half = if octave == 0 { 0 } else { tokens >> (octave - 1) & 1 };
    (2 * octave + upper_half).min(KNOTS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn curve(measured: &[(usize, u64)]) -> StepCost {
        let mut cost = StepCost::default();
        measured.iter().for_each(|(tokens, ns)| cost.observe(*tokens, *ns));
        cost
    }

    #[test]
    fn what_was_measured_is_read_off_and_joined() {
        assert_eq!(StepCost::default().estimate_ns(3), None);
        assert_eq!(StepCost::default().tokens_within(10, 1, 5), None);
        let cost = curve(&[(1, 100), (128, 1370), (0, 77)]);
        let check = |tokens, expected: f64| {
            let found = cost.estimate_ns(tokens).expect("measured");
            assert!((found - expected).abs() < 1e-6, "{tokens}: {found}, not {expected}");
        };
        check(1, 100.0);
        check(2, 110.0);
        check(65, 740.0);
        check(128, 1370.0);
        check(256, 2740.0);
        assert_eq!(cost.tokens_within(740, 1, 512), Some(65));
        assert_eq!(cost.tokens_within(740, 80, 512), Some(80));
        assert_eq!(cost.tokens_within(1_000_000, 1, 512), Some(512));
        assert_eq!(curve(&[(64, 500)]).estimate_ns(8), Some(500.0));
        // A step that took less with more tokens was lucky.
        assert_eq!(curve(&[(4, 500), (8, 400)]).estimate_ns(8), Some(500.0));
    }

    #[test]
    fn an_outlier_is_bounded_and_an_old_price_is_forgotten() {
        let mut cost = curve(&[(1, 100), (1, 100), (1, 1_000_000)]);
        assert!(cost.estimate_ns(1).is_some_and(|ns| ns <= 200.0 + 1e-6));
        cost.observe(2, 9_000);
        (0..FORGET_AFTER).for_each(|_| cost.observe(1, 100));
        assert!(cost.estimate_ns(2).is_some_and(|ns| ns > 8_000.0));
        cost.observe(1, 100);
        assert!(cost.estimate_ns(2).is_some_and(|ns| ns < 300.0));
    }

    proptest! {
        #[test]
        fn more_tokens_never_cost_less_and_limits_are_kept(
            measured in proptest::collection::vec((1..2000usize, 1..1_000_000u64), 1..60),
            least in 1..50usize,
            most in 1..800usize,
            limit_ns in 1..2_000_000u64,
        ) {
            let cost = curve(&measured);
            let estimates: Vec<f64> = (1..1000).filter_map(|tokens| cost.estimate_ns(tokens)).collect();
            prop_assert_eq!(estimates.len(), 999);
            prop_assert!(estimates.windows(2).all(|pair| pair[0] <= pair[1] * (1.0 + 1e-12)));
            let tokens = cost.tokens_within(limit_ns, least, most).expect("measured");
            prop_assert!(tokens >= least && tokens <= most.max(least));
            let ns = cost.estimate_ns(tokens).expect("measured");
            prop_assert!(tokens == least || ns <= limit_ns as f64);
        }
    }
}
