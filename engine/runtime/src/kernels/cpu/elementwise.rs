//! Normalisation, rotary embedding and the gated activation, one token at a time.

use super::{
    simd::Isa,
    wide::{LANES, Wide, WideKernel},
};

/// Root-mean-square norm (Zhang and Sennrich 2019): `out = x / sqrt(mean(x^2) + epsilon) * weight`.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    isa.run_wide(RmsNorm { x, weight, epsilon, out, add: false });
}

/// `out += norm(x)`: the norm after a branch, and its residual connection.
pub fn add_rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    isa.run_wide(RmsNorm { x, weight, epsilon, out, add: true });
}

/// Norms each head of `x` by itself, in place; `weight` is one head wide.
pub fn rms_norm_heads(isa: Isa, x: &mut [f32], weight: &[f32], epsilon: f32) {
    isa.run_wide(RmsNormHeads { x, weight, epsilon });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
    add: bool,
}

impl WideKernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let factor = rms_factor(s, self.x, self.epsilon);
        let ((x, x_tail), (weight, weight_tail)) = (self.x.as_chunks::<LANES>(), self.weight.as_chunks::<LANES>());
        let (out, out_tail) = self.out.as_chunks_mut::<LANES>();
        for ((x, weight), out) in x.iter().zip(weight).zip(out) {
            let v = s.mul(s.mul(s.load(x), s.splat(factor)), s.load(weight));
            s.store(if self.add { s.add(s.load(out), v) } else { v }, out);
        }
        for ((x, weight), out) in x_tail.iter().zip(weight_tail).zip(out_tail) {
            let v = x * factor * weight;
            *out = if self.add { *out + v } else { v };
        }
    }
}

struct RmsNormHeads<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl WideKernel for RmsNormHeads<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        for head in self.x.chunks_exact_mut(self.weight.len()) {
            let factor = rms_factor(s, head, self.epsilon);
            let ((head, tail), (weight, weight_tail)) =
                (head.as_chunks_mut::<LANES>(), self.weight.as_chunks::<LANES>());
            for (x, weight) in head.iter_mut().zip(weight) {
                s.store(s.mul(s.mul(s.load(x), s.splat(factor)), s.load(weight)), x);
            }
            for (x, weight) in tail.iter_mut().zip(weight_tail) {
                *x = *x * factor * weight;
            }
        }
    }
}

#[inline(always)]
fn rms_factor<S: Wide>(s: S, x: &[f32], epsilon: f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    // Two sums by turns: one alone would wait for itself.
    let mut squares = [s.zero(); 2];
    let (pairs, odd) = chunks.as_chunks::<2>();
    for [a, b] in pairs {
        let (a, b) = (s.load(a), s.load(b));
        squares = [s.fma(a, a, squares[0]), s.fma(b, b, squares[1])];
    }
    for x in odd {
        let v = s.load(x);
        squares[0] = s.fma(v, v, squares[0]);
    }
    let tail: f32 = tail.iter().map(|x| x * x).sum();
    let mean = (s.sum(s.add(squares[0], squares[1])) + tail) / x.len() as f32;
    1.0 / (mean + epsilon).sqrt()
}

/// SwiGLU (Shazeer 2020): `gate = gate / (1 + e^-gate) * up`.
pub fn silu_times(isa: Isa, gate: &mut [f32], up: &[f32]) {
    isa.run_wide(GateTimes::<false> { gate, up });
}

/// GeGLU (Shazeer 2020) with the tanh form of GELU (Hendrycks and Gimpel 2016): `gate = gelu(gate) * up`.
pub fn gelu_times(isa: Isa, gate: &mut [f32], up: &[f32]) {
    isa.run_wide(GateTimes::<true> { gate, up });
}

struct GateTimes<'a, const GELU: bool> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl<const GELU: bool> WideKernel for GateTimes<'_, GELU> {
    type Out = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        let (gate, gate_tail) = self.gate.as_chunks_mut::<LANES>();
        let (up, up_tail) = self.up.as_chunks::<LANES>();
        for (gate, up) in gate.iter_mut().zip(up) {
            s.store(gated::<S, GELU>(s, s.load(gate), s.load(up)), gate);
        }
        for (gate, up) in gate_tail.iter_mut().zip(up_tail) {
            *gate = s.array(gated::<S, GELU>(s, s.splat(*gate), s.splat(*up)))[0];
        }
    }
}

#[inline(always)]
fn gated<S: Wide, const GELU: bool>(s: S, gate: S::V, up: S::V) -> S::V {
    // 0.5 (1 + tanh u) = 1 / (1 + e^-2u), with u = sqrt(2 / pi) (x + 0.044715 x^3).
    let logit = if GELU {
        let cube = s.mul(s.mul(gate, gate), gate);
        s.mul(s.fma(s.splat(0.044_715), cube, gate), s.splat(1.595_769))
    } else {
        gate
    };
    let e = s.exp(s.sub(s.zero(), logit));
    s.mul(s.div(gate, s.add(s.splat(1.0), e)), up)
}

/// Rotary embedding (Su et al. 2021) in GGUF's llama order: neighbours (2i, 2i + 1) turn together.
/// `table` holds (cos, sin) for each pair of one head; `x` is any number of heads.
pub fn rotate(x: &mut [f32], table: &[[f32; 2]]) {
    for head in x.chunks_exact_mut(table.len() * 2) {
        for (pair, [cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(table) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}

/// Rotary embedding in GPT-NeoX's order: (i, i + half) turn together.
pub fn rotate_halves(x: &mut [f32], table: &[[f32; 2]]) {
    for head in x.chunks_exact_mut(table.len() * 2) {
        let (low, high) = head.split_at_mut(table.len());
        for ((a, b), [cos, sin]) in low.iter_mut().zip(high).zip(table) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

/// (cos, sin) of `position * frequency` for each frequency.
pub fn rotary_table(position: f32, frequencies: &[f32], out: &mut [[f32; 2]]) {
    for (out, frequency) in out.iter_mut().zip(frequencies) {
        let angle = position * frequency;
        *out = [angle.cos(), angle.sin()];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_and_gate_match_their_definitions_on_every_isa() {
        let x: Vec<f32> = (0..27).map(|i| (i as f32 * 1.7).sin() * 9.0).collect();
        let weight: Vec<f32> = (0..27).map(|i| 1.0 + i as f32 * 0.1).collect();
        let mean = x.iter().map(|x| f64::from(x * x)).sum::<f64>() / 27.0;
        let mut bits = Vec::new();
        for isa in Isa::available() {
            let mut out = vec![0.0; 27];
            rms_norm(isa, &x, &weight, 1e-5, &mut out);
            let mut gate = x.clone();
            silu_times(isa, &mut gate, &weight);
            for i in 0..27 {
                let norm = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                assert!((f64::from(out[i]) - norm).abs() < 1e-5 * norm.abs().max(1.0));
                let silu = f64::from(x[i]) / (1.0 + (-f64::from(x[i])).exp()) * f64::from(weight[i]);
                assert!((f64::from(gate[i]) - silu).abs() < 1e-5 * silu.abs().max(1.0));
            }
            let (mut gelu, mut heads, mut sum) = (x.clone(), x.clone(), x.clone());
            gelu_times(isa, &mut gelu, &weight);
            rms_norm_heads(isa, &mut heads[..24], &weight[..8], 1e-5);
            add_rms_norm(isa, &x, &weight, 1e-5, &mut sum);
            for i in 0..27 {
                let v = f64::from(x[i]);
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044_715 * v.powi(3));
                let expected = 0.5 * v * (1.0 + inner.tanh()) * f64::from(weight[i]);
                assert!((f64::from(gelu[i]) - expected).abs() < 1e-5 * expected.abs().max(1.0));
                assert_eq!(sum[i], x[i] + out[i]);
            }
            let mut head = [0.0; 8];
            rms_norm(isa, &x[8..16], &weight[..8], 1e-5, &mut head);
            assert_eq!(head, heads[8..16]);
            bits.push((out, gate, gelu, heads));
        }
        assert!(bits.iter().all(|other| *other == bits[0]));
    }

    #[test]
    fn gate_is_finite_at_the_extremes() {
        let mut gate = vec![-1e30, -200.0, 200.0, 0.0];
        silu_times(Isa::detect(), &mut gate, &[1.0; 4]);
        assert!(gate[0].abs() < 1e-7 && gate[1].abs() < 1e-30 && gate[2] == 200.0 && gate[3] == 0.0, "{gate:?}");
    }

    #[test]
    fn rotation_keeps_length_and_is_identity_at_zero() {
        let mut table = [[0.0; 2]; 2];
        rotary_table(0.0, &[1.0, 0.1], &mut table);
        let mut x = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut x, &table);
        assert_eq!(x, [1.0, 2.0, 3.0, 4.0]);
        rotary_table(3.0, &[1.0, 0.1], &mut table);
        rotate(&mut x, &table);
        assert!((x[0] * x[0] + x[1] * x[1] - 5.0).abs() < 1e-5);
        // The same pairs in the other order turn the same way.
        let mut halves = [1.0, 3.0, 2.0, 4.0];
        rotate_halves(&mut halves, &table);
        assert_eq!([halves[0], halves[2], halves[1], halves[3]], x);
    }
}
