//! What the kernel probes cost: each program's time per run and the share of all CPUs that they take at full load, by
//! the kernel's own run statistics; and what an engine's output loses by them, in pairs of serves with and without.

use super::engine::serving::closed_loop;
use super::load;
use super::report::{Report, Row, Samples, Target, median};
use crate::http::{self, Connection};
use crate::layout;
use crate::server::{Owned, Serve};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const MODEL: &str = "smollm2";
/// Streaming clients, which fill the engine's batch, and clients of the flood.
const CLIENTS: usize = 16;
const FLOOD_CLIENTS: usize = 8;
const PROMPT_TOKENS: usize = 128;
const OUTPUT_TOKENS: usize = 64;
/// From the load's begin to the first look at the costs, and from there to the last. By then the budget has seen it.
const SETTLE: Duration = Duration::from_secs(6);
const FULL_LOAD: Duration = Duration::from_secs(15);
/// Pairs of serves with and without probes.
const PAIRS: usize = 10;
/// Student's t of a two-sided interval of 95 % with one degree of freedom less than pairs.
const T_95: f64 = 2.262;
/// Share of all CPUs at full load, %.
const SHARE_AT_MOST: f64 = 2.0;

/// Both loads, then the pairs.
pub fn measure() -> Result<Report> {
    let mut report = Report::new("probes");
    // Nothing is turned off: what it costs is what is asked.
    let owned = start(&["--probe-budget", "100"])?;
    let serve = &owned.serve;
    let streams = under_load(serve, CLIENTS, || {
        load::stream(serve.data, MODEL, PROMPT_TOKENS, OUTPUT_TOKENS).map(|stream| stream.output as u64)
    })?;
    add(&mut report, &format!("{CLIENTS} streams"), "tokens", &streams);
    report.targets.push(Target::at_most("share of all CPUs, full load, %".to_owned(), streams.share(), SHARE_AT_MOST));
    let flood = under_load(serve, FLOOD_CLIENTS, || flood(serve))?;
    add(&mut report, "HTTP flood", "requests", &flood);
    report.rows.push(single("memory of the maps".to_owned(), "MiB", flood.maps_bytes / f64::from(1 << 20)));
    drop(owned);
    bounded(&mut report)?;
    paired(&mut report)?;
    Ok(report)
}

/// The same flood at a serve with the budget that it has by default: what costs more is turned off.
fn bounded(report: &mut Report) -> Result<()> {
    let owned = start(&[])?;
    let flood = under_load(&owned.serve, FLOOD_CLIENTS, || flood(&owned.serve))?;
    let groups = look(&owned.serve)?["cost"]["groups"].as_array().cloned().unwrap_or_default();
    let off = groups.iter().filter(|group| group["on"] == false).count();
    report.rows.push(single("HTTP flood, default budget: groups turned off".to_owned(), "", off as f64));
    add(report, "HTTP flood, default budget", "requests", &flood);
    let name = "share of all CPUs, HTTP flood, default budget, %".to_owned();
    report.targets.push(Target::at_most(name, flood.share(), SHARE_AT_MOST));
    Ok(())
}

/// A serve whose model is awake and has all cores.
fn start(options: &[&str]) -> Result<Owned> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let base = ["--idle-seconds", "600", "--cores-per-instance", &cores];
    let owned = Owned::start(&[&base, options].concat())?;
    owned.serve.add_model(MODEL, &layout::demo_model())?;
    load::ttft_ms(owned.serve.data, MODEL, 4).context("waking the model")?;
    Ok(owned)
}

/// Requests on one connection, and how many.
fn flood(serve: &Serve) -> Result<u64> {
    const AT_ONCE: u64 = 200;
    let mut connection = Connection::open(serve.data)?;
    for _ in 0..AT_ONCE {
        let status = connection.call("GET", "/healthz", b"")?.status;
        ensure!(status == 200, "status {status} under the flood");
    }
    Ok(AT_ONCE)
}

/// What the programs cost between two looks at full load.
struct Cost {
    window_s: f64,
    /// By program: runs, and their time in ns.
    programs: BTreeMap<String, (f64, f64)>,
    maps_bytes: f64,
    events_lost: f64,
    /// What the load got done per second.
    done_per_s: f64,
}

impl Cost {
    fn run_ns(&self) -> f64 {
        self.programs.values().map(|(_, ns)| ns).sum()
    }

    /// Share of all CPUs, %.
    fn share(&self) -> f64 {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        100.0 * self.run_ns() / (self.window_s * 1e9 * cpus)
    }
}

/// Keeps so many clients busy with `work`, which answers how much it did, and looks at the costs meanwhile.
fn under_load(serve: &Serve, clients: usize, work: impl Fn() -> Result<u64> + Sync) -> Result<Cost> {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let client = || -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            done.fetch_add(work()?, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        let looks = || -> Result<Cost> {
            std::thread::sleep(SETTLE);
            let (before, done_before) = (look(serve)?, done.load(Ordering::Relaxed));
            std::thread::sleep(FULL_LOAD);
            let (after, done_after) = (look(serve)?, done.load(Ordering::Relaxed));
            let done_per_s = (done_after - done_before) as f64 / FULL_LOAD.as_secs_f64();
            difference(&before, &after, done_per_s)
        };
        let cost = looks();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        cost
    })
}

fn look(serve: &Serve) -> Result<Value> {
    let probes = http::call(serve.admin, "GET", "/v1/foreshock/probes", b"")?.json()?;
    ensure!(probes["cost"]["programs"][0]["run_ns_total"].is_u64(), "the probes' cost is not known: {probes}");
    Ok(probes)
}

fn difference(before: &Value, after: &Value, done_per_s: f64) -> Result<Cost> {
    let number = |value: &Value| value.as_f64().context("a number is missing in the probes' cost");
    let programs = |look: &Value| -> Result<BTreeMap<String, (f64, f64)>> {
        let rows = look["cost"]["programs"].as_array().context("no programs in the probes' cost")?;
        let row = |row: &Value| {
            let name = row["probe"].as_str().context("a program has no name")?.to_owned();
            Ok((name, (number(&row["runs_total"])?, number(&row["run_ns_total"])?)))
        };
        rows.iter().map(row).collect()
    };
    let (first, mut programs) = (programs(before)?, programs(after)?);
    for (name, (runs, ns)) in &mut programs {
        let (runs_before, ns_before) = first.get(name).copied().unwrap_or_default();
        (*runs, *ns) = (*runs - runs_before, *ns - ns_before);
    }
    let grown = |of: fn(&Value) -> &Value| Ok::<f64, anyhow::Error>(number(of(after))? - number(of(before))?);
    Ok(Cost {
        window_s: grown(|look| &look["cost"]["at_ns"])? / 1e9,
        programs,
        maps_bytes: number(&after["cost"]["maps_bytes"])?,
        events_lost: grown(|look| &look["events_lost_total"])?,
        done_per_s,
    })
}

/// A figure that stands beside no other.
fn single(case: String, unit: &'static str, value: f64) -> Row {
    Row { case, unit, ours: value, peer: 0.0, ratio: 0.0, floor: None, samples: Samples::default() }
}

fn add(report: &mut Report, load: &str, what: &str, cost: &Cost) {
    report.rows.push(single(format!("{load}: {what} per second"), "1/s", cost.done_per_s));
    let mut programs: Vec<_> = cost.programs.iter().filter(|(_, (runs, _))| *runs > 0.0).collect();
    programs.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    for (name, (runs, ns)) in programs {
        let (per_run, per_s) = (ns / runs, runs / cost.window_s);
        let case = format!("{load}: {name}: ns per run | runs per second");
        report.rows.push(Row { peer: per_s, ..single(case, "ns", per_run) });
    }
    report.rows.push(single(format!("{load}: events lost"), "", cost.events_lost));
    report.rows.push(single(format!("{load}: share of all CPUs"), "%", cost.share()));
}

/// Output of the engine under streaming clients, with probes and without in turns; which is first changes from
/// pair to pair, so that a drift of the machine falls on both.
fn paired(report: &mut Report) -> Result<()> {
    let mut samples = Samples::default();
    let window = |options: &[&str]| -> Result<f64> {
        let owned = start(options)?;
        Ok(closed_loop(owned.serve.data, MODEL, CLIENTS)?.0)
    };
    for pair in 1..=PAIRS {
        eprintln!("    with and without probes: pair {pair} of {PAIRS}");
        let (mut with, mut without) = (0.0, 0.0);
        for turn in 0..2 {
            if (pair + turn) % 2 == 0 {
                with = window(&[])?;
            } else {
                without = window(&["--no-probes"])?;
            }
        }
        samples.ours.push(with);
        samples.peer.push(without);
    }
    let case = format!("{CLIENTS} streams: output with probes | without");
    report.rows.push(Row::of_quantile(case, "tok/s", 0.5, &samples));
    let changes: Vec<f64> =
        samples.ours.iter().zip(&samples.peer).map(|(with, without)| 100.0 * (with / without - 1.0)).collect();
    let (mean, margin) = interval(&changes);
    let case = |what: &str| format!("paired change of output: {what}");
    for (what, value) in [("mean", mean), ("95 % from", mean - margin), ("95 % to", mean + margin)] {
        report.rows.push(single(case(what), "%", value));
    }
    report.rows.push(single(case("median"), "%", median(&changes)));
    Ok(())
}

/// The mean, and how far its 95 % interval reaches to either side (Student's t).
fn interval(samples: &[f64]) -> (f64, f64) {
    let count = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, T_95 * (variance / count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        let (mean, margin) = interval(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
        assert_eq!(mean, 5.5);
        // The deviation of 1 to 10 is 3.0277.
        assert!((margin - 2.262 * 3.027_650 / 10f64.sqrt()).abs() < 1e-4, "{margin}");
    }

    #[test]
    fn costs_are_what_came_between_two_looks() {
        let look = |at_s: u64, runs: u64, ns: u64| {
            serde_json::json!({"events_lost_total": at_s, "cost": {"at_ns": at_s * 1_000_000_000, "maps_bytes": 7,
                "programs": [{"probe": "p", "runs_total": runs, "run_ns_total": ns}]}})
        };
        let cost = difference(&look(1, 10, 500), &look(3, 30, 2_500), 4.0).expect("whole");
        assert_eq!((cost.window_s, cost.events_lost, cost.maps_bytes), (2.0, 2.0, 7.0));
        assert_eq!(cost.programs["p"], (20.0, 2_000.0));
        assert!(difference(&look(1, 1, 1), &serde_json::json!({}), 0.0).is_err());
    }
}
