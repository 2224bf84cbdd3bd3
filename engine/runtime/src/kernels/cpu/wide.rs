//! Sixteen f32 lanes: one register of AVX-512, or two vectors of [`Simd`].
//!
//! The kernels of attention and of what stands between the products are written over these. A sum over lanes has
//! sixteen partial sums and one tree wherever it runs, so every instruction set computes the same bits.

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Simd};

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen lanes of f32. Every operation rounds the same way in every implementation; see [`Simd`] for each.
pub trait Wide: Copy + Send + Sync + 'static {
    type V: Copy;
    /// Sums that stay in registers beside what feeds them.
    const SUMS: usize;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, out: &mut [f32; LANES]);
    fn load_f16(self, x: &[u16; LANES]) -> Self::V;
    fn store_f16(self, v: Self::V, out: &mut [u16; LANES]);
    fn load_i8(self, x: &[i8; LANES]) -> Self::V;
    /// 32 whole numbers in -127..=127 as bytes.
    fn store_i8(self, v: [Self::V; 2], out: &mut [i8; 2 * LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn round(self, a: Self::V) -> Self::V;
    fn pow2(self, n: Self::V) -> Self::V;
    fn prefetch<T>(self, data: &[T]);

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    #[inline(always)]
    fn array(self, v: Self::V) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        self.store(v, &mut out);
        out
    }

    /// Sum of the lanes, always in the same tree.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let wide = self.array(v);
        let x: [f32; 8] = std::array::from_fn(|i| wide[i] + wide[i + 8]);
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }

    /// The largest lane; NaN lanes are passed over.
    #[inline(always)]
    fn highest(self, v: Self::V) -> f32 {
        let wide = self.array(v);
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let x: [f32; 8] = std::array::from_fn(|i| larger(wide[i], wide[i + 8]));
        let x: [f32; 4] = std::array::from_fn(|i| larger(x[i], x[i + 4]));
        larger(larger(x[0], x[2]), larger(x[1], x[3]))
    }

    /// As [`Simd::exp`], to the bit.
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

/// Two vectors of eight as one of sixteen.
#[derive(Clone, Copy, Debug)]
pub struct Pair<S>(pub S);

#[inline(always)]
fn halves<T>(x: &[T; LANES]) -> &[[T; 8]; 2] {
    let Ok(halves) = x.as_chunks::<8>().0.try_into() else { unreachable!("16 is twice 8") };
    halves
}

#[inline(always)]
fn halves_mut<T>(x: &mut [T; LANES]) -> &mut [[T; 8]; 2] {
    let Ok(halves) = x.as_chunks_mut::<8>().0.try_into() else { unreachable!("16 is twice 8") };
    halves
}

impl<S: Simd> Wide for Pair<S> {
    type V = [S::V; 2];
    const SUMS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [self.0.splat(x); 2]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        let [a, b] = halves(x);
        [self.0.load(a), self.0.load(b)]
    }
    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        let [a, b] = halves_mut(out);
        self.0.store(v[0], a);
        self.0.store(v[1], b);
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::V {
        let [a, b] = halves(x);
        [self.0.load_f16(a), self.0.load_f16(b)]
    }
    #[inline(always)]
    fn store_f16(self, v: Self::V, out: &mut [u16; LANES]) {
        let [a, b] = halves_mut(out);
        self.0.store_f16(v[0], a);
        self.0.store_f16(v[1], b);
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::V {
        let [a, b] = halves(x);
        [self.0.load_i8(a), self.0.load_i8(b)]
    }
    #[inline(always)]
    fn store_i8(self, v: [Self::V; 2], out: &mut [i8; 2 * LANES]) {
        self.0.store_i8([v[0][0], v[0][1], v[1][0], v[1][1]], out);
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        [self.0.add(a[0], b[0]), self.0.add(a[1], b[1])]
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        [self.0.sub(a[0], b[0]), self.0.sub(a[1], b[1])]
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        [self.0.mul(a[0], b[0]), self.0.mul(a[1], b[1])]
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        [self.0.div(a[0], b[0]), self.0.div(a[1], b[1])]
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        [self.0.fma(a[0], b[0], c[0]), self.0.fma(a[1], b[1], c[1])]
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        [self.0.max(a[0], b[0]), self.0.max(a[1], b[1])]
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        [self.0.min(a[0], b[0]), self.0.min(a[1], b[1])]
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        [self.0.round(a[0]), self.0.round(a[1])]
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        [self.0.pow2(n[0]), self.0.pow2(n[1])]
    }
    #[inline(always)]
    fn prefetch<T>(self, data: &[T]) {
        self.0.prefetch(data);
    }
}

/// A kernel over any [`Wide`]; `run` must be `#[inline(always)]` to be compiled with the features on.
pub trait WideKernel {
    type Out;
    fn run<S: Wide>(self, simd: S) -> Self::Out;
}

impl Isa {
    #[inline]
    pub fn run_wide<K: WideKernel>(self, kernel: K) -> K::Out {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Avx512` exists only after the features were detected.
            Self::Avx512(simd) => unsafe { run_avx512(simd, kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Avx2` exists only after the features were detected.
            Self::Avx2(simd) => unsafe { run_avx2(simd, kernel) },
            Self::Portable => kernel.run(Pair(Portable)),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn run_avx512<K: WideKernel>(simd: Avx512, kernel: K) -> K::Out {
    kernel.run(simd)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: WideKernel>(simd: Avx2, kernel: K) -> K::Out {
    kernel.run(Pair(simd))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on lanes that differ.
    struct All([f32; 16]);

    impl WideKernel for All {
        type Out = (Vec<u32>, [u16; 16], [i8; 32]);
        #[inline(always)]
        fn run<S: Wide>(self, s: S) -> Self::Out {
            let x = s.load(&self.0);
            let y = s.add(s.mul(x, s.splat(-1.7)), s.splat(0.3));
            let (mut half, mut bytes) = ([0; 16], [0; 32]);
            s.store_f16(x, &mut half);
            let clipped = s.max(s.splat(-127.0), s.min(s.splat(127.0), x));
            let rounded = [s.round(clipped), s.round(s.mul(clipped, s.splat(0.5)))];
            s.store_i8(rounded, &mut bytes);
            let bytes_back = s.load_i8(&std::array::from_fn(|i| bytes[i]));
            assert_eq!(s.array(bytes_back), s.array(rounded[0]));
            let results = [
                s.sub(x, y),
                s.div(x, y),
                s.fma(x, y, x),
                s.max(x, y),
                s.min(x, y),
                s.round(x),
                s.exp(x),
                s.pow2(s.round(clipped)),
                s.load_f16(&half),
                s.splat(s.sum(x)),
                s.splat(s.highest(y)),
            ];
            (results.iter().flat_map(|v| s.array(*v)).map(f32::to_bits).collect(), half, bytes)
        }
    }

    #[test]
    fn every_instruction_set_computes_the_same_bits() {
        for step in -300..300 {
            let x: [f32; 16] = std::array::from_fn(|i| (step as f32 * 0.37 + i as f32 * 1.09).sin() * step as f32);
            let expected = Isa::Portable.run_wide(All(x));
            for isa in Isa::available() {
                assert_eq!(isa.run_wide(All(x)), expected, "{isa:?} at {x:?}");
            }
        }
    }
}
