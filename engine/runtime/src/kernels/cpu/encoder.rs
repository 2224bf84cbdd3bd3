//! What encoders of the BERT family need beside products: layer norm with a bias before it, GELU in its exact form, and
//! the mean of a text's rows. One row at a time, in one order, so that no result depends on the batch.

use super::simd::{Isa, Kernel, Simd};

/// Layer norm (Ba, Kiros and Hinton 2016) of a row in place, of `x + bias`:
/// `(x - mean) / sqrt(variance + epsilon) * weight + shift`. All slices are as wide as the row, a multiple of eight.
pub struct LayerNorm<'a> {
    pub bias: &'a [f32],
    pub weight: &'a [f32],
    pub shift: &'a [f32],
    pub epsilon: f32,
}

/// Norms one row.
pub fn layer_norm(isa: Isa, norm: &LayerNorm<'_>, x: &mut [f32]) {
    isa.run(NormRow { norm, x });
}

struct NormRow<'a> {
    norm: &'a LayerNorm<'a>,
    x: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.x.len() as f32;
        let (x, _) = self.x.as_chunks_mut::<8>();
        let (bias, weight) = (self.norm.bias.as_chunks::<8>().0, self.norm.weight.as_chunks::<8>().0);
        let mut sums = s.zero();
        for (x, bias) in x.iter_mut().zip(bias) {
            let v = s.add(s.load(x), s.load(bias));
            s.store(v, x);
            sums = s.add(sums, v);
        }
        let mean = s.splat(s.sum(sums) / width);
        let mut squares = s.zero();
        for x in x.iter() {
            let v = s.sub(s.load(x), mean);
            squares = s.fma(v, v, squares);
        }
        let factor = s.splat(1.0 / (s.sum(squares) / width + self.norm.epsilon).sqrt());
        for ((x, weight), shift) in x.iter_mut().zip(weight).zip(self.norm.shift.as_chunks::<8>().0) {
            let v = s.mul(s.sub(s.load(x), mean), factor);
            s.store(s.fma(v, s.load(weight), s.load(shift)), x);
        }
    }
}

/// GELU (Hendrycks and Gimpel 2016) of `x + bias` in place, by the error function: `x * (1 + erf(x / sqrt 2)) / 2`.
/// Widths are multiples of eight.
pub fn gelu(isa: Isa, bias: &[f32], x: &mut [f32]) {
    isa.run(Gelu { bias, x });
}

struct Gelu<'a> {
    bias: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Gelu<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, bias) in self.x.as_chunks_mut::<8>().0.iter_mut().zip(self.bias.as_chunks::<8>().0) {
            let v = s.add(s.load(x), s.load(bias));
            let magnitude = s.max(v, s.sub(s.zero(), v));
            // x erfc(-x / sqrt 2) / 2 without a choice by the sign of x.
            let tail = erfc(s, s.mul(magnitude, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
            let half = s.mul(s.splat(-0.5), magnitude);
            s.store(s.fma(half, tail, s.max(v, s.zero())), x);
        }
    }
}

/// Complementary error function of numbers from 0 on: the rational Chebyshev fit of Numerical Recipes (Press et al.,
/// `erfcc`), whose relative error is below 1.2e-7 everywhere.
#[inline(always)]
fn erfc<S: Simd>(s: S, x: S::V) -> S::V {
    let t = s.div(s.splat(1.0), s.fma(s.splat(0.5), x, s.splat(1.0)));
    let mut p = s.splat(0.170_872_77);
    for c in
        [-0.822_152_23, 1.488_515_9, -1.135_204, 0.278_868_07, -0.186_288_06, 0.096_784_18, 0.374_091_96, 1.000_023_7]
    {
        p = s.fma(p, t, s.splat(c));
    }
    let exponent = s.sub(s.fma(p, t, s.splat(-1.265_512_2)), s.mul(x, x));
    s.mul(t, s.exp(exponent))
}

/// Mean of the rows of a text, which are as wide as `out`: a multiple of eight.
pub fn mean_rows(isa: Isa, rows: &[f32], out: &mut [f32]) {
    isa.run(MeanRows { rows, out });
}

struct MeanRows<'a> {
    rows: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for MeanRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.out.len();
        let factor = s.splat(1.0 / (self.rows.len() / width) as f32);
        for (column, out) in self.out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut sum = s.zero();
            for row in self.rows.chunks_exact(width) {
                sum = s.add(sum, s.load(&row.as_chunks::<8>().0[column]));
            }
            s.store(s.mul(sum, factor), out);
        }
    }
}

/// Scales a vector to length 1; one of zeros stays as it is.
pub fn unit(isa: Isa, x: &mut [f32]) {
    isa.run(Unit { x });
}

struct Unit<'a> {
    x: &'a mut [f32],
}

impl Kernel for Unit<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, _) = self.x.as_chunks_mut::<8>();
        let mut squares = s.zero();
        for x in x.iter() {
            let v = s.load(x);
            squares = s.fma(v, v, squares);
        }
        let factor = s.splat(1.0 / s.sum(squares).sqrt().max(1e-12));
        for x in x.iter_mut() {
            s.store(s.mul(s.load(x), factor), x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Error function by its series and, further out, its continued fraction, in f64.
    fn erf(x: f64) -> f64 {
        if x.abs() < 3.0 {
            let mut term = x;
            let mut sum = x;
            for n in 1..80 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum * 2.0 / std::f64::consts::PI.sqrt();
        }
        let mut fraction = 0.0;
        for n in (1..60).rev() {
            fraction = f64::from(n) / 2.0 / (x.abs() + fraction);
        }
        let tail = (-x * x).exp() / std::f64::consts::PI.sqrt() / (x.abs() + fraction);
        (1.0 - tail).copysign(x)
    }

    #[test]
    fn gelu_is_exact_to_rounding_and_the_same_everywhere() {
        for step in -1600..1600 {
            let x = step as f32 * 0.01;
            let (mut fast, mut portable) = ([x - 0.25; 8], [x - 0.25; 8]);
            gelu(Isa::detect(), &[0.25; 8], &mut fast);
            gelu(Isa::Portable, &[0.25; 8], &mut portable);
            assert_eq!(fast, portable);
            let x = f64::from(x - 0.25 + 0.25);
            let exact = x * (1.0 + erf(x / std::f64::consts::SQRT_2)) / 2.0;
            assert!(
                (f64::from(fast[3]) - exact).abs() < 3e-7 * x.abs().max(0.1),
                "gelu({x}) = {}, not {exact}",
                fast[3]
            );
        }
        let mut extremes = [-1e30, -60.0, 60.0, 0.0, f32::NAN, f32::INFINITY, 1e-30, -1e-30];
        gelu(Isa::detect(), &[0.0; 8], &mut extremes);
        assert!(extremes[0] == 0.0 && extremes[1] == 0.0 && extremes[2] == 60.0 && extremes[3] == 0.0, "{extremes:?}");
        assert!(extremes[4].is_nan() && !extremes[5].is_finite(), "what is not finite does not hide: {extremes:?}");
    }

    #[test]
    fn norm_mean_and_unit_match_their_definitions_on_every_isa() {
        let row = |salt: usize| (0..24).map(|i| ((i * 7 + salt) as f32 * 1.3).sin() * 5.0 + 2.0).collect::<Vec<f32>>();
        let (x, bias, weight, shift) = (row(1), row(2), row(3), row(4));
        let sums: Vec<f64> = x.iter().zip(&bias).map(|(x, bias)| f64::from(x + bias)).collect();
        let mean = sums.iter().sum::<f64>() / 24.0;
        let variance = sums.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 24.0;
        let mut bits = Vec::new();
        for isa in [Isa::detect(), Isa::Portable] {
            let mut normed = x.clone();
            let norm = LayerNorm { bias: &bias, weight: &weight, shift: &shift, epsilon: 1e-3 };
            layer_norm(isa, &norm, &mut normed);
            let mut mean_row = vec![0.0; 24];
            mean_rows(isa, &[x.clone(), bias.clone(), normed.clone()].concat(), &mut mean_row);
            let mut direction = x.clone();
            unit(isa, &mut direction);
            let length = x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            for i in 0..24 {
                let exact = (sums[i] - mean) / (variance + 1e-3).sqrt() * f64::from(weight[i]) + f64::from(shift[i]);
                assert!((f64::from(normed[i]) - exact).abs() < 1e-5, "{} {exact}", normed[i]);
                let exact = (f64::from(x[i]) + f64::from(bias[i]) + f64::from(normed[i])) / 3.0;
                assert!((f64::from(mean_row[i]) - exact).abs() < 1e-5, "{} {exact}", mean_row[i]);
                assert!((f64::from(direction[i]) - f64::from(x[i]) / length).abs() < 1e-6);
            }
            bits.push([normed, mean_row, direction]);
        }
        assert_eq!(bits[0], bits[1]);
        let mut zero = [0.0; 8];
        unit(Isa::detect(), &mut zero);
        assert_eq!(zero, [0.0; 8]);
    }
}
