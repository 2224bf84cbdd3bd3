//! Whether what was fetched is a checkpoint: it is opened as one before it is given its name.

use crate::{FetchError, place::Place, plan::Plan};
use engine_store::{Checkpoint, EncoderCheckpoint, Safetensors};
use std::path::Path;

/// Opens it, which reads its headers.
pub(crate) fn all(place: &Place, plan: &Plan) -> Result<(), FetchError> {
    place.sweep(plan)?;
    let path = match &plan.files[..] {
        [file] if !plan.folder => place.part(&file.local),
        _ => place.files(),
    };
    open(&path).map_err(|message| FetchError::Invalid { url: place.shown().to_owned(), message })
}

fn open(path: &Path) -> Result<(), String> {
    if path.join("adapter_config.json").exists() {
        // Against its base, it is checked by whoever knows that.
        return Safetensors::open(path.join("adapter_model.safetensors")).map(drop).map_err(|error| error.to_string());
    }
    if EncoderCheckpoint::is_one(path) {
        return EncoderCheckpoint::open(path).map(drop).map_err(|error| error.to_string());
    }
    Checkpoint::open(path, None).map(drop).map_err(|error| error.to_string())
}
