//! What goes wrong in a fleet, how often and for how long.

use crate::ns;
use crate::random::Random;
use serde::Serialize;

/// How often something goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultPlan {
    /// Least and most time between two faults, s; (0, 0) for no faults.
    pub every_s: (f64, f64),
    /// Chance that a start dies before it is ready.
    pub start_fails: f64,
    /// Chance that an action never reaches its node.
    pub action_lost: f64,
    /// Chance that a policy is asked twice about the same moment.
    pub asked_twice: f64,
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// A device is gone for a while, with what ran on it.
    DeviceLost,
    /// So is a whole node.
    NodeLost,
    /// A process dies.
    InstanceDied,
    /// A node's disk has a tenth of its speed for a while.
    SlowDisk,
    /// The controller sees nothing for a while.
    SignalsLost,
    /// The controller's process is replaced.
    ControllerRestarted,
    /// The controller's clock leaps forward.
    ClockJumped,
}

/// All of them.
const KINDS: [Fault; 7] = [
    Fault::DeviceLost,
    Fault::NodeLost,
    Fault::InstanceDied,
    Fault::SlowDisk,
    Fault::SignalsLost,
    Fault::ControllerRestarted,
    Fault::ClockJumped,
];

impl FaultPlan {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self::default()
    }

    /// Something goes wrong at least once a minute, and one start in twenty fails.
    pub fn harsh() -> Self {
        Self { every_s: (15.0, 60.0), start_fails: 0.05, action_lost: 0.02, asked_twice: 0.05 }
    }

    /// The wait for the next fault, ns; none where there are none.
    pub(super) fn wait_ns(&self, random: &mut Random) -> Option<u64> {
        let (least_s, most_s) = self.every_s;
        (most_s > 0.0).then(|| ns(least_s + (most_s - least_s) * random.unit()).max(1))
    }
}

impl Fault {
    /// One of them.
    pub(super) fn drawn(random: &mut Random) -> Self {
        KINDS[random.between(0, KINDS.len() as u64 - 1) as usize]
    }

    /// How long it lasts, ns.
    pub(super) fn lasts_ns(self, random: &mut Random) -> u64 {
        let (least_s, most_s) = match self {
            Self::DeviceLost | Self::NodeLost => (60.0, 300.0),
            Self::SlowDisk => (30.0, 120.0),
            Self::SignalsLost => (2.0, 20.0),
            Self::ClockJumped => (1.0, 90.0),
            Self::InstanceDied | Self::ControllerRestarted => (0.0, 0.0),
        };
        ns(least_s + (most_s - least_s) * random.unit())
    }
}
