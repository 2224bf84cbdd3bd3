//! The CUDA `Forward`: one layer loop over the kernels for llama, Mistral, Qwen 2 and 3, and Gemma 3.
//!
//! A step is checked and cut into pieces that fit the buffers; each piece is copied to the device as one run of numbers,
//! runs through all layers without this thread waiting, and ends in the copy of its logits. Decode steps are padded to
//! a bucket and run as a graph, captured when a bucket comes for the second time: all that changes from step to step lies in the
//! device's buffers, so replays stay valid.

use crate::{
    arena::Arena,
    buffers::{Buffers, LOGIT_ROWS},
    choose::{self, Choice},
    device::{Device, Ptr},
    error::{CudaError, During},
    kernels::{
        Activations, AttendArgs, ChoiceArgs, ChooseArgs, CopyArgs, GateArgs, KvPool, NormArgs, Output, PAGE_TOKENS,
        RotaryArgs,
    },
    plan::{self, Layout, Map, Part, Room},
    weights::{Layer, Linear, Weights},
};
use cudarc::driver::{CudaGraph, sys};
use engine_core::{Batch, BlockId, Forward, ForwardError, ForwardShape, TokenId};
use engine_store::Checkpoint;
use std::collections::HashMap;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    #[default]
    Bf16,
    /// e4m3: half the memory, three bits of mantissa.
    Fp8,
}

/// What a device is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Which device.
    pub ordinal: usize,
    /// Size of the KV pool, bytes. Less is taken where the device has not as much.
    pub kv_bytes: u64,
    pub kv_format: KvFormat,
    /// Tokens per KV block, a multiple of 16.
    pub kv_block_tokens: usize,
    /// Tokens that run through the layers at once; longer steps are cut.
    pub step_tokens: usize,
    /// bf16 numbers that make an input of a product: 1 as is usual, 2 for 16 bits of precision at twice the arithmetic.
    pub planes: usize,
    /// Whether decode steps run as graphs.
    pub graphs: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            kv_bytes: 1 << 30,
            kv_format: KvFormat::Bf16,
            kv_block_tokens: PAGE_TOKENS,
            step_tokens: 1024,
            planes: 1,
            graphs: true,
        }
    }
}

/// What a graph was captured for: tokens, splits.
type Bucket = (usize, usize);

/// How far a bucket has come.
enum Progress {
    /// It ran once, plainly, so that every kernel is loaded.
    Seen,
    Captured(CudaGraph),
}

/// What becomes of rows of logits.
enum Results<'a> {
    Logits(&'a mut Vec<f32>),
    Tokens { choices: &'a [ChoiceArgs], out: &'a mut Vec<Option<TokenId>> },
}

/// A decoder on a GPU.
pub struct CudaForward {
    /// First, since they must go before what they use.
    graphs: HashMap<Bucket, Progress>,
    weights: Weights,
    buffers: Buffers,
    kv: KvPool,
    _kv_arena: Arena,
    shape: ForwardShape,
    room: Room,
    map: Map,
    options: CudaOptions,
    /// Of the piece under way: copies read it until they are waited for.
    layout: Vec<i32>,
    device: Device,
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
        check(&options)?;
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
        self.weights.arena.used()
    }

    /// Graphs captured so far.
    pub fn captured_graphs(&self) -> usize {
        self.graphs.values().filter(|progress| matches!(progress, Progress::Captured(_))).count()
    }

    fn layer_bytes(&self) -> u64 {
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
            let message = format!("malformed batch: {} choices for {wanted} rows of logits", choices.len());
            return Err(ForwardError::Device { message });
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

    /// One piece, through to its results.
    fn piece(&mut self, batch: &Batch, parts: &[Part<'_>], results: &mut Results<'_>) -> Result<(), CudaError> {
        let decode = self.options.graphs && parts.iter().all(|part| part.tokens == 1 && part.sequence.logits == 1);
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

    /// From token ids to the residual stream after the last layer.
    fn layers(&mut self, layout: &Layout) -> Result<(), CudaError> {
        let (tokens, ids) = (layout.tokens, self.at(self.map.tokens));
        let (matrix, scale) = (self.weights.embedding, self.weights.embedding_scale);
        // SAFETY: ids are inside the vocabulary; buffers hold `room.tokens` rows.
        unsafe { self.device.embed(matrix, ids, tokens, scale, self.buffers.x) }?;
        let mut pending = Ptr::NULL;
        for index in 0..self.weights.layers.len() {
            let layer = self.weights.layers[index].clone();
            self.norm(tokens, pending, layer.attention_norm)?;
            self.attention(&layer, index, layout)?;
            self.norm(tokens, layer.attention_post_norm, layer.ffn_norm)?;
            self.feed_forward(&layer, tokens)?;
            pending = layer.ffn_post_norm;
        }
        Ok(())
    }

    /// Adds the branch before, where it has a norm of its own, and norms the residual stream for the products to come.
    fn norm(&mut self, tokens: usize, branch_weight: Ptr, weight: Ptr) -> Result<(), CudaError> {
        let args = self.norm_args(branch_weight, weight);
        // SAFETY: buffers hold `room.tokens` rows.
        unsafe { self.device.norm(args, tokens) }
    }

    fn norm_args(&self, branch_weight: Ptr, weight: Ptr) -> NormArgs {
        NormArgs {
            x: self.buffers.x,
            branch: if branch_weight == Ptr::NULL { Ptr::NULL } else { self.buffers.branch },
            branch_weight,
            weight,
            rows: Ptr::NULL,
            to: self.buffers.normed,
            width: self.weights.config.width as i32,
            epsilon: self.weights.config.norm_epsilon,
        }
    }

    fn attention(&mut self, layer: &Layer, index: usize, layout: &Layout) -> Result<(), CudaError> {
        let (tokens, buffers, config) = (layout.tokens, &self.buffers, &self.weights.config);
        let (heads, scale) = (config.heads as i32, config.query_scale() * std::f32::consts::LOG2_E);
        let frequencies = self.weights.frequencies[layer.rotary];
        let pool = KvPool { pages: self.kv.pages.offset(index as u64 * self.layer_bytes()), ..self.kv };
        let rotary = RotaryArgs {
            qkv: buffers.qkv,
            queries: buffers.queries,
            positions: self.at(self.map.positions),
            slots: self.at(self.map.slots),
            frequencies: frequencies.at,
            q_norm: layer.q_norm,
            k_norm: layer.k_norm,
            pool,
            heads,
            halves: i32::from(self.weights.halves),
            position_scale: frequencies.position_scale,
            epsilon: config.norm_epsilon,
        };
        let attend = AttendArgs {
            queries: buffers.queries,
            blocks: self.at(self.map.blocks),
            spans: self.at(self.map.spans),
            items: Ptr::NULL,
            partial: self.partial(layout),
            marks: buffers.marks,
            to: buffers.attended,
            pool,
            heads,
            splits: layout.splits as i32,
            kept_rows: layout.kept_rows as i32,
            window: layer.window.unwrap_or(0) as i32,
            scale,
        };
        let (normed, attended, qkv) = (buffers.normed, buffers.attended, buffers.qkv);
        self.multiply(&layer.qkv, normed, tokens, qkv, false)?;
        let (narrow, wide) = (self.at(self.map.narrow), self.at(self.map.wide));
        // SAFETY: the layout tells of slots and blocks inside the pool only (`plan::check`), and buffers hold its tokens.
        unsafe {
            self.device.rotate(rotary, tokens)?;
            self.device.attend_wide(AttendArgs { items: wide, ..attend }, layout.wide)?;
            self.device.attend_narrow(AttendArgs { items: narrow, ..attend }, layout.narrow)?;
        }
        self.join(&layer.attention_out, attended, tokens, layer.attention_post_norm)
    }

    /// Where narrow items leave partial results; null when one split is all that they see, or there is no room.
    fn partial(&self, layout: &Layout) -> Ptr {
        let config = &self.weights.config;
        let needed = layout.narrow * config.kv_heads * layout.splits * layout.kept_rows * config.head_dim;
        if layout.splits > 1 && needed <= self.buffers.partial_room { self.buffers.partial } else { Ptr::NULL }
    }

    fn feed_forward(&mut self, layer: &Layer, tokens: usize) -> Result<(), CudaError> {
        let (normed, gate_up, gated) = (self.buffers.normed, self.buffers.gate_up, self.buffers.gated);
        self.multiply(&layer.gate_up, normed, tokens, gate_up, false)?;
        let width = self.weights.config.ffn_width as i32;
        let args = GateArgs { gate_up, to: gated, width, gelu: i32::from(self.weights.gelu) };
        // SAFETY: buffers hold `room.tokens` rows.
        unsafe { self.device.gate(args, tokens) }?;
        self.join(&layer.down, gated, tokens, layer.ffn_post_norm)
    }

    /// The product that ends a branch: added to the residual stream, or kept until its norm has been taken.
    fn join(&mut self, linear: &Linear, input: Activations, tokens: usize, post_norm: Ptr) -> Result<(), CudaError> {
        let plain = post_norm == Ptr::NULL;
        let out = if plain { self.buffers.x } else { self.buffers.branch };
        self.multiply(linear, input, tokens, out, plain)
    }

    fn multiply(
        &mut self,
        linear: &Linear,
        input: Activations,
        tokens: usize,
        at: Ptr,
        accumulate: bool,
    ) -> Result<(), CudaError> {
        for (row, matrix) in &linear.parts {
            let offset = 4 * *row as u64;
            let bias = if linear.bias == Ptr::NULL { Ptr::NULL } else { linear.bias.offset(offset) };
            let out = Output { at: at.offset(offset), stride: linear.rows, bias, accumulate };
            // SAFETY: buffers hold `room.tokens` rows of the linear's width.
            unsafe { self.device.multiply(*matrix, input, tokens, out, None) }?;
        }
        Ok(())
    }

    /// Logits of the rows that want them, and what becomes of them, waited for.
    fn logits(&mut self, layout: &Layout, results: &mut Results<'_>) -> Result<(), CudaError> {
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
        self.device.wait(&self.device.stream)
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

    /// Part of the layout on the device.
    fn at(&self, number: usize) -> Ptr {
        self.buffers.layout.offset(4 * number as u64)
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
        plan::check_finite(batch, self.shape.vocab, out)
    }
}

fn check(options: &CudaOptions) -> Result<(), CudaError> {
    let wrong = |option, message| Err(CudaError::Option { option, message });
    let block = options.kv_block_tokens;
    if block == 0 || !block.is_multiple_of(PAGE_TOKENS) || block > 1024 {
        return wrong("kv_block_tokens", format!("{block} is no multiple of {PAGE_TOKENS} up to 1024"));
    }
    if !(1..=2).contains(&options.planes) {
        return wrong("planes", format!("{} is neither 1 nor 2", options.planes));
    }
    if !(1..=8192).contains(&options.step_tokens) {
        return wrong("step_tokens", format!("{} is outside 1..=8192", options.step_tokens));
    }
    Ok(())
}

/// A pool of at most `bytes`: where the device has less, a smaller one. Gives the blocks in it.
fn kv_pool(device: &Device, kv: &mut KvPool, layers: usize, bytes: u64) -> Result<(Arena, usize), CudaError> {
    let block_bytes = kv.block_bytes() * layers as u64;
    let mut blocks = (bytes / block_bytes).min(i32::MAX as u64 / (kv.pages_per_block as u64 * PAGE_TOKENS as u64));
    if blocks == 0 {
        let message = format!("{bytes} bytes hold no block of {block_bytes} bytes");
        return Err(CudaError::Option { option: "kv_bytes", message });
    }
    loop {
        let mut arena = Arena::new(&device.context, "the KV pool", blocks * block_bytes)?;
        match arena.take(blocks * block_bytes) {
            Ok(pages) => {
                kv.pages = pages;
                // What is masked is multiplied by zero, and must be finite.
                // SAFETY: just taken.
                unsafe { device.clear(pages, blocks * block_bytes) }?;
                return Ok((arena, blocks as usize));
            }
            Err(CudaError::OutOfMemory { .. }) if blocks > 1 => blocks -= blocks.div_ceil(8),
            Err(error) => return Err(error),
        }
    }
}
