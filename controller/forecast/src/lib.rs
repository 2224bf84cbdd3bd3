//! What arrives next, as distributions that mean what they say.
//!
//! Points are cheap and nearly as good as each other; what differs between forecasters is the spread. So every expert
//! here is a distribution, experts are weighed by the pinball loss of their quantiles, and the result is corrected
//! until the stated share of outcomes lies below it. Pure: no clock, randomness or I/O, the same numbers give the
//! same forecast on every machine. State is plain data that can be stored.

mod blend;
mod calendar;
mod experts;
mod filling;
mod format;
mod gaps;
mod horizon;
mod hours;
mod idle;
mod level;
mod mixture;
mod points;
mod predictor;
mod reading;
mod regression;
mod residuals;
mod scenario;
mod seasons;
mod sessions;
mod shift;
mod signals;
mod spread;

pub use blend::pinball;
pub use idle::IdleTimes;
pub use level::Level;
pub use predictor::{Arrived, Predictor, Refit};
pub use reading::Reading;
pub use scenario::{Forecast, Scenario};
pub use sessions::Sessions;
pub use signals::Signals;

/// The quantiles that are stated, in rising order.
pub const QUANTILES: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99];
/// No count of one bin is believed above this; it keeps arithmetic finite whatever a counter says.
const MOST: f64 = 1e9;

/// A count that is safe to reckon with: finite and not negative.
fn sound(count: f64) -> f64 {
    if count.is_finite() { count.clamp(0.0, MOST) } else { 0.0 }
}
