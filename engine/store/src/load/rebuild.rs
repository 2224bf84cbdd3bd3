//! Objects that are kept as differences: put together from their base, which is read from memory where it is there.

use crate::{Object, Segments, Store, StoreError, store::Tuned};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// An object, and what it differs in.
pub(super) type Different<'a> = (&'a Object, Tuned);

/// Tells objects that are kept as differences from those that are kept as they are.
pub(super) fn apart<'a>(
    store: &Store,
    objects: Vec<&'a Object>,
) -> Result<(Vec<Different<'a>>, Vec<&'a Object>), StoreError> {
    let (mut tuned, mut plain) = (Vec::new(), Vec::new());
    for object in objects {
        match store.tuned(object)? {
            Some(difference) => tuned.push((object, difference)),
            None => plain.push(object),
        }
    }
    Ok((tuned, plain))
}

/// Puts each together, verifies it, and makes a segment of it.
pub(super) fn all(segments: &Segments, tuned: &[Different<'_>], threads: usize) -> Result<(), StoreError> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((object, tuned)) = tuned.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Others stop before their next one.
            one(segments, object, tuned).inspect_err(|_| next.store(usize::MAX / 2, Ordering::Relaxed))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let mut outcome = Ok(());
        let started = (0..threads.min(tuned.len()))
            .map(|_| thread::Builder::new().name("rebuild".into()).spawn_scoped(scope, work));
        for thread in started.collect::<Vec<_>>() {
            let ended = match thread {
                // A thread that panicked has hit a bug; the panic goes on here.
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(source) => Err(StoreError::Thread { source }),
            };
            outcome = outcome.and(ended);
        }
        outcome
    })
}

fn one(segments: &Segments, object: &Object, tuned: &Tuned) -> Result<(), StoreError> {
    let base = segments.find_named(tuned.base(), object.bytes())?;
    let part = segments.begin(object)?;
    tuned.chunks(object, base.as_deref().map(|base| &base[..]), |index, bytes| part.write(object, index, bytes))
}
