//! Clients of the server: one, some without a pause, or as many as arrive.

use super::super::load::random_prompt;
use crate::sse;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Tokens of prompts and of answers: evenly drawn from these ranges.
const PROMPT: (f64, f64) = (16.0, 96.0);
const ANSWER: (f64, f64) = (16.0, 64.0);

/// The objective; at which quantile is the caller's.
pub struct Slo {
    pub ttft_ms: f64,
    pub itl_ms: f64,
}

/// What one client got.
pub struct Seen {
    pub ttft_ms: f64,
    pub gaps_ms: Vec<f64>,
}

/// What all clients of a time got.
pub struct Phase {
    /// Requests that were sent per second.
    pub per_s: f64,
    /// In the order in which they were sent.
    seen: Vec<Seen>,
}

impl Phase {
    /// Share of the first tokens, or of the gaps, that missed the objective: the greater one.
    ///
    /// The first tenth found an empty server and does not count.
    pub fn missed(&self, slo: &Slo) -> f64 {
        let share = |missed: usize, of: usize| missed as f64 / of.max(1) as f64;
        let counted = &self.seen[self.seen.len() / 10..];
        let late = counted.iter().filter(|seen| seen.ttft_ms > slo.ttft_ms).count();
        let gaps = counted.iter().flat_map(|seen| &seen.gaps_ms);
        let (long, all) = gaps.fold((0, 0), |(long, all), gap_ms| (long + usize::from(*gap_ms > slo.itl_ms), all + 1));
        share(late, counted.len()).max(share(long, all))
    }
}

/// Numbers in [0, 1), the same for the same seed (SplitMix64).
struct Draw(u64);

impl Draw {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, (low, high): (f64, f64)) -> usize {
        (low + (high - low) * self.uniform()) as usize
    }
}

/// One request, whose sizes the seed draws.
pub fn one(addr: SocketAddr, seed: u64) -> Result<Seen> {
    let mut draw = Draw(seed);
    request(addr, draw.between(PROMPT), draw.between(ANSWER))
}

fn request(addr: SocketAddr, prompt: usize, answer: usize) -> Result<Seen> {
    let body = json!({
        "prompt": random_prompt(prompt), "max_tokens": answer, "temperature": 0, "stream": true, "ignore_eos": true,
        "cache_prompt": false,
    });
    let (mut last, mut gaps_ms) = (None, Vec::new());
    let mut on_text = |_: &str| {
        let now = Instant::now();
        if let Some(before) = last.replace(now) {
            gaps_ms.push((now - before).as_secs_f64() * 1e3);
        }
    };
    let times = sse::stream(addr, "/v1/completions", &body, &mut on_text)?.times;
    Ok(Seen { ttft_ms: times.first_token.as_secs_f64() * 1e3, gaps_ms })
}

/// This many clients without a pause; requests per second that were answered.
pub fn closed(addr: SocketAddr, clients: usize, time: Duration) -> Result<f64> {
    let (begun, answered) = (Instant::now(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let client = |number: usize| {
            let answered = &answered;
            move || {
                let mut seed = 1_000_000 * (1 + number as u64);
                while begun.elapsed() < time {
                    one(addr, seed)?;
                    answered.fetch_add(1, Ordering::Relaxed);
                    seed += 1;
                }
                anyhow::Ok(())
            }
        };
        let clients: Vec<_> = (0..clients).map(|number| scope.spawn(client(number))).collect();
        clients.into_iter().try_for_each(|client| client.join().ok().context("a client panicked")?)
    })?;
    Ok(answered.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

/// Poisson arrivals, each a client of its own whatever becomes of the others; returns when all are answered.
pub fn open(addr: SocketAddr, per_s: f64, time: Duration, seed: u64) -> Result<Phase> {
    let mut draw = Draw(seed << 32);
    let begun = Instant::now();
    let mut at = Duration::ZERO;
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let mut clients = Vec::new();
        loop {
            at += Duration::from_secs_f64(-(1.0 - draw.uniform()).ln() / per_s);
            if at > time {
                break;
            }
            std::thread::sleep(at.saturating_sub(begun.elapsed()));
            let (prompt, answer) = (draw.between(PROMPT), draw.between(ANSWER));
            clients.push(scope.spawn(move || request(addr, prompt, answer)));
        }
        clients.into_iter().map(|client| client.join().ok().context("a client panicked")?).collect::<Result<_>>()
    })?;
    ensure!(!seen.is_empty(), "nobody came at {per_s}/s");
    Ok(Phase { per_s: seen.len() as f64 / time.as_secs_f64(), seen })
}
