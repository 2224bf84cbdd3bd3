//! What a decision tells of its forecast: the quantiles by horizon, whom they come from, and the price of alternatives.

use crate::Policy;
use crate::action::{ExpertView, ForecastView, HorizonView, PriceView};
use crate::need::Need;
use crate::staffing::Risk;
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

/// What so many instances cost, by the very risk that decided. With none of them the next request finds its model at zero.
fn price(need: &Need, policy: &Policy, instances: u32) -> PriceView {
    let risk = Risk { service: need.service, forecast: &need.forecast, load: need.load as f64 };
    let missed = match instances {
        0 => need.forecast.hazard_per_s * need.miss_cost,
        _ => risk.late_per_s(instances) * crate::policy::price(policy.late_cost),
    };
    PriceView { instances, miss_cost_per_s: missed, holding_cost_per_s: f64::from(instances) * need.holding_cost_per_s }
}
