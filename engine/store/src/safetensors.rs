//! Weights in Hugging Face's container: one `.safetensors` file, or the shards that an index lists.
//!
//! `open` maps every file, reads the headers and checks each name, type, shape and range against the others and
//! against the files; afterwards tensors are views of the maps.

mod error;
mod header;
mod index;

pub use ::safetensors::Dtype;
pub use error::SafetensorsError;
pub use index::shard_names;
pub(crate) use index::{read_limited, shards};

use crate::{GgmlType, TensorData, mapping::Mapping};
use header::Entry;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Name of the weights when they are one file.
pub const WHOLE_FILE: &str = "model.safetensors";
/// Name of the list of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Opened weights. Cloning shares the mappings.
#[derive(Clone)]
pub struct Safetensors {
    inner: Arc<Inner>,
}

struct Inner {
    files: Vec<Shard>,
    /// By name: the file's number, and what its header says.
    tensors: BTreeMap<String, (usize, Entry)>,
}

struct Shard {
    path: PathBuf,
    mapping: Mapping,
}

/// A tensor, borrowed from its file. `shape` is as the file has it: the last dimension is contiguous.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [u64],
    pub bytes: &'a [u8],
    pub file: &'a Path,
}

impl StoredTensor<'_> {
    /// The same type in ggml's terms; None when it has none.
    pub fn kind(&self) -> Option<GgmlType> {
        match self.dtype {
            Dtype::F32 => Some(GgmlType::F32),
            Dtype::F16 => Some(GgmlType::F16),
            Dtype::BF16 => Some(GgmlType::BF16),
            Dtype::F64 => Some(GgmlType::F64),
            Dtype::I8 => Some(GgmlType::I8),
            Dtype::I16 => Some(GgmlType::I16),
            Dtype::I32 => Some(GgmlType::I32),
            Dtype::I64 => Some(GgmlType::I64),
            _ => None,
        }
    }
}

impl Safetensors {
    /// One file. Costs its header; no weight is read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SafetensorsError> {
        Self::of_files(vec![path.as_ref().to_path_buf()], None)
    }

    /// The weights of a model's folder: [`WHOLE_FILE`] if it is there, else the shards of [`INDEX_FILE`].
    pub fn open_folder(folder: impl AsRef<Path>) -> Result<Self, SafetensorsError> {
        let folder = folder.as_ref();
        let (whole, index) = (folder.join(WHOLE_FILE), folder.join(INDEX_FILE));
        if whole.exists() {
            return Self::open(whole);
        }
        if index.exists() {
            return Self::open_index(&index);
        }
        Err(SafetensorsError::NoWeights { folder: folder.to_owned() })
    }

    /// The shards that an index file lists. They stand beside it.
    pub fn open_index(path: impl AsRef<Path>) -> Result<Self, SafetensorsError> {
        let path = path.as_ref();
        let weight_map = index::read(path)?;
        let files = index::files(path, &weight_map)?;
        Self::of_files(files, Some((path, &weight_map)))
    }

    /// The same checks on the bytes of one file in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, SafetensorsError> {
        let shard = Shard { path: "memory".into(), mapping: Mapping::Memory(Arc::new(bytes)) };
        Self::of_shards(vec![shard], None)
    }

    fn of_files(paths: Vec<PathBuf>, index: Option<Index<'_>>) -> Result<Self, SafetensorsError> {
        let open = |path: PathBuf| match Mapping::open(&path) {
            Ok(mapping) => Ok(Shard { path, mapping }),
            Err(source) => Err(SafetensorsError::Io { path, source }),
        };
        Self::of_shards(paths.into_iter().map(open).collect::<Result<_, _>>()?, index)
    }

    fn of_shards(files: Vec<Shard>, index: Option<Index<'_>>) -> Result<Self, SafetensorsError> {
        let mut tensors: BTreeMap<String, (usize, Entry)> = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for (name, entry) in header::parse(&file.path, file.mapping.bytes())? {
                if let Some((other, _)) = tensors.get(&name) {
                    let (first, second) = (files[*other].path.clone(), file.path.clone());
                    return Err(SafetensorsError::DuplicateTensor { name, first, second });
                }
                tensors.insert(name, (number, entry));
            }
        }
        if let Some((path, weight_map)) = index {
            for (name, shard) in weight_map {
                let found = tensors.get(name).map(|(number, _)| files[*number].path.file_name());
                if found != Some(Some(shard.as_ref())) {
                    let message = format!("tensor {name:?} is not in {shard:?}: fetch the folder again");
                    return Err(SafetensorsError::Index { path: path.to_owned(), message });
                }
            }
        }
        Ok(Self { inner: Arc::new(Inner { files, tensors }) })
    }

    /// Tensors by name.
    pub fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.inner.tensors.iter().map(|(name, entry)| self.view(name, entry))
    }

    /// A tensor, if there is one by that name.
    pub fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        self.inner.tensors.get_key_value(name).map(|(name, entry)| self.view(name, entry))
    }

    /// A tensor; that there is none is an error, which names what the weights were read from.
    pub fn tensor(&self, name: &str) -> Result<StoredTensor<'_>, SafetensorsError> {
        self.get(name).ok_or_else(|| SafetensorsError::MissingTensor { path: self.place(), name: name.to_owned() })
    }

    fn view<'a>(&'a self, name: &'a str, (number, entry): &'a (usize, Entry)) -> StoredTensor<'a> {
        let file = &self.inner.files[*number];
        let bytes = &file.mapping.bytes()[entry.range.clone()];
        StoredTensor { name, dtype: entry.dtype, shape: &entry.shape, bytes, file: &file.path }
    }

    /// A tensor's bytes that keep the mapping alive; `dims` are the shape reversed, contiguous first. Nothing is
    /// copied, unless the file has put the tensor where its numbers are not aligned.
    pub fn tensor_data(&self, name: &str) -> Result<TensorData, SafetensorsError> {
        let view = self.tensor(name)?;
        let wrong =
            |message: String| SafetensorsError::Tensor { path: view.file.to_owned(), name: name.to_owned(), message };
        let kind = view.kind().ok_or_else(|| wrong(format!("type {} cannot be read", view.dtype)))?;
        let dims: Vec<u64> = view.shape.iter().rev().copied().collect();
        if !view.bytes.as_ptr().addr().is_multiple_of(kind.block_bytes() as usize) {
            let copied = TensorData::from_bytes(kind, dims, view.bytes.to_vec());
            return copied.ok_or_else(|| wrong(format!("shape {:?} cannot be read", view.shape)));
        }
        // `view` found both.
        let (number, entry) = &self.inner.tensors[name];
        let mapping = self.inner.files[*number].mapping.clone();
        Ok(TensorData { mapping, range: entry.range.clone(), kind, dims })
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.inner.files.iter().map(|file| file.path.as_path())
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.inner.files.iter().map(|file| file.mapping.bytes().len() as u64).sum()
    }

    /// Starts reading the files and mapping their pages in the background.
    pub fn will_need(&self) {
        self.inner.files.iter().for_each(|file| file.mapping.populate());
    }

    /// What to call these weights in an error: their file, or the folder of their shards.
    fn place(&self) -> PathBuf {
        match &self.inner.files[..] {
            [only] => only.path.clone(),
            files => files.first().and_then(|file| file.path.parent()).map(Path::to_owned).unwrap_or_default(),
        }
    }
}

impl std::fmt::Debug for Safetensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Safetensors({} files, {} tensors)", self.inner.files.len(), self.inner.tensors.len())
    }
}

/// An index file, and the shard of each tensor.
type Index<'a> = (&'a Path, &'a BTreeMap<String, String>);
