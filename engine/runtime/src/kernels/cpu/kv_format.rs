//! How keys and values are stored: f32, f16, or int8 with a scale for every [`GROUP`] numbers of one position.
//!
//! Attention reads all of them as f32, so what a format costs is its conversion, shared by all queries of a tile.

use super::wide::{LANES, Wide};

/// Numbers of one position and head that are encoded together and, in int8, share a scale.
pub const GROUP: usize = 64;

/// The form in which keys and values lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    F32,
    #[default]
    F16,
    /// int8 with one f32 scale for up to 64 numbers: 4.25 times less than f32 less rounding.
    Q8,
}

impl KvFormat {
    /// Bytes of a key or a value of `head_dim` numbers, its scales included.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => bytes::<f32>(head_dim),
            Self::F16 => bytes::<u16>(head_dim),
            Self::Q8 => bytes::<i8>(head_dim),
        }
    }
}

pub(super) fn bytes<E: KvElement>(head_dim: usize) -> usize {
    head_dim * size_of::<E>() + if E::SCALED { head_dim.div_ceil(GROUP) * size_of::<f32>() } else { 0 }
}

/// One stored number.
pub trait KvElement: bytemuck::Pod + Send + Sync {
    /// Whether numbers are to be multiplied with their group's scale.
    const SCALED: bool;
    /// Sixteen numbers, not yet scaled.
    fn load<S: Wide>(s: S, x: &[Self; LANES]) -> S::V;
    /// The group in stored form, and its scale (1 where there is none).
    fn encode<S: Wide>(s: S, x: &[f32; GROUP]) -> ([Self; GROUP], f32);
}

impl KvElement for f32 {
    const SCALED: bool = false;

    #[inline(always)]
    fn load<S: Wide>(s: S, x: &[f32; LANES]) -> S::V {
        s.load(x)
    }
    #[inline(always)]
    fn encode<S: Wide>(_: S, x: &[f32; GROUP]) -> ([f32; GROUP], f32) {
        (*x, 1.0)
    }
}

/// IEEE half floats by their bits.
impl KvElement for u16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn load<S: Wide>(s: S, x: &[u16; LANES]) -> S::V {
        s.load_f16(x)
    }
    #[inline(always)]
    fn encode<S: Wide>(s: S, x: &[f32; GROUP]) -> ([u16; GROUP], f32) {
        let mut out = [0; GROUP];
        for (x, out) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
            s.store_f16(s.load(x), out);
        }
        (out, 1.0)
    }
}

/// Rounded to 1/127 of the group's largest. A non-finite number makes the scale NaN, so that it cannot pass unseen.
impl KvElement for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    fn load<S: Wide>(s: S, x: &[i8; LANES]) -> S::V {
        s.load_i8(x)
    }
    #[inline(always)]
    fn encode<S: Wide>(s: S, x: &[f32; GROUP]) -> ([i8; GROUP], f32) {
        let (mut high, mut poison) = (s.zero(), s.zero());
        for x in x.as_chunks().0 {
            let v = s.load(x);
            high = s.max(s.max(v, s.sub(s.zero(), v)), high);
            poison = s.fma(v, s.zero(), poison);
        }
        let high = s.highest(high);
        let inverse = s.splat(if high > 0.0 { 127.0 / high } else { 0.0 });
        let mut out = [0; GROUP];
        for (x, out) in x.as_chunks::<{ 2 * LANES }>().0.iter().zip(out.as_chunks_mut().0) {
            let (halves, _) = x.as_chunks();
            let scaled = [s.mul(s.load(&halves[0]), inverse), s.mul(s.load(&halves[1]), inverse)];
            s.store_i8([s.round(scaled[0]), s.round(scaled[1])], out);
        }
        (out, high / 127.0 + s.sum(poison))
    }
}
