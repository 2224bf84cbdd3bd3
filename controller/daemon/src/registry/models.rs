//! Registered models: a name and the revision it stands for.

use super::{AdapterRecord, Registry, RegistryError};
use crate::foreign::EngineSpec;
use crate::model_store::store_root;
use engine_store::{Quantisation, Store};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A registered model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    pub name: String,
    /// Absolute, with links resolved.
    pub path: PathBuf,
    /// SHA-256 of the file or of the folder's files, hexadecimal, followed by the parameters where a model has any.
    pub revision: String,
    pub created_unix_s: u64,
    pub file_bytes: u64,
    /// Modification time of the file, or the sum of those of the folder's files, when it was registered: with its size, a cheap sign that it is still the same.
    pub modified_unix_ns: u64,
    /// As the checkpoint names it, such as `llama`.
    pub architecture: String,
    /// Number of weights.
    pub parameters: u64,
    pub context_tokens: u32,
    /// Memory of one instance without its KV pool, bytes.
    pub instance_bytes: u64,
    /// What a folder's matrices are rounded to at load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantise: Option<Quantisation>,
    /// What the store keeps of it beside its weights, where the model is in the store: then `path` is only where it came
    /// from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<PathBuf>,
    /// The engine that serves it, where that is not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineSpec>,
    /// The adapters that its instances serve beside it, by name; registered by themselves.
    #[serde(default)]
    pub adapters: Vec<AdapterRecord>,
}

/// Architecture of models that make vectors.
const ENCODER_ARCHITECTURE: &str = "bert";

impl ModelRecord {
    /// Where its configuration and its tokenizer are read from.
    pub fn served_path(&self) -> &Path {
        self.head.as_ref().unwrap_or(&self.path)
    }

    /// Whether it makes vectors, and so keeps no KV pool.
    pub fn is_encoder(&self) -> bool {
        self.architecture == ENCODER_ARCHITECTURE
    }
}

/// What registering did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Added {
    New,
    /// Name and revision were registered already.
    Unchanged,
    /// The name stood for another revision, whose instances are now drained.
    Replaced,
}

const COLUMNS: &str = "name, path, revision, created_unix_s, file_bytes, modified_unix_ns, architecture, parameters, \
                       context_tokens, instance_bytes, quantise, engine, stored";

impl Registry {
    /// Registers a model, or lets its name stand for another revision.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn put_model(&mut self, model: &ModelRecord) -> Result<Added, RegistryError> {
        let added = match self.model(&model.name)? {
            None => Added::New,
            Some(known) if is_same_file(&known, model) => {
                return Ok(Added::Unchanged);
            }
            // The same weights at another path or written anew: instances keep running, later ones start from there.
            Some(known) if known.revision == model.revision => Added::Unchanged,
            Some(_) => Added::Replaced,
        };
        let sql = format!(
            "INSERT OR REPLACE INTO models ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"
        );
        // Strings and numbers always serialise.
        let engine = model.engine.as_ref().and_then(|engine| serde_json::to_string(engine).ok());
        let path = model.path.to_string_lossy();
        self.connection
            .execute(
                &sql,
                params![
                    model.name,
                    path,
                    model.revision,
                    model.created_unix_s as i64,
                    model.file_bytes as i64,
                    model.modified_unix_ns as i64,
                    model.architecture,
                    model.parameters as i64,
                    model.context_tokens,
                    model.instance_bytes as i64,
                    model.quantise.map(|quantise| quantise.to_string()),
                    engine,
                    model.head.is_some()
                ],
            )
            .map_err(|error| self.describe(error))?;
        Ok(added)
    }

    /// Forgets a model or an adapter; false when there was none by that name.
    ///
    /// # Errors
    /// When the model is the base of adapters, or the database cannot be written.
    pub fn remove_model(&mut self, name: &str) -> Result<bool, RegistryError> {
        if self.remove_adapter(name)? {
            return Ok(true);
        }
        let adapters: Vec<String> = self.model(name)?.into_iter().flat_map(names_of_adapters).collect();
        if !adapters.is_empty() {
            return Err(RegistryError::HasAdapters { name: name.to_owned(), adapters });
        }
        let removed = self.connection.execute("DELETE FROM models WHERE name = ?1", [name]);
        removed.map(|rows| rows > 0).map_err(|error| self.describe(error))
    }

    /// A model by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn model(&self, name: &str) -> Result<Option<ModelRecord>, RegistryError> {
        let sql = format!("SELECT {COLUMNS} FROM models WHERE name = ?1");
        let read = |row: &Row<'_>| read_model(row, &self.path);
        let found = self.connection.query_row(&sql, [name], read).optional();
        let Some(mut model) = found.map_err(|error| self.describe(error))? else { return Ok(None) };
        model.adapters = self.adapters()?.into_iter().filter(|adapter| adapter.base == name).collect();
        Ok(Some(model))
    }

    /// All models, by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn models(&self) -> Result<Vec<ModelRecord>, RegistryError> {
        let sql = format!("SELECT {COLUMNS} FROM models ORDER BY name");
        let read = || -> rusqlite::Result<Vec<ModelRecord>> {
            self.connection.prepare_cached(&sql)?.query_map([], |row| read_model(row, &self.path))?.collect()
        };
        let mut models = read().map_err(|error| self.describe(error))?;
        for adapter in self.adapters()? {
            if let Some(base) = models.iter_mut().find(|model| model.name == adapter.base) {
                base.adapters.push(adapter);
            }
        }
        Ok(models)
    }

    /// A number that rises whenever a model or an adapter is added, replaced or removed, by whichever process. Reading
    /// it is one page-cache look-up, cheap enough to poll.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn models_version(&self) -> Result<i64, RegistryError> {
        let read = || {
            self.connection
                .prepare_cached("SELECT value FROM meta WHERE key = 'models_version'")?
                .query_row([], |row| row.get(0))
        };
        read().map_err(|error| self.describe(error))
    }
}

fn names_of_adapters(model: ModelRecord) -> impl Iterator<Item = String> {
    model.adapters.into_iter().map(|adapter| adapter.name)
}

fn is_same_file(known: &ModelRecord, model: &ModelRecord) -> bool {
    let of = |model: &ModelRecord| (model.path.clone(), model.modified_unix_ns, model.head.is_some());
    known.revision == model.revision && of(known) == of(model)
}

/// The store lies beside the database, wherever that is now.
fn read_model(row: &Row<'_>, database: &Path) -> rusqlite::Result<ModelRecord> {
    let path: String = row.get(1)?;
    let revision: String = row.get(2)?;
    let root = store_root(database.parent().unwrap_or(Path::new("")));
    let head = row.get::<_, bool>(12)?.then(|| Store::head_in(&root, &revision));
    let unsigned = |index: usize| -> rusqlite::Result<u64> { Ok(row.get::<_, i64>(index)?.max(0) as u64) };
    Ok(ModelRecord {
        name: row.get(0)?,
        path: PathBuf::from(path),
        revision,
        head,
        created_unix_s: unsigned(3)?,
        file_bytes: unsigned(4)?,
        modified_unix_ns: unsigned(5)?,
        architecture: row.get(6)?,
        parameters: unsigned(7)?,
        context_tokens: row.get(8)?,
        instance_bytes: unsigned(9)?,
        quantise: read_quantisation(row, 10)?,
        engine: read_engine(row, 11)?,
        adapters: Vec::new(),
    })
}

fn read_quantisation(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Quantisation>> {
    let Some(name) = row.get::<_, Option<String>>(index)? else { return Ok(None) };
    let unknown =
        |error| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error));
    name.parse().map(Some).map_err(unknown)
}

fn read_engine(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<EngineSpec>> {
    let Some(json) = row.get::<_, Option<String>>(index)? else { return Ok(None) };
    let unknown =
        |error| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error));
    serde_json::from_str(&json).map(Some).map_err(unknown)
}
