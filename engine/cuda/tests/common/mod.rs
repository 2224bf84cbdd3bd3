//! Finding checkpoints and reference outputs, and driving a device by hand.
#![allow(dead_code)]

use engine_core::{Batch, BatchSequence, BlockId, Forward, TokenId};
use engine_cuda::{CudaForward, CudaOptions};
use engine_cuda_emulator::{Emulator, root};
use engine_store::Checkpoint;
use serde::Deserialize;

/// A checkpoint and the reference outputs of the same weights.
#[derive(Debug, PartialEq)]
pub struct Model {
    file: &'static str,
    golden: &'static str,
}

pub const SMOLLM2: Model =
    Model { file: "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", golden: "smollm2_q4_1_dequant_f32_greedy32.json" };
pub const GEMMA3: Model =
    Model { file: "gemma3-270m/gemma3-270m-q4_k_m.gguf", golden: "gemma3_270m_q4_k_m_dequant_f32_greedy32.json" };

#[derive(Deserialize)]
pub struct Golden {
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub prompt_ids: Vec<TokenId>,
    pub greedy_ids: Vec<TokenId>,
    pub top1_minus_top2: Vec<f32>,
    pub first_step_top5: Top,
}

#[derive(Deserialize)]
pub struct Top {
    pub ids: Vec<TokenId>,
    pub logits: Vec<f32>,
}

impl Model {
    pub fn golden(&self) -> Golden {
        let path = root().join("../shared/golden").join(self.golden);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{}: {error}\nthe shared folder must stand beside the repository", path.display())
        });
        serde_json::from_str(&text).expect("reference outputs have the expected form")
    }

    pub fn checkpoint(&self) -> Checkpoint {
        let path = root().join("target/models").join(self.file);
        Checkpoint::open(&path, None)
            .unwrap_or_else(|error| panic!("{error}\nfetch the checkpoint with: cargo xtask setup"))
    }

    pub fn device(&self, options: CudaOptions) -> Driver {
        Driver::new(CudaForward::load(&self.checkpoint(), options).expect("the checkpoint loads"))
    }
}

/// The emulated GPU, for as long as it is held.
pub fn gpu() -> Emulator {
    engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"))
}

/// The emulated GPU, where faults are to be planted; none if tests run on a real one.
pub fn emulated() -> Option<Emulator> {
    Some(gpu()).filter(|gpu| !gpu.is_real())
}

/// Small buffers: the emulated device's memory is this machine's.
pub fn options() -> CudaOptions {
    CudaOptions { kv_bytes: 64 << 20, step_tokens: 256, graphs: false, ..CudaOptions::default() }
}

/// A device and the next KV block that no sequence has yet.
pub struct Driver {
    pub device: CudaForward,
    next_block: BlockId,
}

/// A sequence: its tokens, how many are in the KV pool, and its blocks.
pub struct Sequence {
    pub tokens: Vec<TokenId>,
    pub done: usize,
    blocks: Vec<BlockId>,
}

impl Driver {
    pub fn new(device: CudaForward) -> Self {
        Self { device, next_block: 0 }
    }

    /// Each sequence's blocks run backwards, so that no test passes by their being contiguous.
    pub fn sequence(&mut self, tokens: &[TokenId], room: usize) -> Sequence {
        let count = (tokens.len() + room).div_ceil(self.device.shape().kv_block_tokens) as BlockId;
        let blocks = (self.next_block..self.next_block + count).rev().collect();
        self.next_block += count;
        Sequence { tokens: tokens.to_vec(), done: 0, blocks }
    }

    /// One step: `parts[i]` new tokens of each sequence; logits of those that have no token left to compute.
    pub fn step(&mut self, sequences: &mut [&mut Sequence], parts: &[usize]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        for (sequence, &new_tokens) in sequences.iter_mut().zip(parts) {
            let logits = usize::from(sequence.done + new_tokens == sequence.tokens.len());
            sequence.add(&mut batch, new_tokens, logits);
        }
        self.run(&batch)
    }

    pub fn run(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        let mut out = Vec::new();
        self.device.forward(batch, &mut out).expect("a well-formed batch");
        out.chunks_exact(self.device.shape().vocab).map(<[f32]>::to_vec).collect()
    }
}

impl Sequence {
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Puts the next tokens into a batch.
    pub fn add(&mut self, batch: &mut Batch, new_tokens: usize, logits: usize) {
        let start = self.done;
        self.done += new_tokens;
        batch.tokens.extend(&self.tokens[start..self.done]);
        let blocks = self.blocks.clone();
        batch.sequences.push(BatchSequence { new_tokens, start, blocks, logits, adapter: None });
    }
}

pub fn argmax(logits: &[f32]) -> TokenId {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)));
    best.expect("logits") as TokenId
}

pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}
