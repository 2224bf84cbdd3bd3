//! Closed-loop streaming clients, each asking anew as soon as it is answered.

use super::process::{Engine, NAME, PLAIN};
use super::subject::Subject;
use super::{Bound, add};
use crate::bench::llama;
use crate::bench::load::{self, Streamed};
use crate::bench::report::{Report, Samples, median};
use anyhow::{Result, anyhow};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const ROUNDS: usize = 3;
/// Of every request.
const PROMPT_TOKENS: usize = 128;
const OUTPUT_TOKENS: usize = 64;

pub fn measure(subject: &Subject, model: &Path, report: &mut Report) -> Result<()> {
    let ours = Engine::start(model, PLAIN)?;
    let mut peer = llama::spawn(model, &["--ctx-size", "8192", "--parallel", "16"])?;
    peer.wait_for_token(Instant::now(), 4)?;
    for (clients, least) in subject.serving_least {
        let (mut rate, mut ttft) = (Samples::default(), Samples::default());
        for round in 1..=ROUNDS {
            eprintln!("    {}: {clients} clients: round {round} of {ROUNDS}", subject.name);
            let (tokens_per_s, ttft_ms) = closed_loop(ours.addr, NAME, clients)?;
            rate.ours.push(tokens_per_s);
            ttft.ours.push(ttft_ms);
            let (tokens_per_s, ttft_ms) = closed_loop(peer.addr, "any", clients)?;
            rate.peer.push(tokens_per_s);
            ttft.peer.push(ttft_ms);
        }
        let case = |what: &str| format!("{}: {clients} clients: {what}", subject.name);
        add(report, case("output"), "tok/s", &rate, Bound::AtLeast(least), None);
        add(report, case("TTFT p50"), "ms", &ttft, Bound::AtMost(subject.ttft_most), None);
    }
    Ok(())
}

/// Output tokens per second over all clients, and the median TTFT, ms.
pub fn closed_loop(addr: SocketAddr, model: &str, clients: usize) -> Result<(f64, f64)> {
    let requests = (2 * clients).max(6);
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    let client = || -> Result<Vec<Streamed>> {
        let mut streams = Vec::new();
        while next.fetch_add(1, Ordering::Relaxed) < requests {
            streams.push(load::stream(addr, model, PROMPT_TOKENS, OUTPUT_TOKENS)?);
        }
        Ok(streams)
    };
    let streams = std::thread::scope(|scope| -> Result<Vec<Streamed>> {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(all)
    })?;
    let tokens: usize = streams.iter().map(|stream| stream.output).sum();
    let ttft_ms: Vec<f64> = streams.iter().map(|stream| stream.ttft_s * 1e3).collect();
    Ok((tokens as f64 / begun.elapsed().as_secs_f64(), median(&ttft_ms)))
}
