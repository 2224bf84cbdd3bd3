//! Weights in use, gathered into huge pages a few at a time.

use engine_store::host::Held;
use engine_store::{Checksum, Segments};
use std::collections::BTreeMap;
use std::io;

/// Bytes gathered into huge pages at a look, and how often it is tried with one segment.
const GATHERED_BYTES: u64 = 256 << 20;
const TRIES_MAX: u32 = 3;

/// How often each segment in use was gathered into huge pages, and whether the kernel can.
#[derive(Default)]
pub(super) struct Gathered {
    tries: BTreeMap<Checksum, u32>,
    refused: bool,
}

impl Gathered {
    /// Gathers those in use that have not been, some at a time: engines are at work meanwhile.
    pub(super) fn turn(&mut self, segments: &Segments, held: &[Held]) {
        self.tries.retain(|name, _| held.iter().any(|held| held.name == *name));
        let mut bytes = 0;
        for held in held.iter().filter(|held| held.mapped) {
            let tries = self.tries.entry(held.name).or_default();
            if self.refused || *tries >= TRIES_MAX || bytes >= GATHERED_BYTES {
                continue;
            }
            *tries += 1;
            match segments.gather(held) {
                Ok(true) => bytes += held.bytes,
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    tracing::info!(%error, "the kernel gives shared memory no huge pages: decoding is slower by a third");
                    self.refused = true;
                }
                // Tried again, since it depends on what memory is free.
                Err(_) => continue,
            }
            if !self.refused {
                *tries = TRIES_MAX;
            }
        }
    }
}
