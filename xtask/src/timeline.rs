//! When one request's parts happened, from the best witness there is: the kernel's record of it, else the
//! gateway's, else this client's own clock.

use crate::http;
use crate::server::Serve;
use crate::sse::Stream;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long a record may take to be joined after the last byte.
const PATIENCE: Duration = Duration::from_secs(3);

/// Points of a timeline, ms from its first.
#[derive(Debug, PartialEq)]
pub struct Timeline {
    pub witness: &'static str,
    pub points: Vec<(&'static str, f64)>,
}

/// The timeline of a stream that has just ended.
pub fn of(serve: &Serve, stream: &Stream) -> Timeline {
    let client = stream.client.to_string();
    let begun = Instant::now();
    let mut gateway = None;
    while begun.elapsed() < PATIENCE {
        let records = http::call(serve.admin, "GET", "/v1/foreshock/requests", b"").and_then(|answer| answer.json());
        if let Ok(records) = records {
            if let Some(timeline) = find(&records, &|record| from_kernel(record, &client)) {
                return timeline;
            }
            gateway = find(&records, &|record| from_gateway(record, &client));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    gateway.unwrap_or_else(|| from_client(stream))
}

/// Prints it, with the distance between points.
pub fn print(timeline: &Timeline) {
    println!("timeline, measured by {}:", timeline.witness);
    let mut before = 0.0;
    for (name, at_ms) in &timeline.points {
        println!("  {name:<28} {at_ms:>10.2} ms   +{:.2}", at_ms - before);
        before = *at_ms;
    }
}

/// First object in a JSON value, at any depth, that reads as a record of the wanted kind.
fn find(value: &Value, read: &dyn Fn(&Value) -> Option<Timeline>) -> Option<Timeline> {
    if let Some(timeline) = read(value) {
        return Some(timeline);
    }
    match value {
        Value::Object(fields) => fields.values().find_map(|inner| find(inner, read)),
        Value::Array(items) => items.iter().find_map(|inner| find(inner, read)),
        _ => None,
    }
}

fn from_kernel(record: &Value, client: &str) -> Option<Timeline> {
    if record.get("client")?.as_str()? != client || record.get("role")? != "gateway" {
        return None;
    }
    let at = |name: &str| record.get(name).and_then(Value::as_u64).filter(|ns| *ns > 0);
    let origin_ns = at("syn_ns").or_else(|| at("start_ns"))?;
    let names = [
        ("SYN", "syn_ns"),
        ("request start", "start_ns"),
        ("first byte of the answer", "first_byte_ns"),
        ("first token", "first_token_ns"),
        ("last token (last byte)", "last_byte_ns"),
    ];
    let points =
        names.into_iter().filter_map(|(name, field)| Some((name, (at(field)? as f64 - origin_ns as f64) / 1e6)));
    Some(Timeline { witness: "the kernel", points: points.collect() })
}

fn from_gateway(record: &Value, client: &str) -> Option<Timeline> {
    if record.get("peer")?.as_str()? != client {
        return None;
    }
    let at = |name: &str| record.get(name).and_then(Value::as_f64);
    let names = [("held until", "hold_ms"), ("first token", "ttft_ms"), ("last token", "duration_ms")];
    let points = names.into_iter().filter_map(|(name, field)| Some((name, at(field)?)));
    let points = std::iter::once(("request arrived", 0.0)).chain(points).collect();
    Some(Timeline { witness: "the gateway, since the kernel has no record of it (no probes?)", points })
}

fn from_client(stream: &Stream) -> Timeline {
    let ms = |at: Duration| at.as_secs_f64() * 1e3;
    let points = vec![
        ("connect", 0.0),
        ("first byte of the answer", ms(stream.times.first_byte)),
        ("first token", ms(stream.times.first_token)),
        ("last byte", ms(stream.times.last_byte)),
    ];
    Timeline { witness: "this client, since neither kernel nor gateway has a record of it", points }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CLIENT: &str = "127.0.0.1:5";

    #[test]
    fn the_kernels_record_is_found_and_read_from_its_syn() {
        let record = json!({"client": CLIENT, "role": "gateway", "syn_ns": 1_000_000, "start_ns": 1_500_000,
            "first_byte_ns": 0, "first_token_ns": 3_000_000, "last_byte_ns": 9_000_000});
        let engine = json!({"client": CLIENT, "role": {"engine": {"model": "m", "instance": "i"}}, "syn_ns": 1});
        let answer = json!({"kernel": [engine, record], "gateway": []});
        let timeline = find(&answer, &|record| from_kernel(record, CLIENT)).expect("found");
        let want = [("SYN", 0.0), ("request start", 0.5), ("first token", 2.0), ("last token (last byte)", 8.0)];
        assert_eq!(timeline.points, want);
        assert_eq!(find(&answer, &|record| from_kernel(record, "127.0.0.1:6")), None);
    }

    #[test]
    fn the_gateways_record_stands_in() {
        let answer = json!({"gateway": [{"peer": CLIENT, "hold_ms": 2.0, "ttft_ms": 3.5, "duration_ms": 9.0}]});
        let timeline = find(&answer, &|record| from_gateway(record, CLIENT)).expect("found");
        let want = [("request arrived", 0.0), ("held until", 2.0), ("first token", 3.5), ("last token", 9.0)];
        assert_eq!(timeline.points, want);
    }
}
