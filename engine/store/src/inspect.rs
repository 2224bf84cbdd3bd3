//! A checkpoint in a few numbers, for `foreshock models inspect`.

use crate::{Gguf, GgufError, TensorShape};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a checkpoint is. Works for any architecture, also those that cannot be run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub architecture: String,
    /// The file's own name for the model, when it has one.
    pub name: Option<String>,
    pub parameters: u64,
    /// Tensor type -> (number of tensors, bytes).
    pub quantisation: BTreeMap<String, (u64, u64)>,
    /// Longest sequence, tokens, when stated.
    pub context_tokens: Option<u64>,
    pub layers: Option<u64>,
    pub vocab: Option<u64>,
    pub file_bytes: u64,
    /// Bytes of tensors, which is what stays resident.
    pub weight_bytes: u64,
    /// Whether the file carries a chat template.
    pub chat_template: bool,
    /// Why this runtime cannot run it; None when it can.
    pub unsupported: Option<String>,
}

impl Summary {
    /// Adds a tensor.
    pub(crate) fn count(&mut self, tensor: TensorShape<'_>) {
        let entry = self.quantisation.entry(tensor.kind.to_string()).or_default();
        entry.0 += 1;
        entry.1 += tensor.bytes();
        self.parameters += tensor.elements();
        self.weight_bytes += tensor.bytes();
    }
}

impl Gguf {
    pub fn inspect(&self) -> Result<Summary, GgufError> {
        let architecture = self.str("general.architecture")?.to_owned();
        let number = |key: &str| self.value(&format!("{architecture}.{key}")).and_then(|value| value.as_u64());
        let mut summary = Summary {
            name: self.optional("general.name", Gguf::str)?.map(str::to_owned),
            parameters: 0,
            quantisation: BTreeMap::new(),
            context_tokens: number("context_length"),
            layers: number("block_count"),
            vocab: self.array("tokenizer.ggml.tokens").ok().map(|tokens| tokens.len() as u64),
            file_bytes: self.file_bytes(),
            weight_bytes: 0,
            chat_template: self.value("tokenizer.chat_template").is_some(),
            unsupported: self.validate().err().map(|error| error.to_string()),
            architecture,
        };
        for view in self.tensors() {
            summary.count(TensorShape { name: view.name, dims: view.dims, kind: view.kind });
        }
        Ok(summary)
    }
}
