//! One step through the layers: reads top to bottom as the models do. Nothing here waits for the device.

use crate::{
    device::Ptr,
    error::CudaError,
    forward::CudaForward,
    kernels::{Activations, AttendArgs, GateArgs, KvPool, NormArgs, Output, RotaryArgs},
    plan::Layout,
    weights::{Layer, Linear},
};

impl CudaForward {
    /// From token ids to the residual stream after the last layer.
    pub(crate) fn layers(&mut self, layout: &Layout) -> Result<(), CudaError> {
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

    pub(crate) fn norm_args(&self, branch_weight: Ptr, weight: Ptr) -> NormArgs {
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

    pub(crate) fn multiply(
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

    /// Part of the layout on the device.
    pub(crate) fn at(&self, number: usize) -> Ptr {
        self.buffers.layout.offset(4 * number as u64)
    }
}
