//! What decides in a fleet: the controller's own tick, and the policies that it is compared with, each faithful to the
//! defaults of what it is named after. They see the same [`View`], start on the same devices and pay the same cold starts.
//!
//! Each has two knobs, so that all can be tuned alike: how full an instance is to be, and how long one is kept.

mod dynamo;
mod foreshock;
mod hpa;
mod hybrid;
mod keda;
mod knative;
mod oracle;
mod ray;
mod serverless;
mod static_peak;
mod window;

pub use foreshock::{Planner, Ticker};

use crate::fleet::{Config, Policy, View, Work};
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// A policy by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Ours: the very `tick` that runs live.
    Foreshock,
    StaticPeak,
    Knative,
    Hpa,
    Keda,
    RayServe,
    HybridHistogram,
    ServerlessLlm,
    Dynamo,
    Oracle,
}

/// All of them, ours first.
pub const KINDS: [Kind; 10] = [
    Kind::Foreshock,
    Kind::StaticPeak,
    Kind::Knative,
    Kind::Hpa,
    Kind::Keda,
    Kind::RayServe,
    Kind::HybridHistogram,
    Kind::ServerlessLlm,
    Kind::Dynamo,
    Kind::Oracle,
];

/// What can be turned; none for the default of the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Knobs {
    /// How full an instance is to be: requests at it as a share of its batch.
    pub fill: Option<f64>,
    /// Times the default that an instance is kept without need.
    pub keep: Option<f64>,
}

/// The trials that every policy gets, the defaults among them.
pub fn trials() -> Vec<Knobs> {
    let mut trials = vec![Knobs::default()];
    for fill in [0.15, 0.35, 0.6, 0.9] {
        for keep in [0.3, 1.0, 4.0] {
            trials.push(Knobs { fill: Some(fill), keep: Some(keep) });
        }
    }
    trials
}

impl Kind {
    /// A policy with these knobs for a fleet. Only the oracle and the static peak look at the work beforehand.
    pub fn build(self, knobs: Knobs, config: &Config, work: Work<'_>) -> Box<dyn Policy> {
        let models = work.models.len();
        match self {
            Self::Foreshock => Box::new(foreshock::Ticker::new(knobs, config)),
            Self::StaticPeak => Box::new(static_peak::StaticPeak::new(knobs, config, work)),
            Self::Knative => Box::new(knative::Knative::new(knobs, models)),
            Self::Hpa => Box::new(hpa::Hpa::new(knobs, models)),
            Self::Keda => Box::new(keda::Keda::new(knobs, models)),
            Self::RayServe => Box::new(ray::RayServe::new(knobs, models)),
            Self::HybridHistogram => Box::new(hybrid::HybridHistogram::new(knobs, models)),
            Self::ServerlessLlm => Box::new(serverless::ServerlessLlm::new(knobs, models)),
            Self::Dynamo => Box::new(dynamo::Dynamo::new(knobs, config, models)),
            Self::Oracle => Box::new(oracle::Oracle::new(knobs, config, work)),
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Foreshock => "foreshock",
            Self::StaticPeak => "static-peak",
            Self::Knative => "knative",
            Self::Hpa => "hpa",
            Self::Keda => "keda",
            Self::RayServe => "ray-serve",
            Self::HybridHistogram => "hybrid-histogram",
            Self::ServerlessLlm => "serverless-llm",
            Self::Dynamo => "dynamo",
            Self::Oracle => "oracle",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        KINDS.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<&str> = KINDS.iter().map(|kind| kind.name()).collect();
            format!("no policy `{name}`; there are {}", names.join(", "))
        })
    }
}

/// Requests at one instance that are aimed at: a share of its batch, or the policy's own number where none is set.
fn target(knobs: Knobs, view: &View<'_>, default: f64) -> f64 {
    knobs.fill.map_or(default, |fill| fill * f64::from(view.max_batch)).max(0.05)
}

/// A duration as the knob stretches it, ns.
fn kept_ns(knobs: Knobs, default_s: f64) -> u64 {
    crate::ns(default_s * knobs.keep.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{ModelSight, Wanted};
    use std::collections::BTreeMap;

    /// What a policy decides at a time about models of which it sees this, in instances of a batch of 16.
    pub(super) fn decided(policy: &mut dyn Policy, at_s: u64, models: &[ModelSight]) -> Vec<u32> {
        let names: Vec<String> = (0..models.len()).map(|at| format!("m{at}")).collect();
        let nothing = BTreeMap::new();
        let view = View::of(at_s * crate::NS_PER_S, models, &names, &nothing);
        match policy.tick(&view).wanted {
            Wanted::Counts(counts) => counts.into_iter().map(|(_, count)| count).collect(),
            Wanted::Actions(actions) => panic!("{actions:?}"),
        }
    }

    #[test]
    fn names_are_read_back() {
        assert!(KINDS.iter().all(|kind| kind.name().parse() == Ok(*kind)));
        assert_eq!(trials().len(), 13);
        assert!("none".parse::<Kind>().is_err());
    }
}
