//! A Hugging Face folder of a one-layer llama whose numbers are all different, and what kernels want of it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use crate::tiny_folder::{Plan, llama};
use engine_store::{Checkpoint, Loaded, Packer, TensorShape};
use serde_json::json;
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};
use tempfile::TempDir;

/// Width 256; with a vocabulary of 3000 its embedding takes a chunk and a half.
pub fn wide(vocab: u64) -> Plan {
    let plan = llama().set("hidden_size", json!(256)).set("intermediate_size", json!(512));
    let mut plan = plan.set("vocab_size", json!(vocab));
    for (_, shape, _) in &mut plan.tensors {
        // All but the vocabulary grow eightfold.
        shape.iter_mut().for_each(|dim| *dim = if *dim == 4 { vocab } else { *dim * 8 });
    }
    plan
}

/// Writes it with numbers that depend on the seed alone, small enough to be rounded.
pub fn write(plan: &Plan, folder: &Path, seed: u64) {
    plan.write(folder);
    std::fs::write(folder.join("config.json"), plan.config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    let path = folder.join("model.safetensors");
    let mut file = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut state = seed;
    for number in file[8 + header..].as_chunks_mut::<2>().0 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *number = [(state >> 40) as u8, 0x3e | (state >> 32) as u8 & 0x80];
    }
    std::fs::write(&path, file).unwrap();
}

/// Changes one number of a tensor of a folder, as a fine-tune would.
pub fn tune(folder: &Path, name: &str) {
    let path = folder.join("model.safetensors");
    let mut file = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let entries: serde_json::Value = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let start = entries[name]["data_offsets"][0].as_u64().unwrap() as usize;
    file[8 + header + start] ^= 1;
    std::fs::write(&path, file).unwrap();
}

/// In memory, so that syncing costs nothing; on disk where there is no such place.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Puts a few bytes after every matrix, as kernels want that read whole bands.
pub struct Tails;

impl Packer for Tails {
    fn layout(&self) -> &str {
        "tails-1"
    }

    fn pack(&self, tensor: TensorShape<'_>, stored: &[u8], out: &mut dyn Write) -> io::Result<()> {
        // In pieces of no round size.
        stored.chunks(77_777).try_for_each(|piece| out.write_all(piece))?;
        if tensor.dims.len() > 1 { out.write_all(&stored[..100]) } else { Ok(()) }
    }
}

/// What a packer makes of a checkpoint, by tensor.
pub fn packed(checkpoint: &Checkpoint, packer: &dyn Packer) -> BTreeMap<String, Vec<u8>> {
    let pack = |tensor: TensorShape<'_>| {
        let mut out = Vec::new();
        packer.pack(tensor, &checkpoint.tensor_data(tensor.name).unwrap(), &mut out).unwrap();
        (tensor.name.to_owned(), out)
    };
    checkpoint.tensors().map(pack).collect()
}

/// The bytes of a loaded model, by tensor.
pub fn bytes(loaded: &Loaded) -> BTreeMap<String, Vec<u8>> {
    loaded.names().map(|name| (name.to_owned(), loaded.tensor_data(name).unwrap().to_vec())).collect()
}
