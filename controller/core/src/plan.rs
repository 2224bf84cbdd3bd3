//! Phases 4 and 5 of the plan: what the node has room for, and who makes room for whom.
//!
//! Phase 4a starts what is wanted, most urgent first: requests held with nothing to serve them, then queues,
//! then the forecast; every model gets its first instance before any gets its second. Phase 4b finds room
//! for a model that has requests and nothing at all, by draining what costs least to lose. Phase 5 drains
//! what is not worth keeping; damping is in the costs (see `need`), so there is no timer here.

use crate::action::Reason;
use crate::fleet::{Fleet, Lot, Member};
use crate::need::Need;
use crate::policy::{Policy, TierRule, price};
use crate::room::Room;
use crate::snapshot::{InstanceId, ModelName, Placement, Snapshot};
use crate::state::State;
use crate::{Nanos, seconds_between};
use std::collections::{BTreeMap, BTreeSet};

/// What is to change, and what could not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) starts: Vec<PlannedStart>,
    pub(crate) drains: Vec<PlannedDrain>,
    /// Models that want an instance and get none, with what stands in the way.
    pub(crate) no_room: BTreeMap<ModelName, String>,
    /// Models whose next start waits for a back-off to pass.
    pub(crate) backing_off: BTreeSet<ModelName>,
    /// Memory that instances leave, the started ones counted and the drained ones too, bytes.
    pub(crate) free_bytes: u64,
}

/// An instance to start.
#[derive(Clone, Debug)]
pub(crate) struct PlannedStart {
    pub(crate) model: ModelName,
    pub(crate) placement: Placement,
    pub(crate) reason: Reason,
}

/// An instance to drain.
#[derive(Clone, Debug)]
pub(crate) struct PlannedDrain {
    pub(crate) instance: InstanceId,
    pub(crate) model: ModelName,
    pub(crate) reason: Reason,
    /// The part of the reason that only the planner knows.
    pub(crate) because: String,
}

/// One more instance that a model wants.
#[derive(Clone, Debug)]
struct Wish {
    /// Smaller is more urgent: rank, which instance of the model it is, since when it waits, the name.
    order: (u8, u32, Nanos, ModelName),
    reason: Reason,
}

/// Solves one tick.
pub(crate) fn solve(state: &State, snapshot: &Snapshot, fleet: &Fleet, needs: &BTreeMap<ModelName, Need>) -> Plan {
    let mut plan = Plan::default();
    let mut planner = Planner { state, snapshot, fleet, needs, going: BTreeSet::new() };
    let mut room = Room::of(&snapshot.node, fleet);
    planner.drain_strays(&mut plan);
    planner.drain_surplus(&mut plan);
    let wishes = planner.wishes(&mut plan);
    let unmet = planner.start_wishes(&mut plan, &mut room, wishes);
    planner.make_room(&mut plan, &room, &unmet);
    // What is drained for a model with nothing may be more than it needs: then others need not leave it what is free.
    let unmet = planner.start_wishes(&mut plan, &mut room, unmet);
    plan.no_room.retain(|name, _| unmet.iter().any(|wish| wish.order.3 == *name));
    check(&plan, snapshot, fleet, needs);
    plan.free_bytes = room.free_bytes();
    plan
}

struct Planner<'a> {
    state: &'a State,
    snapshot: &'a Snapshot,
    fleet: &'a Fleet,
    needs: &'a BTreeMap<ModelName, Need>,
    /// Instances that this plan drains.
    going: BTreeSet<InstanceId>,
}

impl<'a> Planner<'a> {
    fn policy(&self) -> &Policy {
        &self.state.policy
    }

    fn drain(&mut self, plan: &mut Plan, member: &Member, reason: Reason, because: String) {
        if self.going.insert(member.id.clone()) {
            let (instance, model) = (member.id.clone(), member.model.clone());
            plan.drains.push(PlannedDrain { instance, model, reason, because });
        }
    }

    fn drain_strays(&mut self, plan: &mut Plan) {
        let fleet = self.fleet;
        for member in &fleet.strays {
            self.drain(plan, member, Reason::Unregistered, "its model or revision is no longer registered".to_owned());
        }
        for member in &fleet.stuck {
            let because = format!("it did not become ready within {} s", self.policy().start_timeout_ms / 1000);
            self.drain(plan, member, Reason::StartFailed, because);
        }
    }

    /// Phase 5. Of a model with more instances than are worth keeping, those go that are idle, then those
    /// with the fewest requests, and among equals the one ready last: the oldest has the warmest caches.
    fn drain_surplus(&mut self, plan: &mut Plan) {
        let fleet = self.fleet;
        for (name, need) in self.needs {
            let Some(group) = fleet.groups.get(name) else { continue };
            let surplus = group.have().saturating_sub(need.keep) as usize;
            if need.seen.held > 0 || surplus == 0 {
                continue;
            }
            for (at, member) in cheapest_first(&group.ready).into_iter().take(surplus).enumerate() {
                let last = group.have() as usize - at == 1;
                if last && member.load > 0 {
                    continue;
                }
                let reason = if last { Reason::Idle } else { Reason::ForecastBelowCapacity };
                let loss = if last { need.miss_cost } else { need.restart_cost };
                let because = format!(
                    "holding it costs {:.2} a second, losing it {:.1} if it is needed again",
                    need.holding_cost_per_s, loss
                );
                self.drain(plan, member, reason, because);
            }
        }
    }

    /// Phase 4a. Returns the wishes that found no room, most urgent first.
    fn start_wishes(&self, plan: &mut Plan, room: &mut Room, wishes: Vec<Wish>) -> Vec<Wish> {
        let mut unmet: Vec<Wish> = Vec::new();
        if wishes.is_empty() {
            return unmet;
        }
        // What will be free once those that leave have left, less what is given out and what models with nothing wait
        // for: an instance that was drained for one of those is not started again in the room that it leaves.
        let mut coming = room.without(&self.leaving(), self.fleet);
        for wish in wishes {
            let name = &wish.order.3;
            let Some(need) = self.needs.get(name) else { continue };
            // Room that is being made for a model with nothing is not taken by a wish that is less urgent.
            let promised = wish.order.0 > 0 && unmet.iter().any(|other| self.waits_for_room(other, room));
            let spare = !promised && coming.fits(&need.claim);
            let placement = if spare { room.take(&need.claim) } else { None };
            if placement.is_some() || wish.order.0 == 0 {
                let _reserved = coming.take(&need.claim);
            }
            match placement {
                Some(placement) => {
                    plan.starts.push(PlannedStart { model: name.clone(), placement, reason: wish.reason });
                }
                None => unmet.push(wish),
            }
        }
        unmet
    }

    /// Whether a wish is one for a first instance that other models may have to leave room for.
    fn waits_for_room(&self, wish: &Wish, room: &Room) -> bool {
        wish.order.0 == 0 && self.needs.get(&wish.order.3).is_none_or(|need| room.could_ever_fit(&need.claim))
    }

    /// Every instance that is needed and not there, one wish each, most urgent first.
    fn wishes(&self, plan: &mut Plan) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for (name, need) in self.needs {
            let have = self.fleet.groups.get(name).map_or(0, |group| group.have());
            if have >= need.need {
                continue;
            }
            let model = self.state.models.get(name);
            if model.is_some_and(|model| self.snapshot.now_ns < model.retry_at_ns) {
                plan.backing_off.insert(name.clone());
                continue;
            }
            let lost = model.map_or(0, |model| model.lost);
            for nth in have..need.need {
                let at_zero = nth == 0 && need.load > 0;
                let rank = if at_zero { 0 } else { 1 + u8::from(nth >= need.for_queue) };
                let reason = match rank {
                    _ if nth - have < lost => Reason::ReplaceLost,
                    0 => Reason::HeldAtZero,
                    _ if nth == 0 && need.ahead => Reason::CallExpected,
                    1 => Reason::QueueAboveTarget,
                    _ => Reason::ForecastAboveCapacity,
                };
                let since_ns = need.starved_since_ns.unwrap_or(self.snapshot.now_ns);
                wishes.push(Wish { order: (rank, nth, since_ns, name.clone()), reason });
            }
        }
        wishes.sort_by(|a, b| a.order.cmp(&b.order));
        wishes
    }

    /// Phase 4b. The most urgent unmet wishes get room made for them, as far as that pays.
    fn make_room(&mut self, plan: &mut Plan, room: &Room, unmet: &[Wish]) {
        if unmet.is_empty() {
            return;
        }
        let fleet = self.fleet;
        // Room that is coming free already, less what earlier wishes of this loop were promised.
        let leaving: Vec<&Member> = self.leaving();
        let mut coming = room.without(&leaving, fleet);
        for wish in unmet {
            let name = wish.order.3.clone();
            let Some(need) = self.needs.get(&name) else { continue };
            if plan.no_room.contains_key(&name) {
                continue;
            }
            let claim = &need.claim;
            if !room.could_ever_fit(claim) {
                plan.no_room.insert(name, never_fits(room, claim.all_bytes()));
                continue;
            }
            if coming.take(claim).is_some() {
                let names: Vec<&str> = self.leaving().iter().map(|member| member.id.as_str()).collect();
                plan.no_room.insert(name, format!("waiting for {} to finish", listed(&names)));
                continue;
            }
            let victims = self.victims(plan, wish, need);
            let enough =
                (1..=victims.len()).find(|count| coming.without(&members(&victims[..*count]), fleet).fits(claim));
            let Some(count) = enough else {
                plan.no_room.insert(name, short_of(room, claim.all_bytes()));
                continue;
            };
            let chosen: Vec<&Member> = members(&victims[..count]);
            coming = coming.without(&chosen, fleet);
            let _promised = coming.take(claim);
            for victim in &victims[..count] {
                self.drain(
                    plan,
                    victim.member,
                    Reason::Evicted,
                    format!("{}, and {name} has {}", victim.why, present(need)),
                );
            }
            let names: Vec<&str> = chosen.iter().map(|member| member.id.as_str()).collect();
            plan.no_room.insert(name, format!("making room by draining {}", listed(&names)));
        }
    }

    /// Members on their way out, by this plan or before it.
    fn leaving(&self) -> Vec<&'a Member> {
        let fleet = self.fleet;
        let before: BTreeSet<&InstanceId> = fleet.leaving.iter().map(|member| &member.id).collect();
        if before.is_empty() && self.going.is_empty() {
            return Vec::new();
        }
        fleet.everyone().filter(|member| self.going.contains(&member.id) || before.contains(&member.id)).collect()
    }

    /// Instances that may be drained for this wish, cheapest to lose first. Each has a price that the wish
    /// must be worth: an idle one the chance that it is missed, a further one the work that its neighbours
    /// take over, the last busy one a switch there and back.
    fn victims(&self, plan: &Plan, wish: &Wish, need: &Need) -> Vec<Victim<'a>> {
        let at_zero = wish.order.0 == 0;
        let mut victims = Vec::new();
        for (name, other) in self.needs {
            let Some(group) = self.fleet.groups.get(name) else { continue };
            if *name == wish.order.3 {
                continue;
            }
            let staying: Vec<&Member> =
                cheapest_first(&group.ready).into_iter().filter(|member| !self.going.contains(&member.id)).collect();
            // Starts of this plan count: the next tick will see them, and must judge alike.
            let starting = plan.starts.iter().filter(|start| start.model == *name).count() + group.starting.len();
            let left = staying.len() + starting;
            for (at, member) in staying.into_iter().enumerate() {
                let last = left - at == 1;
                let needed = left - at <= other.need as usize;
                if !at_zero && (needed || wish.order.0 > 1) {
                    continue;
                }
                if let Some((price, why)) = self.price_of(member, other, last, at_zero, need) {
                    victims.push(Victim { price, member, why });
                }
            }
        }
        victims.sort_by(|a, b| a.price.total_cmp(&b.price).then_with(|| a.member.id.cmp(&b.member.id)));
        victims
    }

    /// The price of losing a member to a wish, and why it may be lost; none where the wish is not worth it.
    fn price_of(&self, member: &Member, owner: &Need, last: bool, at_zero: bool, need: &Need) -> Option<(f64, String)> {
        let idle = member.load == 0 && owner.load == 0;
        if idle {
            // The switch has to run for this long before it has paid for itself.
            let payback_s = need.restart_cost / need.holding_cost_per_s;
            let missed = owner.forecast.arrival_probability(payback_s);
            let price_of_loss = match self.policy().tiers {
                TierRule::Lru => -owner.seen.idle_s,
                _ if last => missed * owner.miss_cost,
                _ => missed * owner.restart_cost,
            };
            let worth = need.miss_cost + self.wait_cost(need);
            return (at_zero || worth > price_of_loss + need.restart_cost)
                .then(|| (price_of_loss, format!("{} has been idle for {:.1} s", member.model, owner.seen.idle_s)));
        }
        if !at_zero {
            return None;
        }
        if !last {
            let price = 1e6 + owner.restart_cost + member.load as f64;
            return Some((price, format!("it is not the only instance of {}", member.model)));
        }
        let served_s = seconds_between(member.ready_at_ns, self.snapshot.now_ns);
        let slice_s = self.slice_s(owner, need);
        let switch = owner.miss_cost + need.restart_cost;
        (served_s >= slice_s && self.wait_cost(need) > switch).then(|| {
            (
                1e9 - served_s.min(1e8),
                format!("{} has had its slice of {slice_s:.1} s, having served for {served_s:.1} s", member.model),
            )
        })
    }

    /// What the held requests of a starved model have cost by waiting.
    fn wait_cost(&self, need: &Need) -> f64 {
        let waited_s = need.starved_since_ns.map_or(0.0, |since| seconds_between(since, self.snapshot.now_ns));
        f64::from(need.seen.held) * waited_s * price(self.policy().wait_cost_per_s)
    }

    /// How long a model serves before another may have its slot: so long that the two cold starts of a switch
    /// there and back take no more than the accepted share of the time.
    fn slice_s(&self, owner: &Need, need: &Need) -> f64 {
        let share = self.policy().switching_share;
        let share = if share.is_finite() { share.clamp(0.01, 0.9) } else { 0.2 };
        (owner.cold_start_s() + need.cold_start_s()) * (1.0 - share) / share
    }
}

/// An instance that may be drained for another model.
struct Victim<'a> {
    price: f64,
    member: &'a Member,
    why: String,
}

fn members<'a>(victims: &[Victim<'a>]) -> Vec<&'a Member> {
    victims.iter().map(|victim| victim.member).collect()
}

/// Ready instances, the one to lose first in front: fewest requests, then longest unused, then ready last.
fn cheapest_first(ready: &[Member]) -> Vec<&Member> {
    let mut order: Vec<&Member> = ready.iter().collect();
    order.sort_by_key(|member| (member.load, std::cmp::Reverse(member.ready_at_ns), member.id.clone()));
    order
}

/// What a model waits with, for the sentence about who makes room for it.
fn present(need: &Need) -> String {
    let held = need.seen.held;
    let requests = if need.load == 1 { "request" } else { "requests" };
    format!(
        "{} {requests} present, {held} of them held, and {} instances",
        need.load,
        need.seen.ready + need.seen.starting
    )
}

fn never_fits(room: &Room, bytes: u64) -> String {
    format!(
        "an instance takes {} cores and {} MiB, which this node does not have (budget {} MiB)",
        room.cores_per_instance,
        bytes >> 20,
        room.budget_bytes >> 20
    )
}

fn short_of(room: &Room, bytes: u64) -> String {
    format!(
        "an instance takes {} cores and {} MiB; free are {} cores and {} MiB, and nothing costs less to stop",
        room.cores_per_instance,
        bytes >> 20,
        room.cores.len(),
        room.free_bytes() >> 20
    )
}

/// Names for a sentence.
fn listed(names: &[&str]) -> String {
    names.join(", ")
}

/// Postconditions. They hold by construction; a plan that breaks one must not be acted on.
fn check(plan: &Plan, snapshot: &Snapshot, fleet: &Fleet, needs: &BTreeMap<ModelName, Need>) {
    let drained: BTreeSet<&InstanceId> = plan.drains.iter().map(|drain| &drain.instance).collect();
    assert!(drained.len() == plan.drains.len(), "phase 5 drained an instance twice");
    if plan.starts.is_empty() {
        return;
    }
    let known: BTreeSet<u32> = snapshot.node.cores.iter().copied().collect();
    let mut taken: BTreeSet<u32> = fleet.everyone().flat_map(|member| member.cores.iter().copied()).collect();
    let mut lots: BTreeSet<&Lot> = fleet.everyone().filter_map(|member| member.weights.as_ref()).collect();
    let mut bytes = fleet.everyone().fold(0u64, |sum, member| sum.saturating_add(member.bytes));
    for start in &plan.starts {
        for core in start.placement.cores() {
            assert!(known.contains(&core), "phase 4a gave a core that the node does not have: {core}");
            assert!(taken.insert(core), "phase 4a gave a core twice: {core}");
        }
        bytes = bytes.saturating_add(start.placement.bytes());
        lots.extend(needs.get(&start.model).and_then(|need| need.claim.weights.as_ref()));
        let all = lots.iter().fold(bytes, |sum, lot| sum.saturating_add(lot.bytes));
        assert!(all <= snapshot.node.memory_budget_bytes, "phase 4a gave more memory than there is: {all}");
    }
}
