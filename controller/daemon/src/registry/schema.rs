//! The schema and its migrations. `PRAGMA user_version` holds the version; each migration lifts it by one,
//! in one transaction, so that a crash leaves either the old version or the new one.

use super::error::RegistryError;
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// Migration `i` lifts version `i` to `i + 1`. Append only: an old one never changes.
const MIGRATIONS: &[&str] = &[
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
     INSERT INTO meta VALUES ('epoch', 0), ('models_version', 0);
     CREATE TABLE models (
         name TEXT PRIMARY KEY,
         path TEXT NOT NULL,
         revision TEXT NOT NULL,
         created_unix_s INTEGER NOT NULL,
         file_bytes INTEGER NOT NULL,
         modified_unix_ns INTEGER NOT NULL,
         architecture TEXT NOT NULL,
         parameters INTEGER NOT NULL,
         context_tokens INTEGER NOT NULL,
         instance_bytes INTEGER NOT NULL
     ) WITHOUT ROWID;
     CREATE TRIGGER models_insert AFTER INSERT ON models BEGIN
         UPDATE meta SET value = value + 1 WHERE key = 'models_version'; END;
     CREATE TRIGGER models_update AFTER UPDATE ON models BEGIN
         UPDATE meta SET value = value + 1 WHERE key = 'models_version'; END;
     CREATE TRIGGER models_delete AFTER DELETE ON models BEGIN
         UPDATE meta SET value = value + 1 WHERE key = 'models_version'; END;
     CREATE TABLE cold_starts (
         id INTEGER PRIMARY KEY, model TEXT NOT NULL, revision TEXT NOT NULL, cold_start_ms REAL NOT NULL
     );
     CREATE INDEX cold_starts_by_model ON cold_starts (model, id);
     CREATE TABLE decisions (id INTEGER PRIMARY KEY, model TEXT NOT NULL, decision TEXT NOT NULL);
     CREATE INDEX decisions_by_model ON decisions (model, id);",
    "ALTER TABLE models ADD COLUMN quantise TEXT;",
    "CREATE TABLE adapters (
         name TEXT PRIMARY KEY,
         base TEXT NOT NULL,
         path TEXT NOT NULL,
         digest TEXT NOT NULL,
         created_unix_s INTEGER NOT NULL,
         parameters INTEGER NOT NULL,
         rank INTEGER NOT NULL
     ) WITHOUT ROWID;
     CREATE INDEX adapters_by_base ON adapters (base);
     CREATE TRIGGER adapters_insert AFTER INSERT ON adapters BEGIN
         UPDATE meta SET value = value + 1 WHERE key = 'models_version'; END;
     CREATE TRIGGER adapters_update AFTER UPDATE ON adapters BEGIN
         UPDATE meta SET value = value + 1 WHERE key = 'models_version'; END;
     CREATE TRIGGER adapters_delete AFTER DELETE ON adapters BEGIN
         UPDATE meta SET value = value + 1 WHERE key = 'models_version'; END;",
    "ALTER TABLE models ADD COLUMN engine TEXT;",
    "CREATE TABLE forecasts (
         model TEXT PRIMARY KEY, stored_unix_s INTEGER NOT NULL, predictor TEXT NOT NULL
     ) WITHOUT ROWID;",
    "ALTER TABLE models ADD COLUMN stored INTEGER NOT NULL DEFAULT 0;
     CREATE TABLE starts (id INTEGER PRIMARY KEY, model TEXT NOT NULL, start TEXT NOT NULL);
     CREATE INDEX starts_by_model ON starts (model, id);",
];

/// Schema version that this code writes.
pub(super) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Brings the schema up to [`SCHEMA_VERSION`].
pub(super) fn migrate(connection: &Connection, path: &Path) -> Result<(), RegistryError> {
    let describe = |error| RegistryError::from_sqlite(path, error);
    if version(connection).map_err(describe)? == SCHEMA_VERSION {
        return Ok(());
    }
    // The write lock is taken before the version is read again, so two processes never migrate at once.
    let transaction =
        rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Immediate).map_err(describe)?;
    let found = version(&transaction).map_err(describe)?;
    if !(0..=SCHEMA_VERSION).contains(&found) {
        return Err(RegistryError::NewerSchema { path: path.to_path_buf(), found, known: SCHEMA_VERSION });
    }
    for migration in &MIGRATIONS[found as usize..] {
        transaction.execute_batch(migration).map_err(describe)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(describe)?;
    transaction.commit().map_err(describe)
}

fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}
