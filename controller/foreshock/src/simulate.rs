//! `foreshock simulate`: a trace against policies in a simulated fleet. Prints a table, and writes figures as JSON and as plots.

mod history;

use crate::cli::SimulateArgs;
use crate::config::InputError;
use anyhow::{Context, Result, bail};
use controller_sim::fleet::{Config, Engines, FaultPlan, Report, Slo, Summary, Work, run_watched};
use controller_sim::policies::{KINDS, Kind, Knobs};
use controller_sim::trace::generate::{Shape, generate};
use controller_sim::trace::{Arrival, Options, Trace, read_file};
use controller_sim::{ns, plot};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Longest trace that is made up, hours: a month.
const HOURS_MAX: f64 = 744.0;
/// Longest cold start, s.
const COLD_START_S_MAX: f64 = 3_600.0;

/// A trace, as much of it as is asked for.
struct Load {
    trace: Trace,
    arrivals: Vec<Arrival>,
    duration_ns: u64,
    /// What the deployment that the load comes from used, instance-seconds.
    used_s: Option<f64>,
}

impl Load {
    fn work(&self) -> Work<'_> {
        Work { models: &self.trace.models, arrivals: &self.arrivals, duration_ns: self.duration_ns }
    }
}

/// Simulates every policy that was named.
pub fn run(args: SimulateArgs) -> Result<()> {
    let kinds = kinds(&args.policy)?;
    let load = load(&args)?;
    let config = config(&args)?;
    let knob = |value: Option<f64>, name| value.map(|value| positive(value, 1e3, name)).transpose();
    let knobs = Knobs { fill: knob(args.fill, "--fill")?, keep: knob(args.keep, "--keep")? };
    let mut reports = Vec::new();
    let mut summaries: Vec<Summary> = Vec::new();
    for kind in kinds {
        let begun = Instant::now();
        let progress = Progress::new(kind.name());
        let mut policy = kind.build(knobs, &config, load.work());
        let report = run_watched(&config, load.work(), policy.as_mut(), &mut |share| progress.show(share))
            .with_context(|| format!("policy {kind}"))?;
        let times = load.duration_ns as f64 / 1e9 / begun.elapsed().as_secs_f64();
        progress.done(&format!("{times:.0} times real time"));
        summaries.push(report.summary(config.slo, args.price_per_h));
        reports.push(report);
    }
    print!("{}", table(&summaries));
    if let Some(used_s) = load.used_s {
        print!("{}", saved(used_s, &summaries, args.price_per_h));
    }
    tell_violations(&reports);
    write(&args, &load, &summaries, &reports)
}

fn kinds(names: &[String]) -> Result<Vec<Kind>> {
    if names.iter().any(|name| name == "all") {
        return Ok(KINDS.to_vec());
    }
    names.iter().map(|name| name.parse().map_err(|error: String| InputError(error).into())).collect()
}

fn load(args: &SimulateArgs) -> Result<Load> {
    let hours = positive(args.hours, HOURS_MAX, "--hours")?;
    let mut used_s = None;
    let trace = match (&args.trace, &args.generate, &args.prometheus) {
        (Some(path), _, _) => {
            read_file(path, Options { repair: args.repair }).map_err(|error| InputError(error.to_string()))?
        }
        (_, Some(shape), _) => generate(shape.0, hours * 3600.0, args.seed),
        (_, _, Some(url)) => {
            let history = history::read(url, hours, args.seed)?;
            eprintln!("{}", history.told);
            used_s = history.instance_s;
            history.trace
        }
        (None, None, None) => {
            bail!(InputError("give a trace: --trace FILE, --generate SHAPE or --prometheus URL".to_owned()))
        }
    };
    if trace.repairs.total() > 0 {
        eprintln!("mended lines: {}", trace.repairs);
    }
    let from_ns = ns(args.from_s);
    let until_ns =
        args.for_s.map_or(trace.duration_ns, |for_s| from_ns.saturating_add(ns(for_s)).min(trace.duration_ns));
    let arrivals = trace.window(from_ns, until_ns, args.seed);
    if arrivals.is_empty() {
        bail!(InputError(format!(
            "no requests from {} s on for that long; the trace is {:.0} s long",
            args.from_s,
            trace.duration_s()
        )));
    }
    // Of a part of the load, nobody knows what it used.
    let whole = from_ns == 0 && until_ns == trace.duration_ns;
    Ok(Load { trace, arrivals, duration_ns: until_ns.saturating_sub(from_ns), used_s: used_s.filter(|_| whole) })
}

fn config(args: &SimulateArgs) -> Result<Config> {
    let mut config = Config::new(args.devices, positive(args.cold_start_s, COLD_START_S_MAX, "--cold-start-s")?);
    config.seed = args.seed;
    config.coverage = true;
    config.engines = args.engines;
    config.slo = Slo {
        ttft_ms: positive(args.ttft_ms, f64::MAX, "--ttft-ms")?,
        itl_ms: positive(args.itl_ms, f64::MAX, "--itl-ms")?,
    };
    if args.faults {
        config.faults = FaultPlan::harsh();
    }
    Ok(config)
}

/// A number above 0 and no more than `most`.
fn positive(value: f64, most: f64, name: &str) -> Result<f64> {
    let fine = value > 0.0 && value <= most && value.is_finite();
    let limit = if most < f64::MAX { format!(" and at most {most}") } else { String::new() };
    if fine { Ok(value) } else { bail!(InputError(format!("{name} must be above 0{limit}"))) }
}

/// One line for each policy.
fn table(summaries: &[Summary]) -> String {
    let mut text = format!(
        "{:<17} {:>8} {:>8} {:>8} {:>8} {:>8} {:>11} {:>6} {:>9} {:>6} {:>7} {:>8}\n",
        "policy",
        "in SLO",
        "TTFT p50",
        "p90",
        "p99 ms",
        "ITL p50",
        "device s",
        "used",
        "cost",
        "most",
        "starts",
        "refused"
    );
    for summary in summaries {
        text += &format!(
            "{:<17} {:>7.2}% {:>8.0} {:>8.0} {:>8.0} {:>8.1} {:>11.0} {:>5.0}% {:>9.2} {:>6} {:>7} {:>8}\n",
            summary.policy,
            100.0 * summary.attainment,
            summary.ttft_ms_p50,
            summary.ttft_ms_p90,
            summary.ttft_ms_p99,
            summary.itl_ms_p50,
            summary.device_s,
            100.0 * summary.utilisation,
            summary.cost,
            summary.peak_devices,
            summary.starts,
            summary.refused
        );
    }
    text
}

/// What each policy would have saved of what the deployment used, over the time that is simulated.
fn saved(used_s: f64, summaries: &[Summary], price_per_h: f64) -> String {
    let mut text = format!("as it was: {used_s:.0} device s, {:.2} at the same price\n", used_s / 3600.0 * price_per_h);
    for summary in summaries {
        let share = 100.0 * (1.0 - summary.device_s / used_s.max(1.0));
        text += &format!("{} would have saved {share:.0}% of it\n", summary.policy);
    }
    text
}

fn tell_violations(reports: &[Report]) {
    for report in reports {
        let Some(first) = &report.first_violation else { continue };
        let counts: Vec<String> =
            report.violations.iter().map(|(name, count)| format!("{name} {count} times")).collect();
        eprintln!("{}: {}; the first: {first}", report.policy, counts.join(", "));
    }
}

fn write(args: &SimulateArgs, load: &Load, summaries: &[Summary], reports: &[Report]) -> Result<()> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let path = args.out.join("simulation.json");
    let moments: Vec<_> = reports.iter().map(|report| (report.policy.clone(), &report.moments)).collect();
    let json = serde_json::json!({
        "trace": args.trace,
        "seed": args.seed,
        "models": load.trace.models.len(),
        "duration_s": load.duration_ns as f64 / 1e9,
        "devices": args.devices,
        "engines": args.engines,
        "cold_start_s": args.cold_start_s,
        "price_per_h": args.price_per_h,
        "prometheus": args.prometheus,
        "used_device_s": load.used_s,
        "repairs": load.trace.repairs,
        "policies": summaries,
        "moments": moments.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    });
    std::fs::write(&path, serde_json::to_string_pretty(&json)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let plots = plot::write(&args.out, reports, args.price_per_h)?;
    eprintln!("written: {} and {} plots beside it", path.display(), plots.len());
    Ok(())
}

/// How far a run is: on a terminal in one line that is written over, else a line at its end.
struct Progress {
    what: String,
    terminal: bool,
    shown: AtomicU64,
}

impl Progress {
    fn new(what: &str) -> Self {
        Self { what: what.to_owned(), terminal: std::io::stderr().is_terminal(), shown: AtomicU64::new(0) }
    }

    fn show(&self, share: f64) {
        let percent = (100.0 * share) as u64;
        if self.terminal && self.shown.swap(percent, Ordering::Relaxed) != percent {
            eprint!("\r{} {percent}%  ", self.what);
        }
    }

    fn done(&self, note: &str) {
        eprintln!("{}{}: {note}", if self.terminal { "\r" } else { "" }, self.what);
    }
}

/// A shape as the command line gives it.
#[derive(Clone, Copy, Debug)]
pub struct NamedShape(pub Shape);

/// `scheduled` or `fluid`.
pub fn engines(text: &str) -> Result<Engines, String> {
    match text {
        "scheduled" => Ok(Engines::Scheduled),
        "fluid" => Ok(Engines::Fluid),
        _ => Err(format!("`{text}` is neither scheduled nor fluid")),
    }
}

/// `poisson:RATE`, `bursty:RATE:TIMES`, `diurnal:PEAK:PERIOD_S`, `flash-crowd:RATE:TIMES` or `sparse:MODELS:RATE`.
pub fn shape(text: &str) -> Result<NamedShape, String> {
    let (name, numbers) = text.split_once(':').unwrap_or((text, ""));
    let numbers: Vec<f64> = numbers
        .split(':')
        .map(|number| number.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0 && *n <= 1e6))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("`{text}` has no numbers above 0 after its name"))?;
    let shape = match (name, numbers.as_slice()) {
        ("poisson", [rate_per_s]) => Shape::Poisson { rate_per_s: *rate_per_s },
        ("bursty", [rate_per_s, times]) => Shape::Bursty { rate_per_s: *rate_per_s, times: times.max(1.0) },
        ("diurnal", [peak_per_s, period_s]) => Shape::Diurnal { peak_per_s: *peak_per_s, period_s: *period_s },
        ("flash-crowd", [rate_per_s, times]) => Shape::FlashCrowd { rate_per_s: *rate_per_s, times: times.max(1.0) },
        ("sparse", [models, rate_per_s]) => {
            Shape::Sparse { models: models.clamp(1.0, 10_000.0) as u32, rate_per_s: *rate_per_s }
        }
        _ => {
            let forms =
                "poisson:RATE, bursty:RATE:TIMES, diurnal:PEAK:PERIOD_S, flash-crowd:RATE:TIMES or sparse:MODELS:RATE";
            return Err(format!("`{text}` is not {forms}, rates in requests per second"));
        }
    };
    Ok(NamedShape(shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read() {
        let check = |text: &str, want: Option<Shape>| assert_eq!(shape(text).ok().map(|shape| shape.0), want, "{text}");
        check("poisson:2.5", Some(Shape::Poisson { rate_per_s: 2.5 }));
        check("sparse:100:1", Some(Shape::Sparse { models: 100, rate_per_s: 1.0 }));
        check("diurnal:4:3600", Some(Shape::Diurnal { peak_per_s: 4.0, period_s: 3600.0 }));
        check("poisson", None);
        check("poisson:-1", None);
        check("poisson:NaN", None);
        check("bursty:1", None);
        check("square:1", None);
    }
}
