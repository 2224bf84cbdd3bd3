//! What goes wrong, and how often. Faults stop when the load does, so that a run can be judged by its end.

/// Rates and chances of faults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Mean time between deaths of a ready instance, s; 0 for never.
    pub mean_time_to_death_s: f64,
    /// Chance that a start dies before it is ready.
    pub start_fails: f64,
    /// Chance that a tick sees nothing because its snapshot was lost.
    pub snapshot_lost: f64,
    /// Chance that a snapshot reaches the tick twice.
    pub snapshot_doubled: f64,
    /// Chance that an action never reaches the actuator.
    pub action_lost: f64,
    /// Mean time between restarts of the controller, s; 0 for never. A new controller has an empty state, a
    /// higher epoch, and counters that start from 0.
    pub mean_time_to_restart_s: f64,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self::default()
    }

    /// Everything goes wrong, much more often than on a real node.
    pub fn harsh() -> Self {
        Self {
            mean_time_to_death_s: 40.0,
            start_fails: 0.1,
            snapshot_lost: 0.1,
            snapshot_doubled: 0.1,
            action_lost: 0.05,
            mean_time_to_restart_s: 50.0,
        }
    }
}
