//! What the gateway adds to a request: the same one-token completion through the gateway and to the engine
//! itself, in turns, on connections that are kept open. Same engine, same wire, one hop apart.

use super::load;
use super::report::{Report, Row, Samples, Target, quantile};
use crate::http::{self, Connection};
use crate::layout;
use crate::server::{Owned, Serve};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

const MODEL: &str = "smollm2";
const ROUNDS: usize = 1_000;
const WARM_UP_ROUNDS: usize = 20;
/// One token in and one out: the engine's own time, whose noise is in both, is as short as it gets.
const PROMPT_TOKENS: usize = 1;

/// A thousand requests each way.
pub fn measure() -> Result<Report> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let owned = Owned::start(&["--idle-seconds", "600", "--cores-per-instance", &cores])?;
    owned.serve.add_model(MODEL, &layout::demo_model())?;
    load::ttft_ms(owned.serve.data, MODEL, PROMPT_TOKENS).context("waking the model")?;
    let mut gateway = Connection::open(owned.serve.data)?;
    let mut engine = Connection::open(engine_addr(&owned.serve)?)?;
    let mut samples = Samples::default();
    for round in 0..WARM_UP_ROUNDS + ROUNDS {
        let (ours, peer) = (call_ms(&mut gateway)?, call_ms(&mut engine)?);
        if round >= WARM_UP_ROUNDS {
            samples.ours.push(ours);
            samples.peer.push(peer);
        }
    }
    Ok(summarise(&samples))
}

fn summarise(samples: &Samples) -> Report {
    let mut report = Report::new("gateway");
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        report.rows.push(Row::of_quantile(
            format!("request {name}: through the gateway | direct"),
            "ms",
            share,
            samples,
        ));
    }
    let added = |share| quantile(&samples.ours, share) - quantile(&samples.peer, share);
    report.targets.push(Target::at_most("overhead at p50, ms".to_owned(), added(0.5), 1.0));
    report.targets.push(Target::at_most("overhead at p99, ms".to_owned(), added(0.99), 1.0));
    report
}

fn call_ms(connection: &mut Connection) -> Result<f64> {
    let body = load::one_token(MODEL, PROMPT_TOKENS, false).to_string();
    let begun = Instant::now();
    let answer = connection.call("POST", "/v1/completions", body.as_bytes())?;
    let taken = begun.elapsed();
    ensure!(answer.status == 200, "status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(taken.as_secs_f64() * 1e3)
}

/// The one instance's port, from the admin API.
fn engine_addr(serve: &Serve) -> Result<SocketAddr> {
    let answer = http::call(serve.admin, "GET", "/v1/foreshock/instances", b"")?.json()?;
    let port = find_port(&answer).with_context(|| format!("no port in {answer}"))?;
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn find_port(value: &Value) -> Option<u16> {
    match value {
        Value::Object(fields) => {
            let port = fields.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
            port.filter(|port| *port > 0).or_else(|| fields.values().find_map(find_port))
        }
        Value::Array(items) => items.iter().find_map(find_port),
        _ => None,
    }
}
