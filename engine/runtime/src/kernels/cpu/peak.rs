//! The bounds that kernels are measured against: what the cores' widest integer instruction reaches when nothing but
//! registers feeds it (prefill), and what the widest loads bring in (decode).

#[cfg(target_arch = "x86_64")]
use super::amx;
use std::time::{Duration, Instant};

/// Loop passes between two looks at the clock.
const PASSES: u64 = 100_000;

/// Integer operations, two for each multiply-add, per second of `threads` threads at once, the best of `span` split into ten measurements each.
pub fn int8_ops_per_s(threads: usize, span: Duration) -> f64 {
    let one = || {
        let mut best: f64 = 0.0;
        let begun = Instant::now();
        while begun.elapsed() < span {
            let start = Instant::now();
            let mut ops = 0;
            while start.elapsed() < span / 10 {
                ops += pass();
            }
            best = best.max(ops as f64 / start.elapsed().as_secs_f64());
        }
        best
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    })
}

/// Reads memory once, with the widest loads that there are.
pub fn read(words: &[u64]) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just found.
            return unsafe { x86::read_avx512(words) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            return unsafe { x86::read_avx2(words) };
        }
    }
    sum(words);
}

#[inline(always)]
fn sum(words: &[u64]) {
    let mut sums = [0_u64; 32];
    for words in words.chunks_exact(32) {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = sum.wrapping_add(*word);
        }
    }
    std::hint::black_box(sums);
}

/// Runs the loop once; answers how many operations that was.
#[cfg(target_arch = "x86_64")]
fn pass() -> u64 {
    if amx::request() {
        // SAFETY: the tiles were just granted.
        unsafe { amx::spin(PASSES) };
        return PASSES * amx::SPIN_OPS;
    }
    if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512f") {
        // SAFETY: the features were just found.
        unsafe { x86::vnni() };
        return PASSES * x86::VNNI_OPS;
    }
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was just found.
        unsafe { x86::avx2() };
        return PASSES * x86::AVX2_OPS;
    }
    scalar()
}

#[cfg(not(target_arch = "x86_64"))]
fn pass() -> u64 {
    scalar()
}

/// Whatever the compiler makes of a plain loop.
fn scalar() -> u64 {
    let (a, b) = (std::hint::black_box([3_i8; 64]), std::hint::black_box([5_i8; 64]));
    let mut sums = [0_i32; 64];
    for _ in 0..PASSES {
        for lane in 0..64 {
            sums[lane] = sums[lane].wrapping_add(i32::from(a[lane]) * i32::from(b[lane]));
        }
        sums = std::hint::black_box(sums);
    }
    PASSES * 128
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::PASSES;
    use std::arch::asm;

    /// Ten accumulators hide the latency; 64 multiply-adds each.
    pub const VNNI_OPS: u64 = 10 * 128;
    /// Eight accumulators; 32 multiply-adds each, in three instructions.
    pub const AVX2_OPS: u64 = 8 * 64;

    #[target_feature(enable = "avx512f")]
    pub fn read_avx512(words: &[u64]) {
        super::sum(words);
    }

    #[target_feature(enable = "avx2")]
    pub fn read_avx2(words: &[u64]) {
        super::sum(words);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn vnni() {
        // SAFETY: registers only, all of them named as written, and no memory is touched.
        unsafe {
            asm!(
                "2:",
                "vpdpbusd zmm0, zmm10, zmm11",
                "vpdpbusd zmm1, zmm10, zmm11",
                "vpdpbusd zmm2, zmm10, zmm11",
                "vpdpbusd zmm3, zmm10, zmm11",
                "vpdpbusd zmm4, zmm10, zmm11",
                "vpdpbusd zmm5, zmm10, zmm11",
                "vpdpbusd zmm6, zmm10, zmm11",
                "vpdpbusd zmm7, zmm10, zmm11",
                "vpdpbusd zmm8, zmm10, zmm11",
                "vpdpbusd zmm9, zmm10, zmm11",
                "dec {n}",
                "jnz 2b",
                n = inout(reg) PASSES => _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _,
                out("zmm5") _, out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _,
                options(nomem, nostack),
            );
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn avx2() {
        // SAFETY: registers only, all of them named as written, and no memory is touched.
        unsafe {
            asm!(
                "2:",
                "vpmaddubsw ymm8, ymm14, ymm15", "vpmaddwd ymm8, ymm8, ymm13", "vpaddd ymm0, ymm0, ymm8",
                "vpmaddubsw ymm9, ymm14, ymm15", "vpmaddwd ymm9, ymm9, ymm13", "vpaddd ymm1, ymm1, ymm9",
                "vpmaddubsw ymm10, ymm14, ymm15", "vpmaddwd ymm10, ymm10, ymm13", "vpaddd ymm2, ymm2, ymm10",
                "vpmaddubsw ymm11, ymm14, ymm15", "vpmaddwd ymm11, ymm11, ymm13", "vpaddd ymm3, ymm3, ymm11",
                "vpmaddubsw ymm8, ymm14, ymm15", "vpmaddwd ymm8, ymm8, ymm13", "vpaddd ymm4, ymm4, ymm8",
                "vpmaddubsw ymm9, ymm14, ymm15", "vpmaddwd ymm9, ymm9, ymm13", "vpaddd ymm5, ymm5, ymm9",
                "vpmaddubsw ymm10, ymm14, ymm15", "vpmaddwd ymm10, ymm10, ymm13", "vpaddd ymm6, ymm6, ymm10",
                "vpmaddubsw ymm11, ymm14, ymm15", "vpmaddwd ymm11, ymm11, ymm13", "vpaddd ymm7, ymm7, ymm11",
                "dec {n}",
                "jnz 2b",
                n = inout(reg) PASSES => _,
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _,
                out("ymm6") _, out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                options(nomem, nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_ends_and_counts() {
        assert_eq!(scalar(), PASSES * 128);
        assert!(pass() >= PASSES);
        assert!(int8_ops_per_s(2, Duration::from_millis(20)) > 0.0);
    }
}
