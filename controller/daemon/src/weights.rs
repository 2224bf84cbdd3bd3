//! Looks after the weights that lie in shared memory: those that no engine has mapped are kept for the next start, up to
//! a bound, and go before memory runs short. Engines see to the room for their own start themselves.

use engine_store::host::{Held, available_bytes};
use engine_store::{Checksum, Segments, StoreError};
use metrics::{counter, gauge};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes gathered into huge pages at a look, and how often it is tried with one segment.
const GATHERED_BYTES: u64 = 256 << 20;
const TRIES_MAX: u32 = 3;
/// Memory that is to stay free of weights that nobody uses, bytes.
const FREE_BYTES: u64 = 512 << 20;

/// A thread that ends when this is dropped.
pub(crate) struct Keeper {
    _alive: Sender<()>,
}

impl Keeper {
    /// Looks after a folder of segments; `idle_bytes` may be kept of what nobody has mapped.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(folder: PathBuf, idle_bytes: u64) -> io::Result<Self> {
        let (alive, ended) = channel();
        std::thread::Builder::new().name("weights".to_owned()).spawn(move || {
            let (mut failing, mut gathered) = (false, Gathered::default());
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let looked = if folder.exists() { look(&folder, idle_bytes, &mut gathered) } else { Ok(()) };
                if let (Err(error), false) = (&looked, failing) {
                    tracing::warn!(%error, "weights in shared memory are not looked after");
                }
                failing = looked.is_err();
            }
        })?;
        Ok(Self { _alive: alive })
    }
}

/// How often each segment in use was gathered into huge pages, and whether the kernel can.
#[derive(Default)]
struct Gathered {
    tries: BTreeMap<Checksum, u32>,
    refused: bool,
}

impl Gathered {
    /// Gathers those in use that have not been, some at a time: engines are at work meanwhile.
    fn turn(&mut self, segments: &Segments, held: &[Held]) {
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

fn look(folder: &std::path::Path, idle_bytes: u64, gathered: &mut Gathered) -> Result<(), StoreError> {
    let segments = Segments::open(folder)?;
    segments.sweep()?;
    let held = segments.held()?;
    // Use counts up to its end, not from its beginning.
    held.iter().filter(|held| held.mapped).for_each(|held| segments.touch(held.name));
    gathered.turn(&segments, &held);
    let (mapped, idle) = sums(&held);
    let excess = idle.saturating_sub(idle_bytes).max(FREE_BYTES.saturating_sub(available_bytes().unwrap_or(u64::MAX)));
    let discarded = segments.discard_idle(excess, &BTreeSet::new())?;
    if discarded > 0 {
        tracing::info!(discarded_bytes = discarded, "weights that no engine uses have left memory");
        counter!(telemetry::WEIGHTS_DISCARDED_BYTES_TOTAL.name).increment(discarded);
    }
    gauge!(telemetry::WEIGHTS_SHARED_BYTES.name, "state" => "mapped").set(mapped as f64);
    gauge!(telemetry::WEIGHTS_SHARED_BYTES.name, "state" => "idle").set(idle.saturating_sub(discarded) as f64);
    Ok(())
}

/// Bytes that somebody has mapped, and that nobody has.
fn sums(held: &[Held]) -> (u64, u64) {
    let (mapped, idle): (Vec<&Held>, Vec<&Held>) = held.iter().partition(|held| held.mapped);
    let sum = |held: Vec<&Held>| held.iter().map(|held| held.bytes).sum();
    (sum(mapped), sum(idle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_maps_is_kept_up_to_a_bound() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("segments");
        let segments = Segments::open(&folder).expect("a folder");
        for digit in ["a", "b", "c"] {
            std::fs::write(folder.join(digit.repeat(64)), vec![0; 4096]).expect("written");
        }
        let left = || segments.held().expect("a folder").len();
        look(&folder, 3 * 4096, &mut Gathered::default()).expect("looked");
        assert_eq!(left(), 3);
        look(&folder, 2 * 4096 - 1, &mut Gathered::default()).expect("looked");
        assert_eq!(left(), 1);
        look(&folder, 0, &mut Gathered::default()).expect("looked");
        assert_eq!(left(), 0);
    }
}
