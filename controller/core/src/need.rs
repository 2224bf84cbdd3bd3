//! Phases 1 to 3 of the plan: how many instances each model needs, and how many are worth keeping.

use crate::action::{CapacityView, ForecastView, Seen};
use crate::fleet::{Fleet, Group, Lot};
use crate::forecast::Forecast;
use crate::policy::Policy;
use crate::room::Claim;
use crate::snapshot::{ModelView, Snapshot};
use crate::staffing::{Prices, Risk, Service};
use crate::state::{ModelState, State};
use crate::{Nanos, seconds_between, wake};
use std::collections::BTreeMap;

/// What one model needs, with everything that the reason quotes.
#[derive(Clone, Debug)]
pub(crate) struct Need {
    pub(crate) seen: Seen,
    pub(crate) capacity: CapacityView,
    pub(crate) forecast_view: ForecastView,
    pub(crate) forecast: Forecast,
    /// What one more instance takes.
    pub(crate) claim: Claim,
    /// Share of answers that would be late with the instances that are there, and with the needed ones.
    pub(crate) late_share: (f64, f64),
    /// What one instance does with many requests at once, as far as it is useful to fill it.
    pub(crate) service: Service,
    /// Instances for the requests that are there.
    pub(crate) for_queue: u32,
    /// Those, or the ones that the forecast at the cold-start horizon is worth if that is more.
    pub(crate) need: u32,
    /// Instances worth having: at least the needed ones, and those whose loss would cost more than keeping them.
    pub(crate) keep: u32,
    /// A call is expected about when an instance would be ready, and one is worth holding for it.
    pub(crate) ahead: bool,
    /// Requests present, wherever they are, that no draining instance is finishing.
    pub(crate) load: u64,
    /// Held with nothing serving or about to, since.
    pub(crate) starved_since_ns: Option<Nanos>,
    /// What a second of an idle instance costs, and what losing the last or a further one costs.
    pub(crate) holding_cost_per_s: f64,
    pub(crate) miss_cost: f64,
    pub(crate) restart_cost: f64,
    /// Requests that come together after a silence.
    pub(crate) together: f64,
}

impl Need {
    /// Median cold start, s.
    pub(crate) fn cold_start_s(&self) -> f64 {
        self.capacity.cold_start_ms_p50 / 1e3
    }
}

/// The needs of all models. Also remembers when each count of instances was last needed.
pub(crate) fn needs(state: &mut State, snapshot: &Snapshot, fleet: &Fleet) -> BTreeMap<String, Need> {
    let policy = &state.policy;
    // What is remembered, what is seen and the fleet have the same models in the same order.
    let models = state.models.values_mut().zip(&snapshot.models).zip(fleet.groups.values());
    models.map(|((model, (name, view)), group)| (name.clone(), need_of(model, view, group, snapshot, policy))).collect()
}

fn need_of(model: &mut ModelState, view: &ModelView, group: &Group, snapshot: &Snapshot, policy: &Policy) -> Need {
    let now_ns = snapshot.now_ns;
    let capacity = model.capacity.view(&wake::cold_starts_ms(view, &snapshot.node), &policy.slo);
    let claim = Claim { bytes: view.instance_bytes, weights: Lot::of(view) };
    let load = present(view, group);
    remember_use(model, view, group, load, now_ns);
    let silent_s = model.needed_ns.first().map_or(f64::MAX, |at| seconds_between(*at, now_ns));
    let forecast = model.expected.forecast(&model.arrivals, capacity.cold_start_ms_p90 / 1e3, silent_s, now_ns);
    model.expected.bursts.look_ahead(forecast.horizon_s());
    model.expected.silences.longer_than(capacity.cold_start_ms_p50 / 1e3);
    model.expected.record(forecast.rate_quantile(0.9), forecast.horizon_s(), now_ns);
    let mut service = model.capacity.service(&policy.slo);
    service.concurrency = service.bound(policy.slo.ttft_ms) * policy.usable_share();
    let cold_start_s = capacity.cold_start_ms_p50 / 1e3;
    let holding_cost_per_s = policy.holding_cost_per_s(snapshot.node.cores_per_instance.max(1), claim.all_bytes());
    let risk = Risk { service, forecast: &forecast, load: load as f64 };
    let prices =
        Prices { holding_cost_per_s, late_cost: crate::policy::price(policy.late_cost), most: policy.max_instances };
    let staffing = risk.cheapest(&prices);
    let late_share = (risk.late_share(group.have()), staffing.late_share);
    let for_forecast = for_forecast(model, staffing.instances, now_ns);
    let for_queue = for_queue(load, &capacity, policy);
    let need = for_forecast.max(for_queue).min(policy.max_instances);
    for at in model.needed_ns.iter_mut().take(need as usize) {
        *at = now_ns;
    }
    while model.needed_ns.len() < need as usize {
        model.needed_ns.push(now_ns);
    }
    let miss_cost = policy.miss_cost_of(cold_start_s, holding_cost_per_s, model.expected.silences.together());
    // What is warmed ahead has not been needed yet: for how long nothing was asked of the model goes on counting.
    let ahead = forecast.ahead_per_s * miss_cost > holding_cost_per_s;
    let need = need.max(u32::from(ahead)).min(policy.max_instances);
    let starved = view.demand.held > 0 && group.have() == 0;
    model.starved_since_ns = if starved { model.starved_since_ns.or(Some(now_ns)) } else { None };
    let mut found = Need {
        seen: seen(model, view, group, silent_s),
        forecast_view: ForecastView {
            horizon_s: forecast.horizon_s(),
            requests_per_s_p50: forecast.rate_quantile(0.5),
            requests_per_s_p90: forecast.rate_quantile(0.9),
            scenarios: forecast.scenarios.len() as u32,
            ..ForecastView::default()
        },
        capacity,
        forecast,
        claim,
        late_share,
        service,
        for_queue,
        need,
        keep: need,
        ahead,
        load,
        starved_since_ns: model.starved_since_ns,
        holding_cost_per_s,
        miss_cost,
        restart_cost: policy.restart_cost_of(cold_start_s, holding_cost_per_s),
        together: model.expected.silences.together(),
    };
    keep_alive(&mut found, model, group, now_ns);
    found
}

/// Requests that are there and that no draining instance is finishing. The engines' own counts stand in
/// where they know of more than the gateway (a restarted gateway, a foreign client).
fn present(view: &ModelView, group: &Group) -> u64 {
    let draining: u64 = group.draining.iter().map(|member| member.load).sum();
    let at_ready: u64 = group.ready.iter().map(|member| member.load).sum();
    let in_flight = u64::from(view.demand.in_flight).saturating_sub(draining).max(at_ready);
    u64::from(view.demand.held) + in_flight
}

/// The first instance is in use while requests are there or arriving. Instances that a fresh state finds
/// running count as needed now: it cannot know better, and adopting must not churn.
fn remember_use(model: &mut ModelState, view: &ModelView, group: &Group, load: u64, now_ns: Nanos) {
    while model.needed_ns.len() < group.ready.len() {
        model.needed_ns.push(now_ns);
    }
    let used_ns = group.ready.iter().map(|member| member.last_used_at_ns.min(now_ns)).max();
    let arrived_ns = model.arrivals.last_arrival_ns.map(|at| at.min(now_ns));
    let busy_ns = (load > 0 || view.demand.held > 0).then_some(now_ns);
    let latest = [used_ns, arrived_ns, busy_ns].into_iter().flatten().max();
    if let (Some(first), Some(latest)) = (model.needed_ns.first_mut(), latest) {
        *first = (*first).max(latest);
    }
}

/// Instances that the forecast is worth. The last fraction of a request per second starts nothing: below one
/// instance's worth, the first instance is a matter of keep-alive or of a request that is there. Requests
/// that only the kernel has seen, for a while, count as there: the gateway may be too busy to name them.
fn for_forecast(model: &ModelState, worth: u32, now_ns: Nanos) -> u32 {
    if worth >= 2 { worth } else { u32::from(model.arrivals.waits_unidentified(now_ns)) }
}

/// The fewest instances with which the present requests are all in a batch within the time that queueing is
/// accepted for. A queue that clears before another instance could be ready asks for none.
fn for_queue(load: u64, capacity: &CapacityView, policy: &Policy) -> u32 {
    if load == 0 {
        return 0;
    }
    let accepted_s = policy.queue_target_s.max(0.0).max(capacity.cold_start_ms_p50 / 1e3);
    // load - n * concurrency <= accepted * n * rate, solved for n.
    let per_instance = capacity.concurrency_per_instance + accepted_s * capacity.requests_per_s_per_instance;
    (load as f64 / per_instance.max(1e-3)).ceil().clamp(1.0, f64::from(policy.max_instances.max(1))) as u32
}

/// Phase 3: which instances beyond the needed ones are worth keeping. The `k`-th, last needed `t` seconds
/// ago, is kept while (rate at which it is needed again) x (cost of not having it) exceeds the cost of holding it. For the
/// first that rate is forecast; for a further one it falls as 1/t, so that none is held idle for longer than losing it
/// would cost (ski rental).
fn keep_alive(found: &mut Need, model: &ModelState, group: &Group, now_ns: Nanos) {
    let have = group.have();
    while found.keep < have {
        let slot = found.keep as usize;
        let since_ns = model.needed_ns.get(slot).copied().unwrap_or(now_ns);
        let idle_s = seconds_between(since_ns, now_ns);
        let (again_per_s, loss) = if slot == 0 {
            (found.forecast.hazard_per_s, found.miss_cost)
        } else {
            (1.0 / idle_s.max(1e-3), found.restart_cost)
        };
        if again_per_s * loss <= found.holding_cost_per_s {
            return;
        }
        found.keep += 1;
    }
}

fn seen(model: &ModelState, view: &ModelView, group: &Group, silent_s: f64) -> Seen {
    Seen {
        arrivals_total: view.demand.arrivals_total,
        arrival_rate_per_s: model.arrivals.last_rate_per_s,
        unidentified: if view.demand.unidentified.is_finite() { view.demand.unidentified.max(0.0) } else { 0.0 },
        held: view.demand.held,
        in_flight: view.demand.in_flight,
        ready: group.ready.len() as u32,
        starting: group.starting.len() as u32,
        draining: group.draining.len() as u32,
        idle_s: if silent_s < 1e12 { silent_s } else { 0.0 },
    }
}
