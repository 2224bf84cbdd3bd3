//! The tokenizer, loaded when a client first sends or wants text: the gateway's hop carries ids, and a
//! cold start must not pay for what it may never need.

use engine_http::ApiError;
use engine_text::TextModel;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Text model of the checkpoint at a path.
pub(crate) struct LazyText {
    path: PathBuf,
    cell: OnceCell<Arc<TextModel>>,
}

impl LazyText {
    pub fn new(path: PathBuf) -> Self {
        Self { path, cell: OnceCell::new() }
    }

    /// Loads it off the async threads, once however many ask; a failure is tried again by the next.
    pub async fn get(&self) -> Result<Arc<TextModel>, ApiError> {
        self.cell.get_or_try_init(|| self.load()).await.cloned()
    }

    async fn load(&self) -> Result<Arc<TextModel>, ApiError> {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            TextModel::open(&path).map(Arc::new).map_err(|error| error.to_string())
        });
        let message = match loaded.await {
            Ok(Ok(text)) => return Ok(text),
            Ok(Err(message)) => message,
            Err(error) => error.to_string(),
        };
        Err(ApiError::Internal { message: format!("The model's tokenizer cannot be loaded: {message}") })
    }
}
