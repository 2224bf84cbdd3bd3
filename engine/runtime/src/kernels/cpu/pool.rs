//! A small fork-join pool for regions of a few microseconds.
//!
//! Workers spin briefly between regions (a step has over a hundred) and then park. A region belongs to its
//! caller, who works too; a worker joins only while the region is open, so one that sleeps or was
//! preempted never holds up a region that the others can finish.

use std::{
    cell::UnsafeCell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

/// Polls before a worker parks: some tens of microseconds, longer than any serial stretch of a step.
const SPINS: u32 = 4000;
/// Set in `Shared::gate` while a region may be joined; the rest of the word counts the joined workers.
const OPEN: u64 = 1 << 32;

type Task = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts regions; a change wakes the workers.
    generation: AtomicU64,
    gate: AtomicU64,
    task: UnsafeCell<Task>,
    items: AtomicUsize,
    next: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    parked: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `task` is written only by the caller while the gate is closed with no worker joined, and read only by
// workers that joined through the gate; the gate's acquire-release operations order the two.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is never dereferenced outside an open region.
unsafe impl Send for Shared {}

/// Threads that run one region at a time.
pub struct Pool {
    shared: Option<Arc<Shared>>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// `threads` in all, the caller included. Worker `i` (from 1) runs `start(i)` first.
    pub fn new(threads: usize, start: impl Fn(usize) + Send + Clone + 'static) -> io::Result<Self> {
        if threads <= 1 {
            return Ok(Self { shared: None, workers: Vec::new() });
        }
        let idle: &'static (dyn Fn(usize) + Sync) = &|_| {};
        let shared = Arc::new(Shared {
            generation: AtomicU64::new(0),
            gate: AtomicU64::new(0),
            task: UnsafeCell::new(idle),
            items: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        // Built before the first spawn, so that a failed spawn drops it and stops those already running.
        let mut pool = Self { shared: Some(shared.clone()), workers: Vec::new() };
        for index in 1..threads {
            let (shared, start) = (shared.clone(), start.clone());
            let body = move || {
                start(index);
                work(&shared);
            };
            pool.workers.push(std::thread::Builder::new().name(format!("compute-{index}")).spawn(body)?);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` once for each of `0..items`, on any thread, and returns when all are done.
    pub fn run(&mut self, items: usize, task: &(dyn Fn(usize) + Sync)) {
        let Some(shared) = self.shared.as_deref().filter(|_| items > 1) else {
            (0..items).for_each(task);
            return;
        };
        // SAFETY: only the lifetime is erased. The region below is closed, with no worker left inside, before
        // this function returns or unwinds (`Region::drop`), so no worker uses the task after its life.
        let task: Task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Task>(task) };
        // SAFETY: the gate is closed and no worker is joined (the last region's end saw to it), and `&mut self`
        // keeps other callers out, so nobody else touches the cell.
        unsafe { *shared.task.get() = task };
        shared.panicked.store(false, Ordering::Relaxed);
        shared.items.store(items, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        shared.gate.store(OPEN, Ordering::Release);
        shared.generation.fetch_add(1, Ordering::SeqCst);
        let region = Region(shared);
        if shared.parked.load(Ordering::SeqCst) > 0 {
            drop(shared.lock.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        drain(shared, task);
        drop(region);
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a compute worker panicked");
    }

    /// Splits `data` into chunks of `chunk` elements and calls `task(index, chunk)` for each.
    pub fn for_each_chunk<T: Send>(&mut self, data: &mut [T], chunk: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        let len = data.len();
        let shared = SharedMut::new(data);
        self.run(len.div_ceil(chunk), &|index| {
            let start = index * chunk;
            // SAFETY: each index is handed out once, and chunks of different indices do not overlap.
            task(index, unsafe { shared.slice(start, chunk.min(len - start)) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        shared.stop.store(true, Ordering::SeqCst);
        shared.generation.fetch_add(1, Ordering::SeqCst);
        drop(shared.lock.lock().unwrap_or_else(PoisonError::into_inner));
        shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panic was already reported by the region it happened in.
            let _ = worker.join();
        }
    }
}

/// Closes the region when dropped, also when the caller's own item panics.
struct Region<'a>(&'a Shared);

impl Drop for Region<'_> {
    fn drop(&mut self) {
        // No item is left for latecomers, and none may join any more.
        self.0.next.store(usize::MAX / 2, Ordering::Relaxed);
        self.0.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut polls = 0u32;
        while self.0.gate.load(Ordering::Acquire) != 0 {
            polls += 1;
            if polls < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

fn drain(shared: &Shared, task: Task) {
    let items = shared.items.load(Ordering::Relaxed);
    loop {
        let item = shared.next.fetch_add(1, Ordering::Relaxed);
        if item >= items {
            return;
        }
        // SAFETY: the caller of `run` keeps the task alive until the region is closed and left by all.
        unsafe { (*task)(item) };
    }
}

fn join(shared: &Shared) -> bool {
    let mut gate = shared.gate.load(Ordering::Acquire);
    while gate & OPEN != 0 {
        match shared.gate.compare_exchange_weak(gate, gate + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(now) => gate = now,
        }
    }
    false
}

fn work(shared: &Shared) {
    let mut seen = 0;
    loop {
        seen = wait(shared, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if !join(shared) {
            continue;
        }
        // SAFETY: this worker is joined, so the caller keeps the cell as it is until it leaves.
        let task = unsafe { *shared.task.get() };
        if catch_unwind(AssertUnwindSafe(|| drain(shared, task))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.gate.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits until the generation differs from `seen`, and returns it.
fn wait(shared: &Shared, seen: u64) -> u64 {
    for _ in 0..SPINS {
        let now = shared.generation.load(Ordering::Acquire);
        if now != seen {
            return now;
        }
        std::hint::spin_loop();
    }
    let mut guard = shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
    shared.parked.fetch_add(1, Ordering::SeqCst);
    let mut now = shared.generation.load(Ordering::SeqCst);
    while now == seen {
        guard = shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        now = shared.generation.load(Ordering::SeqCst);
    }
    shared.parked.fetch_sub(1, Ordering::SeqCst);
    now
}

/// A slice that several threads write in disjoint parts.
pub(super) struct SharedMut<'a, T> {
    data: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose callers promise disjoint parts, so sharing moves `T`s at most.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as for Sync.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(super) fn new(data: &'a mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), borrow: std::marker::PhantomData }
    }

    /// Elements `start..start + len`; panics when they are outside.
    ///
    /// # Safety
    /// No two live slices may overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(super) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds by the assertion, exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once_whatever_the_threads() {
        for threads in [1, 2, 3, 5] {
            let mut pool = Pool::new(threads, |_| {}).unwrap();
            for items in [0, 1, 2, 7, 100] {
                for _ in 0..200 {
                    let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(items, &|item| {
                        counts[item].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let mut pool = Pool::new(3, |_| {}).unwrap();
        for _ in 0..20 {
            let failed = catch_unwind(AssertUnwindSafe(|| pool.run(10, &|item| assert_ne!(item, 5))));
            assert!(failed.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(10, &|item| {
                sum.fetch_add(item, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn chunks_cover_the_slice() {
        let mut pool = Pool::new(2, |_| {}).unwrap();
        let mut data = vec![0; 103];
        pool.for_each_chunk(&mut data, 10, |index, chunk| chunk.fill(index + 1));
        assert!(data.iter().enumerate().all(|(i, v)| *v == i / 10 + 1));
    }
}
