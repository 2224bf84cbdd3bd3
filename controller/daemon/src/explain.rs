//! Decisions in words, for `foreshock explain`.

use crate::measure::reason_label;
use controller_core::action::{ActionKind, Decision, ForecastView};
use std::borrow::Borrow;
use std::fmt::Write;

/// Decisions as text, in the order given: what was seen, what was forecast, what an instance can do, what
/// was decided and why. Times are relative to the newest, since the clock counts from boot.
pub fn render_explain<D: Borrow<Decision>>(decisions: &[D]) -> String {
    let newest_ns = decisions.iter().map(|decision| decision.borrow().at_ns).max().unwrap_or(0);
    let mut text = String::new();
    for decision in decisions {
        // Writing to a String cannot fail.
        let _ = render_one(&mut text, decision.borrow(), newest_ns);
    }
    if text.is_empty() {
        text.push_str("No decision has been kept. Decisions are made while `foreshock serve` runs.\n");
    }
    text
}

fn render_one(text: &mut String, decision: &Decision, newest_ns: u64) -> std::fmt::Result {
    let age_s = newest_ns.saturating_sub(decision.at_ns) as f64 / 1e9;
    let when = if age_s < 0.0005 { "newest".to_owned() } else { format!("{age_s:.3} s before the newest") };
    let reason = reason_label(decision);
    writeln!(text, "{}  {} -> {} instances  [{reason}]  {when}", decision.model, decision.have, decision.want)?;
    writeln!(text, "  why       {}", decision.why)?;
    let seen = &decision.seen;
    writeln!(
        text,
        "  seen      {} arrivals in all, {:.2}/s; {:.1} not named yet; {} held, {} in flight; {} ready, {} starting, {} draining; idle {:.1} s",
        seen.arrivals_total,
        seen.arrival_rate_per_s,
        seen.unidentified,
        seen.held,
        seen.in_flight,
        seen.ready,
        seen.starting,
        seen.draining,
        seen.idle_s
    )?;
    let forecast = &decision.forecast;
    writeln!(
        text,
        "  forecast  in {:.2} s: {:.2}/s (median), {:.2}/s (90%), from {} scenarios",
        forecast.horizon_s, forecast.requests_per_s_p50, forecast.requests_per_s_p90, forecast.scenarios
    )?;
    render_learned(text, forecast)?;
    let capacity = &decision.capacity;
    let basis =
        if capacity.samples == 0 { "assumed".to_owned() } else { format!("measured, {} samples", capacity.samples) };
    writeln!(
        text,
        "  capacity  {:.2}/s and {:.1} at once per instance; cold start {:.0} ms (median), {:.0} ms (90%); {basis}",
        capacity.requests_per_s_per_instance,
        capacity.concurrency_per_instance,
        capacity.cold_start_ms_p50,
        capacity.cold_start_ms_p90
    )?;
    for action in &decision.actions {
        match &action.kind {
            ActionKind::Start { instance, placement, .. } => {
                writeln!(text, "  action    start {instance} on cores {:?}", placement.cores())?;
            }
            ActionKind::Prefetch { revision, .. } => {
                writeln!(text, "  action    read the weights of {revision} into memory")?;
            }
            ActionKind::Forget { revision, .. } => {
                writeln!(text, "  action    leave the weights of {revision} on disk alone")?;
            }
            ActionKind::Drain { instance, deadline_ms } => {
                writeln!(text, "  action    drain {instance} within {deadline_ms} ms")?;
            }
        }
    }
    Ok(())
}

/// What has been learned of the model, whom it comes from, and what alternatives would cost. Decisions of earlier
/// versions say nothing of it.
fn render_learned(text: &mut String, forecast: &ForecastView) -> std::fmt::Result {
    for one in &forecast.horizons {
        writeln!(
            text,
            "  learned   in {:.0} s: {:.2}/s (10%), {:.2}/s (median), {:.2}/s (90%), {:.2}/s (99%)",
            one.ahead_s, one.requests_per_s_p10, one.requests_per_s_p50, one.requests_per_s_p90, one.requests_per_s_p99
        )?;
    }
    for expert in &forecast.experts {
        writeln!(text, "  expert    {:.0} %: {}", expert.weight * 100.0, expert.name)?;
    }
    if let Some(coverage) = forecast.coverage_p90 {
        let regret = forecast.regret.map(|regret| format!("; loss {:+.1} % beside the best expert's", regret * 100.0));
        let regret = regret.unwrap_or_default();
        writeln!(text, "  record    {:.0} % of outcomes at or below the 90% quantile{regret}", coverage * 100.0)?;
    }
    for price in &forecast.prices {
        writeln!(
            text,
            "  price     {} instances: {:.2} a second, {:.2} of it held and {:.2} missed",
            price.instances,
            price.holding_cost_per_s + price.miss_cost_per_s,
            price.holding_cost_per_s,
            price.miss_cost_per_s
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use controller_core::action::{CapacityView, ExpertView, HorizonView, PriceView, Reason, Seen};

    #[test]
    fn a_decision_reads_as_text() {
        let decision = Decision {
            at_ns: 5,
            epoch: 1,
            model: "m".to_owned(),
            seen: Seen { arrivals_total: 1, held: 1, ..Seen::default() },
            forecast: ForecastView {
                horizons: vec![HorizonView { ahead_s: 10.0, requests_per_s_p90: 2.5, ..HorizonView::default() }],
                experts: vec![ExpertView { name: "regression".to_owned(), weight: 0.4 }],
                coverage_p90: Some(0.91),
                regret: Some(-0.02),
                prices: vec![PriceView { instances: 1, miss_cost_per_s: 0.5, holding_cost_per_s: 1.0 }],
                ..ForecastView::default()
            },
            capacity: CapacityView::default(),
            have: 0,
            want: 1,
            reason: Reason::HeldAtZero,
            why: "1 request is held and nothing serves m".to_owned(),
            actions: vec![],
        };
        insta::assert_snapshot!(render_explain(&[decision]), @r"
        m  0 -> 1 instances  [held_at_zero]  newest
          why       1 request is held and nothing serves m
          seen      1 arrivals in all, 0.00/s; 0.0 not named yet; 1 held, 0 in flight; 0 ready, 0 starting, 0 draining; idle 0.0 s
          forecast  in 0.00 s: 0.00/s (median), 0.00/s (90%), from 0 scenarios
          learned   in 10 s: 0.00/s (10%), 0.00/s (median), 2.50/s (90%), 0.00/s (99%)
          expert    40 %: regression
          record    91 % of outcomes at or below the 90% quantile; loss -2.0 % beside the best expert's
          price     1 instances: 1.50 a second, 1.00 of it held and 0.50 missed
          capacity  0.00/s and 0.0 at once per instance; cold start 0 ms (median), 0 ms (90%); assumed
        ");
        assert!(render_explain::<Decision>(&[]).starts_with("No decision"));
    }
}
