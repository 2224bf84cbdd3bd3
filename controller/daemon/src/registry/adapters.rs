//! Registered low-rank adapters: models of their own, served by their base's instances. They stand in a table of
//! their own, because nothing is ever started for one.

use super::{Added, ModelRecord, Registry, RegistryError};
use engine_wire::control::{ADAPTERS_MAX, AdapterSpec};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A registered adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterRecord {
    pub name: String,
    /// Name of the model that it changes.
    pub base: String,
    /// Its folder: absolute, with links resolved.
    pub path: PathBuf,
    /// SHA-256 over its files, hexadecimal.
    pub digest: String,
    pub created_unix_s: u64,
    /// Number of weights.
    pub parameters: u64,
    pub rank: u32,
}

impl AdapterRecord {
    /// What the name stands for: digest of the base's weights and parameters, and the adapter's own.
    pub fn revision(&self, base: &ModelRecord) -> String {
        format!("{}+{}", base.revision, self.digest)
    }

    /// As its engines are told of it.
    pub fn spec(&self, base: &ModelRecord) -> AdapterSpec {
        AdapterSpec {
            name: self.name.clone(),
            path: self.path.clone(),
            revision: self.revision(base),
            digest: Some(self.digest.clone()),
        }
    }
}

const COLUMNS: &str = "name, base, path, digest, created_unix_s, parameters, rank";

impl Registry {
    /// Registers an adapter, or lets its name stand for another one.
    ///
    /// # Errors
    /// When its base is not registered or full, its name is a model's, or the database cannot be written.
    pub fn put_adapter(&mut self, adapter: &AdapterRecord) -> Result<Added, RegistryError> {
        if self.model(&adapter.name)?.is_some() {
            return Err(RegistryError::NameTaken { name: adapter.name.clone(), kind: "a model" });
        }
        let path = self.path.clone();
        let describe = |error| RegistryError::from_sqlite(&path, error);
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(describe)?;
        // Read under the lock, so that no base goes meanwhile.
        let sql = "SELECT COUNT(*) FROM models WHERE name = ?1";
        let bases: i64 = transaction.query_row(sql, [&adapter.base], |row| row.get(0)).map_err(describe)?;
        if bases == 0 {
            return Err(RegistryError::NoBase { base: adapter.base.clone() });
        }
        let all = read_all(&transaction).map_err(describe)?;
        let known = all.iter().find(|known| known.name == adapter.name);
        let others = all.iter().filter(|other| other.base == adapter.base && other.name != adapter.name).count();
        if others >= ADAPTERS_MAX {
            return Err(RegistryError::TooManyAdapters { base: adapter.base.clone(), limit: ADAPTERS_MAX });
        }
        let added = match known {
            None => Added::New,
            Some(known) if (&known.base, &known.digest) == (&adapter.base, &adapter.digest) => {
                if known.path == adapter.path {
                    return Ok(Added::Unchanged);
                }
                Added::Unchanged
            }
            Some(_) => Added::Replaced,
        };
        let sql = format!("INSERT OR REPLACE INTO adapters ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)");
        transaction
            .execute(
                &sql,
                params![
                    adapter.name,
                    adapter.base,
                    adapter.path.to_string_lossy(),
                    adapter.digest,
                    adapter.created_unix_s as i64,
                    adapter.parameters as i64,
                    adapter.rank
                ],
            )
            .map_err(describe)?;
        transaction.commit().map_err(describe)?;
        Ok(added)
    }

    /// An adapter by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn adapter(&self, name: &str) -> Result<Option<AdapterRecord>, RegistryError> {
        let sql = format!("SELECT {COLUMNS} FROM adapters WHERE name = ?1");
        self.connection.query_row(&sql, [name], read_adapter).optional().map_err(|error| self.describe(error))
    }

    /// All adapters, by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn adapters(&self) -> Result<Vec<AdapterRecord>, RegistryError> {
        read_all(&self.connection).map_err(|error| self.describe(error))
    }

    /// Forgets an adapter; false when there was none by that name.
    pub(super) fn remove_adapter(&mut self, name: &str) -> Result<bool, RegistryError> {
        let removed = self.connection.execute("DELETE FROM adapters WHERE name = ?1", [name]);
        removed.map(|rows| rows > 0).map_err(|error| self.describe(error))
    }
}

fn read_all(connection: &Connection) -> rusqlite::Result<Vec<AdapterRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM adapters ORDER BY name");
    connection.prepare_cached(&sql)?.query_map([], read_adapter)?.collect()
}

fn read_adapter(row: &Row<'_>) -> rusqlite::Result<AdapterRecord> {
    let path: String = row.get(2)?;
    let unsigned = |index: usize| -> rusqlite::Result<u64> { Ok(row.get::<_, i64>(index)?.max(0) as u64) };
    Ok(AdapterRecord {
        name: row.get(0)?,
        base: row.get(1)?,
        path: PathBuf::from(path),
        digest: row.get(3)?,
        created_unix_s: unsigned(4)?,
        parameters: unsigned(5)?,
        rank: row.get(6)?,
    })
}
