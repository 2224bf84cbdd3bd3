//! The metric table, and what is generated from it: docs/metrics.md, the Grafana dashboard and the
//! alert rules. Code emits metrics by the constants here, so a name is spelled once, and a panel or an
//! alert that asks for a metric that nobody exports fails a test instead of staying empty.

pub mod alerts;
pub mod document;
pub mod grafana;
pub mod panels;
pub mod table;
pub mod vllm;
pub use table::*;

/// Every generated file: path from the repository's root, and content. `cargo xtask codegen` writes them.
pub fn generated_files() -> Vec<(&'static str, String)> {
    vec![
        ("docs/metrics.md", document::markdown()),
        ("dashboards/foreshock.json", grafana::dashboard()),
        ("dashboards/alerts.yaml", alerts::rules()),
    ]
}

/// Metrics named in a PromQL expression, histogram suffixes taken off.
pub fn metrics_in(expression: &str) -> Vec<String> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("foreshock_"))
        .map(|word| match histogram_of(word) {
            Some(metric) => metric.name.to_owned(),
            None => word.to_owned(),
        })
        .collect()
}

/// Everything exported: our own metrics, then vLLM's names for some of the same figures.
pub fn exported() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().chain(vllm::METRICS)
}

fn histogram_of(series: &str) -> Option<&'static Metric> {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| series.strip_suffix(suffix))?;
    METRICS.iter().find(|metric| metric.name == base && matches!(metric.kind, Kind::Histogram(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn table() -> BTreeSet<&'static str> {
        METRICS.iter().map(|metric| metric.name).collect()
    }

    #[test]
    fn the_list_holds_every_constant_once() {
        let constants = include_str!("table.rs").lines().filter(|line| line.contains(": Metric =")).count();
        assert_eq!(METRICS.len(), constants, "METRICS lacks a constant of table.rs");
        assert_eq!(table().len(), METRICS.len(), "a name stands twice");
    }

    #[test]
    fn names_follow_prometheus() {
        for metric in METRICS {
            let name = metric.name;
            assert!(name.starts_with("foreshock_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}: _total is for counters");
            assert!(!["_ms", "_ns", "_kb", "_mib"].iter().any(|unit| name.contains(unit)), "{name}: base units");
            assert!(metric.help.ends_with('.') && metric.help.len() > 10, "{name}: help is a sentence");
            if let Kind::Histogram(bounds) = metric.kind {
                assert!(bounds.is_sorted() && bounds[0] > 0.0, "{name}: bounds rise");
                assert!(metric.unit().is_some() || name.ends_with("_tokens"), "{name}: a histogram has a unit");
            }
        }
    }

    #[test]
    fn expressions_give_their_metrics() {
        let check = |expression, want: &[&str]| assert_eq!(metrics_in(expression), want, "{expression}");
        check("sum(rate(foreshock_ttft_seconds_bucket[5m]))", &["foreshock_ttft_seconds"]);
        check("foreshock_kv_blocks_used / foreshock_kv_blocks", &["foreshock_kv_blocks_used", "foreshock_kv_blocks"]);
        check("up == 0", &[]);
        check("foreshock_not_there_bucket", &["foreshock_not_there_bucket"]);
    }

    #[test]
    fn panels_and_alerts_use_the_table_and_nothing_else() {
        let table = table();
        let panels = panels::ROWS.iter().flat_map(|row| row.panels).flat_map(|panel| panel.queries);
        let expressions =
            panels.map(|query| query.expression).chain(alerts::ALERTS.iter().map(|alert| alert.expression));
        for expression in expressions {
            let used = metrics_in(expression);
            assert!(!used.is_empty(), "{expression} uses no metric of ours");
            for name in used {
                assert!(table.contains(name.as_str()), "{name} is not in the table: {expression}");
            }
        }
    }

    #[test]
    fn every_metric_is_on_the_dashboard() {
        let panels = panels::ROWS.iter().flat_map(|row| row.panels).flat_map(|panel| panel.queries);
        let shown: BTreeSet<String> = panels.flat_map(|query| metrics_in(query.expression)).collect();
        let missing: Vec<_> = table().into_iter().filter(|name| !shown.contains(*name)).collect();
        assert!(missing.is_empty(), "on no panel: {missing:?}");
    }

    #[test]
    fn labels_in_expressions_are_labels_of_the_metric() {
        let panels = panels::ROWS.iter().flat_map(|row| row.panels).flat_map(|panel| panel.queries);
        for query in panels {
            for (name, selectors) in selectors(query.expression) {
                let Some(metric) = METRICS.iter().find(|metric| metrics_in(&name).contains(&metric.name.to_owned()))
                else {
                    continue;
                };
                for label in selectors {
                    assert!(
                        metric.labels.contains(&label.as_str()),
                        "{name} has no label {label}: {}",
                        query.expression
                    );
                }
            }
        }
    }

    /// `(series, labels selected on)` for each `series{label op "value", ...}`.
    fn selectors(expression: &str) -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        for (at, _) in expression.match_indices('{') {
            let name = expression[..at].rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or("");
            let inside = expression[at + 1..].split('}').next().unwrap_or("");
            let labels = inside.split(',').filter_map(|part| Some(part.split_once(['=', '!'])?.0.trim().to_owned()));
            found.push((name.to_owned(), labels.collect()));
        }
        found
    }
}
