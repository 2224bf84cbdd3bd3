//! What this machine would allow at best for a checkpoint, as one line of JSON: `floor FILE`.
//!
//! Decode is bound by reading the weights and the context's keys and values, prefill by integer arithmetic in
//! the layers' matrices. The memory is read in a buffer of the weights' size, so a model that fits a
//! cache is held to the cache.

use engine_runtime::{Compute, kernels::cpu::peak, kv_bytes_per_token};
use engine_store::{Gguf, ModelConfig};
use memmap2::{Advice, MmapMut};
use serde_json::json;
use std::time::{Duration, Instant};

const SPAN: Duration = Duration::from_millis(500);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: floor FILE")?;
    let gguf = Gguf::open(&path)?;
    let config = ModelConfig::read(&gguf)?;
    let threads = std::thread::available_parallelism()?.get();
    let (mut weight_bytes, mut elements) = (0, 0);
    for tensor in gguf.tensors() {
        // An embedding that is not the output matrix too is only looked up in.
        if tensor.name == "token_embd.weight" && !config.tied {
            continue;
        }
        weight_bytes += tensor.bytes.len();
        if tensor.name.starts_with("blk.") && tensor.dims.len() == 2 {
            elements += tensor.dims.iter().product::<u64>();
        }
    }
    let floor = json!({
        "read_bytes_per_s": read_bytes_per_s(threads, weight_bytes)?,
        "int8_ops_per_s": peak::int8_ops_per_s(threads, SPAN),
        "weight_bytes": weight_bytes,
        "kv_bytes_per_token": kv_bytes_per_token(&(&gguf).into(), Compute::Fast)?,
        "ops_per_token": 2 * elements,
    });
    println!("{floor}");
    Ok(())
}

/// The best rate of all threads together, each reading its share again and again, on huge pages where they are to be had.
fn read_bytes_per_s(threads: usize, bytes: usize) -> Result<f64, std::io::Error> {
    let share_bytes = (bytes / threads).next_multiple_of(256);
    let fresh = || -> Result<MmapMut, std::io::Error> {
        let mut share = MmapMut::map_anon(share_bytes)?;
        // A kernel without them refuses, and small pages it is.
        let _ = share.advise(Advice::HugePage);
        share.fill(1);
        Ok(share)
    };
    let shares = (0..threads).map(|_| fresh()).collect::<Result<Vec<_>, _>>()?;
    let one = |words: &[u64]| {
        let (begun, mut best) = (Instant::now(), f64::INFINITY);
        while begun.elapsed() < SPAN {
            let start = Instant::now();
            peak::read(words);
            best = best.min(start.elapsed().as_secs_f64());
        }
        words.len() as f64 * 8.0 / best
    };
    Ok(std::thread::scope(|scope| {
        let threads: Vec<_> =
            shares.iter().map(|share| scope.spawn(|| one(bytemuck::cast_slice(share.as_ref())))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    }))
}
