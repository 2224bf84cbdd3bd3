//! From the store into memory: objects that somebody has read already are adopted as they are, the others are read
//! past the page cache with deep queues, verified while they are in the processor's cache, and copied to where they are
//! served from.

mod feed;
mod rebuild;
mod ring;

use crate::{
    Manifest, Object, Segments, Store, StoreError, TensorData, huge::FileMap, mapping::Mapping, object::CHUNK_BYTES,
};
use feed::Feed;
use io_uring::IoUring;
use memmap2::MmapMut;
use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Threads that each wait for one read at a time, where the kernel refuses io_uring.
const WAITING_THREADS: usize = 16;
/// How often a lock is asked for again.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// How to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Threads that read and verify; zero for as many as there are cores, up to four.
    pub threads: usize,
    /// Chunks that each of them keeps on the way.
    pub queue_depth: u32,
    /// False reads without io_uring, for machines that refuse it.
    pub io_uring: bool,
    /// False reads through the page cache, for file systems that can do no other.
    pub direct: bool,
    /// How long to wait for another process that reads the same model.
    pub wait_ms: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { threads: 0, queue_depth: 32, io_uring: true, direct: true, wait_ms: 600_000 }
    }
}

/// What a load was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadFacts {
    /// Bytes that came from disk.
    pub read_bytes: u64,
    /// Bytes that were in memory already.
    pub adopted_bytes: u64,
    /// Whether io_uring read them.
    pub io_uring: bool,
    /// Whether they went past the page cache.
    pub direct: bool,
    /// Why io_uring did not, where it was asked to.
    pub refused: Option<String>,
}

/// A model in memory. Cloning shares it.
#[derive(Clone)]
pub struct Loaded {
    tensors: Arc<BTreeMap<String, TensorData>>,
    /// In the order of a forward pass.
    maps: Arc<Vec<Arc<FileMap>>>,
    pub facts: LoadFacts,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loaded({} tensors, {:?})", self.tensors.len(), self.facts)
    }
}

impl Loaded {
    /// A tensor as it was packed, with a share in its memory.
    pub fn tensor_data(&self, name: &str) -> Option<TensorData> {
        self.tensors.get(name).cloned()
    }

    /// Maps the pages of all of it, in the order of a forward pass, on a thread of its own: a first step that finds them
    /// mapped does not stop at each. Failure costs speed alone.
    pub(crate) fn populate(&self) {
        let maps = self.maps.clone();
        let populate = move || maps.iter().for_each(|map| map.populate());
        let _ = thread::Builder::new().name("populate".into()).spawn(populate);
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

/// A model all of which is in memory; none when something is missing.
pub(crate) fn find(store: &Store, manifest: &Manifest, segments: &Segments) -> Result<Option<Loaded>, StoreError> {
    let maps = adopt(manifest, segments)?;
    if maps.iter().any(Option::is_none) {
        return Ok(None);
    }
    let facts = LoadFacts { adopted_bytes: manifest.bytes(), ..LoadFacts::default() };
    loaded(store, manifest, &maps, facts).map(Some)
}

/// Loads a model: adopts what is in memory, and reads the rest.
///
/// # Errors
/// When an object is missing, too short, damaged or does not fit into memory. Nothing of it can be found then.
pub fn load(
    store: &Store,
    manifest: &Manifest,
    segments: &Segments,
    options: LoadOptions,
) -> Result<Loaded, StoreError> {
    let mut facts = LoadFacts::default();
    let mut maps = adopt(manifest, segments)?;
    if maps.iter().any(Option::is_none) {
        let lock = segments.folder().join(format!("{}.{}.lock", manifest.revision, manifest.layout));
        let _lock = wait_for(&lock, Duration::from_millis(options.wait_ms))?;
        segments.sweep()?;
        // Whoever held the lock has probably read what is needed.
        maps = adopt(manifest, segments)?;
        let pairs = maps.iter().zip(&manifest.objects);
        let missing: Vec<&Object> = pairs.filter(|(map, _)| map.is_none()).map(|(_, object)| object).collect();
        facts.read_bytes = missing.iter().map(|object| object.bytes()).sum();
        if !missing.is_empty() {
            let (tuned, plain) = rebuild::apart(store, missing)?;
            read(Feed::new(store, segments, plain, options.direct), options, &mut facts)?;
            rebuild::all(segments, &tuned, threads(options))?;
            maps = adopt(manifest, segments)?;
        }
    }
    facts.adopted_bytes = manifest.bytes() - facts.read_bytes;
    loaded(store, manifest, &maps, facts)
}

/// A model's tensors in the maps of its objects.
pub(crate) fn loaded(
    store: &Store,
    manifest: &Manifest,
    maps: &[Option<Arc<FileMap>>],
    facts: LoadFacts,
) -> Result<Loaded, StoreError> {
    let mut tensors = BTreeMap::new();
    for tensor in &manifest.tensors {
        let object = &manifest.objects[tensor.object];
        let map = maps[tensor.object].clone();
        let map = map.ok_or_else(|| StoreError::Missing { path: store.object_path(object.name()) })?;
        // The manifest was checked against the object's length, and the segment's against the object's.
        let range = tensor.offset as usize..(tensor.offset + tensor.bytes) as usize;
        let (kind, dims) = (tensor.kind, tensor.dims.clone());
        tensors.insert(tensor.name.clone(), TensorData { mapping: Mapping::Segment(map), range, kind, dims });
    }
    let maps = Arc::new(maps.iter().flatten().cloned().collect());
    Ok(Loaded { tensors: Arc::new(tensors), maps, facts })
}

/// What is in memory, by object.
fn adopt(manifest: &Manifest, segments: &Segments) -> Result<Vec<Option<Arc<FileMap>>>, StoreError> {
    manifest.objects.iter().map(|object| segments.find(object)).collect()
}

/// One process reads a model, the others wait and then find it.
fn wait_for(path: &Path, wait: Duration) -> Result<File, StoreError> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|source| StoreError::io("open", path, source))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", path, source)),
            Err(TryLockError::WouldBlock) if begun.elapsed() >= wait => {
                return Err(StoreError::Busy { path: path.to_owned() });
            }
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
        }
    }
}

fn threads(options: LoadOptions) -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(4);
    if options.threads == 0 { cores } else { options.threads }
}

fn read(feed: Feed<'_>, options: LoadOptions, facts: &mut LoadFacts) -> Result<(), StoreError> {
    let threads = threads(options);
    let depth = options.queue_depth.clamp(1, 1024);
    let rings = match options.io_uring {
        true => (0..threads).map(|_| ring::open(depth)).collect::<Result<Vec<IoUring>, _>>(),
        false => Ok(Vec::new()),
    };
    let rings = rings.unwrap_or_else(|error| {
        facts.refused = Some(error.to_string());
        Vec::new()
    });
    facts.io_uring = !rings.is_empty();
    let waiting = if rings.is_empty() { WAITING_THREADS.max(threads) } else { 0 };
    let feed = &feed;
    let outcome = thread::scope(|scope| {
        let ringing = rings.into_iter().map(|ring| {
            thread::Builder::new()
                .name("load".into())
                .spawn_scoped(scope, move || ring::read(feed, ring, depth as usize))
        });
        let waiting = (0..waiting).map(|_| {
            thread::Builder::new().name("load".into()).spawn_scoped(scope, move || feed.stopping(|| read_waiting(feed)))
        });
        let started: Vec<_> = ringing.chain(waiting).collect();
        let mut outcome = Ok(());
        for thread in started {
            let ended = match thread {
                // A thread that panicked has hit a bug; the panic goes on here.
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(source) => {
                    feed.stop();
                    Err(StoreError::Thread { source })
                }
            };
            outcome = outcome.and(ended);
        }
        outcome
    });
    facts.direct = feed.is_direct();
    outcome
}

/// Reads one chunk after the other.
fn read_waiting(feed: &Feed<'_>) -> Result<(), StoreError> {
    let memory = |source| StoreError::Thread { source };
    // A map, because direct I/O wants whole blocks of memory.
    let mut buffer = MmapMut::map_anon(CHUNK_BYTES as usize).map_err(memory)?;
    let mut place = None;
    while let Some(chunk) = feed.next(&mut place)? {
        let bytes = &mut buffer[..chunk.len()];
        chunk.fill(bytes)?;
        chunk.finish(bytes)?;
    }
    Ok(())
}
