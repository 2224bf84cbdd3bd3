//! scratch
use controller_sim::fleet::{Config, Work, run};
use controller_sim::policies::{KINDS, Knobs};
use controller_sim::trace::{Options, read_file};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let trace = read_file(args[1].as_ref(), Options::default()).unwrap();
    let cold: f64 = args[2].parse().unwrap();
    let end: u64 = args.get(3).map_or(u64::MAX, |s| s.parse::<u64>().unwrap() * 1_000_000_000);
    let arrivals = trace.window(0, end, 1);
    let config = Config::new(64, cold);
    let work = Work { models: &trace.models, arrivals: &arrivals, duration_ns: trace.duration_ns.min(end) };
    for kind in KINDS {
        let mut policy = kind.build(Knobs::default(), &config, work);
        let begun = std::time::Instant::now();
        let report = run(&config, work, policy.as_mut()).unwrap();
        let s = report.summary(config.slo, 2.0);
        println!(
            "{:>18} att {:.4} ttft {:.0}/{:.0}/{:.0} itl {:.1}/{:.1} dev_s {:.0} util {:.2} peak {} starts {} drains {} regr {} ticks {} wall {:.2}s {:?} ans {} of {}",
            s.policy,
            s.attainment,
            s.ttft_ms_p50,
            s.ttft_ms_p90,
            s.ttft_ms_p99,
            s.itl_ms_p50,
            s.itl_ms_p99,
            s.device_s,
            s.utilisation,
            s.peak_devices,
            s.starts,
            s.drains,
            s.regretted,
            s.ticks,
            begun.elapsed().as_secs_f64(),
            s.violations,
            s.answered,
            s.requests
        );
        if let Some(v) = &report.first_violation {
            println!("   {v}");
        }
    }
}
