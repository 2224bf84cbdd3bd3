//! What has been learned of each model's arrivals, kept across restarts: the newest of each model, with the time at which
//! it was stored, since nothing is seen from then on until a controller runs again.

use super::{Registry, RegistryError};
use controller_core::expect::Predictor;
use rusqlite::params;
use std::time::{SystemTime, UNIX_EPOCH};

/// Models whose forecasts are kept; those that were stored longest ago make room.
const FORECASTS_KEPT: i64 = 10_000;

/// What was stored of one model.
#[derive(Clone, Debug)]
pub struct KeptForecast {
    pub model: String,
    pub predictor: Predictor,
    /// How long ago it was stored, s.
    pub unseen_s: f64,
}

fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Registry {
    /// Keeps what has been learned of a model, in place of what was.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn record_forecast(&mut self, model: &str, predictor: &Predictor) -> Result<(), RegistryError> {
        let mut write = || -> rusqlite::Result<()> {
            let text = serde_json::to_string(predictor)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
            let transaction = self.connection.transaction()?;
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO forecasts (model, stored_unix_s, predictor) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![model, unix_s(), text])?;
            transaction
                .prepare_cached(
                    "DELETE FROM forecasts WHERE model IN
                         (SELECT model FROM forecasts ORDER BY stored_unix_s DESC LIMIT -1 OFFSET ?1)",
                )?
                .execute([FORECASTS_KEPT])?;
            transaction.commit()
        };
        write().map_err(|error| RegistryError::from_sqlite(&self.path, error))
    }

    /// What had been learned, by model. What this version cannot read is left out: it can be learned anew.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn forecasts(&self) -> Result<Vec<KeptForecast>, RegistryError> {
        let read = || -> rusqlite::Result<Vec<(String, i64, String)>> {
            let mut statement = self
                .connection
                .prepare_cached("SELECT model, stored_unix_s, predictor FROM forecasts ORDER BY model")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        };
        let now_s = unix_s();
        let kept = |(model, stored_s, text): (String, i64, String)| {
            let predictor = serde_json::from_str(&text).ok()?;
            Some(KeptForecast { model, predictor, unseen_s: now_s.saturating_sub(stored_s).max(0) as f64 })
        };
        Ok(read().map_err(|error| self.describe(error))?.into_iter().filter_map(kept).collect())
    }
}
