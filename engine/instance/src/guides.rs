//! Constrained outputs inside an engine: the vocabulary's trie, built when the first such request comes; the grammar of
//! each, compiled off the async threads before the step thread hears of the request; and the mask of each next position,
//! worked out by threads of its own while the step that needs it is still being computed.
//!
//! The tokens so far decide a mask, not the logits. So it is due as soon as a token is drawn, and most are ready when the
//! next logits are. One that is not is worked out by the step thread then and there: who locks a [`Place`] first does it,
//! and nobody waits for a queue.

use crate::text::LazyText;
use engine_grammar::{GrammarError, Guide, Mask, Vocabulary};
use engine_http::ApiError;
use engine_wire::TokenId;
use engine_wire::constraint::Constraint;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use tokio::sync::{OnceCell, Semaphore};

/// Masks that may be asked for and not yet begun; beyond that the step thread works them out.
const QUEUE_MASKS: usize = 1024;
/// Threads for masks at most: a mask takes microseconds, a step milliseconds.
const MASK_THREADS_MAX: usize = 4;

/// Makes the guides of one engine.
pub(crate) struct Guides {
    text: Arc<LazyText>,
    vocabulary: OnceCell<Arc<Vocabulary>>,
    masks: OnceLock<Masks>,
    /// Grammars compiled at a time.
    compilers: Semaphore,
}

impl Guides {
    pub fn new(text: Arc<LazyText>) -> Self {
        Self { text, vocabulary: OnceCell::new(), masks: OnceLock::new(), compilers: Semaphore::new(threads()) }
    }

    /// The guide of one output that has produced `emitted` already, with its first mask worked out.
    pub async fn guide(&self, constraint: Arc<Constraint>, emitted: Vec<TokenId>) -> Result<Guided, ApiError> {
        let vocabulary = self.vocabulary.get_or_try_init(|| self.build()).await?.clone();
        let _turn = self.compilers.acquire().await.map_err(|_| ApiError::ShuttingDown)?;
        let made = tokio::task::spawn_blocking(move || {
            let mut guide = vocabulary.guide(&constraint)?;
            for token in emitted {
                guide.take(token)?;
            }
            let mut position = Position { guide, mask: None };
            position.mask().clone()?;
            Ok(position)
        });
        let made = made.await.map_err(|error| ApiError::Internal { message: error.to_string() })?;
        let position = made.map_err(|error| refusal(&error, "constraint"))?;
        let masks = self.masks.get_or_init(|| Masks::start(threads())).clone();
        Ok(Guided { place: Arc::new(Mutex::new(position)), masks })
    }

    async fn build(&self) -> Result<Arc<Vocabulary>, ApiError> {
        let text = self.text.get().await?;
        let built = tokio::task::spawn_blocking(move || {
            let ids = 0..TokenId::try_from(text.vocab()).unwrap_or(TokenId::MAX);
            let bytes = |id| if text.is_special(id) { Vec::new() } else { text.token_bytes(id).to_vec() };
            Vocabulary::new(ids.map(bytes).collect(), text.eos_ids())
        });
        match built.await {
            Ok(Ok(vocabulary)) => {
                tracing::info!(bytes = vocabulary.memory_bytes(), "built the vocabulary for constrained outputs");
                Ok(Arc::new(vocabulary))
            }
            Ok(Err(error)) => Err(ApiError::Internal { message: error.to_string() }),
            Err(error) => Err(ApiError::Internal { message: error.to_string() }),
        }
    }
}

/// As many as this process has cores, within reason.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MASK_THREADS_MAX)
}

/// What a client is told of a grammar's error.
pub(crate) fn refusal(error: &GrammarError, param: &str) -> ApiError {
    match error {
        GrammarError::Failed { .. } | GrammarError::Vocabulary { .. } => {
            ApiError::Internal { message: error.to_string() }
        }
        GrammarError::Busy => ApiError::Unavailable { message: error.to_string(), retry_after_s: None },
        error => ApiError::InvalidRequest { message: error.to_string(), param: Some(param.to_owned()) },
    }
}

/// One output under its grammar, as the step thread holds it.
pub(crate) struct Guided {
    place: Arc<Place>,
    masks: Masks,
}

/// Where an output stands, shared with the thread that works out its mask.
type Place = Mutex<Position>;

struct Position {
    guide: Guide,
    /// Of this very position; none while it is due.
    mask: Option<Result<Mask, GrammarError>>,
}

impl Position {
    fn mask(&mut self) -> &Result<Mask, GrammarError> {
        let guide = &mut self.guide;
        self.mask.get_or_insert_with(|| guide.mask())
    }
}

impl Guided {
    /// What may come next.
    pub fn mask(&self) -> Result<Mask, GrammarError> {
        self.place.lock().map_err(|_| poisoned())?.mask().clone()
    }

    /// Takes the token that was drawn, and has the next mask worked out. Answers whether the output is complete with it.
    pub fn take(&self, token: TokenId) -> Result<bool, GrammarError> {
        let mut position = self.place.lock().map_err(|_| poisoned())?;
        position.guide.take(token)?;
        position.mask = None;
        let complete = position.guide.is_complete();
        drop(position);
        if !complete {
            self.masks.ask(&self.place);
        }
        Ok(complete)
    }

    /// Whether the output is complete before any more is produced.
    pub fn is_complete(&self) -> bool {
        self.place.lock().is_ok_and(|position| position.guide.is_complete())
    }
}

/// A thread that panicked in the middle of a mask: this output is lost, and no other.
fn poisoned() -> GrammarError {
    GrammarError::Failed { message: "a mask could not be worked out".to_owned() }
}

/// The threads that work out masks. They end when the last clone is dropped.
#[derive(Clone)]
struct Masks {
    queue: SyncSender<Weak<Place>>,
}

impl Masks {
    fn start(threads: usize) -> Self {
        let (queue, due) = mpsc::sync_channel(QUEUE_MASKS);
        let due = Arc::new(Mutex::new(due));
        for _ in 0..threads {
            let due = due.clone();
            // Without a thread the step thread works out every mask itself.
            let started = std::thread::Builder::new().name("masks".into()).spawn(move || work(&due));
            if let Err(error) = started {
                tracing::warn!(%error, "a thread for masks cannot be started");
            }
        }
        Self { queue }
    }

    /// Has a mask worked out, if there is room in the queue.
    fn ask(&self, place: &Arc<Place>) {
        let _ = self.queue.try_send(Arc::downgrade(place));
    }
}

fn work(due: &Mutex<Receiver<Weak<Place>>>) {
    loop {
        let next = due.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(place) = next else { return };
        let Some(place) = place.upgrade() else { continue };
        // Held elsewhere, it is being worked out there.
        if let Ok(mut position) = place.try_lock() {
            position.mask();
        }
    }
}
