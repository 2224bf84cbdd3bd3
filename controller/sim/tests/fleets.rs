//! Fleets with faults: two hundred seeds of an hour pass every checker, broken planners are caught by name, and what the
//! simulation says agrees with what can be worked out on paper.

use controller_core::action::{ActionKind, Effects};
use controller_core::snapshot::Snapshot;
use controller_core::{Policy as Prices, State, tick};
use controller_sim::fleet::{ColdStart, Config, Engines, FaultPlan, Policy, Report, Tick, View, Work, on_device, run};
use controller_sim::policies::{KINDS, Kind, Knobs, Planner, Ticker};
use controller_sim::random::Random;
use controller_sim::trace::generate::{Shape, generate};
use controller_sim::trace::{Load, Trace};
use controller_sim::{Invariant, Violation};

/// Runs a policy over a whole trace.
fn over(config: &Config, trace: &Trace, policy: &mut dyn Policy) -> Result<Report, Violation> {
    let Load::Requests(arrivals) = &trace.load else { panic!("generated traces have requests") };
    run(config, Work { models: &trace.models, arrivals, duration_ns: trace.duration_ns }, policy)
}

/// A fleet, its faults and an hour of load, drawn from a seed.
fn drawn(seed: u64) -> (Config, Trace) {
    let mut random = Random::new(seed);
    let devices = random.between(12, 48) as u32;
    let per_device = 0.3 + 0.5 * random.unit();
    let rate_per_s = 0.3 * per_device * f64::from(devices);
    let shape = match random.between(0, 4) {
        0 => Shape::Poisson { rate_per_s },
        1 => Shape::Bursty { rate_per_s: rate_per_s / 3.0, times: 4.0 },
        2 => Shape::Diurnal { peak_per_s: rate_per_s, period_s: 1200.0 },
        3 => Shape::FlashCrowd { rate_per_s: rate_per_s / 3.0, times: 6.0 },
        _ => Shape::Sparse { models: random.between(2, 30) as u32, rate_per_s: rate_per_s / 6.0 },
    };
    let config = Config {
        seed,
        faults: FaultPlan::harsh(),
        strict: true,
        coverage: true,
        // Some with the engine's own scheduler and blocks.
        engines: if seed.is_multiple_of(4) { Engines::Scheduled } else { Engines::Fluid },
        devices_per_node: random.between(1, u64::from(devices) / 6) as u32,
        // Where cold starts are long and a crowd comes at once, the last instance is worth holding for the better part
        // of an hour.
        settle_s: 3_600.0,
        ..Config::new(devices, [2.0, 10.0, 30.0][random.between(0, 2) as usize])
    };
    (config, generate(shape, 3600.0, seed))
}

/// Ours passes every checker over these seeds.
fn passes(seeds: std::ops::Range<u64>) {
    let (mut faults, mut hours) = (0, 0);
    for seed in seeds {
        let (config, trace) = drawn(seed);
        let mut ours = Ticker::new(Knobs::default(), &config);
        match over(&config, &trace, &mut ours) {
            Ok(report) => {
                hours += 1;
                faults += report.faults.values().sum::<u64>();
                assert_eq!((report.answered + report.refused, report.left), (report.requests, 0), "seed {seed}");
            }
            Err(violation) => panic!("seed {seed}: {violation}\n{config:#?}"),
        }
    }
    assert!(faults >= 60 * hours, "{faults} faults in {hours} hours");
}

// Two hundred seeds, in quarters so that they run beside each other.
#[test]
fn seeds_with_faults_0_to_49() {
    passes(0..50);
}

#[test]
fn seeds_with_faults_50_to_99() {
    passes(50..100);
}

#[test]
fn seeds_with_faults_100_to_149() {
    passes(100..150);
}

#[test]
fn seeds_with_faults_150_to_199() {
    passes(150..200);
}

/// The longer run, by command: `cargo test --release -p controller-sim --test fleets -- --ignored`.
#[test]
#[ignore = "minutes; run by command"]
fn two_thousand_seeds_of_an_hour_with_faults() {
    passes(200..2200);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (config, trace) = drawn(7);
    let once = || over(&config, &trace, &mut Ticker::new(Knobs::default(), &config)).expect("passes");
    let (a, b) = (once(), once());
    assert_eq!((a.ttft_ms, a.moments, a.device_s, a.starts), (b.ttft_ms, b.moments, b.device_s, b.starts));
}

/// Gives every instance device 0.
fn gives_a_device_twice(state: &mut State, snapshot: &Snapshot) -> Effects {
    let mut effects = tick(state, snapshot);
    let actions = effects.decisions.iter_mut().flat_map(|decision| &mut decision.actions);
    for action in actions.chain(&mut effects.actions) {
        if let ActionKind::Start { placement, .. } = &mut action.kind {
            *placement = on_device(0, placement.bytes());
        }
    }
    effects
}

/// Starts nothing.
fn forgets_held_requests(state: &mut State, snapshot: &Snapshot) -> Effects {
    let mut effects = tick(state, snapshot);
    effects.actions.retain(|action| !matches!(action.kind, ActionKind::Start { .. }));
    effects
}

/// Thinks that idle instances cost a fortune and starts take no time.
fn drains_at_once(state: &mut State, snapshot: &Snapshot) -> Effects {
    state.policy.idle_cost_per_s = 1e6;
    let mut snapshot = snapshot.clone();
    snapshot.models.values_mut().for_each(|model| model.cold_start_ms = vec![1.0]);
    tick(state, &snapshot)
}

/// Remembers nothing of what it asked for.
fn forgets_what_it_asked(_: &mut State, snapshot: &Snapshot) -> Effects {
    tick(&mut State::new(Prices::default()), snapshot)
}

/// Hears of every second request alone.
fn sees_half_of_the_load(state: &mut State, snapshot: &Snapshot) -> Effects {
    let mut snapshot = snapshot.clone();
    snapshot.models.values_mut().for_each(|model| model.demand.arrivals_total /= 2);
    tick(state, &snapshot)
}

/// Acts and gives no reason.
fn explains_nothing(state: &mut State, snapshot: &Snapshot) -> Effects {
    let mut effects = tick(state, snapshot);
    effects.decisions.clear();
    effects
}

#[test]
fn broken_planners_are_caught_by_name() {
    #[track_caller]
    fn check(planner: Planner, expected: Invariant) {
        // What drains at once meets requests that come every few seconds; the rest many models on few devices.
        let shape = match expected {
            Invariant::NoFlapping => Shape::Poisson { rate_per_s: 0.15 },
            Invariant::CoverageHolds => Shape::Poisson { rate_per_s: 3.0 },
            _ => Shape::Sparse { models: 20, rate_per_s: 0.5 },
        };
        let trace = generate(shape, 3600.0, 3);
        let mut config = Config { strict: true, coverage: true, ..Config::new(8, 10.0) };
        config.faults.asked_twice = 0.2;
        let caught = over(&config, &trace, &mut Ticker::with(planner, Prices::default())).err();
        assert_eq!(caught.as_ref().map(|violation| violation.invariant), Some(expected), "{caught:?}");
    }
    check(gives_a_device_twice, Invariant::DeviceGivenOnce);
    check(forgets_held_requests, Invariant::NobodyStarves);
    check(drains_at_once, Invariant::NoFlapping);
    check(forgets_what_it_asked, Invariant::Idempotent);
    check(explains_nothing, Invariant::EveryActionExplained);
    check(sees_half_of_the_load, Invariant::CoverageHolds);
}

/// A fixed count of one model.
struct Fixed(u32);

impl Policy for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn tick(&mut self, view: &View<'_>) -> Tick {
        Tick::counts(vec![(0, self.0)], view.now_ns + 1_000_000_000)
    }
}

/// One instance whose work is one request at a time is an M/G/1 queue: the mean wait is that of Pollaczek and Khinchine.
#[test]
fn a_single_server_waits_as_theory_says() {
    let mut config = Config { strict: true, measure_from_s: 100.0, ..Config::new(1, 1.0) };
    config.engine.max_batch = 1;
    config.starve_limit_s = 1e9;
    let trace = generate(Shape::Poisson { rate_per_s: 0.08 }, 400_000.0, 5);
    let Load::Requests(arrivals) = &trace.load else { panic!("requests") };
    let service = |a: &controller_sim::trace::Arrival| {
        // The chunk of the prompt comes with a step of its own: what each 512 tokens add is the base time.
        let prompt_s =
            f64::from(a.prompt_tokens) * (config.engine.prefill_ms_per_token + config.engine.itl_base_ms / 512.0) / 1e3;
        prompt_s + f64::from(a.output_tokens - 1) * config.engine.itl_ms(1) / 1e3
    };
    let n = arrivals.len() as f64;
    let mean_s = arrivals.iter().map(service).sum::<f64>() / n;
    let square = arrivals.iter().map(|a| service(a).powi(2)).sum::<f64>() / n;
    let rate_per_s = n / 400_000.0;
    let wait_s = rate_per_s * square / (2.0 * (1.0 - rate_per_s * mean_s));
    let prompt_s = arrivals
        .iter()
        .map(|a| service(a) - f64::from(a.output_tokens - 1) * config.engine.itl_ms(1) / 1e3)
        .sum::<f64>()
        / n;
    let report = over(&config, &trace, &mut Fixed(1)).expect("passes");
    let ttft_s = report.ttft_ms.iter().map(|ms| f64::from(*ms)).sum::<f64>() / report.ttft_ms.len() as f64 / 1e3;
    let expected_s = wait_s + prompt_s;
    assert!((ttft_s / expected_s - 1.0).abs() < 0.08, "mean TTFT {ttft_s} s, {expected_s} s by theory");
}

/// The batch in straight lines is a fair stand-in for the engine's own scheduler: the same work takes the same device time, and
/// about as many requests are in time.
#[test]
fn both_kinds_of_engine_agree() {
    let trace = generate(Shape::Diurnal { peak_per_s: 6.0, period_s: 1200.0 }, 3600.0, 11);
    let of = |engines| {
        let config = Config { strict: true, coverage: true, engines, ..Config::new(32, 10.0) };
        over(&config, &trace, &mut Ticker::new(Knobs::default(), &config)).expect("passes")
    };
    let (fluid, scheduled) = (of(Engines::Fluid), of(Engines::Scheduled));
    assert_eq!(fluid.answered, scheduled.answered);
    let ratio = scheduled.device_s / fluid.device_s;
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
    let apart = scheduled.attainment() - fluid.attainment();
    assert!(apart.abs() < 0.05, "{} and {}", scheduled.attainment(), fluid.attainment());
}

#[test]
fn cold_starts_share_a_disk() {
    // Eight loads of 4 s of one disk at once take 32 s; on eight nodes 4 s each.
    let check = |devices_per_node: u32, wanted_s: f64| {
        let mut config = Config { strict: true, devices_per_node, ..Config::new(8, 10.0) };
        config.cold_start = ColdStart { spread: 0.0, ..config.cold_start };
        let trace = generate(Shape::Poisson { rate_per_s: 1.0 }, 100.0, 1);
        let report = over(&config, &trace, &mut Fixed(8)).expect("passes");
        let ready = report.moments.iter().find(|moment| moment.ready == 8).map(|moment| moment.at_s);
        assert!(ready.is_some_and(|at_s| (at_s - wanted_s).abs() <= 1.0), "{ready:?}");
    };
    check(1, 10.5);
    check(8, 38.5);
}

#[test]
fn no_policy_loses_a_request() {
    for kind in KINDS {
        let (mut config, trace) = drawn(4);
        config.strict = false;
        let Load::Requests(arrivals) = &trace.load else { panic!("requests") };
        let work = Work { models: &trace.models, arrivals, duration_ns: trace.duration_ns };
        let report = run(&config, work, kind.build(Knobs::default(), &config, work).as_mut()).expect("is counted");
        let broken = ["NothingLostOrDoubled", "AnsweredOnce", "DeviceGivenOnce", "EveryRequestAnswered"];
        assert!(broken.iter().all(|name| !report.violations.contains_key(*name)), "{kind}: {:?}", report.violations);
        assert_eq!(report.answered + report.refused, report.requests, "{kind}");
    }
}

#[test]
fn the_oracle_is_hard_to_beat() {
    let trace = generate(Shape::Sparse { models: 50, rate_per_s: 0.5 }, 7200.0, 9);
    let config = Config::new(64, 10.0);
    let Load::Requests(arrivals) = &trace.load else { panic!("requests") };
    let work = Work { models: &trace.models, arrivals, duration_ns: trace.duration_ns };
    let of = |kind: Kind| run(&config, work, kind.build(Knobs::default(), &config, work).as_mut()).expect("runs");
    let oracle = of(Kind::Oracle);
    assert!(oracle.attainment() > 0.95, "{}", oracle.attainment());
    for kind in [Kind::Knative, Kind::Keda, Kind::HybridHistogram, Kind::Hpa] {
        let other = of(kind);
        assert!(other.device_s > oracle.device_s, "{kind}: {} against {}", other.device_s, oracle.device_s);
    }
}
