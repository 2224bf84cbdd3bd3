//! How soon load beyond an engine's capacity is known, and acted on: open-loop clients step from a tenth of what one
//! instance can serve to three times that, while the instance is up (it saturates) or stopped by a signal (it
//! stalls). Four observers count the same requests: the loop's ticks, fed by the kernel; a poll of the engines'
//! metrics each 100 ms; a scrape of the same each 15 s; and the gateway, as it reads each request.

mod observer;
mod zero;

use super::engine::process::{Engine, NAME, PLAIN};
use super::load;
use super::report::{Report, Row, Samples, Target, quantile};
use crate::http;
use crate::layout;
use crate::server::Owned;
use crate::shell::{command, quiet, stdout};
use anyhow::{Context, Result, anyhow, bail, ensure};
use observer::{Load, Observer, poisson_bound_s};
use serde::Deserialize;
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const MODEL: &str = "smollm2";
const TRIALS: usize = 5;
/// Of every request: short ones, so that the load has many of them.
const PROMPT_TOKENS: usize = 16;
const OUTPUT_TOKENS: usize = 16;
/// Load before and after the step, in shares of what one instance serves, and for how long, s.
const BEFORE: (f64, f64) = (0.1, 4.0);
const AFTER: (f64, f64) = (3.0, 15.0);
/// The admin API shows no more ticks and requests than this.
const SHOWN: usize = 2_000;
const POLL: Duration = Duration::from_millis(100);
const SCRAPE_NS: u64 = 15_000_000_000;
/// A poll gives up then; one of a stalled engine would wait for ever.
const POLL_PATIENCE: Duration = Duration::from_millis(500);
/// An excess request is in the input of a tick within this.
const TARGET_SEEN_P99_MS: f64 = 20.0;
/// The rate is known when it is within this of the truth for good.
const RATE_SHARE: f64 = 0.1;
/// And no later than this after an observer who misses nothing.
const TARGET_BEHIND_S: f64 = 0.02;

/// Both cases, each trial with a fresh serve.
pub fn measure() -> Result<Report> {
    let capacity_per_s = capacity_per_s()?;
    let after_per_s = AFTER.0 * capacity_per_s;
    ensure!(
        after_per_s * AFTER.1 < 0.9 * SHOWN as f64,
        "one instance serves {capacity_per_s:.0} requests/s, too many for the {SHOWN} that are shown: raise OUTPUT_TOKENS"
    );
    eprintln!("    one instance serves {capacity_per_s:.1} requests/s; the load steps to {after_per_s:.1}/s");
    let mut report = Report::new("reaction");
    zero::measure(&mut report)?;
    for stalled in [false, true] {
        let mut case = Case::default();
        for trial in 0..TRIALS {
            eprintln!("    {}: trial {} of {TRIALS}", name(stalled), trial + 1);
            case.add(&run_trial(stalled, capacity_per_s, trial)?, trial);
        }
        case.report(name(stalled), after_per_s, &mut report);
    }
    Ok(report)
}

fn name(stalled: bool) -> &'static str {
    if stalled { "stalled" } else { "saturated" }
}

/// What one instance on one core serves when asked all the time by sixteen clients, 1/s.
fn capacity_per_s() -> Result<f64> {
    let engine = Engine::start(&layout::demo_model(), &[PLAIN, &["--cores", "0"]].concat())?;
    saturate(engine.addr, NAME)
}

/// Requests per second that a server answers to clients that each ask anew at once.
fn saturate(addr: SocketAddr, model: &str) -> Result<f64> {
    const CLIENTS: usize = 16;
    const REQUESTS: usize = 96;
    let (next, begun) = (AtomicUsize::new(0), Instant::now());
    let client = || -> Result<()> {
        while next.fetch_add(1, Ordering::Relaxed) < REQUESTS {
            load::stream(addr, model, PROMPT_TOKENS, OUTPUT_TOKENS)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })?;
    Ok(REQUESTS as f64 / begun.elapsed().as_secs_f64())
}

/// A serve that has learned what an instance of the model can do, and runs one.
fn prepared() -> Result<Owned> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let owned = Owned::start(&["--idle-seconds", "5", "--cores-per-instance", "1"])?;
    owned.serve.add_model(MODEL, &layout::demo_model())?;
    saturate(owned.serve.data, MODEL).context("teaching serve what an instance can do")?;
    let begun = Instant::now();
    while owned.serve.instances(MODEL)? > 1 {
        ensure!(begun.elapsed() < PATIENCE, "{MODEL} still has more than one instance");
        std::thread::sleep(Duration::from_millis(50));
    }
    load::stream(owned.serve.data, MODEL, PROMPT_TOKENS, OUTPUT_TOKENS).context("waking the model")?;
    // The last tick that counts that request.
    std::thread::sleep(Duration::from_secs(1));
    Ok(owned)
}

/// What came of one step.
struct Trial {
    load: Load,
    ticks: Observer,
    poll: Observer,
    gateway: Observer,
    /// The first tick after the step that started or stopped something: when it was done, and what it had counted.
    acted: Option<(u64, f64)>,
}

fn run_trial(stalled: bool, capacity_per_s: f64, trial: usize) -> Result<Trial> {
    let owned = prepared()?;
    let admin = owned.serve.admin;
    let (ticks_before, polled_before) = (ticks(admin)?, polled(admin).context("the engine shows no metrics")?);
    let base = ticks_before.first().context("no tick saw the first request")?.offered();
    let stalls = instances(admin)?.first().context("no instance")?.0.to_string();
    let signal = |name| quiet(&mut command("kill", &[name, &stalls])).map(drop);
    let ended = AtomicBool::new(false);
    let (printed, polls) = std::thread::scope(|scope| {
        let poll = scope.spawn(|| poll(admin, &ended));
        let clients = scope.spawn(|| run_clients(owned.serve.data, capacity_per_s, trial));
        if stalled {
            std::thread::sleep(Duration::from_secs_f64(BEFORE.1));
            signal("-STOP")?;
        }
        let printed = clients.join().map_err(|_| anyhow!("the clients panicked"))?;
        // The last requests get their time to be counted.
        std::thread::sleep(Duration::from_millis(500));
        ended.store(true, Ordering::Relaxed);
        let polls = poll.join().map_err(|_| anyhow!("the poll panicked"))?;
        if stalled {
            signal("-CONT")?;
        }
        anyhow::Ok((printed?, polls))
    })?;
    let load = Load {
        sent_ns: printed.sent.iter().map(|(at_ns, _)| *at_ns).collect(),
        step_ns: printed.step_ns,
        end_ns: printed.end_ns,
        rate_per_s: AFTER.0 * capacity_per_s,
    };
    // Refusals and cut requests are written down a moment later.
    std::thread::sleep(Duration::from_secs(1));
    let mut seen = ticks(admin)?;
    seen.reverse();
    let acted = seen.iter().find(|tick| tick.at_ns > load.step_ns && tick.actions > 0);
    let total = |tick: &Tick| (tick.at_ns, tick.offered() - base);
    Ok(Trial {
        acted: acted.map(|tick| (tick.acted_ns, tick.offered() - base)),
        ticks: Observer(seen.iter().map(total).filter(|(_, total)| *total > 0.0).collect()),
        poll: Observer(polls.into_iter().map(|(at_ns, total)| (at_ns, total - polled_before)).collect()),
        gateway: Observer(arrivals(admin, printed.sent.first().map_or(0, |(at_ns, _)| *at_ns))?),
        load,
    })
}

/// What the clients print.
#[derive(Deserialize)]
struct Printed {
    step_ns: u64,
    end_ns: u64,
    sent: Vec<(u64, u16)>,
}

fn run_clients(addr: SocketAddr, capacity_per_s: f64, seed: usize) -> Result<Printed> {
    let script = layout::root().join("xtask/src/bench/reaction/clients.py");
    let mut arguments = vec![script.to_string_lossy().into_owned(), addr.port().to_string(), MODEL.to_owned()];
    arguments.extend([BEFORE.0 * capacity_per_s, AFTER.0 * capacity_per_s, BEFORE.1, AFTER.1].map(|n| n.to_string()));
    arguments.extend([PROMPT_TOKENS, OUTPUT_TOKENS, seed].map(|n| n.to_string()));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let printed: Printed = serde_json::from_str(&stdout(&mut command("python3", &arguments))?)?;
    ensure!(printed.sent.iter().any(|(_, status)| *status == 200), "no client was answered");
    Ok(printed)
}

/// A row of `/v1/foreshock/ticks`.
#[derive(Deserialize)]
struct Tick {
    at_ns: u64,
    acted_ns: u64,
    actions: usize,
    offered_total: std::collections::BTreeMap<String, f64>,
}

impl Tick {
    fn offered(&self) -> f64 {
        self.offered_total.get(MODEL).copied().unwrap_or(0.0)
    }
}

/// Newest first.
fn ticks(admin: SocketAddr) -> Result<Vec<Tick>> {
    let answer = http::call(admin, "GET", &format!("/v1/foreshock/ticks?limit={SHOWN}"), b"")?.json()?;
    Ok(serde_json::from_value(answer["data"].clone())?)
}

/// When the gateway had read each request since, and how many those were by then.
fn arrivals(admin: SocketAddr, since_ns: u64) -> Result<Vec<(u64, f64)>> {
    let answer = http::call(admin, "GET", &format!("/v1/foreshock/requests?limit={SHOWN}"), b"")?.json()?;
    let Some(rows) = answer["gateway"].as_array() else { bail!("no records of the gateway in {answer}") };
    let mut times: Vec<u64> = rows.iter().filter_map(|row| row["arrived_at_ns"].as_u64()).collect();
    times.retain(|at_ns| *at_ns >= since_ns);
    times.sort_unstable();
    Ok(times.into_iter().enumerate().map(|(before, at_ns)| (at_ns, (before + 1) as f64)).collect())
}

/// (pid, port) of the instances.
fn instances(admin: SocketAddr) -> Result<Vec<(u64, u16)>> {
    let answer = http::call(admin, "GET", "/v1/foreshock/instances", b"")?.json()?;
    let rows = answer["data"].as_array().cloned().unwrap_or_default();
    let row = |row: &Value| Some((row["pid"].as_u64()?, u16::try_from(row["port"].as_u64()?).ok()?));
    Ok(rows.iter().filter_map(row).collect())
}

/// Requests that the engines know of: answered, running and waiting, as an autoscaler would add them up. None when one
/// does not answer.
fn polled(admin: SocketAddr) -> Option<f64> {
    const COUNTED: [&str; 3] = ["vllm:request_success_total", "vllm:num_requests_running", "vllm:num_requests_waiting"];
    let mut total = 0.0;
    for (_, port) in instances(admin).ok()? {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let answer = http::Connection::open_within(addr, POLL_PATIENCE).ok()?.call("GET", "/metrics", b"").ok()?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let counted = text.lines().filter(|line| COUNTED.iter().any(|name| line.starts_with(name)));
        total += counted.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
    }
    Some(total)
}

fn poll(admin: SocketAddr, ended: &AtomicBool) -> Vec<(u64, f64)> {
    let mut polls: Vec<(u64, f64)> = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let begun = Instant::now();
        if let Some(total) = polled(admin) {
            // An engine's own count dips for a moment between two of its gauges; demand does not.
            let most = polls.last().map_or(0.0, |(_, last)| *last);
            polls.push((monotonic_ns(), total.max(most)));
        }
        std::thread::sleep(POLL.saturating_sub(begun.elapsed()));
    }
    polls
}

/// CLOCK_MONOTONIC, as the clients and the ticks tell it.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// All trials of a case. Delays in ms, times in s.
#[derive(Default)]
struct Case {
    seen: [Vec<f64>; 4],
    uncounted: [usize; 4],
    rate_known_s: [Vec<f64>; 5],
    acted_ms: Samples,
    /// From the leaving of the last request that the acting tick had counted, ms.
    decided_ms: Vec<f64>,
    requests: usize,
}

/// In the order of [`Case::seen`]; the ideal observer is the fifth of [`Case::rate_known_s`].
const OBSERVERS: [&str; 4] = ["ticks", "100 ms poll", "15 s scrape", "gateway"];

impl Case {
    fn add(&mut self, trial: &Trial, number: usize) {
        let load = &trial.load;
        let phase_ns = SCRAPE_NS * (2 * number as u64 + 1) / (2 * TRIALS as u64);
        let scrape = trial.poll.sampled(load.step_ns + phase_ns, SCRAPE_NS, load.end_ns);
        let ideal = load.ideal();
        let observers = [&trial.ticks, &trial.poll, &scrape, &trial.gateway];
        self.requests += load.sent_ns.len() - load.before_step();
        for (at, observer) in observers.into_iter().enumerate() {
            let (delays, uncounted) = observer.delays_ms(load);
            self.seen[at].extend(delays);
            self.uncounted[at] += uncounted;
        }
        for (at, observer) in observers.into_iter().chain([&ideal]).enumerate() {
            self.rate_known_s[at].push(observer.rate_known_s(load, RATE_SHARE).unwrap_or(AFTER.1));
        }
        let Some((acted_ns, counted)) = trial.acted else { return };
        let first_ns = load.sent_ns.get(load.before_step()).copied().unwrap_or(load.step_ns);
        let since = |at_ns: u64| at_ns.saturating_sub(first_ns) as f64 / 1e6;
        self.acted_ms.ours.push(since(acted_ns));
        let last_ns = load.sent_ns.get((counted as usize).saturating_sub(1)).copied().unwrap_or(acted_ns);
        self.decided_ms.push(acted_ns.saturating_sub(last_ns) as f64 / 1e6);
        // With the same evidence the poll would have let act then.
        self.acted_ms.peer.push(since(trial.poll.reached(counted).unwrap_or(load.end_ns).min(load.end_ns)));
    }

    fn report(self, case: &str, rate_per_s: f64, report: &mut Report) {
        for (at, observer) in OBSERVERS.iter().enumerate().skip(1) {
            let samples = Samples { ours: self.seen[0].clone(), peer: self.seen[at].clone() };
            for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
                let row = format!("{case}: excess request counted, {name}: ticks | {observer}");
                report.rows.push(Row::of_quantile(row, "ms", share, &samples));
            }
            println!("{case}: {} of {} requests never counted by the {observer}", self.uncounted[at], self.requests);
        }
        for (at, observer) in OBSERVERS.iter().chain(&["ideal observer"]).enumerate().skip(1) {
            let samples = Samples { ours: self.rate_known_s[0].clone(), peer: self.rate_known_s[at].clone() };
            let row = format!("{case}: rate known within 10%, median: ticks | {observer}");
            report.rows.push(Row::of_quantile(row, "s", 0.5, &samples));
        }
        println!(
            "{case}: Poisson bound for 10% at {rate_per_s:.1}/s: {:.2} s",
            poisson_bound_s(rate_per_s, RATE_SHARE)
        );
        let row = format!("{case}: first action after the first excess SYN: ticks | the poll's same evidence");
        report.rows.push(Row::of_quantile(row, "ms", 0.5, &self.acted_ms));
        let most_ms = quantile(&self.decided_ms, 1.0);
        let name = |what: &str| format!("{case}: {what}");
        let p99_ms = quantile(&self.seen[0], 0.99);
        report.targets.push(Target::at_most(name("counted by a tick, p99, ms"), p99_ms, TARGET_SEEN_P99_MS));
        report.targets.push(Target::at_most(name("requests no tick counted"), self.uncounted[0] as f64, 0.0));
        let behind = self.rate_known_s[0].iter().zip(&self.rate_known_s[4]).map(|(ours, ideal)| ours - ideal);
        let most_s = behind.fold(0.0, f64::max);
        report.targets.push(Target::at_most(name("rate known behind the ideal observer, s"), most_s, TARGET_BEHIND_S));
        let what = name("SYN that completed the evidence to the action, most of all trials, ms");
        report.targets.push(Target::at_most(what, most_ms, TARGET_SEEN_P99_MS));
        let idle = TRIALS - self.acted_ms.ours.len();
        report.targets.push(Target::at_most(name("trials without an action"), idle as f64, 0.0));
    }
}
