//! What the controller learned and decided, kept across restarts: cold-start times per model and a bounded
//! ring of decisions.
//!
//! The control loop hands them to a writer thread through a bounded queue, so that a slow or full disk
//! delays nobody's request. What does not fit the queue is dropped and counted.

use super::{Registry, RegistryError};
use crate::timeline::StartRecord;
use controller_core::action::Decision;
use controller_core::expect::Predictor;
use rusqlite::params;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Decisions that the database keeps; older ones are forgotten.
pub const DECISIONS_KEPT: i64 = 10_000;
/// Cold-start samples kept per model.
pub const COLD_STARTS_KEPT: i64 = 64;
/// Starts kept per model.
pub const STARTS_KEPT: i64 = 256;
/// Entries that may wait for the writer.
const QUEUE: usize = 1_024;

/// Decisions as they came back from the database, oldest first.
pub type KeptDecisions = Vec<Decision>;

impl Registry {
    /// Keeps decisions, and forgets the oldest beyond [`DECISIONS_KEPT`].
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn record_decisions(&mut self, decisions: &[Decision]) -> Result<(), RegistryError> {
        let mut write = || -> rusqlite::Result<()> {
            let transaction = self.connection.transaction()?;
            for decision in decisions {
                let text = serde_json::to_string(decision)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
                transaction
                    .prepare_cached("INSERT INTO decisions (model, decision) VALUES (?1, ?2)")?
                    .execute(params![decision.model, text])?;
            }
            transaction
                .prepare_cached("DELETE FROM decisions WHERE id <= (SELECT max(id) FROM decisions) - ?1")?
                .execute([DECISIONS_KEPT])?;
            transaction.commit()
        };
        write().map_err(|error| RegistryError::from_sqlite(&self.path, error))
    }

    /// The newest `limit` decisions, of one model or all, oldest first. One that this version cannot read
    /// any more is left out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn decisions(&self, model: Option<&str>, limit: usize) -> Result<KeptDecisions, RegistryError> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT decision FROM decisions WHERE ?1 IS NULL OR model = ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            statement.query_map(params![model, limit], |row| row.get(0))?.collect()
        };
        let texts = read().map_err(|error| self.describe(error))?;
        Ok(texts.iter().rev().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }

    /// Keeps one measured cold start, and forgets the oldest beyond [`COLD_STARTS_KEPT`] of its model.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn record_cold_start(&mut self, model: &str, revision: &str, cold_start_ms: f64) -> Result<(), RegistryError> {
        let mut write = || -> rusqlite::Result<()> {
            let transaction = self.connection.transaction()?;
            transaction.execute(
                "INSERT INTO cold_starts (model, revision, cold_start_ms) VALUES (?1, ?2, ?3)",
                params![model, revision, cold_start_ms],
            )?;
            transaction.execute(
                "DELETE FROM cold_starts WHERE model = ?1 AND id NOT IN
                     (SELECT id FROM cold_starts WHERE model = ?1 ORDER BY id DESC LIMIT ?2)",
                params![model, COLD_STARTS_KEPT],
            )?;
            transaction.commit()
        };
        write().map_err(|error| RegistryError::from_sqlite(&self.path, error))
    }

    /// Keeps what a start was made of, and forgets the oldest beyond [`STARTS_KEPT`] of its model.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn record_start(&mut self, start: &StartRecord) -> Result<(), RegistryError> {
        let mut write = || -> rusqlite::Result<()> {
            let text = serde_json::to_string(start)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
            let transaction = self.connection.transaction()?;
            transaction.execute("INSERT INTO starts (model, start) VALUES (?1, ?2)", params![start.model, text])?;
            transaction.execute(
                "DELETE FROM starts WHERE model = ?1 AND id NOT IN
                     (SELECT id FROM starts WHERE model = ?1 ORDER BY id DESC LIMIT ?2)",
                params![start.model, STARTS_KEPT],
            )?;
            transaction.commit()
        };
        write().map_err(|error| RegistryError::from_sqlite(&self.path, error))
    }

    /// The newest `limit` starts, of one model or all, oldest first. One that this version cannot read is left out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn starts(&self, model: Option<&str>, limit: usize) -> Result<Vec<StartRecord>, RegistryError> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self
                .connection
                .prepare_cached("SELECT start FROM starts WHERE ?1 IS NULL OR model = ?1 ORDER BY id DESC LIMIT ?2")?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            statement.query_map(params![model, limit], |row| row.get(0))?.collect()
        };
        let texts = read().map_err(|error| self.describe(error))?;
        Ok(texts.iter().rev().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }

    /// Cold starts of all models, ms, newest last, by (model, revision).
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn cold_starts(&self) -> Result<BTreeMap<(String, String), Vec<f64>>, RegistryError> {
        let read = || -> rusqlite::Result<Vec<(String, String, f64)>> {
            let mut statement =
                self.connection.prepare_cached("SELECT model, revision, cold_start_ms FROM cold_starts ORDER BY id")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        };
        let mut by_model: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        for (model, revision, cold_start_ms) in read().map_err(|error| self.describe(error))? {
            by_model.entry((model, revision)).or_default().push(cold_start_ms);
        }
        Ok(by_model)
    }
}

enum Entry {
    Decisions(Vec<Decision>),
    ColdStart { model: String, revision: String, cold_start_ms: f64 },
    Start(Box<StartRecord>),
    Forecast { model: String, predictor: Box<Predictor> },
}

/// The queue to the writer thread. Dropping it writes what is queued, then ends the thread.
pub struct HistoryWriter {
    queue: Option<SyncSender<Entry>>,
    thread: Option<JoinHandle<()>>,
    dropped_total: u64,
}

impl HistoryWriter {
    /// Starts the writer on its own connection.
    ///
    /// # Errors
    /// When the database or a thread cannot be had.
    pub fn start(state_dir: &Path) -> Result<Self, RegistryError> {
        let registry = Registry::connect(state_dir)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || write_all(registry, &receiver))
            .map_err(|source| RegistryError::StateFolder { path: state_dir.to_path_buf(), source })?;
        Ok(Self { queue: Some(sender), thread: Some(thread), dropped_total: 0 })
    }

    /// Queues decisions. Never waits.
    pub fn decisions(&mut self, decisions: Vec<Decision>) {
        if !decisions.is_empty() {
            self.push(Entry::Decisions(decisions));
        }
    }

    /// Queues a measured cold start. Never waits.
    pub fn cold_start(&mut self, model: &str, revision: &str, cold_start_ms: f64) {
        self.push(Entry::ColdStart { model: model.to_owned(), revision: revision.to_owned(), cold_start_ms });
    }

    /// Queues what a start was made of. Never waits.
    pub fn start_record(&mut self, start: &StartRecord) {
        self.push(Entry::Start(Box::new(start.clone())));
    }

    /// Queues what has been learned of a model. Never waits.
    pub fn forecast(&mut self, model: &str, predictor: Predictor) {
        self.push(Entry::Forecast { model: model.to_owned(), predictor: Box::new(predictor) });
    }

    fn push(&mut self, entry: Entry) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(entry) {
            self.dropped_total += 1;
            // Said at 1, 2, 4, 8 ...: often enough to be seen, too seldom to flood.
            if self.dropped_total.is_power_of_two() {
                tracing::warn!(dropped_total = self.dropped_total, "the state database lags: history entries dropped");
            }
        }
    }
}

impl Drop for HistoryWriter {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes until the queue closes. A failing disk is reported when it begins to fail and when it recovers.
fn write_all(mut registry: Registry, queue: &Receiver<Entry>) {
    let mut failing = false;
    while let Ok(entry) = queue.recv() {
        let outcome = match &entry {
            Entry::Decisions(decisions) => registry.record_decisions(decisions),
            Entry::ColdStart { model, revision, cold_start_ms } => {
                registry.record_cold_start(model, revision, *cold_start_ms)
            }
            Entry::Start(start) => registry.record_start(start),
            Entry::Forecast { model, predictor } => registry.record_forecast(model, predictor),
        };
        match (outcome, failing) {
            (Err(error), false) => {
                tracing::error!(%error, "history is not kept until the state database can be written again");
                failing = true;
            }
            (Ok(()), true) => {
                tracing::info!("the state database can be written again");
                failing = false;
            }
            _ => {}
        }
    }
}
