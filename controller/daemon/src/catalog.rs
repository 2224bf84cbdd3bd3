//! Registering models: from a name and a file, checked completely, to a registry row; and telling the
//! running loop when any process has changed the registry.

use crate::actuate::Models;
use crate::adapters::{adapter_bytes, check_adapters};
use crate::clock::unix_s;
use crate::config::{ComputeMode, DaemonConfig};
use crate::foreign::EngineError;
use crate::model_store::{ModelStore, Taking};
use crate::registry::{Added, ModelRecord, Registry, RegistryError};
use engine_store::{
    Checkpoint, CheckpointError, EncoderCheckpoint, EncoderError, Quantisation, Store, StoreError, Summary,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::watch;

/// Why a model was not registered.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("`{name}` is no model name: {why}; use 1 to 128 of the characters A-Z a-z 0-9 . _ : / -")]
    Name { name: String, why: &'static str },
    #[error("the checkpoint {} cannot be used: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the checkpoint {} is not valid UTF-8 in its path; rename it", path.display())]
    Path { path: PathBuf },
    #[error("the checkpoint {} cannot be served: {source}", path.display())]
    Checkpoint { path: PathBuf, source: CheckpointError },
    #[error("the adapter {} cannot be used: {message}", path.display())]
    Adapter { path: PathBuf, message: String },
    #[error("the adapter `{adapter}` does not fit these weights ({message}); remove it first")]
    Misfit { adapter: String, message: String },
    #[error("the checkpoint {} cannot be served: {source}", path.display())]
    Encoder { path: PathBuf, source: EncoderError },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Longest model name, bytes.
const NAME_LIMIT: usize = 128;

/// Checks a model's name. It appears in URLs, metric labels and file names.
///
/// # Errors
/// Says which rule it breaks.
pub fn validate_name(name: &str) -> Result<(), CatalogError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > NAME_LIMIT {
        "it is too long"
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte)) {
        "it has other characters"
    } else if !name.as_bytes()[0].is_ascii_alphanumeric() {
        "it does not begin with a letter or digit"
    } else if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        "a part between slashes is empty, `.` or `..`"
    } else {
        return Ok(());
    };
    Err(CatalogError::Name { name: name.to_owned(), why })
}

/// Reads and checks a checkpoint, file or folder: headers, metadata, every tensor, and the digest of all of it (which
/// takes as long as reading it).
///
/// # Errors
/// Says which field or tensor is wrong.
pub fn examine(name: &str, path: &Path, quantise: Option<Quantisation>) -> Result<ModelRecord, CatalogError> {
    validate_name(name)?;
    let describe = |source| CatalogError::File { path: path.to_path_buf(), source };
    let path = path.canonicalize().map_err(describe)?;
    if path.to_str().is_none() {
        return Err(CatalogError::Path { path });
    }
    let refused = |source| CatalogError::Checkpoint { path: path.clone(), source };
    let summary = if EncoderCheckpoint::is_one(&path) {
        examine_encoder(&path, quantise).map_err(|source| CatalogError::Encoder { path: path.clone(), source })?
    } else {
        let checkpoint = Checkpoint::open(&path, quantise).map_err(refused)?;
        checkpoint.validate().map_err(refused)?;
        checkpoint.inspect().map_err(refused)?
    };
    // Before the digest: a change while it is being made is then noticed at the first start.
    let stamp = engine_store::stamp(&path).map_err(describe)?;
    let revision = engine_store::revision(&path, quantise).map_err(refused)?;
    Ok(ModelRecord {
        name: name.to_owned(),
        revision,
        created_unix_s: unix_s(),
        file_bytes: stamp.bytes,
        modified_unix_ns: stamp.modified_unix_ns,
        architecture: summary.architecture,
        parameters: summary.parameters,
        context_tokens: summary.context_tokens.and_then(|tokens| u32::try_from(tokens).ok()).unwrap_or(u32::MAX),
        instance_bytes: summary.weight_bytes + SCRATCH_BYTES,
        quantise,
        head: None,
        engine: None,
        adapters: Vec::new(),
        path,
    })
}

/// Opens an encoder's folder, which checks it.
fn examine_encoder(path: &Path, quantise: Option<Quantisation>) -> Result<Summary, EncoderError> {
    if quantise.is_some() {
        return Err(EncoderError::Quantised { path: path.to_owned() });
    }
    Ok(EncoderCheckpoint::open(path)?.inspect())
}

/// Memory of an engine beside weights and KV pool: code, tokenizer, activations.
const SCRATCH_BYTES: u64 = 64 << 20;

/// Examines a checkpoint, takes it into the store and registers it: `foreshock models add`. One that is in the store
/// under whatever name, and that looks as it did then, is not read again. `told` hears how far it is.
///
/// # Errors
/// As [`examine`], when adapters of the name do not fit, and when the store or the database cannot be written.
pub fn add_model(
    registry: &mut Registry,
    store: &ModelStore,
    name: &str,
    path: &Path,
    quantise: Option<Quantisation>,
    told: &mut dyn FnMut(Taking),
) -> Result<(Added, ModelRecord), CatalogError> {
    validate_name(name)?;
    let adding = store.adding()?;
    let mut record = match known(registry, name, path, quantise)? {
        Some(record) => record,
        None => {
            told(Taking::Reading);
            examine(name, path, quantise)?
        }
    };
    check_adapters(registry, &record)?;
    let before = registry.model(name)?;
    if store.takes(&record) {
        store.take_in(&record, told)?;
        record.head = Some(Store::head_in(store.root(), &record.revision));
    }
    let added = registry.put_model(&record)?;
    drop(adding);
    if let (Added::Replaced, Some(before)) = (added, before) {
        store.let_go(registry, &before.revision)?;
    }
    Ok((added, record))
}

/// What is known of a checkpoint that is in the store already. Size and modification time stand for its content, as
/// they do wherever a registered file is looked at again.
fn known(
    registry: &Registry,
    name: &str,
    path: &Path,
    quantise: Option<Quantisation>,
) -> Result<Option<ModelRecord>, CatalogError> {
    let describe = |source| CatalogError::File { path: path.to_path_buf(), source };
    let path = path.canonicalize().map_err(describe)?;
    let Ok(stamp) = engine_store::stamp(&path) else { return Ok(None) };
    let is_same = |model: &ModelRecord| {
        (model.head.is_some(), &model.path, model.quantise) == (true, &path, quantise)
            && (model.file_bytes, model.modified_unix_ns) == (stamp.bytes, stamp.modified_unix_ns)
    };
    let same = registry.models()?.into_iter().find(is_same);
    Ok(same.map(|model| match model.name == name {
        true => model,
        false => ModelRecord { name: name.to_owned(), created_unix_s: unix_s(), adapters: Vec::new(), ..model },
    }))
}

/// Forgets a model or an adapter, and lets go of what the store has of it: `foreshock models rm`. False when there was
/// none by that name.
///
/// # Errors
/// When the model is the base of adapters, and when the database or the store cannot be written.
pub fn remove_model(registry: &mut Registry, store: &ModelStore, name: &str) -> Result<bool, CatalogError> {
    let before = registry.model(name)?.filter(|model| model.head.is_some());
    let removed = registry.remove_model(name)?;
    if let (true, Some(before)) = (removed, before) {
        store.let_go(registry, &before.revision)?;
    }
    Ok(removed)
}

/// Weights that all instances of a model share; none where each has its own.
pub(crate) fn stored_weights_bytes(record: &ModelRecord) -> Option<u64> {
    record.head.as_ref().map(|_| record.instance_bytes.saturating_sub(SCRATCH_BYTES))
}

/// Memory that one instance is expected to take, KV pool and weights included, bytes.
pub fn instance_bytes(record: &ModelRecord, config: &DaemonConfig) -> u64 {
    // What another engine takes is in its record, its KV cache included.
    if record.is_encoder() || record.engine.is_some() {
        return record.instance_bytes;
    }
    let dequantised = match config.compute {
        ComputeMode::Fast => 0,
        ComputeMode::F32 => record.parameters * 4,
    };
    record.instance_bytes + dequantised + adapter_bytes(record, config.compute) + config.kv_bytes
}

/// How soon a change made by another process is seen.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// Watches the registry from a thread of its own, so that no disk access stands in the loop's way. Ends
/// when dropped.
#[derive(Clone)]
pub struct CatalogWatch {
    models: watch::Receiver<Arc<Models>>,
    poke: SyncSender<()>,
}

impl CatalogWatch {
    /// Reads the registry once, then starts watching it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn start(state_dir: &Path) -> Result<Self, RegistryError> {
        let registry = Registry::connect(state_dir)?;
        let version = registry.models_version()?;
        let (sender, models) = watch::channel(Arc::new(read(&registry)?));
        let (poke, poked) = sync_channel(1);
        std::thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(move || poll(&registry, version, &sender, &poked))
            .map_err(|source| RegistryError::StateFolder { path: state_dir.to_path_buf(), source })?;
        Ok(Self { models, poke })
    }

    /// The registered models, as of the last look.
    pub fn models(&self) -> watch::Receiver<Arc<Models>> {
        self.models.clone()
    }

    /// Looks again at once: something was changed here.
    pub fn poke(&self) {
        // A full queue means that a look is due anyway.
        let _ = self.poke.try_send(());
    }
}

fn read(registry: &Registry) -> Result<Models, RegistryError> {
    Ok(registry.models()?.into_iter().map(|model| (model.name.clone(), model)).collect())
}

fn poll(registry: &Registry, mut version: i64, models: &watch::Sender<Arc<Models>>, poked: &Receiver<()>) {
    let mut failing = false;
    while poked.recv_timeout(POLL_EVERY) != Err(RecvTimeoutError::Disconnected) {
        let look = registry.models_version().and_then(|seen| {
            if seen != version {
                models.send_replace(Arc::new(read(registry)?));
                version = seen;
            }
            Ok(())
        });
        if let (Err(error), false) = (&look, failing) {
            tracing::error!(%error, "the registry cannot be read; the models known so far stay");
        }
        failing = look.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let good = |name: &str| assert!(validate_name(name).is_ok(), "{name}");
        let bad = |name: &str, why: &str| {
            let message = validate_name(name).unwrap_err().to_string();
            assert!(message.contains(why), "{name}: {message}");
        };
        good("smollm2");
        good("acme/smollm2-135m:v1.2_x");
        good(&"a".repeat(128));
        bad("", "empty");
        bad(&"a".repeat(129), "too long");
        bad("a b", "other characters");
        bad("modèle", "other characters");
        bad("/etc/passwd", "begin with");
        bad("../x", "begin with");
        bad("a/../b", "between slashes");
        bad("a//b", "between slashes");
        bad("a/", "between slashes");
    }

    #[test]
    fn a_file_that_is_no_checkpoint_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        let missing = examine("x", &path, None).unwrap_err().to_string();
        assert!(missing.contains("x.gguf") && missing.contains("No such file"), "{missing}");
        std::fs::write(&path, b"not a checkpoint at all").unwrap();
        let refused = examine("x", &path, None).unwrap_err().to_string();
        assert!(refused.contains("x.gguf") && refused.contains("cannot be served"), "{refused}");
    }
}
