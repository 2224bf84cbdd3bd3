//! Which full KV blocks hold which prefix: the index behind the prefix cache.
//!
//! A block is named by a chain of hashes: its key is a digest of its parent's key and its own tokens, and the
//! chain begins with a digest of (revision and layout, adapter, tenant). So one look-up a block finds the longest
//! known prefix, and nothing of another model, adapter, layout or tenant can be found at all. A hash only finds: an
//! entry is trusted after its tenant, adapter, parent block and tokens were compared, which by induction compares the whole
//! prefix. Two prefixes that collide, by chance or by design, cost a miss and never an answer.
//!
//! The index knows nothing of who holds a block; that is [`BlockPool`](crate::BlockPool)'s part.

use crate::forward::{BlockId, TokenId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Name of a block's tokens and of all that comes before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockKey(u64);

impl BlockKey {
    /// The beginning of every chain of a tenant with an adapter, by its revision, or with none. `scope` names the
    /// model's revision and the KV layout.
    pub fn root(scope: &str, adapter: Option<&str>, tenant: &str) -> Self {
        let text = |state, text: &str| {
            // The length first, so that no two pairs of texts make the same bytes.
            let state = mix(state, text.len() as u64);
            text.bytes().fold(state, |state, byte| mix(state, u64::from(byte)))
        };
        let state = text(0, scope);
        let state = adapter.map_or(mix(state, 0), |adapter| text(mix(state, 1), adapter));
        Self(text(state, tenant))
    }

    /// The block after this one.
    pub fn child(self, tokens: &[TokenId]) -> Self {
        Self(tokens.iter().fold(mix(self.0, tokens.len() as u64), |state, token| mix(state, u64::from(*token))))
    }
}

/// A step of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) over a running state: every input bit reaches
/// every output bit, and it is the same in every build, which the standard library's hasher does not promise.
fn mix(state: u64, value: u64) -> u64 {
    let mut x = (state ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// One block of a chain, as it is looked for and as it is published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link<'a> {
    pub key: BlockKey,
    pub tenant: &'a Arc<str>,
    /// Revision of the adapter that it was computed with.
    pub adapter: Option<&'a Arc<str>>,
    /// The cached block before it; none for the first.
    pub parent: Option<BlockId>,
    /// A full block of tokens.
    pub tokens: &'a [TokenId],
}

#[derive(Clone, Debug)]
struct Entry {
    key: BlockKey,
    tenant: Arc<str>,
    adapter: Option<Arc<str>>,
    parent: Option<BlockId>,
    tokens: Box<[TokenId]>,
    /// Entries whose parent this is.
    children: u32,
}

impl Entry {
    fn is(&self, link: &Link<'_>) -> bool {
        self.parent == link.parent
            && *self.tokens == *link.tokens
            && self.tenant == *link.tenant
            && self.adapter.as_ref() == link.adapter
    }
}

/// What became of a block that was to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It can be found from now on.
    Here,
    /// Another block holds the same prefix already.
    Elsewhere(BlockId),
    /// Its key belongs to another prefix, or its parent is not in the index.
    Not,
}

/// Entries by block and by key.
#[derive(Clone, Debug)]
pub(crate) struct PrefixIndex {
    entries: Vec<Option<Entry>>,
    by_key: BTreeMap<BlockKey, BlockId>,
}

impl PrefixIndex {
    pub fn new(blocks: usize) -> Self {
        Self { entries: vec![None; blocks], by_key: BTreeMap::new() }
    }

    pub fn contains(&self, block: BlockId) -> bool {
        self.entries[block as usize].is_some()
    }

    /// The block that holds exactly this.
    pub fn find(&self, link: &Link<'_>) -> Option<BlockId> {
        let block = *self.by_key.get(&link.key)?;
        let entry = self.entries[block as usize].as_ref()?;
        entry.is(link).then_some(block)
    }

    pub fn publish(&mut self, link: &Link<'_>, block: BlockId) -> Published {
        if self.by_key.contains_key(&link.key) {
            return self.find(link).map_or(Published::Not, Published::Elsewhere);
        }
        if let Some(parent) = link.parent {
            let Some(entry) = &mut self.entries[parent as usize] else { return Published::Not };
            entry.children += 1;
        }
        let Link { key, tenant, adapter, parent, tokens } = *link;
        let (tenant, adapter) = (tenant.clone(), adapter.cloned());
        let entry = Entry { key, tenant, adapter, parent, tokens: tokens.into(), children: 0 };
        let before = self.entries[block as usize].replace(entry);
        assert!(before.is_none(), "block {block} is published twice");
        self.by_key.insert(key, block);
        Published::Here
    }

    /// Forgets one block, which must be the end of its chain: what came after it could not be found any more.
    pub fn remove(&mut self, block: BlockId) {
        let Some(entry) = self.entries[block as usize].take() else { return };
        assert_eq!(entry.children, 0, "block {block} is taken out of the middle of a chain");
        self.by_key.remove(&entry.key);
        if let Some(parent) = entry.parent.and_then(|parent| self.entries[parent as usize].as_mut()) {
            parent.children -= 1;
        }
    }

    /// Forgets these blocks and all that come after them; answers which were known.
    pub fn remove_chains(&mut self, blocks: &[BlockId]) -> Vec<BlockId> {
        let doomed = self.and_after(blocks);
        for block in &doomed {
            let Some(entry) = self.entries[*block as usize].take() else { continue };
            self.by_key.remove(&entry.key);
            // Set right for parents that stay; those that go as well do not matter any more.
            if let Some(parent) = entry.parent.and_then(|parent| self.entries[parent as usize].as_mut()) {
                parent.children -= 1;
            }
        }
        doomed
    }

    /// These blocks, as far as they are known, and all that come after them.
    fn and_after(&self, blocks: &[BlockId]) -> Vec<BlockId> {
        let mut verdicts: Vec<Option<bool>> = vec![None; self.entries.len()];
        for block in blocks {
            if let Some(verdict) = verdicts.get_mut(*block as usize) {
                *verdict = Some(true);
            }
        }
        let mut path = Vec::new();
        for block in 0..self.entries.len() {
            // Up to an ancestor of which it is known; what is learnt there holds for the whole way.
            let (mut at, mut doomed) = (Some(block), false);
            while let Some(block) = at {
                if let Some(verdict) = verdicts[block] {
                    doomed = verdict;
                    break;
                }
                path.push(block);
                at = self.entries[block].as_ref().and_then(|entry| entry.parent).map(|parent| parent as usize);
            }
            path.drain(..).for_each(|block| verdicts[block] = Some(doomed));
        }
        let known = (0..self.entries.len()).filter(|block| self.entries[*block].is_some());
        known.filter(|block| verdicts[*block] == Some(true)).map(|block| block as BlockId).collect()
    }

    /// Whether a block is known to hold these tokens of this tenant and adapter; true also when it is not known.
    pub fn agrees(&self, block: BlockId, tenant: &str, adapter: Option<&str>, tokens: &[TokenId]) -> bool {
        self.entries[block as usize].as_ref().is_none_or(|entry| {
            *entry.tenant == *tenant && entry.adapter.as_deref() == adapter && *entry.tokens == *tokens
        })
    }

    /// The cached block before this one.
    pub fn parent(&self, block: BlockId) -> Option<BlockId> {
        self.entries[block as usize].as_ref().and_then(|entry| entry.parent)
    }

    /// What is wrong with the index, if anything.
    pub fn audit(&self) -> Result<(), String> {
        let known = self.entries.iter().flatten().count();
        if known != self.by_key.len() {
            return Err(format!("{known} entries have {} keys", self.by_key.len()));
        }
        let mut children = vec![0; self.entries.len()];
        for (block, entry) in self.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            if self.by_key.get(&entry.key).map(|found| *found as usize) != Some(block) {
                return Err(format!("block {block} is not found under its key"));
            }
            if let Some(parent) = entry.parent {
                if !self.contains(parent) {
                    return Err(format!("block {block} comes after block {parent}, which is not known"));
                }
                children[parent as usize] += 1;
            }
        }
        let counted = self
            .entries
            .iter()
            .zip(&children)
            .all(|(entry, children)| entry.as_ref().is_none_or(|entry| entry.children == *children));
        if counted { Ok(()) } else { Err("a count of children is wrong".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn link<'a>(key: BlockKey, tenant: &'a Arc<str>, parent: Option<BlockId>, tokens: &'a [TokenId]) -> Link<'a> {
        Link { key, tenant, adapter: None, parent, tokens }
    }

    #[test]
    fn keys_differ_in_scope_adapter_tenant_order_and_length() {
        let keys = [
            BlockKey::root("m", None, "a"),
            BlockKey::root("ma", None, ""),
            BlockKey::root("", None, "ma"),
            BlockKey::root("m", None, "b"),
            BlockKey::root("m", None, "a").child(&[1, 2]),
            BlockKey::root("m", None, "a").child(&[2, 1]),
            BlockKey::root("m", None, "a").child(&[1]).child(&[2]),
            BlockKey::root("m", None, "b").child(&[1, 2]),
            BlockKey::root("m", Some(""), "a"),
            BlockKey::root("m", Some("x"), "a"),
            BlockKey::root("m", Some("xa"), ""),
            BlockKey::root("m", Some("y"), "a"),
        ];
        let distinct: BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(BlockKey::root("m", None, "a").child(&[1, 2]), keys[4]);
    }

    #[test]
    fn a_collision_is_a_miss() {
        let (mine, theirs): (Arc<str>, Arc<str>) = ("mine".into(), "theirs".into());
        let key = BlockKey::root("m", None, "mine").child(&[1, 2]);
        let mut index = PrefixIndex::new(4);
        assert_eq!(index.publish(&link(key, &mine, None, &[1, 2]), 0), Published::Here);
        assert_eq!(index.publish(&link(key, &mine, None, &[1, 2]), 1), Published::Elsewhere(0));
        // The same key, as if two digests were the same.
        let adapted = Link { adapter: Some(&theirs), ..link(key, &mine, None, &[1, 2]) };
        for other in [
            link(key, &theirs, None, &[1, 2]),
            link(key, &mine, None, &[1, 3]),
            link(key, &mine, Some(0), &[1, 2]),
            adapted,
        ] {
            assert_eq!(index.find(&other), None);
            assert_eq!(index.publish(&other, 1), Published::Not);
        }
        assert_eq!(index.find(&link(key, &mine, None, &[1, 2])), Some(0));
    }

    #[test]
    fn what_comes_after_a_lost_block_is_lost_with_it() {
        let tenant: Arc<str> = "t".into();
        let mut index = PrefixIndex::new(6);
        let keys: Vec<BlockKey> = (0..5).map(|n| BlockKey::root("m", None, "t").child(&[n])).collect();
        // 4 -> 1 -> 0 and 4 -> 3, and 2 by itself.
        for (block, parent) in [(4, None), (1, Some(4)), (0, Some(1)), (3, Some(4)), (2, None)] {
            let made = index.publish(&link(keys[block as usize], &tenant, parent, &[block]), block);
            assert_eq!(made, Published::Here);
        }
        assert_eq!(index.audit(), Ok(()));
        assert_eq!(index.remove_chains(&[1, 5]), [0, 1]);
        assert_eq!(index.audit(), Ok(()));
        assert_eq!(index.remove_chains(&[4]), [3, 4]);
        assert_eq!(index.audit(), Ok(()));
        assert!(index.contains(2));
        let orphan = index.publish(&link(keys[0], &tenant, Some(4), &[9]), 0);
        assert_eq!(orphan, Published::Not, "its parent is gone");
    }
}
