//! Prefill and decode speed of the CPU device: `speed FILE.gguf [f32|fast|q8] [threads] [case]
//! [adapter folder]`, `case` being the first word(s) of the cases to run; `q8` is `fast` with keys and values in int8.
//!
//! Prints tokens per second of wall time and of CPU time, every sample, because the machine may be shared.

use engine_core::{AdapterId, Batch, BatchSequence, Forward};
use engine_runtime::{Adapters, Compute, KvFormat, LoadOptions, LoadedAdapter, load};
use engine_store::{Adapter, Gguf};
use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

const PREFILL_TOKENS: usize = 512;
const DECODE_TOKENS: usize = 128;
const SAMPLES: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: speed FILE.gguf [f32|fast] [threads]")?;
    let (compute, kv_format) = match args.next().as_deref() {
        Some("f32") => (Compute::F32, None),
        Some("q8") => (Compute::Fast, Some(KvFormat::Q8)),
        _ => (Compute::Fast, None),
    };
    let threads: usize = args.next().map_or(Ok(1), |count| count.parse())?;
    let only = args.next().unwrap_or_default();
    let start = Instant::now();
    let gguf = Gguf::open(&path)?;
    let opened = start.elapsed();
    let adapters = Adapters::default();
    let options = LoadOptions { compute, threads, kv_format, kv_bytes: 1 << 30, ..LoadOptions::default() };
    let mut device = load(&gguf, LoadOptions { adapters: adapters.clone(), ..options })?;
    let adapter = match args.next() {
        Some(folder) => {
            let config = gguf.validate()?;
            Some(adapters.load(&Adapter::open(folder, &config)?, &config, compute))
        }
        None => None,
    };
    let adapter = adapter.as_ref().map(LoadedAdapter::id);
    println!("open {opened:?}, load {:?}, {compute:?}, {threads} threads", start.elapsed() - opened);
    println!("first token after {:?}", {
        step(&mut *device, &[(0, 0, 1)], adapter)?;
        start.elapsed()
    });
    for _ in 0..if "prefill 512".starts_with(&only) { SAMPLES } else { 0 } {
        report("prefill 512", PREFILL_TOKENS, || step(&mut *device, &[(0, 0, PREFILL_TOKENS)], adapter))?;
    }
    for (name, streams, at) in [
        ("decode 1 at 0", 1, 0),
        ("decode 1 at 512", 1, 512),
        ("decode 1 at 2048", 1, 2048),
        ("decode 1 at 7936", 1, 7936),
        ("decode 8 at 128", 8, 128),
    ] {
        for _ in 0..if name.starts_with(&only) { SAMPLES } else { 0 } {
            report(name, streams * DECODE_TOKENS, || {
                for position in at..at + DECODE_TOKENS {
                    let parts: Vec<_> = (0..streams).map(|stream| (stream, position, 1)).collect();
                    step(&mut *device, &parts, adapter)?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// One step of (stream, start, new tokens); a stream owns a fixed range of blocks.
fn step(
    device: &mut dyn Forward,
    parts: &[(usize, usize, usize)],
    adapter: Option<AdapterId>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut batch = Batch::default();
    for &(stream, start, new_tokens) in parts {
        batch.tokens.extend((0..new_tokens).map(|index| ((start + index) * 7919 % 49_000) as u32));
        let blocks = (0..512).map(|block| (stream * if parts.len() == 1 { 0 } else { 64 } + block) as u32).collect();
        batch.sequences.push(BatchSequence { new_tokens, start, blocks, logits: 1, adapter });
    }
    Ok(device.forward(&batch, &mut Vec::new())?)
}

fn report(
    name: &str,
    tokens: usize,
    run: impl FnOnce() -> Result<(), Box<dyn std::error::Error>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let (cpu_start, start) = (cpu(), Instant::now());
    run()?;
    let (wall_s, cpu_s) = (start.elapsed().as_secs_f64(), cpu() - cpu_start);
    println!("{name:18} {:8.1} tok/s wall {:8.1} tok/s per CPU second", tokens as f64 / wall_s, tokens as f64 / cpu_s);
    Ok(())
}
