//! The memory of moves that were asked for: each is asked for once, and again only after a later snapshot has shown that
//! it did not happen, each time later.

use super::calls::Calls;
use super::{TierPlan, horizon_s};
use crate::action::{Action, ActionKind, Reason};
use crate::policy::Policy;
use crate::snapshot::{ModelView, Revision, Snapshot, WeightsTier, WeightsView};
use crate::{NS_PER_MS, Nanos};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was asked for and has not been seen to be over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Asked {
    pub(super) calls: Calls,
    seen_ns: Option<Nanos>,
    bring: Option<Bring>,
    /// When weights were told to leave, and how much of them would come free then.
    leave: BTreeMap<Revision, (Nanos, u64)>,
    retries: BTreeMap<Revision, Retry>,
    /// Moves ever asked for in this epoch: the last part of their keys.
    moves: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Bring {
    revision: Revision,
    at_ns: Nanos,
    /// A snapshot has shown that it goes on.
    seen: bool,
}

/// Moves of some weights that failed in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Retry {
    failures: u32,
    not_before_ns: Nanos,
}

impl Asked {
    /// Takes in what a snapshot shows of what was asked for. False when it was seen before.
    pub(super) fn see(&mut self, snapshot: &Snapshot, policy: &Policy) -> bool {
        if self.seen_ns.replace(snapshot.now_ns) == Some(snapshot.now_ns) {
            return false;
        }
        self.calls.see(snapshot, horizon_s(policy));
        let views: BTreeMap<&Revision, &WeightsView> = snapshot.models.values().filter_map(of).collect();
        self.retries.retain(|revision, _| views.contains_key(revision));
        self.see_bring(snapshot, policy, &views);
        let expiry_ns = policy.pending_expiry_ms.saturating_mul(NS_PER_MS);
        let mut failed = Vec::new();
        self.leave.retain(|revision, (at_ns, freeable_bytes)| {
            let Some(view) = views.get(revision) else { return false };
            // In use again, it stays; gone at least in part, it has been let go.
            let is_coming = snapshot.node.weights.bringing.as_ref() == Some(revision);
            let is_gone = view.freeable_bytes < *freeable_bytes || (view.freeable_bytes == 0 && !is_coming);
            let is_over = view.mapped || is_gone;
            let expired = snapshot.now_ns.saturating_sub(*at_ns) >= expiry_ns;
            if expired && !is_over {
                failed.push(revision.clone());
            }
            !is_over && !expired
        });
        failed.into_iter().for_each(|revision| self.fail(revision, snapshot.now_ns, policy));
        true
    }

    fn see_bring(&mut self, snapshot: &Snapshot, policy: &Policy, views: &BTreeMap<&Revision, &WeightsView>) {
        let Some(bring) = self.bring.as_mut() else { return };
        let Some(view) = views.get(&bring.revision) else {
            self.bring = None;
            return;
        };
        let goes_on = snapshot.node.weights.bringing.as_ref() == Some(&bring.revision);
        let expiry_ns = policy.pending_expiry_ms.saturating_mul(NS_PER_MS);
        let expired = snapshot.now_ns.saturating_sub(bring.at_ns) >= expiry_ns;
        if view.tier == WeightsTier::Memory {
            let revision = bring.revision.clone();
            self.retries.remove(&revision);
            self.bring = None;
        } else if goes_on {
            bring.seen = true;
        } else if bring.seen || expired {
            let revision = bring.revision.clone();
            let was_told_to_leave = self.leave.contains_key(&revision);
            self.bring = None;
            if !was_told_to_leave {
                self.fail(revision, snapshot.now_ns, policy);
            }
        }
    }

    fn fail(&mut self, revision: Revision, now_ns: Nanos, policy: &Policy) {
        let retry = self.retries.entry(revision).or_default();
        retry.failures = retry.failures.saturating_add(1);
        retry.not_before_ns = now_ns.saturating_add(policy.backoff_ns(retry.failures));
    }

    /// Whether anything is, so that nothing is weighed that is about to change.
    pub(super) fn is_moving(&self) -> bool {
        self.bring.is_some() || !self.leave.is_empty()
    }

    pub(super) fn brings(&self, revision: &str) -> bool {
        self.bring.as_ref().is_some_and(|bring| bring.revision == revision)
    }

    pub(super) fn leaves(&self, revision: &str) -> bool {
        self.leave.contains_key(revision)
    }

    pub(super) fn may_forget(&self, revision: &str, now_ns: Nanos) -> bool {
        self.retries.get(revision).is_none_or(|retry| now_ns >= retry.not_before_ns)
    }

    pub(super) fn may_bring(&self, revision: &str, now_ns: Nanos) -> bool {
        !self.brings(revision) && self.may_forget(revision, now_ns)
    }

    /// Whether an answer is due soon.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.leave.is_empty() || self.bring.as_ref().is_some_and(|bring| !bring.seen)
    }

    /// The actions of a plan, each remembered.
    pub(crate) fn actions(&mut self, snapshot: &Snapshot, plan: &TierPlan) -> Vec<Action> {
        let mut actions = Vec::new();
        for one in &plan.moves {
            self.moves += 1;
            let (model, revision) = (one.model.clone(), one.revision.clone());
            let freeable_bytes = snapshot.models.get(&model).and_then(of).map_or(0, |(_, view)| view.freeable_bytes);
            let (word, kind) = match one.reason {
                Reason::Prefetched => {
                    self.bring = Some(Bring { revision: revision.clone(), at_ns: snapshot.now_ns, seen: false });
                    ("prefetch", ActionKind::Prefetch { model, revision })
                }
                _ => {
                    self.leave.insert(revision.clone(), (snapshot.now_ns, freeable_bytes));
                    ("forget", ActionKind::Forget { model, revision })
                }
            };
            let key = format!("{word}/{}/{}/{}", one.model, snapshot.epoch, self.moves);
            actions.push(Action { epoch: snapshot.epoch, key, kind });
        }
        actions
    }
}

fn of(view: &ModelView) -> Option<(&Revision, &WeightsView)> {
    view.weights.as_ref().map(|weights| (&view.revision, weights))
}
