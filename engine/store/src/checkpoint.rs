//! A decoder's checkpoint, whichever form it lies in: a GGUF file or a Hugging Face folder. Both give the same
//! tensors under the same names (GGUF's), so that models and everything behind them know one form only.

mod error;

pub use error::CheckpointError;

use crate::{Folder, GgmlType, Gguf, Loaded, ModelConfig, Quantisation, Summary, TensorData};
use std::path::Path;

/// An opened checkpoint. Cloning shares the mappings.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    source: Source,
    /// Its tensors, where the store has read them.
    loaded: Option<Loaded>,
}

#[derive(Clone, Debug)]
enum Source {
    Gguf(Gguf),
    Folder(Folder),
}

/// A tensor as [`Checkpoint::tensor_data`] gives it. `dims[0]` is the contiguous dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorShape<'a> {
    /// As GGUF has it, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    pub dims: &'a [u64],
    pub kind: GgmlType,
}

impl TensorShape<'_> {
    /// Numbers in it.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        self.kind.bytes(self.elements()).unwrap_or(0)
    }
}

impl Checkpoint {
    /// Maps and checks a GGUF file or a folder. Costs the headers; no weight is read.
    ///
    /// # Errors
    /// Names what is wrong; quantisation at load is refused where it has no sense.
    pub fn open(path: impl AsRef<Path>, quantisation: Option<Quantisation>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        let source = match (path.is_dir(), quantisation) {
            (true, _) => Source::Folder(Folder::open(path, quantisation)?),
            (false, None) => Source::Gguf(Gguf::open(path)?),
            (false, Some(quantisation)) => {
                return Err(CheckpointError::Quantised { path: path.to_owned(), quantisation });
            }
        };
        Ok(Self { source, loaded: None })
    }

    /// The same, with tensors that the store has loaded in place of the checkpoint's own.
    ///
    /// # Errors
    /// Names a tensor that the store has not, or not like this: then it was made of another checkpoint.
    pub fn with_loaded(self, loaded: Loaded) -> Result<Self, CheckpointError> {
        let other = |tensor: &TensorShape<'_>| {
            let data = loaded.tensor_data(tensor.name);
            data.is_none_or(|data| data.kind() != tensor.kind || data.dims() != tensor.dims)
        };
        if let Some(tensor) = self.tensors().find(other) {
            return Err(CheckpointError::Stored { name: tensor.name.to_owned() });
        }
        Ok(Self { loaded: Some(loaded), ..self })
    }

    /// Checks that the model can be loaded and returns its hyperparameters.
    pub fn validate(&self) -> Result<ModelConfig, CheckpointError> {
        match &self.source {
            Source::Gguf(gguf) => Ok(gguf.validate()?),
            // Opening has checked it.
            Source::Folder(folder) => Ok(folder.config().clone()),
        }
    }

    /// The GGUF file, if it is one.
    pub fn as_gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf(gguf) => Some(gguf),
            Source::Folder(_) => None,
        }
    }

    /// All tensors.
    pub fn tensors(&self) -> Box<dyn Iterator<Item = TensorShape<'_>> + '_> {
        match &self.source {
            Source::Gguf(gguf) => {
                Box::new(gguf.tensors().map(|view| TensorShape { name: view.name, dims: view.dims, kind: view.kind }))
            }
            Source::Folder(folder) => Box::new(folder.tensors()),
        }
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        match &self.source {
            Source::Gguf(gguf) => gguf.has_tensor(name),
            Source::Folder(folder) => folder.has_tensor(name),
        }
    }

    /// A tensor's bytes, with what a packer has put after them where the store has loaded them. A matrix is a share in
    /// memory, unless quantisation at load was asked for: then this call computes it, on all cores that the process may use.
    pub fn tensor_data(&self, name: &str) -> Result<TensorData, CheckpointError> {
        if let Some(data) = self.loaded.as_ref().and_then(|loaded| loaded.tensor_data(name)) {
            return Ok(data);
        }
        match &self.source {
            Source::Gguf(gguf) => Ok(gguf.tensor_data(name)?),
            Source::Folder(folder) => folder.tensor_data(name),
        }
    }

    /// Starts reading the weights and mapping their pages in the background.
    pub fn will_need(&self) {
        if let Some(loaded) = &self.loaded {
            return loaded.populate();
        }
        match &self.source {
            Source::Gguf(gguf) => gguf.will_need(),
            Source::Folder(folder) => folder.will_need(),
        }
    }

    /// What it is, in a few numbers.
    pub fn inspect(&self) -> Result<Summary, CheckpointError> {
        match &self.source {
            Source::Gguf(gguf) => Ok(gguf.inspect()?),
            Source::Folder(folder) => Ok(folder.inspect()),
        }
    }

    /// Bytes of weights in memory, once loaded.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors().map(|tensor| tensor.bytes()).sum()
    }
}

impl From<&Gguf> for Checkpoint {
    fn from(gguf: &Gguf) -> Self {
        Self { source: Source::Gguf(gguf.clone()), loaded: None }
    }
}

impl From<&Checkpoint> for Checkpoint {
    fn from(checkpoint: &Checkpoint) -> Self {
        checkpoint.clone()
    }
}
