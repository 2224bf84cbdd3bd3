//! The CUDA `Forward`: one layer loop over the kernels for llama, Mistral, Qwen 2 and 3, and Gemma 3.
//!
//! A step is checked and cut into pieces that fit the buffers; each piece is copied to the device as one run of numbers,
//! runs through all layers without this thread waiting, and ends in the copy of its logits. Decode steps are padded to
//! a bucket and run as a graph, captured when a bucket comes for the second time: all that changes from step to step lies in the
//! device's buffers, so replays stay valid.

use crate::{
    arena::Arena,
    buffers::Buffers,
    choose::Choice,
    device::{Device, Ptr},
    error::{CudaError, During},
    kernels::{CopyArgs, KvPool, PAGE_TOKENS, WARP_ROWS},
    kv::kv_pool,
    options::{self, CudaOptions, KvFormat},
    plan::{self, Layout, Map, Part, Room},
    results::Results,
    weights::Weights,
};
use cudarc::driver::{CudaGraph, sys};
use engine_core::{Batch, BlockId, Forward, ForwardError, ForwardShape, TokenId, malformed};
use engine_store::Checkpoint;
use std::collections::HashMap;

/// What a graph was captured for: tokens, splits.
type Bucket = (usize, usize);

/// How far a bucket has come.
enum Progress {
    /// It ran once, plainly, so that every kernel is loaded.
    Seen,
    Captured(CudaGraph),
}

/// A decoder on a GPU.
pub struct CudaForward {
    /// First, since they must go before what they use.
    graphs: HashMap<Bucket, Progress>,
    pub(crate) weights: Weights,
    pub(crate) buffers: Buffers,
    pub(crate) kv: KvPool,
    _kv_arena: Arena,
    pub(crate) shape: ForwardShape,
    room: Room,
    pub(crate) map: Map,
    options: CudaOptions,
    /// Of the piece under way: copies read it until they are waited for.
    layout: Vec<i32>,
    pub(crate) device: Device,
}

// SAFETY: handles of the driver may be used on any thread that has bound the context, which every call here does first;
// the graph is only touched through `&mut self`.
unsafe impl Send for CudaForward {}

impl CudaForward {
    /// Loads a checkpoint onto a device.
    ///
    /// # Errors
    /// No driver, no device, a checkpoint that kernels do not know, not enough memory: each says so.
    pub fn load(checkpoint: &Checkpoint, options: CudaOptions) -> Result<Self, CudaError> {
        options::check(&options)?;
        let mut device = Device::open(options.ordinal)?;
        let weights = Weights::load(&mut device, checkpoint)?;
        let config = &weights.config;
        let block_tokens = options.kv_block_tokens;
        let tokens = options.step_tokens;
        let context_blocks = config.context_tokens.div_ceil(block_tokens);
        let windows: Option<Vec<usize>> = weights.layers.iter().map(|layer| layer.window).collect();
        let mut kv = KvPool {
            pages: Ptr::NULL,
            pages_per_block: (block_tokens / PAGE_TOKENS) as i32,
            heads: config.kv_heads as i32,
            head_dim: config.head_dim as i32,
            fp8: i32::from(options.kv_format == KvFormat::Fp8),
        };
        let room = Room {
            tokens,
            blocks: (tokens * context_blocks).min(4 << 20).max(context_blocks),
            block_tokens,
            wide_rows: device.wide_rows(&kv),
            group: config.heads / config.kv_heads,
            window: windows.and_then(|windows| windows.into_iter().max()),
        };
        let map = Map::new(room);
        let buffers = Buffers::new(&device, config, room, map, options.planes)?;
        let (arena, kv_blocks) = kv_pool(&device, &mut kv, config.layers, options.kv_bytes)?;
        let shape = ForwardShape {
            vocab: config.vocab,
            kv_block_tokens: block_tokens,
            kv_blocks,
            context_tokens: config.context_tokens,
        };
        device.wait(&device.stream)?;
        let (graphs, layout) = (HashMap::new(), Vec::new());
        Ok(Self { graphs, weights, buffers, kv, _kv_arena: arena, shape, room, map, options, layout, device })
    }

    /// Copies whole KV blocks, (from, to), in every layer, before any later step.
    pub fn copy_blocks(&mut self, pairs: &[(BlockId, BlockId)]) -> Result<(), ForwardError> {
        let outside = |block: BlockId| block as usize >= self.shape.kv_blocks;
        if pairs.iter().any(|(from, to)| outside(*from) || outside(*to)) {
            return Err(ForwardError::Device { message: "a KV block to copy is outside the pool".into() });
        }
        for pairs in pairs.chunks(self.map.blocks / 2) {
            let numbers: Vec<i32> = pairs.iter().flat_map(|(from, to)| [*from as i32, *to as i32]).collect();
            let args = CopyArgs {
                pages: self.kv.pages,
                pairs: self.buffers.layout,
                layer_bytes: self.layer_bytes() as i64,
                block_bytes: self.kv.block_bytes() as i64,
            };
            // SAFETY: the layout's buffer holds the pairs, which are inside the pool; waited for before they go.
            unsafe {
                self.device.to_device(&self.device.stream, self.buffers.layout, &numbers)?;
                self.device.copy_blocks(args, pairs.len(), self.weights.layers.len())?;
            }
            self.device.wait(&self.device.stream)?;
        }
        Ok(())
    }

    /// What the device is called.
    pub fn device_name(&self) -> &str {
        &self.device.context.name
    }

    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// Graphs captured so far.
    pub fn captured_graphs(&self) -> usize {
        self.graphs.values().filter(|progress| matches!(progress, Progress::Captured(_))).count()
    }

    pub(crate) fn layer_bytes(&self) -> u64 {
        self.kv.block_bytes() * self.shape.kv_blocks as u64
    }

    /// A step whose tokens are chosen on the device: one for each row of logits that the batch wants, in batch order, by
    /// as many choices; none where a logit was not finite, which in the first row of a sequence is an error.
    pub fn forward_choosing(
        &mut self,
        batch: &Batch,
        choices: &[Choice],
        out: &mut Vec<Option<TokenId>>,
    ) -> Result<(), ForwardError> {
        plan::check(batch, &self.shape, self.room.window)?;
        out.clear();
        let wanted: usize = batch.sequences.iter().map(|sequence| sequence.logits).sum();
        if choices.len() != wanted {
            return Err(malformed(format!("{} choices for {wanted} rows of logits", choices.len())));
        }
        let choices = choices.iter().map(Choice::args).collect::<Result<Vec<_>, _>>()?;
        for parts in plan::pieces(batch, self.room).iter().filter(|parts| !parts.is_empty()) {
            self.piece(batch, parts, &mut Results::Tokens { choices: &choices, out: &mut *out })?;
        }
        let mut row = 0;
        for (index, sequence) in batch.sequences.iter().enumerate() {
            if sequence.logits > 0 && out[row].is_none() {
                return Err(ForwardError::NonFinite { sequence: index });
            }
            row += sequence.logits;
        }
        Ok(())
    }

    /// One piece, through to its results. Nothing is on its way any more when this returns, whatever it returns.
    fn piece(&mut self, batch: &Batch, parts: &[Part<'_>], results: &mut Results<'_>) -> Result<(), CudaError> {
        let outcome = self.run(batch, parts, results);
        let settled = self.device.wait(&self.device.stream);
        outcome.and(settled)
    }

    fn run(&mut self, batch: &Batch, parts: &[Part<'_>], results: &mut Results<'_>) -> Result<(), CudaError> {
        // Larger groups take more than one warp's rows, whose items a bucket does not count.
        let decode = self.options.graphs
            && self.room.group <= WARP_ROWS
            && parts.iter().all(|part| part.tokens == 1 && part.sequence.logits == 1);
        let padded = if decode { parts.len().next_power_of_two().min(self.room.tokens) } else { 0 };
        let mut layout = plan::layout(batch, parts, self.room, self.map, padded);
        if decode {
            layout.splits = layout.splits.next_power_of_two();
            layout.kept_rows = self.room.group;
        }
        self.layout = std::mem::take(&mut layout.numbers);
        // SAFETY: the buffer is as long as the map, and the numbers stay until the results have been waited for.
        unsafe { self.device.to_device(&self.device.stream, self.buffers.layout, &self.layout) }?;
        if decode {
            self.replay(&layout)?;
        } else {
            self.layers(&layout)?;
        }
        self.logits(&layout, results)
    }

    /// Runs a decode step's graph, or makes it.
    fn replay(&mut self, layout: &Layout) -> Result<(), CudaError> {
        let bucket = (layout.tokens, layout.splits);
        match self.graphs.get(&bucket) {
            None => {
                self.layers(layout)?;
                self.graphs.insert(bucket, Progress::Seen);
                return Ok(());
            }
            Some(Progress::Captured(graph)) => return graph.launch().during("cuGraphLaunch"),
            Some(Progress::Seen) => {}
        }
        let stream = self.device.stream.clone();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).during("cuStreamBeginCapture")?;
        let launched = self.layers(layout);
        let captured = stream.end_capture(sys::CUgraphInstantiate_flags(0)).during("cuGraphInstantiate");
        launched?;
        match captured? {
            Some(graph) => {
                graph.launch().during("cuGraphLaunch")?;
                self.graphs.insert(bucket, Progress::Captured(graph));
                Ok(())
            }
            None => self.layers(layout),
        }
    }
}

impl Forward for CudaForward {
    fn shape(&self) -> ForwardShape {
        self.shape
    }

    fn window_tokens(&self) -> Option<usize> {
        self.room.window
    }

    fn forward(&mut self, batch: &Batch, out: &mut Vec<f32>) -> Result<(), ForwardError> {
        plan::check(batch, &self.shape, self.room.window)?;
        out.clear();
        if batch.tokens.is_empty() {
            return Ok(());
        }
        for parts in plan::pieces(batch, self.room) {
            self.piece(batch, &parts, &mut Results::Logits(&mut *out))?;
        }
        batch.check_finite(self.shape.vocab, out)
    }
}
