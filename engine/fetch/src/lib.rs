//! Checkpoints from elsewhere: an address over HTTP, in S3 or at a model hub becomes a file or folder that the store can
//! ingest. Ranges are read in parallel; what has come stays when the process is killed and is gone on from; bytes of two
//! versions are never mixed; and nothing gets its name before all of it is there and opens as a checkpoint.
//!
//! A crate of its own, so that the store, which engines link too, has neither an async runtime nor a network in it.

mod check;
mod error;
mod file;
mod hub;
mod journal;
mod options;
mod place;
mod plan;
mod remote;
mod source;

pub use error::FetchError;
pub use options::{Options, Progress};
pub use source::Source;

use file::Download;
use futures_util::FutureExt;
use place::Place;
use plan::Plan;
use remote::Remote;
use std::{
    future::Future,
    ops::ControlFlow,
    path::{Path, PathBuf},
    pin::pin,
    thread,
    time::Duration,
};

/// How often progress is told, at least.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What is there after a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// A GGUF file, or a folder in Hugging Face's layout: a checkpoint or an adapter. Nobody changes it any more.
    pub path: PathBuf,
    /// The folder that holds it and nothing else.
    place: PathBuf,
    /// How it went; all zeros when it was there already.
    pub progress: Progress,
}

impl Fetched {
    /// Removes it, when the store has taken in what was needed of it. Who has it open keeps it so long.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn discard(self) -> Result<(), FetchError> {
        let removed = std::fs::remove_dir_all(&self.place);
        removed.map_err(|error| FetchError::io("remove", &self.place, 0, error))
    }
}

/// Fetches what a source names into `folder`, unless this very version of it is there. `progress` is told every fifth of a
/// second, and stops it by `Break`.
///
/// Blocks, wherever it is called: its work has threads of its own.
///
/// # Errors
/// Each names the address, what was wrong and what helps. Nothing is visible then but what was before; the same call goes on
/// where this one stopped.
pub fn fetch(
    source: &Source,
    folder: &Path,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
) -> Result<Fetched, FetchError> {
    let failed = |source| FetchError::Io { action: "start threads for", path: folder.to_owned(), source };
    thread::scope(|scope| {
        let work = || block(source, folder, options, progress);
        let thread = thread::Builder::new().name("fetch".into()).spawn_scoped(scope, work).map_err(failed)?;
        // A thread that panicked has hit a bug; the panic goes on here.
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn block(
    source: &Source,
    folder: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Fetched, FetchError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("fetch")
        .enable_all()
        .build()
        .map_err(|source| FetchError::Io { action: "start threads for", path: folder.to_owned(), source })?;
    let outcome = runtime.block_on(run(source, folder, options, progress));
    // Connections that hang must not hold up whoever has the answer.
    runtime.shutdown_background();
    outcome
}

async fn run(
    source: &Source,
    folder: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Fetched, FetchError> {
    let place = Place::take(folder, source)?;
    let now = options::Counters::default();
    let work = async {
        let remote = Remote::open(source, options)?;
        let plan = Plan::make(source, &remote, options, &place, &now).await?;
        let whole = place.whole(&plan);
        if whole.0.exists() {
            return Ok(whole);
        }
        place.check_room(plan.missing_bytes(&place))?;
        let from = plan.elsewhere.as_ref().unwrap_or(&remote);
        for wanted in plan.files.iter().filter(|wanted| !wanted.is_there) {
            Download::new(from, wanted, &place, options, &now).run().await?;
        }
        check::all(&place, &plan)?;
        place.publish(&plan)
    };
    let (path, place) = told(work, || progress(now.get())).await?;
    Ok(Fetched { path, place, progress: now.get() })
}

/// Runs `work` and tells of it now and then; stops when told to.
async fn told<T>(
    work: impl Future<Output = Result<T, FetchError>>,
    mut tell: impl FnMut() -> ControlFlow<()>,
) -> Result<T, FetchError> {
    let mut work = pin!(work.fuse());
    let mut ticks = tokio::time::interval(TELL_EVERY);
    loop {
        let done = tokio::select! {
            done = &mut work => Some(done),
            _ = ticks.tick() => None,
        };
        let told = tell();
        match done {
            Some(done) => return done,
            None if told.is_break() => return Err(FetchError::Stopped),
            None => {}
        }
    }
}
