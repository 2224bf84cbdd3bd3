//! A metrics page as numbers, and quantiles of what its histograms counted between two of them.

use std::collections::BTreeMap;

/// One series of a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// The series of the metrics named; lines that are none are passed over.
pub fn parse(page: &str, wanted: &[&str]) -> Vec<Series> {
    let is_wanted = |line: &&str| wanted.iter().any(|name| line.starts_with(name));
    page.lines().filter(is_wanted).filter_map(line).collect()
}

fn line(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let name = line[..end].to_owned();
    let (labels, rest) = match line[end..].strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (BTreeMap::new(), &line[end..]),
    };
    Some(Series { name, labels, value: rest.trim().parse().ok()? })
}

/// Labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, plain) => value.push(plain),
            }
        };
        labels.insert(key.to_owned(), value);
        rest = &quoted[end + 1..];
    }
}

/// Cumulative counts of one histogram by upper bound, and the quantiles of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// That of `metric` for a model at a vantage.
    pub fn of(series: &[Series], metric: &str, model: &str, vantage: &str) -> Self {
        let bucket = format!("{metric}_bucket");
        let label = |series: &Series, name: &str, want: &str| series.labels.get(name).is_some_and(|v| v == want);
        let its = series.iter().filter(|one| one.name == bucket);
        let its = its.filter(|one| label(one, "model", model) && label(one, "vantage", vantage));
        let mut buckets: Vec<(f64, f64)> =
            its.filter_map(|one| Some((one.labels.get("le")?.parse().ok()?, one.value))).collect();
        buckets.sort_by(|left, right| left.0.total_cmp(&right.0));
        Self(buckets)
    }

    /// What was counted since `before`; everything, if serve began anew in between.
    pub fn since(&self, before: &Self) -> Self {
        if before.count() > self.count() {
            return self.clone();
        }
        let earlier = |bound: f64| before.0.iter().find(|(other, _)| *other == bound).map_or(0.0, |(_, count)| *count);
        Self(self.0.iter().map(|&(bound, count)| (bound, count - earlier(bound))).collect())
    }

    pub fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// Seconds below which this share of the values lies, even spread within a bucket assumed, as Prometheus does.
    pub fn quantile_s(&self, share: f64) -> Option<f64> {
        let rank = self.count() * share;
        let at = self.0.iter().position(|(_, count)| *count >= rank && *count > 0.0)?;
        let (below, counted) = at.checked_sub(1).map_or((0.0, 0.0), |before| self.0[before]);
        let (bound, count) = self.0[at];
        if bound.is_infinite() {
            // All that is known of these values is that they are beyond the last bound.
            return Some(below);
        }
        Some(below + (bound - below) * ((rank - counted) / (count - counted)).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP t x\nt_bucket{model=\"a\\\"}b\",vantage=\"kernel\",le=\"0.1\"} 2\n\
        t_bucket{model=\"a\\\"}b\",vantage=\"kernel\",le=\"+Inf\"} 10\n\
        t_bucket{model=\"a\\\"}b\",vantage=\"kernel\",le=\"0.5\"} 10\nother{} 3\nt_sum 4 \nt_broken{model=\"\n";

    #[test]
    fn pages_are_read_with_their_escapes() {
        let series = parse(PAGE, &["t_"]);
        assert_eq!(series.len(), 4);
        assert_eq!(series[0].labels["model"], "a\"}b");
        assert_eq!((series[3].name.as_str(), series[3].value), ("t_sum", 4.0));
    }

    #[test]
    fn quantiles_lie_within_their_buckets() {
        let all = Histogram::of(&parse(PAGE, &["t_"]), "t", "a\"}b", "kernel");
        let check = |histogram: &Histogram, share, want: Option<f64>| {
            let found = histogram.quantile_s(share);
            let near = found.zip(want).is_some_and(|(found, want)| (found - want).abs() < 1e-9);
            assert!(near || found == want, "{share}: {found:?}, not {want:?}");
        };
        check(&all, 0.1, Some(0.05));
        check(&all, 0.6, Some(0.3));
        check(&all, 1.0, Some(0.5));
        check(&Histogram::default(), 0.5, None);
        check(&all.since(&all), 0.5, None);
        let infinity = f64::INFINITY;
        let before = Histogram(vec![(0.1, 2.0), (0.5, 2.0), (infinity, 2.0)]);
        check(&all.since(&before), 0.5, Some(0.3));
        // A serve that began anew counts from zero.
        let larger = Histogram(vec![(0.1, 50.0), (0.5, 50.0), (infinity, 50.0)]);
        assert_eq!(all.since(&larger), all);
        check(&Histogram(vec![(0.1, 0.0), (infinity, 4.0)]), 0.5, Some(0.1));
    }
}
