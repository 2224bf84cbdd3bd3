//! Normalisation, rotary embedding and the gated activation, one token at a time.

use super::simd::{Isa, Kernel, Simd};

/// Root-mean-square norm (Zhang and Sennrich 2019): `out = x / sqrt(mean(x^2) + epsilon) * weight`.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    isa.run(RmsNorm { x, weight, epsilon, out });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, x_tail) = self.x.as_chunks::<8>();
        let mut squares = s.zero();
        for x in x {
            let v = s.load(x);
            squares = s.fma(v, v, squares);
        }
        let tail: f32 = x_tail.iter().map(|x| x * x).sum();
        let mean = (s.sum(squares) + tail) / self.x.len() as f32;
        let factor = 1.0 / (mean + self.epsilon).sqrt();
        let (weight, weight_tail) = self.weight.as_chunks::<8>();
        let (out, out_tail) = self.out.as_chunks_mut::<8>();
        for ((x, weight), out) in x.iter().zip(weight).zip(out) {
            s.store(s.mul(s.mul(s.load(x), s.splat(factor)), s.load(weight)), out);
        }
        for ((x, weight), out) in x_tail.iter().zip(weight_tail).zip(out_tail) {
            *out = x * factor * weight;
        }
    }
}

/// SwiGLU (Shazeer 2020): `gate = gate / (1 + e^-gate) * up`.
pub fn silu_times(isa: Isa, gate: &mut [f32], up: &[f32]) {
    isa.run(SiluTimes { gate, up });
}

struct SiluTimes<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluTimes<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (gate, gate_tail) = self.gate.as_chunks_mut::<8>();
        let (up, up_tail) = self.up.as_chunks::<8>();
        for (gate, up) in gate.iter_mut().zip(up) {
            s.store(silu(s, s.load(gate), s.load(up)), gate);
        }
        for (gate, up) in gate_tail.iter_mut().zip(up_tail) {
            *gate = s.array(silu(s, s.splat(*gate), s.splat(*up)))[0];
        }
    }
}

#[inline(always)]
fn silu<S: Simd>(s: S, gate: S::V, up: S::V) -> S::V {
    let e = s.exp(s.sub(s.zero(), gate));
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
        for isa in [Isa::detect(), Isa::Portable] {
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
            bits.push((out, gate));
        }
        assert_eq!(bits[0], bits[1]);
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
    }
}
