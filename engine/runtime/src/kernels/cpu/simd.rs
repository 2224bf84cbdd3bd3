//! Eight f32 lanes, on AVX2 or on plain arrays, and the choice of instruction set at run time. Sixteen lanes are
//! in wide.rs.
//!
//! A kernel is written once over [`Simd`] and compiled twice ([`Isa::run`], the pattern of the `pulp`
//! crate): the whole kernel is inlined into a function with the target features switched on.

/// Eight lanes of f32. Every operation rounds the same way in every implementation.
pub trait Simd: Copy + Send + Sync + 'static {
    type V: Copy;
    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; 8]) -> Self::V;
    fn store(self, v: Self::V, out: &mut [f32; 8]);
    /// Eight IEEE half floats, widened exactly.
    fn load_f16(self, x: &[u16; 8]) -> Self::V;
    /// Rounds to nearest even.
    fn store_f16(self, v: Self::V, out: &mut [u16; 8]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c with one rounding.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// b where a is not greater, NaN included.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// b where a is not less, NaN included.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// 2^n for whole n in -127..=127; 0 at -127.
    fn pow2(self, n: Self::V) -> Self::V;

    fn load_i8(self, x: &[i8; 8]) -> Self::V;

    /// 32 whole numbers in -127..=127 as bytes.
    fn store_i8(self, v: [Self::V; 4], out: &mut [i8; 32]);

    /// Starts fetching memory that is about to be read; a hint without effect on results.
    fn prefetch<T>(self, data: &[T]);

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    #[inline(always)]
    fn array(self, v: Self::V) -> [f32; 8] {
        let mut out = [0.0; 8];
        self.store(v, &mut out);
        out
    }

    /// Sum of the lanes, always in the same tree.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let x = self.array(v);
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }

    /// e^x by Cody-Waite reduction and the degree-5 polynomial of Cephes (expf.c): relative error below
    /// 2e-7; exactly 0 at and below -88, largest finite at and above 88.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let x = self.max(self.splat(-88.0), self.min(self.splat(88.0), x));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let p = self.fma(p, self.mul(r, r), self.add(r, self.splat(1.0)));
        self.mul(p, self.pow2(n))
    }
}

/// Plain arrays.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; 8] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type V = [f32; 8];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 8]) -> [f32; 8] {
        *x
    }
    #[inline(always)]
    fn store(self, v: [f32; 8], out: &mut [f32; 8]) {
        *out = v;
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; 8]) -> [f32; 8] {
        lanes(|i| half::f16::from_bits(x[i]).to_f32())
    }
    #[inline(always)]
    fn store_f16(self, v: [f32; 8], out: &mut [u16; 8]) {
        *out = std::array::from_fn(|i| half::f16::from_f32(v[i]).to_bits());
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn round(self, a: [f32; 8]) -> [f32; 8] {
        lanes(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    fn pow2(self, n: [f32; 8]) -> [f32; 8] {
        lanes(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 8]) -> [f32; 8] {
        lanes(|i| f32::from(x[i]))
    }
    #[inline(always)]
    fn store_i8(self, v: [[f32; 8]; 4], out: &mut [i8; 32]) {
        *out = std::array::from_fn(|i| v[i / 8][i % 8] as i8);
    }
    #[inline(always)]
    fn prefetch<T>(self, _: &[T]) {}
}

/// Proof that the CPU has AVX2, FMA and F16C: only [`Isa::detect`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// Proof that the CPU has AVX-512 F, BW, DQ and VL, and what [`Avx2`] proves; and what it has for int8.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx512 {
    vnni: bool,
    amx: bool,
}

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    /// Whatever has AVX-512 has AVX2.
    pub fn avx2(self) -> Avx2 {
        Avx2(())
    }

    /// Whether it has dot products of four bytes.
    pub fn vnni(self) -> bool {
        self.vnni
    }

    /// Whether it has tiles of bytes, and the kernel lets this process use them. Implies `vnni`.
    pub fn amx(self) -> bool {
        self.amx
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Avx2, Simd};
    use std::arch::x86_64::*;

    // SAFETY of every block below: a value of `Avx2` exists only after AVX2, FMA and F16C were detected, and
    // pointers come from references to arrays of exactly the bytes that are read or written.
    impl Simd for Avx2 {
        type V = __m256;

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, x: &[f32; 8]) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_loadu_ps(x.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m256, out: &mut [f32; 8]) {
            // SAFETY: see above the impl.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn load_f16(self, x: &[u16; 8]) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())) }
        }
        #[inline(always)]
        fn store_f16(self, v: __m256, out: &mut [u16; 8]) {
            // SAFETY: see above the impl.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn div(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        fn min(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        fn round(self, a: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        fn pow2(self, n: __m256) -> __m256 {
            // SAFETY: see above the impl.
            unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            }
        }
        #[inline(always)]
        fn load_i8(self, x: &[i8; 8]) -> __m256 {
            // SAFETY: see above the impl.
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast()))) }
        }
        #[inline(always)]
        fn store_i8(self, v: [__m256; 4], out: &mut [i8; 32]) {
            // SAFETY: see above the impl.
            unsafe {
                let low = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
                let high = _mm256_packs_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3]));
                // Packing works within 128-bit halves; the permutation puts the groups of four back in order.
                let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes);
            }
        }
        #[inline(always)]
        fn prefetch<T>(self, data: &[T]) {
            for line in (0..size_of_val(data)).step_by(64) {
                // SAFETY: prefetching never faults, and this address lies inside `data` anyway.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(data.as_ptr().cast::<i8>().wrapping_add(line)) };
            }
        }
    }
}

/// The instruction set that kernels run on.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable,
}

/// A kernel over any [`Simd`]; `run` must be `#[inline(always)]` to be compiled with the features on.
pub trait Kernel {
    type Out;
    fn run<S: Simd>(self, simd: S) -> Self::Out;
}

impl Isa {
    /// The best that this CPU has.
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// All that this CPU has, the best first. NEON would be one more variant here and one more implementation of
    /// each trait that `Isa` chooses by.
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                let vnni = is_x86_feature_detected!("avx512vnni");
                if vnni && super::amx::request() {
                    all.push(Self::Avx512(Avx512 { vnni, amx: true }));
                }
                all.push(Self::Avx512(Avx512 { vnni, amx: false }));
            }
            all.push(Self::Avx2(Avx2(())));
        }
        all.push(Self::Portable);
        all
    }

    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Avx512` exists only after the features were detected, AVX2's among them.
            Self::Avx512(simd) => unsafe { run_avx2(simd.avx2(), kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Avx2` exists only after the features were detected.
            Self::Avx2(simd) => unsafe { run_avx2(simd, kernel) },
            Self::Portable => kernel.run(Portable),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(simd: Avx2, kernel: K) -> K::Out {
    kernel.run(simd)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp([f32; 8]);

    impl Kernel for Exp {
        type Out = [f32; 8];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; 8] {
            s.array(s.exp(s.load(&self.0)))
        }
    }

    #[test]
    fn exp_is_accurate_and_the_same_everywhere() {
        for step in -9000..=9000 {
            let x = step as f32 * 0.01;
            let fast = Isa::detect().run(Exp([x; 8]))[3];
            assert_eq!(fast.to_bits(), Isa::Portable.run(Exp([x; 8]))[3].to_bits(), "at {x}");
            if (-87.0..=87.9).contains(&x) {
                let exact = f64::from(x).exp();
                assert!((f64::from(fast) / exact - 1.0).abs() < 3e-7, "exp({x}) = {fast}");
            }
        }
        assert_eq!(Isa::detect().run(Exp([f32::NEG_INFINITY; 8])), [0.0; 8]);
        assert_eq!(Isa::detect().run(Exp([-88.0; 8])), [0.0; 8]);
    }

    struct Half([f32; 8]);

    impl Kernel for Half {
        type Out = ([u16; 8], [f32; 8]);
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Out {
            let mut half = [0; 8];
            s.store_f16(s.load(&self.0), &mut half);
            (half, s.array(s.load_f16(&half)))
        }
    }

    #[test]
    fn halves_agree() {
        for step in -4000..4000 {
            let x: [f32; 8] = std::array::from_fn(|i| step as f32 * 0.731 + i as f32 * 1e-5);
            assert_eq!(Isa::detect().run(Half(x)), Isa::Portable.run(Half(x)));
        }
    }
}
