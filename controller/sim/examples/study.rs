//! Studies over many simulated runs, as JSON on stdout: what `cargo xtask bench policies` and `bench tick` read.
//!
//!     study tick 10 100 1000
//!     study policies TRACE MODELS COLD_START_S REQUESTS TRIALS
//!     study points TRACE MODELS COLD_START_S REQUESTS POLICY...
//!
//! `points` prints, as text, what each trial of a policy comes to on the part that `policies` measures: to see quickly what a change
//! of ours does.
//! With more than one model, sessions of the trace's requests are spread over so many, most of them sparse.

use controller_sim::fleet::{Config, Work, run};
use controller_sim::policies::{Kind, trials};
use controller_sim::study::{Options, Study, fronts, tick_cost};
use controller_sim::trace::generate::split;
use controller_sim::trace::{self, Arrival, read_file};
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ticks at each size.
const TICKS: usize = 40;
/// Devices that no policy runs out of.
const DEVICES: u32 = 256;
const SEED: u64 = 1;

/// What `policies` and `points` run over.
struct Ask {
    names: Vec<String>,
    arrivals: Vec<Arrival>,
    duration_ns: u64,
    config: Config,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let json = match args.as_slice() {
        ["tick", sizes @ ..] => {
            let sizes: Vec<usize> = sizes.iter().map(|size| size.parse()).collect::<Result<_, _>>()?;
            serde_json::to_string(&sizes.into_iter().map(|size| tick_cost(size, TICKS)).collect::<Vec<_>>())?
        }
        ["policies", path, models, cold_start_s, requests, trials] => {
            serde_json::to_string(&policies(&ask(path, models, cold_start_s, requests)?, trials.parse()?))?
        }
        ["points", path, models, cold_start_s, requests, kinds @ ..] => {
            let ask = ask(path, models, cold_start_s, requests)?;
            let kinds: Vec<Kind> = kinds.iter().map(|kind| kind.parse()).collect::<Result<_, _>>()?;
            points(&ask, &kinds);
            return Ok(());
        }
        _ => {
            let over = "TRACE MODELS COLD_START_S REQUESTS";
            let usage =
                format!("usage: study tick SIZE... | study policies {over} TRIALS | study points {over} POLICY...");
            return Err(usage.into());
        }
    };
    println!("{json}");
    Ok(())
}

/// The first so many requests of a trace, of one model or spread over several.
fn ask(path: &str, models: &str, cold_start_s: &str, requests: &str) -> Result<Ask, Box<dyn Error>> {
    let trace = read_file(path.as_ref(), trace::Options::default())?;
    let (models, requests): (u32, u64) = (models.parse()?, requests.parse()?);
    let share = (requests as f64 / trace.requests() as f64).min(1.0);
    let duration_ns = (trace.duration_ns as f64 * share) as u64;
    let mut arrivals = trace.window(0, duration_ns, SEED);
    let names = if models > 1 { split(&mut arrivals, models, SEED) } else { trace.models };
    let config = Config { seed: SEED, ..Config::new(DEVICES, cold_start_s.parse()?) };
    Ok(Ask { names, arrivals, duration_ns, config })
}

impl Ask {
    fn work(&self) -> Work<'_> {
        Work { models: &self.names, arrivals: &self.arrivals, duration_ns: self.duration_ns }
    }
}

/// The fronts of every policy.
fn policies(ask: &Ask, trials: usize) -> Study {
    let told = AtomicUsize::new(0);
    let progress = |done: usize, all: usize| {
        let tenth = 10 * done / all.max(1);
        if told.swap(tenth, Ordering::Relaxed) != tenth {
            eprintln!("    {}%", 10 * tenth);
        }
    };
    fronts(&ask.config, ask.work(), Options { trials, ..Options::default() }, &progress)
}

/// One line for each trial of these policies.
fn points(ask: &Ask, kinds: &[Kind]) {
    let from_s = ask.duration_ns as f64 / 1e9 * Options::default().tune_share;
    let config = Config { measure_from_s: from_s, ..ask.config.clone() };
    for kind in kinds {
        for knobs in trials() {
            let Ok(report) = run(&config, ask.work(), kind.build(knobs, &config, ask.work()).as_mut()) else {
                continue;
            };
            let late = report.ttft_ms.iter().filter(|ms| f64::from(**ms) > config.slo.ttft_ms).count();
            let slow = report.itl_ms.iter().filter(|ms| f64::from(**ms) > config.slo.itl_ms).count();
            println!(
                "{kind:<17} fill {:<5} keep {:<5} {:>6.2}% in SLO {:>9.0} device s {:>5.1}% used {:>6} starts {late:>6} late {slow:>6} slow",
                knobs.fill.map_or("-".to_owned(), |fill| fill.to_string()),
                knobs.keep.map_or("-".to_owned(), |keep| keep.to_string()),
                100.0 * report.attainment(),
                report.device_s,
                100.0 * report.busy_s / report.device_s.max(1e-9),
                report.starts,
            );
        }
    }
}
