//! What `foreshock attach` knows of an engine from its packets alone: an unmodified llama-server first shows, under
//! rising Poisson loads, where its latency objective breaks; then it is watched at no more than seven tenths of that
//! load, while it is asked for its true batch and queue, which the watcher cannot see.

mod load;
mod truth;
mod watcher;

use super::llama;
use super::report::{Report, Row, Samples, Target, median};
use crate::layout;
use anyhow::{Context, Result, ensure};
use load::{Phase, Slo};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use truth::Truth;
use watcher::Watcher;

/// Requests that the server takes at once, and its context for each, tokens.
const SLOTS: usize = 4;
const CONTEXT: usize = 1024;
/// Requests one after the other, for the service without load.
const ALONE: usize = 12;
/// The objective: this many times the service without load, at this quantile.
const SLACK: f64 = 6.0;
const QUANTILE: f64 = 0.9;
/// Loads that are tried, as shares of what the server does when it is never idle, and for how long.
const RISING: [f64; 5] = [0.6, 0.7, 0.8, 0.9, 1.0];
/// Further loads about where it broke.
const ABOUT: [f64; 4] = [0.9, 0.97, 1.03, 1.1];
const PHASE: Duration = Duration::from_secs(60);
/// Time without a pause, for the throughput.
const BUSY: Duration = Duration::from_secs(10);
/// Loads under which it is watched, as shares of the knee.
const WATCHED: [f64; 3] = [0.3, 0.5, 0.7];
const WATCHED_FOR: Duration = Duration::from_secs(40);
/// Frames and truths that lie no further apart are of the same moment.
const SAME_MOMENT: Duration = Duration::from_millis(60);
const TARGET: f64 = 0.15;

/// The server's knee, and what was said of it.
pub fn measure() -> Result<Report> {
    llama::install()?;
    let context = (SLOTS * CONTEXT).to_string();
    let slots = SLOTS.to_string();
    let options = ["--ctx-size", &context, "--parallel", &slots, "--slots", "--metrics"];
    let mut server = llama::spawn(&layout::demo_model(), &options)?;
    server.wait_for_token(Instant::now(), 4)?;
    let slo = objective(server.addr)?;
    let busy_per_s = load::closed(server.addr, 2 * SLOTS, BUSY)?;
    eprintln!("    objective: TTFT {:.0} ms, ITL {:.1} ms; throughput {busy_per_s:.2}/s", slo.ttft_ms, slo.itl_ms);
    let knee_per_s = measured_knee(server.addr, &slo, busy_per_s)?;
    eprintln!("    measured knee {knee_per_s:.2}/s; watching at up to {:.2}/s", WATCHED[2] * knee_per_s);
    let mut watcher = Watcher::start(server.addr.port(), &slo, QUANTILE)?;
    let truth = Truth::start(server.addr);
    for (seed, share) in (100..).zip(WATCHED) {
        load::open(server.addr, share * knee_per_s, WATCHED_FOR, seed)?;
    }
    let (truths, frames) = (truth.stop()?, watcher.stop()?);
    report(&truths, &frames, knee_per_s, busy_per_s)
}

/// What the service without load allows to ask.
fn objective(addr: SocketAddr) -> Result<Slo> {
    let mut alone = Vec::new();
    for seed in 0..ALONE {
        alone.push(load::one(addr, seed as u64)?);
    }
    let ttft_ms: Vec<f64> = alone.iter().map(|seen| seen.ttft_ms).collect();
    let gaps_ms: Vec<f64> = alone.iter().flat_map(|seen| seen.gaps_ms.iter().copied()).collect();
    Ok(Slo { ttft_ms: SLACK * median(&ttft_ms), itl_ms: SLACK * median(&gaps_ms) })
}

/// The load at which the objective breaks: where the share of what misses it, which can only rise with the load,
/// passes what the quantile allows.
fn measured_knee(addr: SocketAddr, slo: &Slo, busy_per_s: f64) -> Result<f64> {
    let mut phases = Vec::new();
    let mut seed = 1;
    let mut phase = |per_s: f64, phases: &mut Vec<(f64, f64)>| -> Result<()> {
        let phase: Phase = load::open(addr, per_s, PHASE, seed)?;
        seed += 1;
        let missed = phase.missed(slo);
        eprintln!("    {:.2}/s: {:.1}% miss the objective", phase.per_s, 100.0 * missed);
        phases.push((phase.per_s, missed));
        Ok(())
    };
    for share in RISING {
        phase(share * busy_per_s, &mut phases)?;
    }
    if let Ok(first) = crossing(&phases) {
        for share in ABOUT {
            phase(share * first, &mut phases)?;
        }
    }
    crossing(&phases)
}

/// Where a never-falling curve through (load, share that misses) passes the allowed share.
fn crossing(phases: &[(f64, f64)]) -> Result<f64> {
    let mut sorted = phases.to_vec();
    sorted.sort_by(|one, other| one.0.total_cmp(&other.0));
    // Neighbours that fall become one level (pool adjacent violators).
    let mut pools: Vec<(f64, f64, f64)> = Vec::new();
    for (load, missed) in sorted {
        let mut pool = (load, missed, 1.0);
        while let Some(before) = pools.last().copied().filter(|before| before.1 >= pool.1) {
            pools.pop();
            let count = before.2 + pool.2;
            let mean = |one: f64, other: f64| (one * before.2 + other * pool.2) / count;
            pool = (mean(before.0, pool.0), mean(before.1, pool.1), count);
        }
        pools.push(pool);
    }
    let allowed = 1.0 - QUANTILE;
    let after = pools.iter().position(|pool| pool.1 > allowed).context("no load broke the objective")?;
    ensure!(after > 0, "the least load broke the objective already");
    let ((x0, y0, _), (x1, y1, _)) = (pools[after - 1], pools[after]);
    Ok(x0 + (x1 - x0) * (allowed - y0) / (y1 - y0))
}

fn report(truths: &[truth::Moment], frames: &[watcher::Frame], knee_per_s: f64, busy_per_s: f64) -> Result<Report> {
    let found = frames.iter().rev().find_map(|frame| frame.estimate.as_ref());
    let found = found.context("the watcher came to no estimate")?;
    let mut report = Report::new("knee");
    let mut batch = (Samples::default(), Samples::default());
    let mut queue = (Samples::default(), Samples::default());
    for frame in frames.iter().filter(|frame| frame.estimate.is_some()) {
        let near = truths.iter().min_by_key(|truth| apart(truth.at, frame.at));
        let Some(truth) = near.filter(|truth| apart(truth.at, frame.at) <= SAME_MOMENT) else { continue };
        for (samples, seen, is) in [(&mut batch, frame.batch, truth.batch), (&mut queue, frame.queue, truth.queue)] {
            samples.0.ours.push(seen);
            samples.0.peer.push(is);
            samples.1.ours.push((seen - is).abs());
            samples.1.peer.push(is);
        }
    }
    ensure!(batch.0.ours.len() > 100, "only {} moments were seen by both", batch.0.ours.len());
    for (name, (levels, errors)) in [("batch", &batch), ("queue", &queue)] {
        report.rows.push(mean_row(format!("{name}: mean, estimated | true"), levels));
        report.rows.push(mean_row(format!("{name}: mean absolute error | true mean"), errors));
    }
    let one = |ours, peer| Samples { ours: vec![ours], peer: vec![peer] };
    let places = one(f64::from(found.slots.unwrap_or(0)), SLOTS as f64);
    report.rows.push(mean_row("places: estimated (0: not seen) | true".into(), &places));
    let knee = Row { unit: "1/s", ..mean_row("knee: predicted | measured".into(), &one(found.knee_per_s, knee_per_s)) };
    report.rows.push(knee);
    eprintln!("    breaks first: {}; the learned server's times are off by {:.0}%", found.bound, 100.0 * found.error);
    let throughput = one(found.throughput_per_s, busy_per_s);
    report.rows.push(Row { unit: "1/s", ..mean_row("throughput: predicted | measured".into(), &throughput) });
    let bounds = Samples { ours: vec![found.knee_per_s_low, found.knee_per_s_high], peer: vec![knee_per_s] };
    report.rows.push(Row { unit: "1/s", ..mean_row("knee: low and high | measured".into(), &bounds) });
    let off = (found.knee_per_s / knee_per_s - 1.0).abs();
    report.targets.push(Target::at_most("knee, relative error from 70% of it".into(), off, TARGET));
    Ok(report)
}

fn apart(one: Instant, other: Instant) -> Duration {
    one.max(other) - one.min(other)
}

fn mean_row(case: String, samples: &Samples) -> Row {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let (ours, peer) = (mean(&samples.ours), mean(&samples.peer));
    Row { case, unit: "req", ours, peer, ratio: ours / peer, floor: None, samples: samples.clone() }
}

#[cfg(test)]
mod tests {
    use super::crossing;

    #[test]
    fn the_knee_is_where_the_allowed_share_is_passed() {
        let check = |phases: &[(f64, f64)], want: f64| {
            let found = crossing(phases).expect("a crossing");
            assert!((found - want).abs() < 1e-9, "{phases:?}: {found}");
        };
        check(&[(1.0, 0.0), (3.0, 0.2)], 2.0);
        check(&[(3.0, 0.2), (1.0, 0.0), (4.0, 0.9)], 2.0);
        // What falls with the load is chance: 2 and 3 are one level at 2.5.
        check(&[(1.0, 0.0), (2.0, 0.3), (3.0, 0.1)], 1.75);
        assert!(crossing(&[(1.0, 0.0), (2.0, 0.05)]).is_err());
        assert!(crossing(&[(1.0, 0.5), (2.0, 0.9)]).is_err());
    }
}
