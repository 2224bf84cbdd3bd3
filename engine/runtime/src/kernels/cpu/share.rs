//! How the threads share a region's work: each begins with a contiguous range of its own, so that it reads memory as one
//! stream, and takes from the others' when it is through.

use super::pool::Pool;
use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// What is left of one range. A cache line each, so that threads do not disturb one another.
#[repr(align(64))]
struct Left {
    next: AtomicUsize,
    end: usize,
}

/// The range of `0..items` that thread `index` of `threads` begins with.
pub(super) fn own_range(items: usize, index: usize, threads: usize) -> Range<usize> {
    items * index / threads..items * (index + 1) / threads
}

/// A part of a range: its items, and which range (of how many) it came from, and where that ends.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) items: Range<usize>,
    pub(super) end: usize,
    pub(super) index: usize,
}

/// Calls `task` for parts of `0..items`, at most `chunk` long, each item once.
pub(super) fn run(pool: &mut Pool, items: usize, chunk: usize, task: impl Fn(Part) + Sync) {
    let threads = pool.threads();
    let left: Vec<Left> = (0..threads)
        .map(|index| own_range(items, index, threads))
        .map(|range| Left { next: AtomicUsize::new(range.start), end: range.end })
        .collect();
    pool.run(threads, &|own| {
        for index in (own..threads).chain(0..own) {
            let Left { next, end } = &left[index];
            loop {
                // A counter only; the pool orders the data.
                let start = next.fetch_add(chunk, Ordering::Relaxed);
                if start >= *end {
                    break;
                }
                task(Part { items: start..(start + chunk).min(*end), end: *end, index });
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once_and_ranges_cover_all() {
        for threads in [1, 2, 3, 7] {
            let mut pool = Pool::new(threads, |_| {}).expect("threads");
            for items in [0, 1, 2, 5, 64, 101] {
                for chunk in [1, 3, 200] {
                    let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                    run(&mut pool, items, chunk, |part| {
                        let Part { items, end, .. } = part;
                        assert!(items.len() <= chunk && items.end <= end);
                        items.for_each(|item| {
                            counts[item].fetch_add(1, Ordering::Relaxed);
                        });
                    });
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
                let ranges: Vec<usize> = (0..threads).flat_map(|index| own_range(items, index, threads)).collect();
                assert_eq!(ranges, (0..items).collect::<Vec<_>>());
            }
        }
    }
}
