//! The two curves of an engine: a step's time against the streams in it, and a prompt's work against its size.
//! Both are fitted with medians, since a few of the times are always something else: a prompt in between, a pause of
//! the machine, a lost event.

/// Requests whose slopes are compared in pairs.
const PAIRS_OF: usize = 200;

/// Time of a step, s, by the streams in it; never falling.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StepCurve {
    /// From one stream on; never empty.
    by_streams_s: Vec<f64>,
    /// What each further stream adds, s.
    slope_s: f64,
}

impl StepCurve {
    /// From gaps between tokens, s, by the number of streams less one; None where there are none.
    pub fn fit(gaps_s: &[Vec<f64>]) -> Option<Self> {
        let points: Vec<(f64, f64, f64)> = (1..)
            .zip(gaps_s)
            .filter(|(_, gaps)| !gaps.is_empty())
            .map(|(streams, gaps)| (f64::from(streams), median(gaps), gaps.len() as f64))
            .collect();
        let (_, first_s, _) = *points.first()?;
        let (constant_s, slope_s) = line(&points, first_s);
        let last = points.last()?.0 as usize;
        let monotone = monotone(&points);
        let at = |streams: usize| {
            let streams = streams as f64;
            let Some(after) = monotone.iter().position(|(at, _)| *at >= streams) else { return 0.0 };
            match after.checked_sub(1).map(|before| (monotone[before], monotone[after])) {
                Some(((x0, y0), (x1, y1))) => y0 + (y1 - y0) * (streams - x0) / (x1 - x0),
                // Fewer streams than were ever seen alone: by the line, but no slower than with more.
                None => (constant_s + slope_s * streams).clamp(0.1 * monotone[after].1, monotone[after].1),
            }
        };
        let by_streams_s: Vec<f64> = (1..=last).map(at).collect();
        by_streams_s.iter().all(|s| s.is_finite() && *s > 0.0).then_some(Self { by_streams_s, slope_s })
    }

    /// With this many streams, at least one.
    pub fn at_s(&self, streams: usize) -> f64 {
        let known = self.by_streams_s.len();
        let last = self.by_streams_s[streams.clamp(1, known) - 1];
        last + self.slope_s * streams.saturating_sub(known) as f64
    }

    pub fn scale(&mut self, factor: f64) {
        self.by_streams_s.iter_mut().for_each(|s| *s *= factor);
        self.slope_s *= factor;
    }
}

/// Least squares of (x, y, weight) as (constant, slope); the slope not below 0.
fn line(points: &[(f64, f64, f64)], alone: f64) -> (f64, f64) {
    let weight: f64 = points.iter().map(|(_, _, w)| w).sum();
    let mean = |of: &dyn Fn(&(f64, f64, f64)) -> f64| points.iter().map(|p| p.2 * of(p)).sum::<f64>() / weight;
    let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
    let (along, across) = (mean(&|p| (p.0 - x) * (p.0 - x)), mean(&|p| (p.0 - x) * (p.1 - y)));
    if along <= 0.0 {
        return (alone, 0.0);
    }
    let slope = (across / along).max(0.0);
    (y - slope * x, slope)
}

/// Pool adjacent violators: the closest never-falling curve in weighted least squares.
fn monotone(points: &[(f64, f64, f64)]) -> Vec<(f64, f64)> {
    let mut pools: Vec<(f64, f64, usize)> = Vec::new();
    for &(_, y, weight) in points {
        let mut pool = (y, weight, 1);
        while let Some(&(before, its_weight, count)) = pools.last().filter(|before| before.0 > pool.0) {
            pools.pop();
            let sum = its_weight + pool.1;
            pool = ((before * its_weight + pool.0 * pool.1) / sum, sum, count + pool.2);
        }
        pools.push(pool);
    }
    let level = pools.into_iter().flat_map(|(y, _, count)| std::iter::repeat_n(y, count));
    points.iter().map(|point| point.0).zip(level).collect()
}

/// Work of a prompt, s: `fixed_s + per_byte_s * bytes` of its request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PromptLine {
    pub fixed_s: f64,
    pub per_byte_s: f64,
}

impl PromptLine {
    /// From (bytes, s), by the median of all slopes (Theil and Sen); None of nothing.
    pub fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let points = &points[..points.len().min(PAIRS_OF)];
        if points.is_empty() {
            return None;
        }
        let mut slopes = Vec::new();
        for (at, (x0, y0)) in points.iter().enumerate() {
            // Sizes that are nearly the same say nothing of a slope.
            let apart = points[at + 1..].iter().filter(|(x1, _)| (x1 - x0).abs() > 0.1 * x0.max(*x1));
            slopes.extend(apart.map(|(x1, y1)| (y1 - y0) / (x1 - x0)));
        }
        let per_byte_s = if slopes.is_empty() { 0.0 } else { median(&slopes).max(0.0) };
        let rest: Vec<f64> = points.iter().map(|(x, y)| y - per_byte_s * x).collect();
        let fixed_s = median(&rest);
        if fixed_s >= 0.0 {
            return Some(Self { fixed_s, per_byte_s });
        }
        let through_zero: Vec<f64> = points.iter().map(|(x, y)| y.max(0.0) / x.max(1.0)).collect();
        Some(Self { fixed_s: 0.0, per_byte_s: median(&through_zero) })
    }

    pub fn at_s(&self, bytes: f64) -> f64 {
        (self.fixed_s + self.per_byte_s * bytes).max(0.0)
    }

    pub fn scale(&mut self, factor: f64) {
        self.fixed_s *= factor;
        self.per_byte_s *= factor;
    }
}

/// The middle; 0 of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    quantile(&mut values.to_vec(), 0.5)
}

/// The `share`-quantile, the higher neighbour where it falls between two; 0 of nothing. Orders the values anew.
pub(super) fn quantile(values: &mut [f64], share: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let at = ((share.clamp(0.0, 1.0) * last as f64).ceil() as usize).min(last);
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_never_gets_faster_with_more_streams() {
        let check = |by_streams: &[(f64, usize)], want: [f64; 5]| {
            let gaps: Vec<Vec<f64>> = by_streams.iter().map(|(s, count)| vec![*s; *count]).collect();
            let curve = StepCurve::fit(&gaps).expect("a curve");
            for (streams, want) in (1..).zip(want) {
                assert!((curve.at_s(streams) - want).abs() < 1e-9, "{by_streams:?} at {streams}: {curve:?}");
            }
        };
        check(&[(0.010, 50), (0.011, 50), (0.012, 50)], [0.010, 0.011, 0.012, 0.013, 0.014]);
        check(&[(0.010, 50)], [0.010; 5]);
        check(&[(0.010, 50), (0.0, 0), (0.014, 50)], [0.010, 0.012, 0.014, 0.016, 0.018]);
        // Two that fall are one level.
        check(&[(0.012, 50), (0.010, 50)], [0.011; 5]);
        check(&[(0.0, 0), (0.012, 50), (0.014, 50)], [0.010, 0.012, 0.014, 0.016, 0.018]);
        assert_eq!(StepCurve::fit(&[]), None);
        assert_eq!(StepCurve::fit(&[vec![], vec![]]), None);
    }

    #[test]
    fn a_prompt_costs_by_its_size() {
        let check = |points: &[(f64, f64)], fixed_s: f64, per_byte_s: f64| {
            let line = PromptLine::fit(points).expect("a line");
            assert!((line.fixed_s - fixed_s).abs() < 1e-9 && (line.per_byte_s - per_byte_s).abs() < 1e-9, "{line:?}");
        };
        check(&[(100.0, 0.03), (200.0, 0.05), (400.0, 0.09), (300.0, 5.0), (500.0, 0.11)], 0.01, 2e-4);
        check(&[(100.0, 0.03), (101.0, 0.05), (102.0, 0.04)], 0.04, 0.0);
        check(&[(100.0, 0.001), (200.0, 0.021), (300.0, 0.041)], 0.0, 1.05e-4);
        assert_eq!(PromptLine::fit(&[]), None);
    }
}
