//! Speed of matrix products alone, for every instruction set and format: `products [rows cols] [isa] [format] [threads]`.
//!
//! Prints, for each number of tokens, CPU time per product, weight bytes per second and operations per second of CPU time. As many
//! matrices take turns as fill 96 MB, so that weights come from where a whole model's would.

use engine_runtime::kernels::cpu::{
    matmul::{self, Input, Job},
    matrix::Matrix,
    pool::Pool,
    quant::Quantised,
    simd::Isa,
};
use engine_store::{GgmlType, RUNNABLE_TYPES, TensorData};
use rustix::time::{ClockId, clock_gettime};

const WORKING_SET_BYTES: usize = 96 << 20;
const SAMPLES: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |index: usize| args.get(index).map_or("", String::as_str);
    let (rows, cols): (usize, usize) = (arg(0).parse().unwrap_or(1536), arg(1).parse().unwrap_or(576));
    let threads = arg(4).parse().unwrap_or(1);
    let mut pool = Pool::new(threads, |_| {})?;
    for kind in RUNNABLE_TYPES.into_iter().filter(|kind| kind.to_string().starts_with(arg(3))) {
        let cols = cols.next_multiple_of(kind.block_len() as usize);
        let bytes = rows * cols / kind.block_len() as usize * kind.block_bytes() as usize;
        let copies = (arg(5).parse().unwrap_or(WORKING_SET_BYTES) / bytes).max(1);
        let matrices: Vec<Matrix> =
            (0..copies).map(|copy| matrix(kind, rows, cols, bytes, copy)).collect::<Option<_>>().ok_or("wrong size")?;
        for isa in Isa::available() {
            let name = format!("{isa:?}").to_lowercase();
            if !name.contains(arg(2)) {
                continue;
            }
            for tokens in [1, 2, 4, 8, 16, 128, 512] {
                measure(&mut pool, isa, &matrices, tokens, &format!("{kind} {name}"));
            }
        }
    }
    Ok(())
}

/// Small scales and otherwise noise: the kernels' speed does not depend on values.
fn matrix(kind: GgmlType, rows: usize, cols: usize, bytes: usize, salt: usize) -> Option<Matrix> {
    let noise = |index: usize| ((index + salt) as u32).wrapping_mul(0x9e37_79b9).rotate_left(13) as u8 & 0x3f;
    let data = TensorData::from_bytes(kind, vec![cols as u64, rows as u64], (0..bytes).map(noise).collect())?;
    Some(Matrix::new(data))
}

fn measure(pool: &mut Pool, isa: Isa, matrices: &[Matrix], tokens: usize, name: &str) {
    let (rows, cols) = (matrices[0].rows, matrices[0].cols);
    let input: Vec<f32> = (0..tokens * cols).map(|index| (index as f32 * 0.7).sin()).collect();
    let mut quantised = Quantised::default();
    quantised.resize(tokens, cols);
    quantised.fill(pool, isa, &input);
    let mut out = vec![0.0; tokens * rows];
    let mut best_s = f64::INFINITY;
    for _ in 0..SAMPLES {
        let start = cpu_s();
        let runs = (matrices.len() * 2 / tokens).max(2);
        for matrix in matrices.iter().cycle().take(runs) {
            let input = Input { tokens, real: &input, quantised: Some(&quantised) };
            matmul::multiply(pool, isa, input, vec![Job { matrix, out: &mut out, accumulate: false }], &[]);
        }
        best_s = best_s.min((cpu_s() - start) / runs as f64);
    }
    let weights = matrices[0].bands() * 16 * matrices[0].row_bytes();
    println!(
        "{name:40} {tokens:4} tokens {:10.1} us {:7.2} GB/s {:8.1} GOP/s",
        best_s * 1e6,
        weights as f64 / best_s * 1e-9,
        (2 * rows * cols * tokens) as f64 / best_s * 1e-9
    );
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
