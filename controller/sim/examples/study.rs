//! Studies over many simulated runs, as JSON on stdout: what `cargo xtask bench policies` and `bench tick` read.
//!
//!     study tick 10 100 1000
//!     study policies TRACE MODELS COLD_START_S REQUESTS TRIALS
//!
//! With more than one model, sessions of the trace's requests are spread over so many, most of them sparse.

use controller_sim::fleet::{Config, Work};
use controller_sim::study::{Options, Study, fronts, tick_cost};
use controller_sim::trace::generate::split;
use controller_sim::trace::{self, read_file};
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ticks at each size.
const TICKS: usize = 40;
/// Devices that no policy runs out of.
const DEVICES: u32 = 256;
const SEED: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let json = match args.as_slice() {
        ["tick", sizes @ ..] => {
            let sizes: Vec<usize> = sizes.iter().map(|size| size.parse()).collect::<Result<_, _>>()?;
            serde_json::to_string(&sizes.into_iter().map(|size| tick_cost(size, TICKS)).collect::<Vec<_>>())?
        }
        ["policies", path, models, cold_start_s, requests, trials] => serde_json::to_string(&policies(
            path,
            models.parse()?,
            cold_start_s.parse()?,
            requests.parse()?,
            trials.parse()?,
        )?)?,
        _ => return Err("usage: study tick SIZE... | study policies TRACE MODELS COLD_START_S REQUESTS TRIALS".into()),
    };
    println!("{json}");
    Ok(())
}

/// Fronts over the first so many requests of a trace.
fn policies(path: &str, models: u32, cold_start_s: f64, requests: u64, trials: usize) -> Result<Study, Box<dyn Error>> {
    let trace = read_file(path.as_ref(), trace::Options::default())?;
    let share = (requests as f64 / trace.requests() as f64).min(1.0);
    let duration_ns = (trace.duration_ns as f64 * share) as u64;
    let mut arrivals = trace.window(0, duration_ns, SEED);
    let names = if models > 1 { split(&mut arrivals, models, SEED) } else { trace.models };
    let config = Config { seed: SEED, ..Config::new(DEVICES, cold_start_s) };
    let told = AtomicUsize::new(0);
    let progress = |done: usize, all: usize| {
        let tenth = 10 * done / all.max(1);
        if told.swap(tenth, Ordering::Relaxed) != tenth {
            eprintln!("    {}%", 10 * tenth);
        }
    };
    let work = Work { models: &names, arrivals: &arrivals, duration_ns };
    Ok(fronts(&config, work, Options { trials, ..Options::default() }, &progress))
}
