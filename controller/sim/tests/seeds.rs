//! The real tick in simulated worlds: the rise and fall of the issue, fifty seeds with faults, and broken
//! planners that the checkers must catch by name.

use controller_core::action::{ActionKind, Effects, Reason};
use controller_core::snapshot::{DeviceSlice, Placement, Shard, Snapshot};
use controller_core::{Policy, State, tick};
use controller_sim::engine::Speed;
use controller_sim::random::Random;
use controller_sim::{Faults, Invariant, Planner, Report, Scenario, SimModel, Violation, Workload, run};

const GIB: u64 = 1 << 30;

fn model(name: &str, workload: Workload) -> SimModel {
    SimModel {
        name: name.to_owned(),
        workload,
        instance_bytes: GIB / 2,
        cold_start_s: 1.0,
        speed: Speed { tokens_per_s: 60.0, batch_slowdown: 0.6, max_batch: 8 },
    }
}

fn two_cores(seed: u64, models: Vec<SimModel>) -> Scenario {
    Scenario {
        seed,
        cores: 2,
        cores_per_instance: 1,
        memory_budget_bytes: 2 * GIB,
        models,
        load_s: 120.0,
        settle_s: 240.0,
        faults: Faults::none(),
        policy: Policy::default(),
        steady: false,
        starve_limit_s: 120.0,
    }
}

fn passes(scenario: &Scenario) -> Report {
    match run(scenario, tick) {
        Ok(report) => report,
        Err(violation) => panic!("seed {}: {violation}\n{scenario:#?}", scenario.seed),
    }
}

#[test]
fn rises_and_falls_between_zero_and_two() {
    let rise = |peak_per_s| Workload::RiseAndFall { peak_per_s, period_s: 60.0 };
    let report = passes(&two_cores(1, vec![model("a", rise(2.5)), model("b", rise(0.5))]));
    assert_eq!((report.peak_instances, report.final_instances), (2, 0));
    assert_eq!((report.answered, report.refused), (report.requests, 0));

    let report = passes(&two_cores(2, vec![model("a", rise(2.5)), model("b", Workload::Sparse { mean_gap_s: 500.0 })]));
    assert_eq!(report.peak_ready.get("a"), Some(&2));
    assert_eq!((report.answered, report.final_instances), (report.requests, 0));
    assert!(report.decisions.iter().all(|decision| !decision.why.is_empty()));
}

#[test]
fn two_busy_models_share_one_core() {
    let poisson = |rate_per_s| Workload::Poisson { rate_per_s };
    let mut scenario = two_cores(3, vec![model("a", poisson(0.4)), model("b", poisson(0.4))]);
    scenario.cores = 1;
    let report = passes(&scenario);
    assert_eq!((report.answered, report.peak_instances), (report.requests, 1));
    let switches = report.decisions.iter().filter(|decision| decision.reason == Reason::Evicted).count();
    assert!((2..=40).contains(&switches), "{switches} switches in 120 s");
}

#[test]
fn steady_load_does_not_flap() {
    for seed in 0..30 {
        let rate_per_s = 0.1 + 0.4 * (seed % 10) as f64;
        let mut scenario = two_cores(seed, vec![model("a", Workload::Poisson { rate_per_s })]);
        scenario.steady = true;
        scenario.cores = 4;
        scenario.memory_budget_bytes = 8 * GIB;
        scenario.load_s = 300.0;
        let report = passes(&scenario);
        assert!(report.starts <= 24, "rate {rate_per_s}: {} starts", report.starts);
    }
}

/// A world drawn from a seed.
fn drawn(seed: u64) -> Scenario {
    let mut random = Random::new(seed);
    let workloads = |random: &mut Random| match random.between(0, 3) {
        0 => Workload::Poisson { rate_per_s: 0.1 + random.unit() },
        1 => Workload::Bursts { every_s: 20.0 + 40.0 * random.unit(), size: random.between(1, 12) as u32 },
        2 => Workload::RiseAndFall { peak_per_s: 0.5 + 2.0 * random.unit(), period_s: 60.0 },
        _ => Workload::Sparse { mean_gap_s: 10.0 + 40.0 * random.unit() },
    };
    let count = random.between(1, 4);
    let models = (0..count)
        .map(|at| {
            let mut model = model(&format!("m{at}"), workloads(&mut random));
            model.cold_start_s = 0.3 + 2.0 * random.unit();
            model.instance_bytes = GIB / 4 * random.between(1, 3);
            model
        })
        .collect();
    let mut scenario = two_cores(seed, models);
    scenario.cores = random.between(1, 6) as u32;
    scenario.memory_budget_bytes = GIB * random.between(1, 4);
    scenario.faults = Faults::harsh();
    // One core for several busy models with all these faults is overload: there the bound on waiting is the run itself.
    scenario.starve_limit_s = 240.0;
    scenario
}

#[test]
fn fifty_seeds_with_faults() {
    let (mut deaths, mut restarts, mut answered) = (0, 0, 0);
    for seed in 0..50 {
        let report = passes(&drawn(seed));
        deaths += report.deaths;
        restarts += report.restarts;
        answered += report.answered;
    }
    assert!(
        deaths > 50 && restarts > 50 && answered > 2000,
        "{deaths} deaths, {restarts} restarts, {answered} answers"
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(passes(&drawn(7)), passes(&drawn(7)));
}

/// Gives core 0 to everyone.
fn gives_a_core_twice(state: &mut State, snapshot: &Snapshot) -> Effects {
    edit_starts(tick(state, snapshot), |placement| {
        placement.shards = vec![Shard { device: DeviceSlice::Cores(vec![0]), bytes: placement.bytes() }];
    })
}

/// Gives every instance ten times the memory that was planned.
fn overcommits_memory(state: &mut State, snapshot: &Snapshot) -> Effects {
    edit_starts(tick(state, snapshot), |placement| {
        for shard in &mut placement.shards {
            shard.bytes *= 10;
        }
    })
}

/// Starts nothing.
fn forgets_held_requests(state: &mut State, snapshot: &Snapshot) -> Effects {
    let mut effects = tick(state, snapshot);
    effects.actions.retain(|action| !matches!(action.kind, ActionKind::Start { .. }));
    effects
}

/// Thinks that idle instances cost a fortune.
fn drains_at_once(state: &mut State, snapshot: &Snapshot) -> Effects {
    state.policy.idle_cost_per_s = 1e6;
    tick(state, snapshot)
}

/// Thinks that idle instances are free.
fn keeps_for_ever(state: &mut State, snapshot: &Snapshot) -> Effects {
    state.policy.idle_cost_per_s = 0.0;
    state.policy.memory_cost_per_gib_s = 0.0;
    tick(state, snapshot)
}

/// Remembers nothing of what it asked for.
fn forgets_what_it_asked(_: &mut State, snapshot: &Snapshot) -> Effects {
    tick(&mut State::new(Policy::default()), snapshot)
}

/// Acts and gives no reason.
fn explains_nothing(state: &mut State, snapshot: &Snapshot) -> Effects {
    let mut effects = tick(state, snapshot);
    effects.decisions.clear();
    effects
}

fn edit_starts(mut effects: Effects, edit: impl Fn(&mut Placement)) -> Effects {
    let actions = effects.decisions.iter_mut().flat_map(|decision| &mut decision.actions);
    for action in actions.chain(&mut effects.actions) {
        if let ActionKind::Start { placement, .. } = &mut action.kind {
            edit(placement);
        }
    }
    effects
}

#[test]
fn broken_planners_are_caught_by_name() {
    #[track_caller]
    fn check(planner: Planner, expected: Invariant) {
        let poisson = |rate_per_s| Workload::Poisson { rate_per_s };
        let mut scenario = two_cores(11, vec![model("a", poisson(1.5)), model("b", poisson(0.3))]);
        scenario.steady = true;
        scenario.faults.snapshot_doubled = 0.5;
        let caught: Option<Violation> = run(&scenario, planner).err();
        assert_eq!(caught.as_ref().map(|violation| violation.invariant), Some(expected), "{caught:?}");
    }
    check(gives_a_core_twice, Invariant::CoresGivenOnce);
    check(overcommits_memory, Invariant::MemoryWithinBudget);
    check(forgets_held_requests, Invariant::NobodyStarves);
    check(drains_at_once, Invariant::NoFlapping);
    check(keeps_for_ever, Invariant::BackToZero);
    check(forgets_what_it_asked, Invariant::Idempotent);
    check(explains_nothing, Invariant::EveryActionExplained);
}
