//! One engine beside llama-server, both as servers with all cores, asked in turns: what a client sees of prefill,
//! of decode at an empty and at a long context, and of many clients at once.
//!
//! Both run all the time and only one is asked at a time, so both meet the same machine. Prompts are fresh random
//! tokens, so no prefix cache answers.

use super::llama;
use super::load::{self, Streamed};
use super::report::{Report, Row, Samples, Target, median};
use crate::layout;
use crate::server::free_port;
use crate::shell::command;
use anyhow::{Context, Result, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const PREFILL_TOKENS: usize = 512;
const DECODE_TOKENS: usize = 96;
const LONG_CONTEXT: usize = 2048;
/// Tokens in and out of a serving client's request.
const CLIENT_TOKENS: (usize, usize) = (128, 64);
const SERVING_ROUNDS: usize = 3;
/// Clients at once, least ratio of output tokens per second, and most ratio of TTFT, as the engine is held to.
const SERVING: [(usize, f64); 4] = [(1, 1.8), (4, 2.5), (8, 3.0), (16, 3.0)];
const TTFT_RATIO: f64 = 0.4;

/// Measures the demo checkpoint.
pub fn measure() -> Result<Report> {
    llama::install()?;
    let model = layout::demo_model();
    let mut report = Report::new("engine");
    single_stream(&model, &mut report)?;
    serving(&model, &mut report)?;
    Ok(report)
}

/// Prefill and decode, one request at a time.
fn single_stream(model: &Path, report: &mut Report) -> Result<()> {
    let ours = Engine::start(model)?;
    let mut peer = llama::spawn(model, &["--ctx-size", "4096", "--parallel", "1"])?;
    peer.wait_for_token(Instant::now(), 4)?;
    // (name, prompt, output, what is taken from a stream, least ratio)
    type Take = fn(&Streamed, usize) -> f64;
    let prefill: Take = |stream, prompt| prompt as f64 / stream.ttft_s;
    let decode: Take = |stream, _| (stream.output - 1) as f64 / stream.decode_s;
    let cases: [(&str, usize, usize, Take, f64); 3] = [
        ("prefill 512", PREFILL_TOKENS, 1, prefill, 3.0),
        ("decode at 0", 4, DECODE_TOKENS, decode, 1.8),
        ("decode at 2048", LONG_CONTEXT, DECODE_TOKENS, decode, 2.5),
    ];
    for (name, prompt, output, take, target) in cases {
        let mut samples = Samples::default();
        for round in 1..=ROUNDS {
            eprintln!("    {name}: round {round} of {ROUNDS}");
            samples.ours.push(take(&load::stream(ours.addr, "engine", prompt, output)?, prompt));
            samples.peer.push(take(&load::stream(peer.addr, "any", prompt, output)?, prompt));
        }
        add(report, name.to_owned(), "tok/s", &samples, &Bound::AtLeast(target));
    }
    let rss = |pid| -> Result<Samples> {
        Ok(Samples { ours: vec![resident_mib(ours.child.id())?], peer: vec![resident_mib(pid)?] })
    };
    add(report, "resident after load".to_owned(), "MiB", &rss(peer.pid())?, &Bound::AtMost(1.0));
    Ok(())
}

/// Closed-loop clients, each asking anew as soon as it is answered.
fn serving(model: &Path, report: &mut Report) -> Result<()> {
    let ours = Engine::start(model)?;
    let mut peer = llama::spawn(model, &["--ctx-size", "8192", "--parallel", "16"])?;
    peer.wait_for_token(Instant::now(), 4)?;
    for (clients, target) in SERVING {
        let (mut rate, mut ttft) = (Samples::default(), Samples::default());
        for round in 1..=SERVING_ROUNDS {
            eprintln!("    {clients} clients: round {round} of {SERVING_ROUNDS}");
            let (tokens_per_s, ttft_ms) = closed_loop(ours.addr, "engine", clients)?;
            rate.ours.push(tokens_per_s);
            ttft.ours.push(ttft_ms);
            let (tokens_per_s, ttft_ms) = closed_loop(peer.addr, "any", clients)?;
            rate.peer.push(tokens_per_s);
            ttft.peer.push(ttft_ms);
        }
        add(report, format!("{clients} clients: output"), "tok/s", &rate, &Bound::AtLeast(target));
        add(report, format!("{clients} clients: TTFT p50"), "ms", &ttft, &Bound::AtMost(TTFT_RATIO));
    }
    Ok(())
}

/// Output tokens per second over all clients, and the median TTFT, ms.
fn closed_loop(addr: SocketAddr, model: &str, clients: usize) -> Result<(f64, f64)> {
    let requests = (2 * clients).max(6);
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    let streams = std::thread::scope(|scope| -> Result<Vec<Streamed>> {
        let workers: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| -> Result<Vec<Streamed>> {
                    let mut streams = Vec::new();
                    while next.fetch_add(1, Ordering::Relaxed) < requests {
                        streams.push(load::stream(addr, model, CLIENT_TOKENS.0, CLIENT_TOKENS.1)?);
                    }
                    Ok(streams)
                })
            })
            .collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        Ok(all)
    })?;
    let tokens: usize = streams.iter().map(|stream| stream.output).sum();
    let ttft_ms: Vec<f64> = streams.iter().map(|stream| stream.ttft_s * 1e3).collect();
    Ok((tokens as f64 / begun.elapsed().as_secs_f64(), median(&ttft_ms)))
}

/// Which way a ratio is held.
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

fn add(report: &mut Report, case: String, unit: &'static str, samples: &Samples, bound: &Bound) {
    let row = Row::of_quantile(case, unit, 0.5, samples);
    let name = format!("ratio: {}", row.case);
    match bound {
        Bound::AtLeast(least) => report.targets.push(Target::at_least(name, row.ratio, *least)),
        Bound::AtMost(most) => report.targets.push(Target::at_most(name, row.ratio, *most)),
    }
    report.rows.push(row);
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no figure after VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}

/// `foreshock engine` by itself; killed when dropped.
struct Engine {
    child: Child,
    addr: SocketAddr,
}

/// A start takes milliseconds; this is for a machine in trouble.
const PATIENCE: Duration = Duration::from_secs(30);

impl Engine {
    fn start(model: &Path) -> Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let child = command(layout::foreshock(), &["engine", "--name", "engine", "--port", &addr.port().to_string()])
            .arg("--model")
            .arg(model)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start foreshock engine")?;
        let engine = Self { child, addr };
        let begun = Instant::now();
        while load::ttft_ms(addr, "engine", 4).is_err() {
            ensure!(begun.elapsed() < PATIENCE, "foreshock engine gave no token within {} s", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(engine)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
