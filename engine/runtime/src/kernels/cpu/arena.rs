//! Memory in huge pages that is filled from its beginning, while what is filled already is read.

use memmap2::{Advice, MmapMut, MmapRaw};
use std::{
    io,
    ops::Range,
    slice,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The readers' side.
pub(super) struct Arena {
    map: MmapRaw,
    /// Bytes that are filled, and never change again.
    filled: AtomicUsize,
}

impl Arena {
    /// Bytes that have been filled; panics when they have not.
    #[inline]
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.filled.load(Ordering::Acquire));
        // SAFETY: within the map, because `filled` never exceeds its length. The writer forms references only to
        // what lies beyond `filled`, so nothing changes these bytes as long as the map lives, which `self` keeps.
        unsafe { slice::from_raw_parts(self.map.as_ptr().add(range.start), range.len()) }
    }
}

/// The one who fills an arena: there is one to an arena, and it cannot be cloned.
pub(super) struct Writer {
    arena: Arc<Arena>,
}

impl Writer {
    /// Reserves addresses; memory is taken as it is filled. An error where there is none, or no huge pages.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let map = MmapRaw::from(MmapMut::map_anon(bytes)?);
        map.advise(Advice::HugePage)?;
        Ok(Self { arena: Arc::new(Arena { map, filled: AtomicUsize::new(0) }) })
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Bytes filled so far.
    pub(super) fn filled(&self) -> usize {
        self.arena.filled.load(Ordering::Relaxed)
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled() == self.arena.map.len()
    }

    /// Fills up to `end`. `fill` is given zeros; readers see them when it returns.
    pub(super) fn fill_to(&mut self, end: usize, fill: impl FnOnce(&mut [u8])) {
        let start = self.filled();
        assert!(start <= end && end <= self.arena.map.len());
        // SAFETY: within the map by the assertion; anonymous memory is zeros, so initialised. Exclusive: readers stay
        // below `filled`, and this writer, of whom there is one, is borrowed mutably.
        fill(unsafe { slice::from_raw_parts_mut(self.arena.map.as_mut_ptr().add(start), end - start) });
        self.arena.filled.store(end, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_bytes_stay_while_more_are_filled() {
        let mut writer = Writer::new(100).expect("memory");
        let arena = writer.arena().clone();
        writer.fill_to(60, |bytes| bytes.fill(1));
        let first = arena.bytes(0..60);
        writer.fill_to(100, |bytes| bytes.fill(2));
        assert!(first.iter().all(|byte| *byte == 1) && arena.bytes(60..100) == [2; 40]);
        assert!(writer.is_full());
        assert!(std::panic::catch_unwind(|| arena.bytes(50..101).len()).is_err());
    }
}
