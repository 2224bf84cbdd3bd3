//! An existing deployment's load from its Prometheus: how many requests each model answered in each step of time, how long they
//! were, and the instances that ran meanwhile.
//!
//! Totals are asked for as they are and their growth is taken here, series by series, so that a process that began anew
//! counts what it has counted and nothing is extrapolated. Within a step requests are spread at random.

use crate::config::InputError;
use crate::http;
use anyhow::{Context, Result, bail, ensure};
use controller_sim::trace::{Counted, Trace, of_counts};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest time that Prometheus may take for a piece of an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer that is read.
const ANSWER_LIMIT_BYTES: u64 = 256 << 20;
/// Shortest step, s: a usual interval between scrapes.
const STEP_S: f64 = 15.0;
/// Points of one series: Prometheus answers no more than 11,000.
const POINTS_MAX: f64 = 10_000.0;
/// Lengths that are assumed of requests whose tokens nobody counted.
const TOKENS_ASSUMED: (f64, f64) = (512.0, 180.0);

/// Names of what is asked for.
struct Source {
    name: &'static str,
    label: &'static str,
    requests: &'static str,
    prompt_tokens: &'static str,
    output_tokens: &'static str,
    /// Instances at a time; nothing where the deployment does not tell.
    instances: Option<&'static str>,
}

/// What is known to count requests, the first that a Prometheus has series of.
const SOURCES: [Source; 2] = [
    Source {
        name: "foreshock",
        label: "model",
        requests: "foreshock_requests_total",
        prompt_tokens: "foreshock_prompt_tokens_total",
        output_tokens: "foreshock_output_tokens_total",
        instances: Some("foreshock_instances"),
    },
    Source {
        name: "vLLM",
        label: "model_name",
        requests: "vllm:request_success_total",
        prompt_tokens: "vllm:prompt_tokens_total",
        output_tokens: "vllm:generation_tokens_total",
        instances: Some("count by (model_name) (vllm:num_requests_running)"),
    },
];

/// A deployment as it was.
pub struct History {
    pub trace: Trace,
    /// Instances over time, instance-seconds; none where it is not told.
    pub instance_s: Option<f64>,
    /// In words, for people.
    pub told: String,
}

/// The last so many hours of what a Prometheus knows.
pub fn read(url: &str, hours: f64, seed: u64) -> Result<History> {
    let server = Server::at(url)?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs_f64();
    let step_s = (hours * 3600.0 / POINTS_MAX).ceil().max(STEP_S);
    let span = Span { from_s: now_s - hours * 3600.0, until_s: now_s, step_s };
    for source in &SOURCES {
        let requests = server.growth(source.requests, source.label, span)?;
        if requests.values().flatten().sum::<f64>() >= 1.0 {
            return of_source(&server, source, requests, span, seed);
        }
    }
    let names: Vec<&str> = SOURCES.iter().map(|source| source.requests).collect();
    bail!(InputError(format!(
        "{url} knows of no requests in the last {hours} h: neither of {} has grown; --hours looks further back",
        names.join(" and ")
    )))
}

fn of_source(
    server: &Server,
    source: &Source,
    requests: BTreeMap<String, Vec<f64>>,
    span: Span,
    seed: u64,
) -> Result<History> {
    let prompt = server.growth(source.prompt_tokens, source.label, span)?;
    let output = server.growth(source.output_tokens, source.label, span)?;
    let instance_s = match source.instances {
        Some(query) => server.integral(query, span)?,
        None => None,
    };
    let sum = |tokens: &BTreeMap<String, Vec<f64>>, name: &str| tokens.get(name).map(|steps| steps.iter().sum::<f64>());
    let counted: Vec<Counted> = requests
        .into_iter()
        .map(|(model, counts)| {
            let all: f64 = counts.iter().sum();
            let mean = |tokens, assumed| {
                sum(tokens, &model).filter(|tokens| *tokens > 0.0 && all > 0.0).map_or(assumed, |tokens| tokens / all)
            };
            let (prompt_tokens, output_tokens) = (mean(&prompt, TOKENS_ASSUMED.0), mean(&output, TOKENS_ASSUMED.1));
            Counted { model, counts, prompt_tokens, output_tokens }
        })
        .filter(|counted| counted.counts.iter().any(|count| *count >= 0.5))
        .collect();
    let models = counted.len();
    let trace = of_counts(&counted, span.step_s, seed);
    let told = format!(
        "{} requests of {models} models, counted by {} over {:.1} h in steps of {:.0} s",
        trace.requests(),
        source.name,
        (span.until_s - span.from_s) / 3600.0,
        span.step_s
    );
    Ok(History { trace, instance_s, told })
}

/// A stretch of time in steps, s.
#[derive(Clone, Copy, Debug)]
struct Span {
    from_s: f64,
    until_s: f64,
    step_s: f64,
}

impl Span {
    fn steps(&self) -> usize {
        ((self.until_s - self.from_s) / self.step_s).ceil().max(1.0) as usize
    }

    /// The step that a time lies in.
    fn step(&self, at_s: f64) -> usize {
        (((at_s - self.from_s) / self.step_s).round().max(0.0) as usize).min(self.steps() - 1)
    }
}

/// A Prometheus.
struct Server {
    addr: SocketAddr,
    host: String,
    path: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    /// Seconds, and a number as text.
    values: Vec<(f64, String)>,
}

impl Series {
    fn points(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let parsed = self.values.iter().map(|(at_s, text)| (*at_s, text.parse().unwrap_or(f64::NAN)));
        parsed.filter(|(at_s, value)| at_s.is_finite() && value.is_finite())
    }
}

impl Server {
    /// By its address, such as `http://127.0.0.1:9090`.
    fn at(url: &str) -> Result<Self> {
        let plain = url.strip_prefix("http://").ok_or_else(|| {
            InputError(format!(
                "`{url}` is no address of a Prometheus: it begins with http:// (TLS is not spoken here)"
            ))
        })?;
        let (host, path) = plain.split_once('/').unwrap_or((plain, ""));
        let named = if host.contains(':') { host.to_owned() } else { format!("{host}:9090") };
        let mut addresses =
            named.to_socket_addrs().map_err(|error| InputError(format!("cannot find `{host}`: {error}")))?;
        let addr = addresses.next().ok_or_else(|| InputError(format!("`{host}` has no address")))?;
        Ok(Self { addr, host: host.to_owned(), path: path.trim_end_matches('/').to_owned() })
    }

    fn range(&self, query: &str, span: Span) -> Result<Vec<Series>> {
        let prefix = if self.path.is_empty() { String::new() } else { format!("/{}", self.path) };
        let path = format!(
            "{prefix}/api/v1/query_range?query={}&start={:.3}&end={:.3}&step={}",
            encoded(query),
            span.from_s,
            span.until_s,
            span.step_s
        );
        let limits = http::Limits { patience: PATIENCE, answer_bytes: ANSWER_LIMIT_BYTES };
        let (status, body) = http::get(self.addr, &self.host, &path, limits)
            .map_err(|error| InputError(format!("no Prometheus answers at {}: {error}", self.host)))?;
        let answer: Answer = serde_json::from_str(&body).map_err(|_| {
            InputError(format!("{} answers {status} to a query, and not as Prometheus does", self.host))
        })?;
        ensure!(status == 200, InputError(format!("{} refuses the query `{query}`: {}", self.host, answer.error)));
        Ok(answer.data.map(|data| data.result).unwrap_or_default())
    }

    /// How much a total grew in each step, by the label of its series.
    fn growth(&self, metric: &str, label: &str, span: Span) -> Result<BTreeMap<String, Vec<f64>>> {
        let mut models: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for series in self.range(metric, span)? {
            let Some(name) = series.metric.get(label).filter(|name| !name.is_empty()) else { continue };
            let steps = models.entry(name.clone()).or_insert_with(|| vec![0.0; span.steps()]);
            grown(&series, span, steps);
        }
        Ok(models)
    }

    /// A figure over time, added up over all series, in its unit times seconds; none where there are no series.
    fn integral(&self, query: &str, span: Span) -> Result<Option<f64>> {
        let series = self.range(query, span)?;
        let sum: f64 = series.iter().flat_map(Series::points).map(|(_, value)| value).sum();
        Ok((!series.is_empty()).then_some(sum * span.step_s))
    }
}

/// Adds what a series grew by to the steps. A total that fell began anew; one that appears later began at 0.
fn grown(series: &Series, span: Span, steps: &mut [f64]) {
    let mut last: Option<f64> = None;
    for (at_s, value) in series.points() {
        let first = at_s < span.from_s + 1.5 * span.step_s;
        let by = match last {
            Some(last) if value >= last => value - last,
            None if first => 0.0,
            _ => value,
        };
        if let Some(step) = steps.get_mut(span.step(at_s)) {
            *step += by.max(0.0);
        }
        last = Some(value);
    }
}

/// A query as a part of an address.
fn encoded(query: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    query.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_grow_and_begin_anew() {
        let span = Span { from_s: 1_000.0, until_s: 1_060.0, step_s: 15.0 };
        let check = |values: &[(f64, &str)], want: [f64; 4]| {
            let values = values.iter().map(|(at_s, text)| (*at_s, (*text).to_owned())).collect();
            let mut steps = vec![0.0; span.steps()];
            grown(&Series { metric: BTreeMap::new(), values }, span, &mut steps);
            assert_eq!(steps, want);
        };
        // What was counted before the stretch is not part of it.
        check(&[(1_000.0, "100"), (1_015.0, "103"), (1_030.0, "103"), (1_045.0, "110")], [0.0, 3.0, 0.0, 7.0]);
        // A new process, and a series that appears.
        check(&[(1_000.0, "100"), (1_015.0, "2"), (1_030.0, "5")], [0.0, 2.0, 3.0, 0.0]);
        check(&[(1_030.0, "4"), (1_045.0, "5")], [0.0, 0.0, 4.0, 1.0]);
        check(&[(1_000.0, "NaN"), (1_015.0, "+Inf")], [0.0; 4]);
    }

    #[test]
    fn addresses_are_read() {
        let server = Server::at("http://127.0.0.1:9091/prometheus/").expect("an address");
        assert_eq!((server.addr.port(), server.path.as_str()), (9091, "prometheus"));
        assert_eq!(Server::at("http://127.0.0.1").expect("the usual port").addr.port(), 9090);
        assert!(Server::at("https://127.0.0.1").is_err() && Server::at("127.0.0.1:9090").is_err());
        assert_eq!(encoded("a_total{b=\"c\"}"), "a_total%7Bb%3D%22c%22%7D");
    }
}
