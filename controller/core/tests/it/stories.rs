//! The main stories of a model's life, each with the sentence that a person would read.

use crate::node::{MIB, S, apply, demand, node, pass, ready, register, told};
use controller_core::action::{ActionKind, Effects};
use controller_core::snapshot::{InstanceState, Snapshot, Turn};
use controller_core::{Policy, State, tick};
use insta::assert_snapshot;

/// Lets the model serve a steady load for a while, so that the state has seen traffic.
fn serve(
    state: &mut State,
    snapshot: &mut Snapshot,
    model: &str,
    instance: &str,
    seconds: u32,
    per_s: u64,
) -> Vec<Effects> {
    let mut all = Vec::new();
    for _ in 0..seconds * 4 {
        pass(snapshot, 0.25);
        demand(snapshot, model).arrivals_total += if snapshot.now_ns.is_multiple_of(S) { per_s } else { 0 };
        demand(snapshot, model).in_flight = 1;
        if let Some(view) = snapshot.instances.get_mut(instance) {
            view.running = 1;
            view.busy_ns_total += S / 4;
            view.decode_tokens_total += 20;
            view.requests_total += if snapshot.now_ns.is_multiple_of(S) { per_s } else { 0 };
            view.last_used_at_ns = snapshot.now_ns;
        }
        all.push(tick(state, snapshot));
    }
    all
}

#[test]
fn held_at_zero_starts_in_the_same_tick() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    assert_eq!(tick(&mut state, &snapshot).actions, []);
    pass(&mut snapshot, 1.0);
    demand(&mut snapshot, "a").arrivals_total = 1;
    demand(&mut snapshot, "a").held = 1;
    let effects = tick(&mut state, &snapshot);
    assert_snapshot!(told(&effects), @"a 0->1 HeldAtZero: 1 request held and nothing serves a (a cold start takes 800 ms, p90 1.2 s, 2 samples): starting 1 instance.");
    assert_eq!(effects.actions.len(), 1);
    assert_eq!(effects.next_tick_ns, snapshot.now_ns + S / 10);
}

#[test]
fn a_first_snapshot_with_a_held_request_starts_too() {
    let mut snapshot = node();
    register(&mut snapshot, "a");
    demand(&mut snapshot, "a").held = 2;
    let effects = tick(&mut State::default(), &snapshot);
    assert!(matches!(&effects.actions[0].kind, ActionKind::Start { instance, placement, .. }
        if instance == "a-1-1" && placement.cores() == [0]));
}

#[test]
fn applied_or_not_yet_seen_nothing_is_asked_twice() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    demand(&mut snapshot, "a").held = 1;
    let first = tick(&mut state, &snapshot);
    assert_eq!(tick(&mut state, &snapshot).actions, []);
    pass(&mut snapshot, 0.1);
    assert_eq!(tick(&mut state, &snapshot).actions, []);
    apply(&mut snapshot, &first.actions);
    pass(&mut snapshot, 0.1);
    assert_eq!(tick(&mut state, &snapshot).actions, []);
}

#[test]
fn a_queue_brings_a_second_instance() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    ready(&mut snapshot, "a-0-1", "a", 0);
    demand(&mut snapshot, "a").in_flight = 9;
    assert_snapshot!(told(&tick(&mut state, &snapshot)), @"a 1->2 QueueAboveTarget: 9 requests present (0 held, 9 in flight), more than 1 instance can take up within a cold start of 800 ms at 2.0 requests/s and 4 at once each (assumed): starting 1 instance.");
}

#[test]
fn a_rising_rate_warms_ahead_of_the_queue() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    ready(&mut snapshot, "a-0-1", "a", 0);
    let mut effects = serve(&mut state, &mut snapshot, "a", "a-0-1", 4, 1);
    for _ in 0..8 {
        demand(&mut snapshot, "a").arrivals_total += 12;
        effects.extend(serve(&mut state, &mut snapshot, "a", "a-0-1", 1, 1));
    }
    let started = effects.iter().find(|effects| !effects.actions.is_empty()).map(told);
    assert_snapshot!(started.unwrap_or_default(), @"a 1->2 ForecastAboveCapacity: 5.6 requests/s expected (p90) in 1.2 s: with 1 instance at 2.1 requests/s each (16 samples), 100 % of answers would be late: starting 1 instance.");
}

#[test]
fn what_a_disturbed_instance_serves_trains_nothing() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    ready(&mut snapshot, "a-0-1", "a", 0);
    let disturb = |snapshot: &mut Snapshot, disturbed| {
        snapshot.instances.get_mut("a-0-1").expect("running").disturbed = disturbed;
    };
    let samples = |state: &State, snapshot: &mut Snapshot| {
        demand(snapshot, "a").in_flight = 30;
        tick(&mut state.clone(), snapshot).decisions.first().map(|decision| decision.capacity.samples)
    };
    disturb(&mut snapshot, true);
    serve(&mut state, &mut snapshot, "a", "a-0-1", 8, 1);
    assert_eq!(samples(&state, &mut snapshot), Some(0));
    disturb(&mut snapshot, false);
    serve(&mut state, &mut snapshot, "a", "a-0-1", 2, 1);
    assert_eq!(samples(&state, &mut snapshot), Some(7));
}

#[test]
fn an_idle_model_goes_to_zero_when_holding_it_has_cost_as_much_as_losing_it() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    ready(&mut snapshot, "a-0-1", "a", 0);
    serve(&mut state, &mut snapshot, "a", "a-0-1", 20, 1);
    demand(&mut snapshot, "a").in_flight = 0;
    snapshot.instances.get_mut("a-0-1").expect("running").running = 0;
    let mut effects = tick(&mut state, &snapshot);
    let since_ns = snapshot.now_ns;
    while effects.actions.is_empty() && snapshot.now_ns < since_ns + 100 * S {
        let wait_s = (effects.next_tick_ns - snapshot.now_ns) as f64 / 1e9;
        pass(&mut snapshot, wait_s);
        effects = tick(&mut state, &snapshot);
    }
    assert_snapshot!(told(&effects), @"a 1->0 Idle: Draining a-0-1: idle for 23.0 s, and holding it costs 1.05 a second, losing it 24.8 if it is needed again.");
    apply(&mut snapshot, &effects.actions);
    pass(&mut snapshot, 0.1);
    assert_eq!(tick(&mut state, &snapshot).actions, []);
    snapshot.instances.clear();
    pass(&mut snapshot, 0.1);
    assert_eq!(tick(&mut state, &snapshot).actions, []);
}

#[test]
fn a_dearer_policy_gives_up_sooner() {
    let idle_s = |policy: Policy| {
        let (mut state, mut snapshot) = (State::new(policy), node());
        register(&mut snapshot, "a");
        ready(&mut snapshot, "a-0-1", "a", 0);
        let since_ns = snapshot.now_ns;
        while tick(&mut state, &snapshot).actions.is_empty() {
            pass(&mut snapshot, 0.1);
        }
        (snapshot.now_ns - since_ns) as f64 / 1e9
    };
    let usual = idle_s(Policy::default());
    let short = idle_s(Policy { miss_cost: 2.0, wait_cost_per_s: 0.0, ..Policy::default() });
    assert!(usual > 10.0 && usual < 30.0, "{usual}");
    assert!(short > 0.5 && short < 3.0, "{short}");
}

#[test]
fn a_regular_caller_finds_its_model_warm() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    let (mut found_warm, mut held_s) = (0, 0.0);
    let mut said = String::new();
    for second in 0..600 * 30_u64 {
        pass(&mut snapshot, 1.0);
        let (now_ns, calls) = (snapshot.now_ns, second % 600 == 599);
        // Started instances are ready within a second, and drained ones gone.
        snapshot.instances.retain(|_, instance| instance.state != InstanceState::Draining);
        for instance in snapshot.instances.values_mut() {
            instance.state = InstanceState::Ready;
            let ready_at_ns = *instance.ready_at_ns.get_or_insert(now_ns);
            instance.last_used_at_ns = instance.last_used_at_ns.max(ready_at_ns);
            held_s += 1.0;
        }
        if calls {
            found_warm += usize::from(second > 600 * 20 && !snapshot.instances.is_empty());
            demand(&mut snapshot, "a").arrivals_total += 1;
            snapshot.instances.values_mut().for_each(|instance| instance.last_used_at_ns = now_ns);
        }
        demand(&mut snapshot, "a").held = u32::from(calls && snapshot.instances.is_empty());
        let effects = tick(&mut state, &snapshot);
        if !effects.actions.is_empty() && demand(&mut snapshot, "a").held == 0 && snapshot.instances.is_empty() {
            said = told(&effects);
        }
        apply(&mut snapshot, &effects.actions);
    }
    assert_snapshot!(said, @"a 0->1 CallExpected: Silent for 594.0 s, and by its gaps a is called soon after the 800 ms that a start takes: not to wait then is worth 3.30 a second, holding an instance costs 1.05: starting 1 instance.");
    assert!(found_warm >= 8, "{found_warm} of the last 9 calls");
    assert!(held_s < 0.3 * 600.0 * 30.0, "{held_s} s");
}

/// Users who think for 90 s come and come back, one in each second, and then nobody does.
fn idle_after_conversations(told: bool) -> f64 {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    ready(&mut snapshot, "a-0-1", "a", 0);
    for second in 0..300_u64 {
        pass(&mut snapshot, 1.0);
        let at_ns = snapshot.now_ns;
        let turns = [Some(second), second.checked_sub(90)].into_iter().flatten();
        let demand = demand(&mut snapshot, "a");
        for session in turns {
            demand.arrivals_total += 1;
            if told {
                demand.turns_total += 1;
                demand.turns.push(Turn { session, at_ns });
            }
        }
        // What is listed is bounded.
        let over = demand.turns.len().saturating_sub(8);
        demand.turns.drain(..over);
        snapshot.instances.get_mut("a-0-1").expect("running").last_used_at_ns = at_ns;
        tick(&mut state, &snapshot);
    }
    let since_ns = snapshot.now_ns;
    while tick(&mut state, &snapshot).actions.is_empty() {
        pass(&mut snapshot, 0.5);
    }
    (snapshot.now_ns - since_ns) as f64 / 1e9
}

#[test]
fn who_was_answered_lately_is_expected_back() {
    let (without, with) = (idle_after_conversations(false), idle_after_conversations(true));
    assert!(with > without + 5.0 && with < 300.0, "{with} s with conversations, {without} s without");
}

#[test]
fn a_dead_instance_is_replaced() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    ready(&mut snapshot, "a-0-1", "a", 0);
    serve(&mut state, &mut snapshot, "a", "a-0-1", 2, 1);
    snapshot.instances.clear();
    pass(&mut snapshot, 0.1);
    demand(&mut snapshot, "a").held = 1;
    demand(&mut snapshot, "a").in_flight = 0;
    assert_snapshot!(told(&tick(&mut state, &snapshot)), @"a 0->1 ReplaceLost: 1 instance died with 1 request present: starting 1 instance.");
}

#[test]
fn an_idle_model_makes_room_for_one_with_requests() {
    let (mut state, mut snapshot) = (State::default(), node());
    for name in ["a", "b", "c"] {
        register(&mut snapshot, name);
    }
    ready(&mut snapshot, "a-0-1", "a", 0);
    ready(&mut snapshot, "b-0-1", "b", 1);
    demand(&mut snapshot, "b").in_flight = 1;
    snapshot.instances.get_mut("b-0-1").expect("running").running = 1;
    tick(&mut state, &snapshot);
    pass(&mut snapshot, 1.0);
    demand(&mut snapshot, "c").held = 3;
    let effects = tick(&mut state, &snapshot);
    assert_snapshot!(told(&effects), @r"
    a 1->0 Evicted: Draining a-0-1: a has been idle for 1.0 s, and c has 3 requests present, 3 of them held, and 0 instances.
    c 0->1 NoRoom: 3 requests held, 1 instance wanted and no room: making room by draining a-0-1.
    ");
    apply(&mut snapshot, &effects.actions);
    pass(&mut snapshot, 0.1);
    assert_snapshot!(told(&tick(&mut state, &snapshot)), @"");
    snapshot.instances.remove("a-0-1");
    pass(&mut snapshot, 0.1);
    assert_snapshot!(told(&tick(&mut state, &snapshot)), @"c 0->1 HeldAtZero: 3 requests held and nothing serves c (a cold start takes 800 ms, p90 1.2 s, 2 samples): starting 1 instance.");
}

#[test]
fn busy_models_are_not_stopped_and_a_model_that_never_fits_says_so() {
    let (mut state, mut snapshot) = (State::default(), node());
    for name in ["a", "b", "c", "huge"] {
        register(&mut snapshot, name);
    }
    for (core, name) in ["a", "b"].into_iter().enumerate() {
        let id = format!("{name}-0-1");
        ready(&mut snapshot, &id, name, core as u32);
        demand(&mut snapshot, name).in_flight = 2;
        snapshot.instances.get_mut(&id).expect("running").running = 2;
    }
    snapshot.models.get_mut("huge").expect("registered").instance_bytes = 4096 * MIB;
    demand(&mut snapshot, "c").held = 1;
    demand(&mut snapshot, "huge").held = 1;
    let effects = tick(&mut state, &snapshot);
    assert_snapshot!(told(&effects), @r"
    c 0->1 NoRoom: 1 request held, 1 instance wanted and no room: an instance takes 1 cores and 256 MiB; free are 0 cores and 512 MiB, and nothing costs less to stop.
    huge 0->1 NoRoom: 1 request held, 1 instance wanted and no room: an instance takes 1 cores and 4096 MiB, which this node does not have (budget 1024 MiB).
    ");
    assert_eq!(effects.actions, []);
    pass(&mut snapshot, 0.1);
    assert_eq!(told(&tick(&mut state, &snapshot)), "", "what has been said is not said again");
}

#[test]
fn an_old_revision_and_an_unregistered_model_are_drained() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    ready(&mut snapshot, "a-0-1", "a", 0);
    snapshot.instances.get_mut("a-0-1").expect("running").revision = "r0".to_owned();
    ready(&mut snapshot, "gone-0-1", "gone", 1);
    assert_snapshot!(told(&tick(&mut state, &snapshot)), @r"
    a 0->0 Unregistered: Draining a-0-1: its model or revision is no longer registered.
    gone 1->0 Unregistered: Draining gone-0-1: its model or revision is no longer registered.
    ");
    assert_eq!(tick(&mut state, &snapshot).actions, []);
}

#[test]
fn failed_starts_back_off() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    let (mut starts, mut lines) = (0, Vec::new());
    for _ in 0..600 {
        pass(&mut snapshot, 0.1);
        demand(&mut snapshot, "a").held = 1;
        let effects = tick(&mut state, &snapshot);
        starts += effects.actions.len();
        if effects.actions.is_empty() && !effects.decisions.is_empty() {
            lines.push(told(&effects));
        }
        // Each started instance is seen once and is gone at the next look.
        snapshot.instances.clear();
        apply(&mut snapshot, &effects.actions);
    }
    assert!((5..=8).contains(&starts), "{starts} starts in a minute");
    assert_eq!(state.failing().get("a").copied(), Some(starts as u32));
    assert_snapshot!(lines[..2].join("\n"), @r"
    a 0->1 StartFailed: The last start did not become ready, or was never carried out: the next try is in 0.5 s. The instance's log may say why.
    a 0->1 StartFailed: The last 2 starts did not become ready, or was never carried out: the next try is in 1.0 s. The instance's log may say why.
    ");
}

#[test]
fn actions_that_are_never_applied_are_not_counted_on() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    let mut starts = Vec::new();
    for tenth in 0..300 {
        pass(&mut snapshot, 0.1);
        demand(&mut snapshot, "a").held = 1;
        let effects = tick(&mut state, &snapshot);
        starts.extend(effects.actions.iter().map(|_| tenth));
    }
    assert!((3..=6).contains(&starts.len()), "{starts:?}");
}

#[test]
fn a_fresh_state_adopts_a_running_fleet() {
    let mut snapshot = node();
    for name in ["a", "b"] {
        register(&mut snapshot, name);
        demand(&mut snapshot, name).arrivals_total = 1000;
    }
    ready(&mut snapshot, "a-0-1", "a", 0);
    ready(&mut snapshot, "b-0-1", "b", 1);
    let mut state = State::default();
    for _ in 0..20 {
        assert_eq!(tick(&mut state, &snapshot).actions, []);
        pass(&mut snapshot, 0.25);
    }
    snapshot.epoch = 2;
    snapshot.now_ns = 20 * S;
    assert_eq!(tick(&mut state, &snapshot).actions, [], "a new epoch may have a younger clock");
}

#[test]
fn a_saved_state_reads_back_the_same() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    ready(&mut snapshot, "a-0-1", "a", 0);
    serve(&mut state, &mut snapshot, "a", "a-0-1", 3, 2);
    let text = serde_json::to_string(&state).expect("a state is plain data");
    let mut again: State = serde_json::from_str(&text).expect("it reads back");
    pass(&mut snapshot, 1.0);
    let (again, direct) = (tick(&mut again, &snapshot), tick(&mut state, &snapshot));
    assert_eq!((again.actions.clone(), told(&again)), (direct.actions.clone(), told(&direct)));
}

#[test]
fn an_instance_that_never_gets_ready_is_given_up() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    ready(&mut snapshot, "a-0-1", "a", 0);
    let view = snapshot.instances.get_mut("a-0-1").expect("running");
    (view.state, view.ready_at_ns) = (InstanceState::Starting, None);
    assert_eq!(tick(&mut state, &snapshot).actions, []);
    pass(&mut snapshot, 130.0);
    assert_snapshot!(told(&tick(&mut state, &snapshot)), @"a 0->0 StartFailed: Draining a-0-1: it did not become ready within 120 s.");
}

#[test]
fn a_request_that_only_the_kernel_has_seen_for_a_while_warms_a_model() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    tick(&mut state, &snapshot);
    pass(&mut snapshot, 0.1);
    demand(&mut snapshot, "a").unidentified = 1.0;
    assert_eq!(tick(&mut state, &snapshot).actions, [], "it may be a probe that the gateway is about to answer");
    pass(&mut snapshot, 0.001);
    assert_eq!(tick(&mut state, &snapshot).actions, []);
    pass(&mut snapshot, 0.1);
    assert_snapshot!(told(&tick(&mut state, &snapshot)), @"a 0->1 ForecastAboveCapacity: 1.0 requests that the kernel saw have not been named by the gateway, and nothing serves a: starting 1 instance.");
}

#[test]
fn an_older_snapshot_is_not_used() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    let mut older = snapshot.clone();
    demand(&mut older, "a").held = 1;
    pass(&mut snapshot, 1.0);
    tick(&mut state, &snapshot);
    let before = state.clone();
    assert_eq!(tick(&mut state, &older).actions, []);
    assert_eq!(state, before);
}

#[test]
fn counters_that_restart_are_neither_a_flood_nor_a_silence() {
    let (mut state, mut snapshot) = (State::default(), node());
    register(&mut snapshot, "a");
    demand(&mut snapshot, "a").arrivals_total = 1_000_000;
    ready(&mut snapshot, "a-0-1", "a", 0);
    serve(&mut state, &mut snapshot, "a", "a-0-1", 10, 1);
    demand(&mut snapshot, "a").arrivals_total = 0;
    let rates: Vec<f64> = serve(&mut state, &mut snapshot, "a", "a-0-1", 10, 1)
        .iter()
        .flat_map(|effects| &effects.decisions)
        .map(|decision| decision.forecast.requests_per_s_p90)
        .collect();
    assert!(rates.iter().all(|rate| *rate < 3.0), "{rates:?}");
}

#[test]
fn lost_and_doubled_snapshots_do_not_change_what_is_learned() {
    let rate = |every: usize, times: usize| {
        let (mut state, mut snapshot) = (State::default(), node());
        register(&mut snapshot, "a");
        for step in 0..240 {
            pass(&mut snapshot, 0.25);
            demand(&mut snapshot, "a").arrivals_total += u64::from(step % 2 == 0);
            demand(&mut snapshot, "a").held = 1;
            if step % every == 0 {
                (0..times).for_each(|_| drop(tick(&mut state, &snapshot)));
            }
        }
        snapshot.models.get_mut("a").expect("registered").revision = "r2".to_owned();
        ready(&mut snapshot, "a-0-9", "a", 0);
        tick(&mut state, &snapshot).decisions[0].forecast.requests_per_s_p50
    };
    let (all, lost, doubled) = (rate(1, 1), rate(3, 1), rate(1, 2));
    assert_eq!(all, doubled);
    assert!((all - 2.0).abs() < 0.4 && (lost - all).abs() < 0.4, "{all} {lost}");
}
