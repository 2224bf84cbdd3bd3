//! What a GPU does with the kernels, beside what it can do: products, whole steps. JSON on stdout.
//!
//!     measure [--emulated] [--large] [--model PATH]     measure
//!     measure make PATH                                 write a small checkpoint with random weights
//!     measure tokens PATH [--emulated]                  greedy tokens of a checkpoint, to compare devices by
//!
//! `--emulated` runs everything once and small on the emulator: it proves the program, and its figures mean nothing.
//! `--large` adds models of the shape of 8B parameters (17 GB and 5 GB of device memory, made up in memory).

mod products;
mod steps;
#[path = "../../tests/common/tiny.rs"]
mod tiny;
mod yardsticks;

use engine_core::Forward;
use engine_cuda::{CudaForward, CudaOptions, device::Device};
use engine_store::{Checkpoint, GgmlType};
use serde_json::{Value, json};
use std::time::Instant;
use tiny::{TINY, Tiny};
use yardsticks::Yardsticks;

/// The checkpoint of bundles: 9 million weights.
const SMALL: Tiny = Tiny {
    kind: GgmlType::Q8_0,
    width: 512,
    ffn: 1408,
    heads: 8,
    kv_heads: 2,
    head_dim: 64,
    layers: 3,
    context: 4096,
    ..TINY
};
/// Llama 3 8B but for its vocabulary.
const LARGE: Tiny =
    Tiny { width: 4096, ffn: 14336, heads: 32, kv_heads: 8, head_dim: 128, layers: 32, context: 32768, ..TINY };

type Failure = Box<dyn std::error::Error>;

/// How long and how large measurements are.
#[derive(Clone, Copy)]
pub struct Scale {
    emulated: bool,
}

impl Scale {
    /// Seconds that one call takes on average: a fifth of a second of calls, after one that loads what is needed.
    fn seconds<E: Into<Failure>>(
        self,
        device_work: &mut dyn FnMut() -> Result<(), E>,
        wait: &dyn Fn() -> Result<(), E>,
    ) -> Result<f64, Failure> {
        let mut time = |count: u32| -> Result<f64, Failure> {
            let begun = Instant::now();
            for _ in 0..count {
                device_work().map_err(Into::into)?;
            }
            wait().map_err(Into::into)?;
            Ok(begun.elapsed().as_secs_f64() / f64::from(count))
        };
        let first = time(1)?;
        if self.emulated {
            return Ok(first);
        }
        let once = time(3)?;
        time((0.2 / once).clamp(3.0, 10_000.0) as u32)
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&arguments) {
        eprintln!("measure: {error}");
        std::process::exit(1);
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["make", path, ..] = words[..] {
        return Ok(std::fs::write(path, SMALL.gguf_bytes())?);
    }
    let scale = Scale { emulated: has("--emulated") };
    let _emulator = scale.emulated.then(engine_cuda_emulator::load).transpose()?;
    let report = match words[..] {
        ["tokens", path, ..] => json!({ "tokens": greedy(path)? }),
        _ => measure(scale, has("--large"), after(&words, "--model"))?,
    };
    println!("{report:#}");
    Ok(())
}

fn after<'a>(words: &[&'a str], flag: &str) -> Option<&'a str> {
    words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1)).copied()
}

/// The tokens that follow a fixed prompt.
fn greedy(path: &str) -> Result<Vec<u32>, Failure> {
    let options = CudaOptions { kv_bytes: 64 << 20, step_tokens: 64, ..CudaOptions::default() };
    let mut device = CudaForward::load(&Checkpoint::open(path, None)?, options)?;
    let vocab = device.shape().vocab as u32;
    let mut tokens: Vec<u32> = (0..40).map(|i| i * 7 % vocab).collect();
    let (mut found, mut done) = (Vec::new(), 0);
    while found.len() < 12 {
        let logits = steps::step(&mut device, &tokens[done..], done, 1)?;
        done = tokens.len();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0) as u32;
        found.push(best);
        tokens.push(best);
    }
    Ok(found)
}

fn measure(scale: Scale, large: bool, model: Option<&str>) -> Result<Value, Failure> {
    let mut device = Device::open(0)?;
    let best = Yardsticks::of(&device, scale)?;
    let mut report = json!({
        "device": device.context.name,
        "capability": [device.context.capability.0, device.context.capability.1],
        "multiprocessors": device.context.multiprocessors,
        "emulated": scale.emulated,
        "copy_gb_per_s": best.copy_gb_per_s,
        "matrix_tflop_per_s": best.matrix_tflop_per_s,
        "products": products::all(&mut device, scale, best)?,
    });
    drop(device);
    let small = SMALL.checkpoint();
    let mut models = vec![steps::all("small q8_0", &small, scale, best)?];
    if let Some(path) = model {
        models.push(steps::all(path, &Checkpoint::open(path, None)?, scale, best)?);
    }
    if large {
        for kind in [GgmlType::Q4_K, GgmlType::BF16] {
            models.push(steps::all(&format!("8B {kind}"), &Tiny { kind, ..LARGE }.checkpoint(), scale, best)?);
        }
    }
    report["models"] = models.into();
    Ok(report)
}
