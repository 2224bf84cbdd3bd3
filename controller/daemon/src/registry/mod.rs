//! The state database: registered models, measured cold starts, kept decisions and the controller's epoch.
//!
//! One SQLite file in write-ahead mode, so that `foreshock models` may write while `serve` reads and a
//! kill -9 at any point leaves the last committed state. Every call here is synchronous: the control loop
//! never makes one on the path of a request (see [`history`]), and others call from a blocking thread.

mod adapters;
mod error;
mod forecasts;
mod history;
mod models;
mod schema;

pub use adapters::AdapterRecord;
pub use error::RegistryError;
pub use forecasts::KeptForecast;
pub use history::{HistoryWriter, KeptDecisions};
pub use models::{Added, ModelRecord};

use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the database in the state folder.
pub const DATABASE_FILE: &str = "state.db";
/// How long a writer waits for another writer before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the state database.
pub struct Registry {
    connection: Connection,
    path: PathBuf,
}

impl Registry {
    /// Opens (or creates) the database of a state folder, brings its schema up to this version and checks
    /// that it is sound.
    ///
    /// # Errors
    /// Says in one line what is wrong: folder not writable, disk full, file damaged, schema of a newer version.
    pub fn open(state_dir: &Path) -> Result<Self, RegistryError> {
        std::fs::create_dir_all(state_dir)
            .map_err(|source| RegistryError::StateFolder { path: state_dir.to_path_buf(), source })?;
        let registry = Self::connect(state_dir)?;
        registry.prepare().map_err(|error| registry.describe(error))?;
        schema::migrate(&registry.connection, &registry.path)?;
        Ok(registry)
    }

    /// Another connection to a database that [`Registry::open`] has already checked.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn connect(state_dir: &Path) -> Result<Self, RegistryError> {
        let path = state_dir.join(DATABASE_FILE);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&path, flags).map_err(|error| RegistryError::from_sqlite(&path, error))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| RegistryError::from_sqlite(&path, error))?;
        Ok(Self { connection, path })
    }

    /// Write-ahead mode is kept in the file itself. NORMAL synchronisation may lose the last commits when
    /// the machine loses power, never the database.
    fn prepare(&self) -> Result<(), rusqlite::Error> {
        let _mode: String = self.connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        let verdict: String = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
                Some(verdict),
            ));
        }
        Ok(())
    }

    /// Raises the epoch by one and returns it: called once at each start of a controller.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn next_epoch(&mut self) -> Result<u64, RegistryError> {
        let epoch: Result<i64, _> = self.connection.query_row(
            "UPDATE meta SET value = value + 1 WHERE key = 'epoch' RETURNING value",
            [],
            |row| row.get(0),
        );
        epoch.map(|epoch| epoch.max(0) as u64).map_err(|error| self.describe(error))
    }

    /// Puts the database's path and the remedy to an SQLite error.
    fn describe(&self, error: rusqlite::Error) -> RegistryError {
        RegistryError::from_sqlite(&self.path, error)
    }
}
