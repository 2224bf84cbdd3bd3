//! Rotary embedding as config.json states it: `rope_theta` and `rope_scaling`, or both in `rope_parameters`
//! (transformers 5), there by the kind of layer in models that mix them.

use super::fields::Fields;
use crate::CheckpointError;

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    pub(super) base: f32,
    /// Positions are divided by it.
    pub(super) scale: f32,
    /// Divisors of the frequencies (Llama 3.1).
    pub(super) factors: Option<Vec<f32>>,
}

/// Kinds of layers, as `layer_types` and `rope_parameters` name them.
pub(super) const FULL: &str = "full_attention";
pub(super) const SLIDING: &str = "sliding_attention";

/// The embedding of one kind of layer; `otherwise` is the base where none is stated.
pub(super) fn read(fields: &Fields<'_>, kind: &str, otherwise: f64, head_dim: usize) -> Result<Rope, CheckpointError> {
    let parameters = match fields.object("rope_parameters")? {
        Some(parameters) => parameters.object(kind)?.or(Some(parameters)),
        None => None,
    };
    let base = match &parameters {
        Some(parameters) => parameters.positive("rope_theta")?,
        None => None,
    };
    let base = base.or(fields.positive("rope_theta")?).unwrap_or(otherwise);
    let scaling = match fields.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => parameters,
    };
    let plain = Rope { base: base as f32, scale: 1.0, factors: None };
    let Some(scaling) = scaling else { return Ok(plain) };
    if scaling.number("partial_rotary_factor")?.is_some_and(|part| part != 1.0) {
        return Err(scaling.wrong("partial_rotary_factor", "partial rotary embedding is not supported"));
    }
    // The older name and the newer one.
    let (name, found) = match scaling.text("rope_type")? {
        Some(found) => ("rope_type", Some(found)),
        None => ("type", scaling.text("type")?),
    };
    match found {
        None | Some("default") => Ok(plain),
        Some("linear") => Ok(Rope { scale: required(&scaling, "factor")? as f32, ..plain }),
        Some("llama3") => Ok(Rope { factors: Some(llama3(&scaling, base, head_dim)?), ..plain }),
        Some(other) => {
            Err(scaling.wrong(name, format!("{other:?} is not supported; supported: default, linear, llama3")))
        }
    }
}

fn required(scaling: &Fields<'_>, field: &str) -> Result<f64, CheckpointError> {
    scaling.positive(field)?.ok_or_else(|| scaling.wrong(field, "is missing"))
}

/// Llama 3.1: long wavelengths are stretched by the whole factor, short ones not at all, those between by a part.
fn llama3(scaling: &Fields<'_>, base: f64, head_dim: usize) -> Result<Vec<f32>, CheckpointError> {
    let factor = required(scaling, "factor")?;
    let (low, high) = (required(scaling, "low_freq_factor")?, required(scaling, "high_freq_factor")?);
    let context = required(scaling, "original_max_position_embeddings")?;
    if low >= high {
        return Err(scaling.wrong("low_freq_factor", format!("{low} is not below high_freq_factor {high}")));
    }
    let divisor = |pair: usize| {
        let wavelength = std::f64::consts::TAU * base.powf(2.0 * pair as f64 / head_dim as f64);
        let turns = context / wavelength;
        if turns > high {
            1.0
        } else if turns < low {
            factor
        } else {
            let smooth = (turns - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Ok((0..head_dim / 2).map(|pair| divisor(pair) as f32).collect())
}
