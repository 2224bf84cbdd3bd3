//! Weights into host memory before anybody starts with them: some megabytes at a time, so that it can stop or wait
//! between them, and behind everybody else at the disk and at the processor.

use super::bring::short_of;
use crate::{LoadOptions, Manifest, Object, Segments, Store, StoreError, load};
use std::{mem, path::Path, thread};

/// Bytes after which it asks whether to go on. An object larger than that comes whole.
const SLICE_BYTES: u64 = 32 << 20;
/// How long it waits for another that reads the same model, ms.
const WAIT_MS: u64 = 1_000;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Bytes that came from disk.
    pub read_bytes: u64,
    /// All weights are in memory. False where it was told to stop.
    pub whole: bool,
}

/// Reads what is missing of a model into segments, verified as every load is, and leaves `reserve_bytes` of memory free.
/// `goes_on` is asked before each part, given the bytes read so far; it may take its time. What has come stays.
///
/// # Errors
/// When an object is missing or damaged, and when there is no room: nothing makes room for weights that nobody waits for.
pub fn bring_ahead(
    store: &Store,
    manifest: &Manifest,
    folder: &Path,
    reserve_bytes: u64,
    goes_on: &mut (dyn FnMut(u64) -> bool + Send),
) -> Result<Ahead, StoreError> {
    let segments = Segments::open(folder)?;
    let work = || -> Result<Ahead, StoreError> {
        stand_back();
        let mut ahead = Ahead::default();
        for part in parts(&segments, manifest) {
            if !goes_on(ahead.read_bytes) {
                return Ok(ahead);
            }
            let bytes = part.bytes();
            if short_of(segments.folder(), bytes, reserve_bytes) > 0 {
                return Err(StoreError::Memory { folder: segments.folder().to_owned(), bytes });
            }
            let options = LoadOptions { threads: 1, wait_ms: WAIT_MS, ..LoadOptions::default() };
            ahead.read_bytes += load(store, &part, &segments, options)?.facts.read_bytes;
        }
        Ok(Ahead { whole: true, ..ahead })
    };
    // A thread of its own, since a thread that has stood back cannot come forward again.
    thread::scope(|scope| match thread::Builder::new().name("ahead".into()).spawn_scoped(scope, work) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(source) => Err(StoreError::Thread { source }),
    })
}

/// What is missing, in the order of a forward pass, as manifests of some objects each.
fn parts(segments: &Segments, manifest: &Manifest) -> Vec<Manifest> {
    let missing = |object: &&Object| !segments.folder().join(object.name().to_string()).exists();
    let part = |objects| Manifest { objects, tensors: Vec::new(), ..manifest.clone_names() };
    let (mut parts, mut objects, mut bytes) = (Vec::new(), Vec::new(), 0);
    for object in manifest.objects.iter().filter(missing) {
        bytes += object.bytes();
        objects.push(object.clone());
        if bytes >= SLICE_BYTES {
            parts.push(part(mem::take(&mut objects)));
            bytes = 0;
        }
    }
    if !objects.is_empty() {
        parts.push(part(objects));
    }
    parts
}

impl Manifest {
    /// One of the same names, with nothing in it.
    fn clone_names(&self) -> Self {
        let (revision, layout) = (self.revision.clone(), self.layout.clone());
        Self { revision, layout, objects: Vec::new(), tensors: Vec::new() }
    }
}

/// The calling thread, and those that it makes, have what others leave of processors and disks. Failure costs others
/// speed, no more.
fn stand_back() {
    const WHO_PROCESS: libc::c_long = 1;
    const THIS_THREAD: libc::c_long = 0;
    /// The idle class, in the bits above the level.
    const IDLE: libc::c_long = 3 << 13;
    let _ = rustix::process::nice(19);
    // SAFETY: takes three numbers and changes the calling thread's I/O priority alone.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, THIS_THREAD, IDLE) };
}
