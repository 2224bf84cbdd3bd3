//! The adapters that this engine serves beside its base model. Which they are, the controller says (or the command
//! line); each is read when a request first names it, and given back when it is off the list and its last request
//! has ended.

use engine_http::{ApiError, ModelCard};
use engine_runtime::{Adapters, Compute, LoadedAdapter};
use engine_store::{Adapter, AdapterError, ModelConfig, adapter_digest};
use engine_wire::control::{ADAPTERS_MAX, AdapterSpec};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::{OnceCell, Semaphore};

/// How adapters come to a device: its table, and what they must fit.
pub struct AdapterHost {
    pub table: Adapters,
    pub config: ModelConfig,
    pub compute: Compute,
}

impl AdapterHost {
    fn load(&self, spec: &AdapterSpec) -> Result<HeldAdapter, AdapterError> {
        let digest = adapter_digest(&spec.path)?;
        if let Some(expected) = spec.digest.as_ref().filter(|expected| **expected != digest) {
            return Err(AdapterError::Changed { found: digest, expected: expected.clone() });
        }
        let adapter = Adapter::open(&spec.path, &self.config)?;
        let loaded = self.table.load(&adapter, &self.config, self.compute);
        tracing::info!(adapter = spec.name, rank = adapter.rank(), bytes = loaded.bytes(), "adapter loaded");
        Ok(HeldAdapter { name: spec.name.clone(), digest: digest.into(), loaded })
    }
}

/// An adapter in the device's table. Each of its requests holds it.
pub(crate) struct HeldAdapter {
    pub name: String,
    digest: Arc<str>,
    loaded: LoadedAdapter,
}

impl HeldAdapter {
    /// As sequences name it.
    pub fn of_sequence(&self) -> engine_core::Adapter {
        engine_core::Adapter { id: self.loaded.id(), revision: self.digest.clone() }
    }
}

struct Entry {
    spec: AdapterSpec,
    held: OnceCell<Arc<HeldAdapter>>,
}

/// All of them, by name.
pub(crate) struct Shelf {
    base: String,
    entries: RwLock<BTreeMap<String, Arc<Entry>>>,
    /// Set when the base model is loaded.
    host: OnceLock<Arc<AdapterHost>>,
    /// One is read at a time: more would only fight for the disk.
    turn: Semaphore,
}

impl Shelf {
    /// An empty one for the model of this name.
    pub fn new(base: &str) -> Self {
        let (entries, host, turn) = (RwLock::default(), OnceLock::new(), Semaphore::new(1));
        Self { base: base.to_owned(), entries, host, turn }
    }

    fn entries(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Entry>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on adapters can be read.
    pub fn open(&self, host: AdapterHost) {
        let _ = self.host.set(Arc::new(host));
    }

    /// Takes a new list. What is on both lists stays as it is.
    pub fn set(&self, specs: Vec<AdapterSpec>) -> Result<(), String> {
        if specs.len() > ADAPTERS_MAX {
            return Err(format!("{} adapters are more than the {ADAPTERS_MAX} that one engine serves", specs.len()));
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = BTreeMap::new();
        for spec in specs {
            let name = spec.name.clone();
            if name.is_empty() || name == self.base || next.contains_key(&name) {
                return Err(format!("adapters need names of their own, and one is {name:?}"));
            }
            let known = entries.get(&name).filter(|entry| entry.spec == spec).cloned();
            next.insert(name, known.unwrap_or_else(|| Arc::new(Entry { spec, held: OnceCell::new() })));
        }
        *entries = next;
        Ok(())
    }

    /// Whether there is one by this name and, if one is wanted, of this revision.
    pub fn has(&self, name: &str, revision: Option<&str>) -> bool {
        self.find(name, revision).is_some()
    }

    fn find(&self, name: &str, revision: Option<&str>) -> Option<Arc<Entry>> {
        let entry = self.entries().get(name)?.clone();
        revision.is_none_or(|revision| revision == entry.spec.revision).then_some(entry)
    }

    /// The adapter, read if nobody has yet; a failure is tried again by the next who asks. The base model must be
    /// loaded.
    pub async fn hold(&self, name: &str, revision: Option<&str>) -> Result<Arc<HeldAdapter>, ApiError> {
        let gone = || ApiError::ModelNotFound { model: name.to_owned() };
        let entry = self.find(name, revision).ok_or_else(gone)?;
        let unusable = |message: String| ApiError::Adapter { model: name.to_owned(), message };
        let load = || async {
            let host = self.host.get().cloned().ok_or_else(|| unusable("its base model takes none".to_owned()))?;
            let _turn = self.turn.acquire().await.map_err(|error| unusable(error.to_string()))?;
            let spec = entry.spec.clone();
            let loaded = tokio::task::spawn_blocking(move || host.load(&spec)).await;
            match loaded {
                Ok(Ok(held)) => Ok(Arc::new(held)),
                Ok(Err(error)) => {
                    tracing::error!(adapter = name, %error, "an adapter cannot be used");
                    Err(unusable(error.to_string()))
                }
                Err(error) => Err(unusable(error.to_string())),
            }
        };
        entry.held.get_or_try_init(load).await.cloned()
    }

    /// Reads all of them now. Answers the first that cannot be used, and why.
    pub fn hold_all(&self) -> Result<(), (String, String)> {
        for (name, entry) in self.entries().iter() {
            let refused = |message: String| (name.clone(), message);
            let host = self.host.get().ok_or_else(|| refused("its base model takes none".to_owned()))?;
            let held = host.load(&entry.spec).map_err(|error| refused(error.to_string()))?;
            // Set already only if somebody else was as quick.
            let _ = entry.held.set(Arc::new(held));
        }
        Ok(())
    }

    /// Rows of `/v1/models`.
    pub fn cards(&self, created_unix_s: u64, context_tokens: usize) -> Vec<ModelCard> {
        let card = |entry: &Arc<Entry>| ModelCard {
            name: entry.spec.name.clone(),
            revision: entry.spec.revision.clone(),
            created_unix_s,
            context_tokens: u32::try_from(context_tokens).unwrap_or(u32::MAX),
            root: entry.spec.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            parent: Some(self.base.clone()),
        };
        self.entries().values().map(card).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, revision: &str) -> AdapterSpec {
        AdapterSpec { name: name.into(), path: "/nowhere/folder".into(), revision: revision.into(), digest: None }
    }

    #[tokio::test]
    async fn lists_replace_each_other() {
        let shelf = Shelf::new("base");
        let check =
            |name: &str, revision: Option<&str>, expected: bool| assert_eq!(shelf.has(name, revision), expected);
        assert_eq!(shelf.set(vec![spec("a", "1"), spec("b", "1")]), Ok(()));
        check("a", None, true);
        check("a", Some("1"), true);
        check("a", Some("2"), false);
        check("base", None, false);
        for bad in [vec![spec("base", "1")], vec![spec("c", "1"), spec("c", "2")], vec![spec("", "1")]] {
            assert!(shelf.set(bad).is_err_and(|message| message.contains("names of their own")));
        }
        let many = (0..=ADAPTERS_MAX).map(|n| spec(&n.to_string(), "1")).collect();
        assert!(shelf.set(many).is_err_and(|message| message.contains("more than the 64")));
        check("b", None, true);
        assert_eq!(shelf.set(vec![spec("a", "2")]), Ok(()));
        check("a", Some("2"), true);
        check("b", None, false);
        let cards = shelf.cards(7, 0);
        assert_eq!((cards.len(), cards[0].root.as_str(), cards[0].parent.as_deref()), (1, "folder", Some("base")));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_said() {
        let shelf = Shelf::new("base");
        shelf.set(vec![spec("a", "1")]).expect("a good list");
        let refused = |error: Option<ApiError>| error.expect("refused").to_string();
        let message = refused(shelf.hold("b", None).await.err());
        assert!(message.contains("`b` does not exist"), "{message}");
        let message = refused(shelf.hold("a", Some("2")).await.err());
        assert!(message.contains("`a` does not exist"), "{message}");
        let message = refused(shelf.hold("a", None).await.err());
        assert!(message.contains("base model takes none"), "{message}");
    }
}
