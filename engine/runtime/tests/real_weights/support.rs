//! Finding the checkpoint and the reference outputs, and driving a device by hand.

use engine_core::{AdapterId, Batch, BatchSequence, BlockId, Forward, TokenId};
use engine_runtime::{Adapters, Compute, LoadOptions, LoadedAdapter, kernels::cpu::simd::Isa, load_on};
use engine_store::{Adapter, Checkpoint, Gguf, ModelConfig};
use serde::Deserialize;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

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

    /// A device with two unpinned threads on the best instruction set.
    pub fn device(&self, compute: Compute) -> Driver {
        self.device_on(compute, 2, Isa::detect())
    }

    pub fn device_on(&self, compute: Compute, threads: usize, isa: Isa) -> Driver {
        Driver::on(&Checkpoint::from(&self.gguf()), compute, threads, isa)
    }

    pub fn path(&self) -> PathBuf {
        root().join("target/models").join(self.file)
    }

    pub fn gguf(&self) -> Gguf {
        Gguf::open(self.path()).unwrap_or_else(|error| panic!("{error}\nfetch the checkpoint with: cargo xtask setup"))
    }
}

/// A device and the next KV block that no sequence has yet.
pub struct Driver {
    pub device: Box<dyn Forward>,
    adapters: Adapters,
    config: ModelConfig,
    compute: Compute,
    next_block: BlockId,
}

/// A sequence: its tokens, how many are in the KV pool, and its blocks.
pub struct Sequence {
    pub tokens: Vec<TokenId>,
    pub done: usize,
    pub adapter: Option<AdapterId>,
    blocks: Vec<BlockId>,
}

impl Driver {
    /// A device with two unpinned threads on the best instruction set.
    pub fn new(checkpoint: &Checkpoint, compute: Compute) -> Self {
        Self::on(checkpoint, compute, 2, Isa::detect())
    }

    fn on(checkpoint: &Checkpoint, compute: Compute, threads: usize, isa: Isa) -> Self {
        Self::with(checkpoint, LoadOptions { compute, threads, kv_bytes: 256 << 20, ..LoadOptions::default() }, isa)
    }

    pub fn with(checkpoint: &Checkpoint, options: LoadOptions, isa: Isa) -> Self {
        let config = checkpoint.validate().expect("a runnable checkpoint");
        let (adapters, compute) = (Adapters::default(), options.compute);
        let options = LoadOptions { adapters: adapters.clone(), ..options };
        let device = load_on(checkpoint, options, isa).expect("the checkpoint loads");
        Self { device, adapters, config, compute, next_block: 0 }
    }

    /// Loads the adapter in a folder.
    pub fn load_adapter(&self, folder: &Path) -> LoadedAdapter {
        let adapter = Adapter::open(folder, &self.config).expect("a good adapter");
        self.adapters.load(&adapter, &self.config, self.compute)
    }

    /// Each sequence's blocks run backwards, so that no test passes by their being contiguous.
    pub fn sequence(&mut self, tokens: &[TokenId], room: usize) -> Sequence {
        let count = (tokens.len() + room).div_ceil(self.device.shape().kv_block_tokens) as BlockId;
        let blocks = (self.next_block..self.next_block + count).rev().collect();
        self.next_block += count;
        Sequence { tokens: tokens.to_vec(), done: 0, adapter: None, blocks }
    }

    /// One step: `parts[i]` new tokens of each sequence; logits of those that have no token left to compute.
    pub fn step(&mut self, sequences: &mut [&mut Sequence], parts: &[usize]) -> Vec<Vec<f32>> {
        let mut batch = Batch::default();
        for (sequence, &new_tokens) in sequences.iter_mut().zip(parts) {
            let start = sequence.done;
            sequence.done += new_tokens;
            batch.tokens.extend(&sequence.tokens[start..sequence.done]);
            let logits = usize::from(sequence.done == sequence.tokens.len());
            let (blocks, adapter) = (sequence.blocks.clone(), sequence.adapter);
            batch.sequences.push(BatchSequence { new_tokens, start, blocks, logits, adapter });
        }
        let mut out = Vec::new();
        self.device.forward(&batch, &mut out).expect("a well-formed batch");
        out.chunks_exact(self.device.shape().vocab).map(<[f32]>::to_vec).collect()
    }

    /// The whole rest of one sequence in one step.
    pub fn finish(&mut self, sequence: &mut Sequence) -> Vec<f32> {
        let rest = sequence.tokens.len() - sequence.done;
        self.step(&mut [sequence], &[rest]).remove(0)
    }
}

/// Logits at every reference step, the reference tokens being fed whatever the device would choose. All
/// cases run as one batch. Indexed by case, then step.
pub fn teacher_forced(driver: &mut Driver, cases: &[Case]) -> Vec<Vec<Vec<f32>>> {
    let mut sequences: Vec<Sequence> =
        cases.iter().map(|case| driver.sequence(&case.prompt_ids, case.greedy_ids.len())).collect();
    let mut out: Vec<Vec<Vec<f32>>> = cases.iter().map(|_| Vec::new()).collect();
    for step in 0..cases[0].greedy_ids.len() {
        let parts: Vec<usize> = sequences.iter().map(|sequence| sequence.tokens.len() - sequence.done).collect();
        let logits = driver.step(&mut sequences.iter_mut().collect::<Vec<_>>(), &parts);
        for (index, logits) in logits.into_iter().enumerate() {
            out[index].push(logits);
            sequences[index].tokens.push(cases[index].greedy_ids[step]);
        }
    }
    out
}

pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}
