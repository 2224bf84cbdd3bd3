//! Tokenizers of the registered models. Loading one takes tenths of a second, so it is done off the async
//! threads as soon as a model is registered, not by its first request, and once per revision.

use crate::model::TextCell;
use crate::routes::ModelRoute;
use engine_http::ApiError;
use engine_text::TextModel;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Reads the text part of a model; the error says what is wrong with its file.
pub type TextLoader = Arc<dyn Fn(&ModelRoute) -> Result<TextModel, String> + Send + Sync>;

/// The loader for checkpoints, files and folders: reads no weight.
pub fn load_checkpoint(route: &ModelRoute) -> Result<TextModel, String> {
    TextModel::open(&route.path).map_err(|error| format!("{}: {error}", route.path.display()))
}

/// Loads at once: more would only fight for the disk.
const PARALLEL_LOADS: usize = 2;

/// Loads text models, a bounded number at a time.
#[derive(Clone)]
pub struct TextModels {
    load: TextLoader,
    permits: Arc<Semaphore>,
}

impl TextModels {
    pub fn new(load: TextLoader) -> Self {
        Self { load, permits: Arc::new(Semaphore::new(PARALLEL_LOADS)) }
    }

    /// The cell's content, loaded if need be. Concurrent callers share one load; a failed load is tried again
    /// by the next caller, because the file may have been repaired.
    pub async fn get(&self, route: &Arc<ModelRoute>, cell: &TextCell) -> Result<Arc<TextModel>, ApiError> {
        if let Some(text) = cell.get() {
            return Ok(text.clone());
        }
        cell.get_or_try_init(|| self.load_off_thread(route.clone())).await.cloned()
    }

    async fn load_off_thread(&self, route: Arc<ModelRoute>) -> Result<Arc<TextModel>, ApiError> {
        let internal = |message: String| ApiError::Internal { message };
        let permit = self.permits.clone().acquire_owned().await.map_err(|error| internal(error.to_string()))?;
        let load = self.load.clone();
        let name = route.name.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            load(&route)
        });
        match loaded.await {
            Ok(Ok(text)) => Ok(Arc::new(text)),
            Ok(Err(error)) => {
                tracing::error!(model = name, error, "the tokenizer cannot be loaded");
                Err(internal(format!("The tokenizer of model `{name}` cannot be loaded: {error}")))
            }
            Err(error) => Err(internal(format!("Loading the tokenizer of model `{name}` failed: {error}"))),
        }
    }
}
