//! Which models' weights lie in host memory while no instance uses them.
//!
//! Weights in memory are worth what they save: the starts expected within the horizon, times the time by which each is
//! sooner than one from disk, priced as waiting is. What is worth least for its size makes room, for instances first,
//! whose room is never taken, and for weights that are worth more by more than reading them costs. That cost is all the
//! damping there is: under a constant forecast every exchange gains, so none is taken back.
//!
//! The disk is shared. One model is read ahead at a time, the one that is worth most for its size, and none while a
//! start reads.

mod asked;
mod calls;

pub(crate) use asked::Asked;

use crate::action::Reason;
use crate::fleet::Fleet;
use crate::need::Need;
use crate::plan::Plan;
use crate::policy::{Policy, TierRule, price};
use crate::snapshot::{ModelName, Revision, Snapshot, WeightsTier};
use crate::state::State;
use crate::{Nanos, wake};
use std::collections::{BTreeMap, BTreeSet};

/// Least time from one start of a model to the next that it is counted on for, s.
const AWAKE_S: f64 = 5.0;

/// How much more a start is worth that a request waits for already.
const WAITING: f64 = 1e3;

/// What is to move between tiers.
#[derive(Clone, Debug, Default)]
pub(crate) struct TierPlan {
    pub(crate) moves: Vec<Move>,
    /// Weights that nobody uses, worth least first.
    pub(crate) least_worth_first: Vec<Revision>,
}

/// One model's weights to another tier.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) model: ModelName,
    pub(crate) revision: Revision,
    pub(crate) reason: Reason,
    pub(crate) why: String,
}

/// Weights, whatever the names of the models that have them.
#[derive(Clone, Debug)]
struct Weights<'a> {
    model: &'a ModelName,
    revision: &'a Revision,
    /// What comes free without them, and what is to be read for them to be whole, bytes.
    freeable_bytes: u64,
    missing_bytes: u64,
    /// An instance uses them, or is about to.
    in_use: bool,
    on_disk: bool,
    value: f64,
    likely: f64,
    saved_s: f64,
    last_used_ns: Nanos,
}

impl Weights<'_> {
    /// What each byte of them is worth, in memory or once there.
    fn density(&self) -> f64 {
        self.value / (self.freeable_bytes.max(self.missing_bytes).max(1)) as f64
    }
}

/// Plans the moves of one tick, given what it starts.
pub(crate) fn plan(
    state: &mut State,
    snapshot: &Snapshot,
    fleet: &Fleet,
    needs: &BTreeMap<ModelName, Need>,
    plan: &Plan,
) -> TierPlan {
    if snapshot.models.values().all(|model| model.weights.is_none()) {
        return TierPlan::default();
    }
    let is_news = state.tiers.see(snapshot, &state.policy);
    let all = weights_of(state, snapshot, fleet, needs, plan);
    let memory = Memory::of(state, snapshot, plan, &all);
    let mut order: Vec<&Weights> = all.iter().filter(|one| memory.holds_idle(one)).collect();
    order.sort_by(|a, b| first_to_go(state.policy.tiers, a, b));
    // Each snapshot is planned from once: what it asked for has changed what there is to weigh.
    let mut moves = if is_news { memory.shrink(&order) } else { Vec::new() };
    if is_news
        && moves.is_empty()
        && state.policy.tiers == TierRule::Planned
        && disk_is_free(state, snapshot, fleet, plan)
    {
        moves = memory.exchange(&all, &order);
    }
    TierPlan { moves, least_worth_first: order.iter().map(|one| one.revision.clone()).collect() }
}

/// The order in which idle weights make room.
fn first_to_go(rule: TierRule, a: &Weights, b: &Weights) -> std::cmp::Ordering {
    let by_rule = match rule {
        TierRule::Planned => a.density().total_cmp(&b.density()),
        TierRule::Lru | TierRule::None => a.last_used_ns.cmp(&b.last_used_ns),
    };
    by_rule.then(a.last_used_ns.cmp(&b.last_used_ns)).then(a.revision.cmp(b.revision))
}

/// All weights, each once, in the order of their revisions.
fn weights_of<'a>(
    state: &State,
    snapshot: &'a Snapshot,
    fleet: &Fleet,
    needs: &BTreeMap<ModelName, Need>,
    plan: &Plan,
) -> Vec<Weights<'a>> {
    let used: BTreeSet<&ModelName> = fleet.everyone().map(|member| &member.model).collect();
    let started: BTreeSet<&ModelName> = plan.starts.iter().map(|start| &start.model).collect();
    let mut all: BTreeMap<&Revision, Weights> = BTreeMap::new();
    for (name, view) in &snapshot.models {
        let (Some(weights), Some(need)) = (&view.weights, needs.get(name)) else { continue };
        let horizon_s = horizon_s(&state.policy);
        // Of what is called now, the start waits for room.
        let waits = need.load > 0;
        let likely = if waits { 1.0 } else { need.forecast.arrival_probability(horizon_s) };
        let starts = starts(likely, state.tiers.calls.per_s(name, horizon_s), need, horizon_s);
        let saved_s = wake::saved_s(weights, &snapshot.node);
        let value = starts * state.policy.saved_cost_of(saved_s, need.together) * if waits { WAITING } else { 1.0 };
        let last_used_ns = state.models.get(name).map_or(0, |model| {
            let needed_ns = model.needed_ns.first().copied();
            needed_ns.max(model.arrivals.last_arrival_ns).unwrap_or(0)
        });
        let in_use = weights.mapped || used.contains(name) || started.contains(name);
        let one = all.entry(&view.revision).or_insert(Weights {
            model: name,
            revision: &view.revision,
            freeable_bytes: weights.freeable_bytes,
            missing_bytes: weights.bytes.saturating_sub(weights.memory_bytes),
            in_use: false,
            on_disk: weights.tier == WeightsTier::Disk,
            value: 0.0,
            likely: 0.0,
            saved_s,
            last_used_ns: 0,
        });
        one.in_use |= in_use;
        one.value += if value.is_finite() { value } else { 0.0 };
        one.likely = 1.0 - (1.0 - one.likely) * (1.0 - likely);
        one.last_used_ns = one.last_used_ns.max(last_used_ns);
    }
    all.into_values().collect()
}

/// Starts expected within the horizon: the next one, which the forecast knows, and after it as many as there are calls in
/// the long run. What is called again within seconds hardly ever sleeps, so they are fewer than calls.
fn starts(likely: f64, calls_per_s: f64, need: &Need, horizon_s: f64) -> f64 {
    let times_per_s = calls_per_s / need.together.max(1.0);
    likely * (1.0 + horizon_s * times_per_s / (1.0 + times_per_s * AWAKE_S))
}

fn horizon_s(policy: &Policy) -> f64 {
    if policy.tier_horizon_s.is_finite() { policy.tier_horizon_s.clamp(1.0, 86_400.0) } else { 60.0 }
}

/// No start reads from it, and nothing is being read ahead.
fn disk_is_free(state: &State, snapshot: &Snapshot, fleet: &Fleet, plan: &Plan) -> bool {
    let reads = |name: &ModelName| {
        let view = snapshot.models.get(name).and_then(|view| view.weights.as_ref());
        view.is_none_or(|weights| weights.tier != WeightsTier::Memory)
    };
    let starting = fleet.groups.iter().filter(|(_, group)| !group.starting.is_empty()).map(|(name, _)| name);
    let mut starts = starting.chain(plan.starts.iter().map(|start| &start.model));
    snapshot.node.weights.bringing.is_none() && !state.tiers.is_moving() && !starts.any(reads)
}

/// Host memory as it will be once everything asked for has happened.
struct Memory<'a> {
    policy: &'a Policy,
    asked: &'a Asked,
    snapshot: &'a Snapshot,
    /// Room for weights that nobody uses, and what they take of it, bytes.
    room_bytes: u64,
    idle_bytes: u64,
}

impl<'a> Memory<'a> {
    fn of(state: &'a State, snapshot: &'a Snapshot, plan: &Plan, all: &[Weights]) -> Self {
        let node = &snapshot.node.weights;
        let counted = |one: &&Weights| one.in_use || state.tiers.leaves(one.revision);
        let gone: u64 = all.iter().filter(counted).fold(0, |sum, one| sum.saturating_add(one.freeable_bytes));
        let coming = |one: &&Weights| {
            let is_asked = node.bringing.as_ref() == Some(one.revision) || state.tiers.brings(one.revision);
            is_asked && !one.in_use && !state.tiers.leaves(one.revision)
        };
        let coming = all.iter().filter(coming).fold(0u64, |sum, one| sum.saturating_add(one.missing_bytes));
        Self {
            policy: &state.policy,
            asked: &state.tiers,
            snapshot,
            room_bytes: match state.policy.tiers {
                TierRule::None => 0,
                _ => node.idle_bytes_max.min(plan.free_bytes),
            },
            idle_bytes: node.idle_bytes.saturating_sub(gone).saturating_add(coming),
        }
    }

    /// Whether they lie there, or are coming, and may go.
    fn holds_idle(&self, one: &Weights) -> bool {
        let coming = self.snapshot.node.weights.bringing.as_ref() == Some(one.revision);
        (one.freeable_bytes > 0 || coming) && !one.in_use && !self.asked.leaves(one.revision)
    }

    /// What one frees by going.
    fn frees_bytes(&self, one: &Weights) -> u64 {
        let coming = self.snapshot.node.weights.bringing.as_ref() == Some(one.revision);
        one.freeable_bytes.saturating_add(if coming { one.missing_bytes } else { 0 })
    }

    /// Moves out what is beyond the room.
    fn shrink(&self, order: &[&Weights]) -> Vec<Move> {
        let mut excess = self.idle_bytes.saturating_sub(self.room_bytes);
        let mut moves = Vec::new();
        for one in order {
            if excess == 0 {
                break;
            }
            // A move that was asked for and did not happen is tried again later.
            if self.asked.may_forget(one.revision, self.snapshot.now_ns) {
                excess = excess.saturating_sub(self.frees_bytes(one));
                moves.push(self.out(one, &format!(
                    "weights that nobody uses take {} of the {} MiB left to them, and these are worth least there for their size",
                    self.idle_bytes >> 20,
                    self.room_bytes >> 20,
                )));
            }
        }
        moves
    }

    fn out(&self, one: &Weights, why: &str) -> Move {
        let (likely, freed_mib) = (one.likely * 100.0, self.frees_bytes(one) >> 20);
        let why = format!(
            "Leaving memory, {freed_mib} MiB: {why}. A start within {:.0} s is expected with {likely:.0} %, and takes {:.0} ms more from disk.",
            horizon_s(self.policy),
            one.saved_s * 1e3,
        );
        Move { model: one.model.clone(), revision: one.revision.clone(), reason: Reason::Forgotten, why }
    }

    /// Reads ahead the weights that are worth most for their size, where that gains more than it costs.
    fn exchange(&self, all: &[Weights], order: &[&Weights]) -> Vec<Move> {
        let now_ns = self.snapshot.now_ns;
        let is_wanted = |one: &&Weights| {
            let fits = one.missing_bytes <= self.room_bytes && one.missing_bytes > 0;
            let may = self.asked.may_bring(one.revision, now_ns) && !self.asked.leaves(one.revision);
            one.on_disk && fits && !one.in_use && may && one.value > self.cost(one)
        };
        let mut wanted: Vec<&Weights> = all.iter().filter(is_wanted).collect();
        wanted.sort_by(|a, b| b.density().total_cmp(&a.density()).then(a.revision.cmp(b.revision)));
        wanted.into_iter().find_map(|one| self.bring(one, order)).unwrap_or_default()
    }

    /// What reading them costs: the disk, and a core that verifies.
    fn cost(&self, one: &Weights) -> f64 {
        price(self.policy.idle_cost_per_s) * wake::read_s(one.missing_bytes, &self.snapshot.node)
    }

    /// The moves that bring one in; none where they do not pay.
    fn bring(&self, one: &Weights, order: &[&Weights]) -> Option<Vec<Move>> {
        let mut short = self.idle_bytes.saturating_add(one.missing_bytes).saturating_sub(self.room_bytes);
        let (mut gain, mut moves, mut names) = (one.value - self.cost(one), Vec::new(), Vec::new());
        for other in order.iter().filter(|other| other.revision != one.revision) {
            if short == 0 {
                break;
            }
            if !self.asked.may_forget(other.revision, self.snapshot.now_ns) {
                continue;
            }
            gain -= other.value;
            short = short.saturating_sub(self.frees_bytes(other));
            moves.push(self.out(other, &format!("the weights of {} are worth more there", one.model)));
            names.push(other.model.as_str());
        }
        if short > 0 || gain <= 0.0 {
            return None;
        }
        let place = if names.is_empty() { String::new() } else { format!(" in the place of {}", names.join(", ")) };
        let why = format!(
            "Reading {} MiB into memory{place}: a start within {:.0} s is expected with {:.0} %, and takes {:.0} ms more from disk.",
            one.missing_bytes >> 20,
            horizon_s(self.policy),
            one.likely * 100.0,
            one.saved_s * 1e3,
        );
        let (model, revision) = (one.model.clone(), one.revision.clone());
        moves.push(Move { model, revision, reason: Reason::Prefetched, why });
        Some(moves)
    }
}
