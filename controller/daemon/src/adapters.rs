//! Registering low-rank adapters: from a folder in PEFT's format, checked completely against its base, to a registry
//! row; and checking those of a base whose weights are replaced.

use crate::catalog::{CatalogError, validate_name};
use crate::clock::unix_s;
use crate::config::ComputeMode;
use crate::registry::{AdapterRecord, Added, ModelRecord, Registry, RegistryError};
use engine_store::{Adapter, Checkpoint, ModelConfig, adapter_digest};
use std::path::Path;

/// Reads and checks an adapter, every number of it, and registers it: `foreshock models add --base`.
///
/// # Errors
/// Says which field, tensor or limit is wrong; and when the database cannot be written.
pub fn add_adapter(
    registry: &mut Registry,
    name: &str,
    base: &str,
    path: &Path,
) -> Result<(Added, AdapterRecord), CatalogError> {
    validate_name(name)?;
    let model = registry.model(base)?.ok_or_else(|| RegistryError::NoBase { base: base.to_owned() })?;
    if let Some(engine) = &model.engine {
        let message = format!("`{base}` is served by {}, and only our own engine serves adapters", engine.kind);
        return Err(CatalogError::Adapter { path: path.to_path_buf(), message });
    }
    let path = path
        .canonicalize()
        .map_err(|source| CatalogError::Adapter { path: path.to_path_buf(), message: source.to_string() })?;
    if path.to_str().is_none() {
        return Err(CatalogError::Path { path });
    }
    let refused = |message: String| CatalogError::Adapter { path: path.clone(), message };
    let adapter = Adapter::open(&path, &config(&model)?).map_err(|error| refused(error.to_string()))?;
    let digest = adapter_digest(&path).map_err(|error| refused(error.to_string()))?;
    let record = AdapterRecord {
        name: name.to_owned(),
        base: base.to_owned(),
        digest,
        created_unix_s: unix_s(),
        parameters: adapter.parameters(),
        rank: adapter.rank() as u32,
        path: path.clone(),
    };
    let added = registry.put_adapter(&record)?;
    Ok((added, record))
}

/// Refuses new weights for a base that its adapters do not fit.
pub(crate) fn check_adapters(registry: &Registry, base: &ModelRecord) -> Result<(), CatalogError> {
    if registry.adapter(&base.name)?.is_some() {
        return Err(RegistryError::NameTaken { name: base.name.clone(), kind: "an adapter" }.into());
    }
    let Some(known) = registry.model(&base.name)? else { return Ok(()) };
    if known.adapters.is_empty() || known.revision == base.revision {
        return Ok(());
    }
    if let (Some(engine), Some(adapter)) = (&base.engine, known.adapters.first()) {
        let message = format!("{} serves no adapters of ours", engine.kind);
        return Err(CatalogError::Misfit { adapter: adapter.name.clone(), message });
    }
    let config = config(base)?;
    for adapter in &known.adapters {
        if let Err(error) = Adapter::open(&adapter.path, &config) {
            return Err(CatalogError::Misfit { adapter: adapter.name.clone(), message: error.to_string() });
        }
    }
    Ok(())
}

fn config(model: &ModelRecord) -> Result<ModelConfig, CatalogError> {
    let checked = Checkpoint::open(model.served_path(), model.quantise).and_then(|checkpoint| checkpoint.validate());
    checked.map_err(|source| CatalogError::Checkpoint { path: model.path.clone(), source })
}

/// Memory that a model's adapters take when all are in use, bytes.
pub(crate) fn adapter_bytes(record: &ModelRecord, compute: ComputeMode) -> u64 {
    let bytes = match compute {
        ComputeMode::Fast => 2,
        ComputeMode::F32 => 4,
    };
    record.adapters.iter().map(|adapter| adapter.parameters * bytes).sum()
}
