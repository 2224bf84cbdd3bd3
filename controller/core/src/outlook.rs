//! What a decision tells of its forecast: the quantiles by horizon, whom they come from, and the price of alternatives.

use crate::Policy;
use crate::action::{ExpertView, ForecastView, HorizonView, PriceView};
use crate::need::Need;
use crate::state::ModelState;

/// The view of a decision that wants so many instances.
pub(crate) fn view(need: &Need, model: &ModelState, policy: &Policy, want: u32) -> ForecastView {
    let horizons = model.expected.predictor().readings().into_iter().map(|reading| HorizonView {
        ahead_s: reading.ahead_s,
        requests_per_s_p10: reading.rate(0.1),
        requests_per_s_p50: reading.rate(0.5),
        requests_per_s_p90: reading.rate(0.9),
        requests_per_s_p99: reading.rate(0.99),
    });
    let nearest = model.expected.reading(need.forecast.horizon_s());
    let regret = nearest.as_ref().map(|reading| reading.regret).filter(|regret| regret.is_finite());
    let experts = nearest.into_iter().flat_map(|reading| reading.experts);
    ForecastView {
        horizons: horizons.collect(),
        experts: experts.map(|(name, weight)| ExpertView { name, weight }).collect(),
        coverage_p90: model.expected.coverage(),
        regret,
        prices: (want.saturating_sub(1)..=want.saturating_add(1)).map(|count| price(need, policy, count)).collect(),
        ..need.forecast_view.clone()
    }
}

/// What so many instances cost. A request that they cannot take waits for a cold start; with none of them the next one
/// also finds its model at zero.
fn price(need: &Need, policy: &Policy, instances: u32) -> PriceView {
    let capacity = f64::from(instances) * need.capacity.requests_per_s_per_instance * need.target_utilisation;
    let unserved: f64 = need
        .forecast
        .scenarios
        .iter()
        .map(|path| {
            let rate = path.requests.last().copied().unwrap_or(0.0) / need.forecast.step_s.max(1e-9);
            path.weight * (rate - capacity).max(0.0)
        })
        .sum();
    let waits = unserved * crate::policy::price(policy.wait_cost_per_s) * need.cold_start_s();
    let missed = if instances == 0 { need.forecast.hazard_per_s * need.miss_cost } else { 0.0 };
    PriceView {
        instances,
        miss_cost_per_s: waits + missed,
        holding_cost_per_s: f64::from(instances) * need.holding_cost_per_s,
    }
}
