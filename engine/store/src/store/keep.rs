//! Which models a store keeps: those that a registry names.

use super::{Freed, Store, StoreError};
use crate::{Checksum, Manifest};
use std::collections::BTreeSet;

impl Store {
    /// Forgets a model's manifest and head, and answers the objects that no other model needs. Their files stay until
    /// [`Store::gc`]. A revision that other layouts have keeps its head.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn forget(&self, revision: &str, layout: &str) -> Result<Vec<Checksum>, StoreError> {
        let Some(manifest) = self.manifest(revision, layout)? else { return Ok(Vec::new()) };
        self.remove(revision, layout)?;
        let others = self.manifests()?;
        if !others.iter().any(|other| other.revision == revision) {
            self.remove_head(revision)?;
        }
        let needed: BTreeSet<Checksum> = others.iter().flat_map(names).collect();
        Ok(names(&manifest).filter(|name| !needed.contains(name)).collect())
    }

    /// Forgets all models but those of these revisions, and removes what no model needs.
    ///
    /// # Errors
    /// As [`Store::gc`].
    pub fn keep_only(&self, revisions: &BTreeSet<String>) -> Result<Freed, StoreError> {
        for manifest in self.manifests()?.iter().filter(|manifest| !revisions.contains(&manifest.revision)) {
            self.remove(&manifest.revision, &manifest.layout)?;
        }
        for revision in self.heads()?.iter().filter(|revision| !revisions.contains(*revision)) {
            self.remove_head(revision)?;
        }
        self.gc()
    }
}

fn names(manifest: &Manifest) -> impl Iterator<Item = Checksum> {
    manifest.objects.iter().map(|object| object.name())
}
