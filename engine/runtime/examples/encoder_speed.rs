//! What vectors cost, against the arithmetic that they need: `encoder_speed FOLDER`.
//!
//! Both are taken in CPU time of one thread, so that other work on the machine disturbs little: the share is that of
//! f32 multiply-adds in products and attention at the rate that a plain loop of them reaches here.

use engine_core::{Encode, EncodeBatch};
use engine_runtime::kernels::cpu::simd::{Isa, Kernel, Simd};
use engine_runtime::{LoadOptions, load_encoder};
use engine_store::{EncoderCheckpoint, EncoderConfig};
use rustix::time::{ClockId, clock_gettime};

/// (texts, tokens in each): a query, a step of short texts, a step of long ones.
const CASES: [(usize, usize); 4] = [(1, 12), (16, 32), (4, 128), (2, 256)];
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: encoder_speed FOLDER")?;
    let checkpoint = EncoderCheckpoint::open(folder.as_ref())?;
    let mut device = load_encoder(&checkpoint, &LoadOptions::default())?;
    let peak = (0..ROUNDS).map(|_| flops_per_s()).fold(0.0, f64::max);
    println!("{:.1} GFLOP/s at most", peak / 1e9);
    for (texts, tokens) in CASES {
        let seconds = cpu_s_per_step(&mut *device, texts, tokens);
        let flops = texts as f64 * flops(checkpoint.config(), tokens);
        println!(
            "{texts:>3} texts of {tokens:>3} tokens: {:7.2} ms, {:6.0} texts/s, {:6.0} tokens/s, {:3.0}% of the floor",
            seconds * 1e3,
            texts as f64 / seconds,
            (texts * tokens) as f64 / seconds,
            100.0 * flops / peak / seconds,
        );
    }
    Ok(())
}

/// Floating-point operations that a text of so many tokens needs.
fn flops(config: &EncoderConfig, tokens: usize) -> f64 {
    let products = 4 * config.width * config.width + 2 * config.width * config.ffn_width;
    2.0 * (config.layers * tokens * (products + 2 * tokens * config.width)) as f64
}

/// The best of several steps.
fn cpu_s_per_step(device: &mut dyn Encode, texts: usize, tokens: usize) -> f64 {
    let ids = (0..texts * tokens).map(|index| 1000 + index as u32 * 7 % 20_000).collect();
    let batch = EncodeBatch { tokens: ids, lengths: vec![tokens; texts] };
    let mut out = Vec::new();
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = cpu_s();
        device.encode(&batch, &mut out).expect("vectors");
        best = best.min(cpu_s() - start);
    }
    best
}

fn cpu_s() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Multiply-adds of a plain loop over registers.
fn flops_per_s() -> f64 {
    const TIMES: usize = 2_000_000;
    let start = cpu_s();
    let sum = Isa::detect().run(MultiplyAdd(TIMES));
    let seconds = cpu_s() - start;
    std::hint::black_box(sum);
    (TIMES * CHAINS * 8 * 2) as f64 / seconds
}

/// Enough that none waits for the one before it.
const CHAINS: usize = 12;

struct MultiplyAdd(usize);

impl Kernel for MultiplyAdd {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (factor, addend) = (s.splat(0.999), s.splat(0.001));
        let mut sums = [s.splat(1.0); CHAINS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.fma(*sum, factor, addend);
            }
        }
        sums.into_iter().map(|sum| s.sum(sum)).sum()
    }
}
