//! Moves weights from the checkpoint's map into huge pages, a few megabytes with each step after the first.
//!
//! A file's pages are 4 KiB. A decode step walks them all, and under a hypervisor a miss of the translation cache costs
//! up to twenty-four reads: measured, two cores read 98 MB of weights at 17 to 20 GB/s from the map and at 27 to 37 GB/s from huge
//! pages. At load this would cost the cold start more than all the rest, so it waits until tokens flow.

use super::{matrix::Matrix, pool::Pool};
use memmap2::{Advice, Mmap, MmapMut};
use std::{ops::Deref, ops::Range, sync::Arc};

/// Bytes moved with one step, or one matrix if that is larger: some 2 ms.
const STEP_BYTES: usize = 8 << 20;
/// Matrices stay aligned to cache lines.
const ALIGN: usize = 64;
/// Bytes a thread copies at once: whole huge pages are faulted in by one thread.
const CHUNK_BYTES: usize = 2 << 20;

/// Bytes in a map that several matrices share.
pub(super) struct Settled {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Deref for Settled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

/// How far a model's weights have been moved.
#[derive(Debug, Default)]
pub struct Settling {
    steps: usize,
    /// Matrices already moved; `usize::MAX` when there is nothing more to do.
    done: usize,
}

impl Settling {
    /// To be called after each step, always with the same matrices.
    pub fn step(&mut self, pool: &mut Pool, matrices: &[&Matrix]) {
        self.steps = self.steps.saturating_add(1);
        if self.steps == 1 || self.done >= matrices.len() {
            return;
        }
        let rest = &matrices[self.done..];
        let mut bytes = 0;
        let fits = |matrix: &&&Matrix| {
            let first = bytes == 0;
            bytes += matrix.bytes().len().next_multiple_of(ALIGN);
            first || bytes <= STEP_BYTES
        };
        let count = rest.iter().take_while(fits).count();
        self.done = match move_all(pool, &rest[..count]) {
            Ok(()) => self.done + count,
            // No memory, or a kernel without huge pages: the map serves as well as before.
            Err(_) => usize::MAX,
        };
    }
}

fn move_all(pool: &mut Pool, matrices: &[&Matrix]) -> std::io::Result<()> {
    let mut end = 0;
    let ranges: Vec<Range<usize>> = matrices
        .iter()
        .map(|matrix| {
            let range = end..end + matrix.bytes().len();
            end = range.end.next_multiple_of(ALIGN);
            range
        })
        .collect();
    let mut map = MmapMut::map_anon(end)?;
    map.advise(Advice::HugePage)?;
    pool.for_each_chunk(&mut map, CHUNK_BYTES, |index, chunk| {
        let (start, end) = (index * CHUNK_BYTES, index * CHUNK_BYTES + chunk.len());
        for (range, matrix) in ranges.iter().zip(matrices) {
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                chunk[from - start..to - start].copy_from_slice(&matrix.bytes()[from - range.start..to - range.start]);
            }
        }
    });
    let map = Arc::new(map.make_read_only()?);
    for (range, matrix) in ranges.into_iter().zip(matrices) {
        matrix.settle(Settled { map: map.clone(), range });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_store::{GgmlType, TensorData};

    #[test]
    fn weights_are_the_same_after_they_have_moved() {
        let matrix = |salt: usize, rows: usize| {
            let bytes = (0..rows * 34).map(|i| (i * 7 + salt) as u8).collect();
            Matrix::new(TensorData::from_bytes(GgmlType::Q8_0, vec![32, rows as u64], bytes).expect("right size"))
        };
        // Several to a step, one larger than a step, one with a tail.
        let matrices = [matrix(1, 16), matrix(2, 300_000), matrix(3, 21), matrix(4, 160)];
        let bands =
            |matrix: &Matrix| (0..matrix.bands()).flat_map(|band| matrix.band(band).to_vec()).collect::<Vec<u8>>();
        let before: Vec<Vec<u8>> = matrices.iter().map(bands).collect();
        let (mut pool, mut settling) = (Pool::new(2, |_| {}).expect("two threads"), Settling::default());
        let places = || matrices.iter().map(|matrix| matrix.bytes().as_ptr()).collect::<Vec<_>>();
        let first = places();
        settling.step(&mut pool, &matrices.each_ref());
        assert_eq!(places(), first, "the first step moves nothing");
        for _ in 0..5 {
            settling.step(&mut pool, &matrices.each_ref());
            assert!(matrices.iter().map(bands).eq(before.iter().cloned()));
        }
        // Where the kernel has no huge pages, nothing moves at all.
        let moved = places().iter().zip(&first).filter(|(a, b)| a != b).count();
        assert!(moved == 0 || moved == matrices.len(), "{moved} moved");
    }
}
