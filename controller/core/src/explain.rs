//! Decisions in words. A sentence holds the numbers that led to it, so that it can be checked.

use crate::action::Reason;
use crate::need::Need;
use crate::plan::{Plan, PlannedDrain};
use crate::state::ModelState;
use crate::{Nanos, seconds_between};

/// The sentence for one model's decision.
pub(crate) fn sentence(
    name: &str,
    need: &Need,
    model: &ModelState,
    plan: &Plan,
    reason: Reason,
    now_ns: Nanos,
) -> String {
    let seen = &need.seen;
    let drains: Vec<&PlannedDrain> = plan.drains.iter().filter(|drain| drain.model == name).collect();
    match reason {
        Reason::HeldAtZero
        | Reason::ReplaceLost
        | Reason::QueueAboveTarget
        | Reason::CallExpected
        | Reason::ForecastAboveCapacity => {
            let starting = instances(starts(plan, name));
            format!("{}: starting {starting}.", cause_of_start(name, need, model, reason))
        }
        Reason::Idle => {
            format!("{}: idle for {:.1} s, and {}.", stopping(&drains), seen.idle_s, because(&drains))
        }
        Reason::ForecastBelowCapacity => format!(
            "{}: {:.1} requests/s expected (p90) need {} of {}, and {}.",
            stopping(&drains),
            need.forecast_view.requests_per_s_p90,
            instances(need.need.max(1)),
            seen.ready + seen.starting,
            because(&drains),
        ),
        Reason::Evicted | Reason::Unregistered => format!("{}: {}.", stopping(&drains), because(&drains)),
        Reason::NoRoom => format!(
            "{} held, {} wanted and no room: {}.",
            requests(u64::from(seen.held)),
            instances(need.need),
            plan.no_room.get(name).map_or("no cores or memory are free", String::as_str),
        ),
        Reason::StartFailed => failed(model, &drains, now_ns),
        // The moves of weights between tiers say their own.
        Reason::Steady | Reason::Prefetched | Reason::Forgotten => {
            format!("{} for {} present.", instances(seen.ready + seen.starting), requests(need.load))
        }
    }
}

/// What an instance is started for.
fn cause_of_start(name: &str, need: &Need, model: &ModelState, reason: Reason) -> String {
    let seen = &need.seen;
    let capacity = &need.capacity;
    let cold_start = duration(capacity.cold_start_ms_p50);
    match reason {
        Reason::HeldAtZero => format!(
            "{} held and nothing serves {name} (a cold start takes {cold_start}, p90 {}, {})",
            requests(u64::from(seen.held.max(seen.in_flight))),
            duration(capacity.cold_start_ms_p90),
            measured(capacity.cold_start_samples),
        ),
        Reason::ReplaceLost => {
            format!("{} died with {} present", instances(model.lost.max(1)), requests(need.load))
        }
        Reason::CallExpected => format!(
            "Silent for {:.1} s, and by its gaps {name} is called soon after the {cold_start} that a start takes: not to wait then is worth {:.2} a second, holding an instance costs {:.2}",
            seen.idle_s,
            need.forecast.ahead_per_s * need.miss_cost,
            need.holding_cost_per_s,
        ),
        Reason::QueueAboveTarget => format!(
            "{} present ({} held, {} in flight), more than {} can take up within a cold start of {cold_start} at {:.1} requests/s and {:.0} at once each ({})",
            requests(need.load),
            seen.held,
            seen.in_flight,
            instances(seen.ready + seen.starting),
            capacity.requests_per_s_per_instance,
            capacity.concurrency_per_instance,
            measured(capacity.samples),
        ),
        _ if need.need == 1 => format!(
            "{:.1} requests that the kernel saw have not been named by the gateway, and nothing serves {name}",
            seen.unidentified,
        ),
        _ => format!(
            "{:.1} requests/s expected (p90) in {}: with {} at {:.1} requests/s each ({}), {:.0} % of answers would be late",
            need.forecast_view.requests_per_s_p90,
            duration(need.forecast_view.horizon_s * 1e3),
            instances(seen.ready + seen.starting),
            capacity.requests_per_s_per_instance,
            measured(capacity.samples),
            need.late_share.0 * 100.0,
        ),
    }
}

/// Milliseconds below a second, else seconds.
fn duration(ms: f64) -> String {
    if ms < 1e3 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1e3) }
}

/// The sentence for instances of a model that is not registered.
pub(crate) fn unregistered(name: &str, plan: &Plan) -> String {
    let drains: Vec<&PlannedDrain> = plan.drains.iter().filter(|drain| drain.model == name).collect();
    if drains.is_empty() {
        return format!("{name} is not registered and its instance has not begun to drain: asking again.");
    }
    format!("{}: {}.", stopping(&drains), because(&drains))
}

fn failed(model: &ModelState, drains: &[&PlannedDrain], now_ns: Nanos) -> String {
    if !drains.is_empty() {
        return format!("{}: {}.", stopping(drains), because(drains));
    }
    format!(
        "The last {} did not become ready, or was never carried out: the next try is in {:.1} s. The instance's log may say why.",
        if model.failures == 1 { "start".to_owned() } else { format!("{} starts", model.failures) },
        seconds_between(now_ns, model.retry_at_ns),
    )
}

fn because(drains: &[&PlannedDrain]) -> String {
    drains.first().map_or_else(|| "it has not begun to drain".to_owned(), |drain| drain.because.clone())
}

fn stopping(drains: &[&PlannedDrain]) -> String {
    let names: Vec<&str> = drains.iter().map(|drain| drain.instance.as_str()).collect();
    if names.is_empty() { "Asking again".to_owned() } else { format!("Draining {}", names.join(", ")) }
}

fn starts(plan: &Plan, name: &str) -> u32 {
    plan.starts.iter().filter(|start| start.model == name).count() as u32
}

fn requests(count: u64) -> String {
    if count == 1 { "1 request".to_owned() } else { format!("{count} requests") }
}

fn instances(count: u32) -> String {
    if count == 1 { "1 instance".to_owned() } else { format!("{count} instances") }
}

fn measured(samples: u32) -> String {
    match samples {
        0 => "assumed".to_owned(),
        1 => "1 sample".to_owned(),
        n => format!("{n} samples"),
    }
}
