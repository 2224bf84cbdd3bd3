//! Looks after the weights that lie in shared memory. The plan says whose come and whose go; here it is seen what lies
//! there, done what the plan asks for, and given up what is worth least when memory runs short before the next plan.
//! Engines see to the room for their own start themselves.

mod ahead;
mod gather;
mod seen;

pub(crate) use seen::Seen;

use ahead::Reader;
use controller_core::action::{Action, ActionKind};
use controller_core::snapshot::Revision;
use engine_store::host::{Held, available_bytes};
use engine_store::{Segments, Store, StoreError};
use gather::Gathered;
use metrics::{counter, gauge};
use seen::{Objects, freeable, victims};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often it looks without being asked to.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Memory that is to stay free of weights that nobody uses, bytes.
const FREE_BYTES: u64 = 512 << 20;
/// Orders that may wait.
const QUEUE: usize = 256;

/// Where weights lie, and how many of them may do so unused.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) store: PathBuf,
    pub(crate) segments: PathBuf,
    /// For which kernels the store's models are laid out.
    pub(crate) layout: String,
    pub(crate) idle_bytes: u64,
}

/// What is asked of the thread.
enum Order {
    /// These are registered, and no others.
    Models(BTreeSet<Revision>),
    Forget(Revision),
    Prefetch(Revision),
    /// The plan's order, for when memory runs short.
    LeastWorthFirst(Vec<Revision>),
    /// Something maps, or has let go of, weights.
    Look,
}

/// A thread that ends when this is dropped.
pub(crate) struct Keeper {
    orders: SyncSender<Order>,
    seen: Arc<Mutex<Arc<Seen>>>,
    /// A start reads from disk.
    disk_wanted: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    told: (BTreeSet<Revision>, Vec<Revision>),
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.look();
    }
}

impl Keeper {
    /// Looks after the weights of these models; what has changed wakes the loop. They have been looked at once when it
    /// returns.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(places: Places, models: BTreeSet<Revision>, wake: Arc<Notify>) -> io::Result<Self> {
        let (orders, received) = sync_channel(QUEUE);
        let (seen, disk_wanted) = (Arc::<Mutex<Arc<Seen>>>::default(), Arc::<AtomicBool>::default());
        let ended = Arc::<AtomicBool>::default();
        let reader = Reader::new(places.clone(), disk_wanted.clone(), orders.clone());
        let mut work = Work {
            places,
            known: BTreeMap::new(),
            least_worth_first: Vec::new(),
            reader,
            gathered: Gathered::default(),
            over_since: None,
            ended: ended.clone(),
            seen: seen.clone(),
            wake,
            failing: false,
        };
        work.registered(&models);
        work.look_and_tell();
        std::thread::Builder::new().name("weights".to_owned()).spawn(move || work.run(&received))?;
        Ok(Self { orders, seen, disk_wanted, ended, told: (models, Vec::new()) })
    }

    /// What was seen last.
    pub(crate) fn seen(&self) -> Arc<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does what an action asks for, later. None where it is none of its own; false where it cannot.
    pub(crate) fn apply(&self, action: &Action) -> Option<bool> {
        let order = match &action.kind {
            ActionKind::Prefetch { revision, .. } => Order::Prefetch(revision.clone()),
            ActionKind::Forget { revision, .. } => Order::Forget(revision.clone()),
            ActionKind::Start { .. } | ActionKind::Drain { .. } => return None,
        };
        Some(self.orders.try_send(order).is_ok())
    }

    /// These models are registered.
    pub(crate) fn registered(&mut self, models: BTreeSet<Revision>) {
        if self.told.0 != models && self.orders.try_send(Order::Models(models.clone())).is_ok() {
            self.told.0 = models;
        }
    }

    /// What the last plan said, and whether a start reads from disk.
    pub(crate) fn planned(&mut self, least_worth_first: Vec<Revision>, disk_wanted: bool) {
        self.disk_wanted.store(disk_wanted, Ordering::Relaxed);
        let order = || Order::LeastWorthFirst(least_worth_first.clone());
        if self.told.1 != least_worth_first && self.orders.try_send(order()).is_ok() {
            self.told.1 = least_worth_first;
        }
    }

    /// An instance has weights mapped, or is gone.
    pub(crate) fn look(&self) {
        // With a full queue a look is due anyway.
        let _ = self.orders.try_send(Order::Look);
    }
}

/// The thread's own.
struct Work {
    places: Places,
    known: BTreeMap<Revision, Objects>,
    least_worth_first: Vec<Revision>,
    reader: Reader,
    gathered: Gathered,
    /// Since when more lies unused than may.
    over_since: Option<Instant>,
    ended: Arc<AtomicBool>,
    seen: Arc<Mutex<Arc<Seen>>>,
    wake: Arc<Notify>,
    failing: bool,
}

impl Work {
    fn run(&mut self, orders: &Receiver<Order>) {
        let mut due = Instant::now() + LOOK_EVERY;
        loop {
            let first = orders.recv_timeout(due.saturating_duration_since(Instant::now()));
            if self.ended.load(Ordering::Relaxed) {
                self.reader.stop();
                return;
            }
            let is_due = Instant::now() >= due;
            first.into_iter().chain(orders.try_iter()).for_each(|order| self.take(order));
            if is_due {
                due = Instant::now() + LOOK_EVERY;
                self.keep();
            }
            self.look_and_tell();
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Models(models) => self.registered(&models),
            Order::LeastWorthFirst(order) => self.least_worth_first = order,
            Order::Prefetch(revision) => self.reader.begin(&revision),
            Order::Forget(revision) => self.forget(&revision),
            Order::Look => {}
        }
    }

    /// Reads the manifests of models that are new, and forgets those that are gone.
    fn registered(&mut self, models: &BTreeSet<Revision>) {
        self.known.retain(|revision, objects| objects.is_some() && models.contains(revision));
        let new: Vec<&Revision> = models.iter().filter(|revision| !self.known.contains_key(*revision)).collect();
        if new.is_empty() {
            return;
        }
        let store = Store::open(&self.places.store);
        for revision in new {
            let manifest = store.as_ref().ok().and_then(|store| store.manifest(revision, &self.places.layout).ok()?);
            let objects = manifest.map(|manifest| {
                manifest.objects.iter().map(|object| (object.name(), object.bytes())).collect::<Vec<_>>()
            });
            self.known.insert(revision.clone(), objects);
        }
    }

    fn forget(&mut self, revision: &str) {
        self.reader.stop_if(revision);
        let Ok((segments, held)) = self.held() else { return };
        let names = freeable(&self.known, &held, revision);
        let gone: BTreeSet<_> = names.into_iter().filter(|name| segments.discard(*name)).collect();
        let bytes: u64 = held.iter().filter(|held| gone.contains(&held.name)).map(|held| held.bytes).sum();
        discarded(bytes, "planned");
    }

    /// Nothing lies where there is no folder yet: engines make it.
    fn held(&self) -> Result<(Segments, Vec<Held>), StoreError> {
        let segments = Segments::open(&self.places.segments)?;
        let held = segments.held()?;
        Ok((segments, held))
    }

    fn look_and_tell(&mut self) {
        let held = match self.places.segments.exists() {
            true => self.held().map(|(_, held)| held),
            false => Ok(Vec::new()),
        };
        if let (Err(error), false) = (&held, self.failing) {
            tracing::warn!(%error, "weights in shared memory are not looked after");
        }
        self.failing = held.is_err();
        let Ok(held) = held else { return };
        let mut seen = Seen::of(&self.known, &held);
        seen.node.idle_bytes_max = self.places.idle_bytes;
        seen.node.bringing = self.reader.reads();
        tell_gauges(&seen, &held);
        let mut last = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if **last != seen {
            *last = Arc::new(seen);
            drop(last);
            self.wake.notify_one();
        }
    }

    /// What is done now and then: huge pages for what is in use, and room where there is too little.
    fn keep(&mut self) {
        if !self.places.segments.exists() {
            return;
        }
        let Ok((segments, held)) = self.held() else { return };
        if let Err(error) = segments.sweep() {
            tracing::warn!(%error, "parts of weights that dead engines left stay");
        }
        // Use counts up to its end, not from its beginning.
        held.iter().filter(|held| held.mapped).for_each(|held| segments.touch(held.name));
        self.gathered.turn(&segments, &held);
        let idle: u64 = held.iter().filter(|held| !held.mapped).map(|held| held.bytes).sum();
        let excess = idle.saturating_sub(self.places.idle_bytes);
        // The plan has had its turn where there was too much at the last look already.
        let is_lasting = excess > 0 && self.over_since.get_or_insert_with(Instant::now).elapsed() >= LOOK_EVERY;
        if excess == 0 {
            self.over_since = None;
        }
        let short = FREE_BYTES.saturating_sub(available_bytes().unwrap_or(u64::MAX));
        let (bytes, all) = (excess.max(short), short > 0 || is_lasting);
        let victims = victims(&self.known, &held, &self.least_worth_first, bytes, all);
        let gone: u64 = victims.into_iter().filter(|(name, _)| segments.discard(*name)).map(|(_, bytes)| bytes).sum();
        discarded(gone, if short > 0 { "pressure" } else { "bound" });
    }
}

/// Log line and counters of weights that have left.
fn discarded(bytes: u64, reason: &'static str) {
    if bytes == 0 {
        return;
    }
    tracing::info!(discarded_bytes = bytes, reason, "weights that no engine uses have left memory");
    counter!(telemetry::WEIGHTS_DISCARDED_BYTES_TOTAL.name).increment(bytes);
    counter!(telemetry::WEIGHTS_EVICTIONS_TOTAL.name, "reason" => reason).increment(1);
}

fn tell_gauges(seen: &Seen, held: &[Held]) {
    let (mapped, idle) = sums(held);
    gauge!(telemetry::WEIGHTS_SHARED_BYTES.name, "state" => "mapped").set(mapped as f64);
    gauge!(telemetry::WEIGHTS_SHARED_BYTES.name, "state" => "idle").set(idle as f64);
    for (tier, bytes) in seen.bytes_by_tier() {
        gauge!(telemetry::WEIGHTS_TIER_BYTES.name, "tier" => tier).set(bytes as f64);
    }
}

/// Bytes that somebody has mapped, and that nobody has.
fn sums(held: &[Held]) -> (u64, u64) {
    let (mapped, idle): (Vec<&Held>, Vec<&Held>) = held.iter().partition(|held| held.mapped);
    let sum = |held: Vec<&Held>| held.iter().map(|held| held.bytes).sum();
    (sum(mapped), sum(idle))
}

#[cfg(test)]
mod tests;
