//! What the tests of fetching share: small checkpoints, options without patience, and what is left where nothing should be.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod server;

use engine_fetch::{FetchError, Fetched, Options, Source, fetch};
use std::{fs, ops::ControlFlow, path::Path};

/// A GGUF file of one tensor with so many numbers, which depend on the seed.
pub fn gguf(numbers: u64, seed: u64) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend([1u64, 0].iter().flat_map(|count| count.to_le_bytes()));
    out.extend(1u64.to_le_bytes());
    out.extend(b"w");
    out.extend(1u32.to_le_bytes());
    out.extend(numbers.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.resize(out.len().next_multiple_of(32), 0);
    let mut state = seed;
    for _ in 0..numbers {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend(((state >> 40) as f32).to_le_bytes());
    }
    out
}

/// Small pieces and short pauses.
pub fn options() -> Options {
    Options { parallel: 3, piece_bytes: 10_000, retries: 4, backoff_ms: 1, stall_ms: 20_000, ..Options::default() }
}

pub fn get(address: &str, folder: &Path, options: &Options) -> Result<Fetched, FetchError> {
    fetch(&Source::parse(address).unwrap(), folder, options, &mut |_| ControlFlow::Continue(()))
}

/// What can be seen in a folder: nothing that is being fetched, and no lock.
pub fn visible(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| !name.ends_with(".part") && !name.ends_with(".lock")).collect();
    names.sort();
    names
}
