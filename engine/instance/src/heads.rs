//! What a spare process reads ahead: heads of models that it may be told to adopt, verified and parsed, with the manifests
//! of their weights. A vocabulary takes milliseconds, which a start from memory has not to spare.

use crate::ends;
use engine_core::TokenId;
use engine_runtime::CpuBands;
use engine_store::{Checkpoint, Manifest, Store};
use engine_wire::control::{HEADS_MAX, HeadSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A head, verified when it was read. It stays mapped, so what it says cannot change.
#[derive(Clone, Debug)]
pub struct Head {
    /// Without weights.
    pub(crate) checkpoint: Checkpoint,
    pub(crate) eos_token_ids: Vec<TokenId>,
    pub(crate) manifest: Manifest,
}

impl Head {
    /// Reads one; the error is for people.
    fn read(spec: &HeadSpec) -> Result<Self, String> {
        let store = Store::open(&spec.store).map_err(|error| error.to_string())?;
        let path = store.verify_head(&spec.revision).map_err(|error| error.to_string())?;
        let checkpoint = Checkpoint::open(&path, None).map_err(|error| error.to_string())?;
        let eos_token_ids = ends::of_checkpoint(&checkpoint, &path)?;
        let manifest = store.manifest(&spec.revision, CpuBands::LAYOUT).map_err(|error| error.to_string())?;
        let manifest = manifest.ok_or_else(|| "the store has no such model".to_owned())?;
        Ok(Self { checkpoint, eos_token_ids, manifest })
    }
}

/// Heads by model. Cloning shares them.
#[derive(Clone, Default)]
pub(crate) struct Heads(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    wanted: BTreeSet<HeadSpec>,
    /// None for one that could not be read: the start that wants it will say why.
    read: BTreeMap<HeadSpec, Option<Arc<Head>>>,
    /// Whether a thread is at it.
    reading: bool,
}

impl Heads {
    fn state(&self) -> MutexGuard<'_, State> {
        // What was read before a panic is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads these in the background, and forgets all others.
    pub fn want(&self, specs: Vec<HeadSpec>) {
        let mut state = self.state();
        state.wanted = specs.into_iter().take(HEADS_MAX).collect();
        let State { wanted, read, reading } = &mut *state;
        read.retain(|spec, _| wanted.contains(spec));
        if std::mem::replace(reading, true) {
            return;
        }
        drop(state);
        let heads = self.clone();
        if std::thread::Builder::new().name("heads".into()).spawn(move || heads.read_all()).is_err() {
            self.state().reading = false;
        }
    }

    /// Whatever is wanted, also by those who want it meanwhile.
    fn read_all(&self) {
        loop {
            let spec = {
                let mut state = self.state();
                let next = state.wanted.iter().find(|spec| !state.read.contains_key(spec)).cloned();
                let Some(spec) = next else {
                    state.reading = false;
                    return;
                };
                spec
            };
            let head = Head::read(&spec).inspect_err(|error| {
                tracing::warn!(revision = spec.revision, error, "a head cannot be read ahead");
            });
            let mut state = self.state();
            if state.wanted.contains(&spec) {
                state.read.insert(spec, head.ok().map(Arc::new));
            }
        }
    }

    /// One that has been read.
    pub fn get(&self, spec: &HeadSpec) -> Option<Arc<Head>> {
        self.state().read.get(spec).cloned().flatten()
    }

    /// How many have been read.
    pub fn len(&self) -> usize {
        self.state().read.values().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_no_head_and_what_is_not_wanted_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = |revision: &str| HeadSpec { store: folder.path().join("store"), revision: revision.to_owned() };
        let heads = Heads::default();
        heads.want(vec![spec("a"), spec("../b")]);
        let settled = || {
            let state = heads.state();
            !state.reading && state.read.len() == state.wanted.len()
        };
        while !settled() {
            std::thread::yield_now();
        }
        assert_eq!((heads.len(), heads.state().read.len()), (0, 2));
        assert!(heads.get(&spec("a")).is_none());
        heads.want((0..2 * HEADS_MAX).map(|n| spec(&n.to_string())).collect());
        while !settled() {
            std::thread::yield_now();
        }
        assert_eq!(heads.state().read.len(), HEADS_MAX);
        assert!(!heads.state().read.contains_key(&spec("a")));
    }
}
