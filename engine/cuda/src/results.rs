//! The end of a step: logits of the rows that want them, and what becomes of them.

use crate::{
    buffers::LOGIT_ROWS,
    choose,
    device::Ptr,
    error::CudaError,
    forward::CudaForward,
    kernels::{ChoiceArgs, ChooseArgs, NormArgs},
    plan::Layout,
};
use engine_core::TokenId;

/// What becomes of rows of logits.
pub(crate) enum Results<'a> {
    Logits(&'a mut Vec<f32>),
    Tokens { choices: &'a [ChoiceArgs], out: &'a mut Vec<Option<TokenId>> },
}

impl CudaForward {
    /// Logits of the rows that want them, and what becomes of them, waited for.
    pub(crate) fn logits(&mut self, layout: &Layout, results: &mut Results<'_>) -> Result<(), CudaError> {
        let output = self.weights.output.clone();
        let pending = self.weights.layers.last().map_or(Ptr::NULL, |layer| layer.ffn_post_norm);
        for first in (0..layout.rows).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(layout.rows - first);
            let norm = NormArgs {
                rows: self.at(self.map.rows + first),
                to: self.buffers.wanted,
                ..self.norm_args(pending, self.weights.output_norm)
            };
            // SAFETY: the rows are of this piece, each once.
            unsafe { self.device.norm(norm, rows) }?;
            self.multiply(&output, self.buffers.wanted, rows, self.buffers.logits, false)?;
            self.deliver(rows, results)?;
        }
        Ok(())
    }

    fn deliver(&mut self, rows: usize, results: &mut Results<'_>) -> Result<(), CudaError> {
        let vocab = self.shape.vocab;
        match results {
            Results::Logits(out) => {
                let before = out.len();
                out.resize(before + rows * vocab, 0.0);
                // SAFETY: as many logits as have been computed; any bits are an f32.
                unsafe { self.device.to_host(&mut out[before..], self.buffers.logits) }
            }
            Results::Tokens { choices, out } => {
                let choices = &choices[out.len()..][..rows];
                let (logits, at, tokens) = (self.buffers.logits, self.buffers.choices, self.buffers.chosen);
                let mut chosen = [0i32; LOGIT_ROWS];
                // SAFETY: the buffers hold as many rows; the choices stay until the tokens have been waited for.
                unsafe {
                    self.device.to_device(&self.device.stream, at, choices)?;
                    let args = ChooseArgs { logits, choices: at, tokens, vocab: vocab as i32 };
                    self.device.choose(args, rows)?;
                    self.device.to_host(&mut chosen[..rows], tokens)?;
                }
                out.extend(chosen[..rows].iter().map(|token| choose::token(*token)));
                Ok(())
            }
        }
    }
}
