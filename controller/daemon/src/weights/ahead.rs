//! The one model whose weights are being read ahead of a start: on a thread of its own, which waits while a start
//! reads from disk and stops when told to.

use super::{Order, Places};
use controller_core::snapshot::Revision;
use engine_store::host::{Ahead, bring_ahead};
use engine_store::{Store, StoreError};
use metrics::counter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it looks whether a start still reads.
const PAUSE: Duration = Duration::from_millis(5);

/// Reads one model at a time.
pub(super) struct Reader {
    places: Places,
    /// A start reads from disk.
    disk_wanted: Arc<AtomicBool>,
    /// Told to look when something is over.
    orders: SyncSender<Order>,
    reading: Option<Reading>,
}

struct Reading {
    revision: Revision,
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reader {
    pub(super) fn new(places: Places, disk_wanted: Arc<AtomicBool>, orders: SyncSender<Order>) -> Self {
        Self { places, disk_wanted, orders, reading: None }
    }

    /// Whose weights are being read.
    pub(super) fn reads(&mut self) -> Option<Revision> {
        self.reading.take_if(|reading| reading.thread.is_finished());
        self.reading.as_ref().map(|reading| reading.revision.clone())
    }

    /// Begins with a model, unless another is being read: the plan asks again for what has not happened.
    pub(super) fn begin(&mut self, revision: &str) {
        if self.reads().is_some() {
            return;
        }
        let stopped = Arc::new(AtomicBool::new(false));
        let (places, wanted, orders) = (self.places.clone(), self.disk_wanted.clone(), self.orders.clone());
        let (name, stop) = (revision.to_owned(), stopped.clone());
        let work = move || {
            read(&places, &name, &wanted, &stop);
            // A full queue is read to its end, and then it is looked.
            let _ = orders.try_send(Order::Look);
        };
        match std::thread::Builder::new().name("prefetch".to_owned()).spawn(work) {
            Ok(thread) => self.reading = Some(Reading { revision: revision.to_owned(), stopped, thread }),
            Err(error) => tracing::warn!(%error, "weights cannot be read ahead"),
        }
    }

    /// Stops reading, after the part that is under way.
    pub(super) fn stop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.stopped.store(true, Ordering::Relaxed);
        }
    }

    /// Stops if it reads this model.
    pub(super) fn stop_if(&mut self, revision: &str) {
        if self.reading.as_ref().is_some_and(|reading| reading.revision == revision) {
            self.stop();
        }
    }
}

fn read(places: &Places, revision: &str, disk_wanted: &AtomicBool, stopped: &AtomicBool) {
    let began = Instant::now();
    let mut goes_on = |_| {
        while disk_wanted.load(Ordering::Relaxed) && !stopped.load(Ordering::Relaxed) {
            std::thread::sleep(PAUSE);
        }
        !stopped.load(Ordering::Relaxed)
    };
    let outcome = bring(places, revision, &mut goes_on);
    let took_ms = began.elapsed().as_secs_f64() * 1e3;
    let label = match &outcome {
        Ok(ahead) if ahead.whole => {
            tracing::info!(revision, read_bytes = ahead.read_bytes, took_ms, "weights were read ahead of a start");
            "whole"
        }
        Ok(_) => "stopped",
        Err(error) => {
            tracing::warn!(revision, %error, "weights were not read ahead of a start");
            "failed"
        }
    };
    counter!(telemetry::WEIGHTS_PREFETCHES_TOTAL.name, "outcome" => label).increment(1);
    let read_bytes = outcome.map_or(0, |ahead| ahead.read_bytes);
    counter!(telemetry::WEIGHTS_PREFETCHED_BYTES_TOTAL.name).increment(read_bytes);
}

fn bring(places: &Places, revision: &str, goes_on: &mut (dyn FnMut(u64) -> bool + Send)) -> Result<Ahead, StoreError> {
    let store = Store::open(&places.store)?;
    let missing = || StoreError::Missing { path: store.root().join("models").join(revision) };
    let manifest = store.manifest(revision, &places.layout)?.ok_or_else(missing)?;
    bring_ahead(&store, &manifest, &places.segments, super::FREE_BYTES, goes_on)
}
