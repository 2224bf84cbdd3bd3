//! The paged KV pool. Pages come from the kernel zeroed and on first touch, so an idle pool costs nothing. They are
//! huge pages where the kernel has them: a step of decoding reads the whole context once, in pieces of a few KiB.
//!
//! Layout: block, layer, head, tile of [`TILE`] positions; in a tile the keys lie by (dimension, position),
//! so that scores of sixteen positions are one vector, then the values by (position, dimension), and then the scales
//! of keys and of values by (group, position) where the format has any.

use super::{
    kv_format::{self, GROUP, KvElement},
    pool::{Pool, SharedMut},
    simd::Isa,
    wide::{Wide, WideKernel},
};
use memmap2::{Advice, MmapMut};
use std::marker::PhantomData;

/// Positions that attention takes together, at multiples of itself.
pub const TILE: usize = 16;

/// Numbers of keys that one thread has stored before another would have begun.
const ALONE: usize = 2048;

/// Sizes that fix the layout.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub layers: usize,
    pub heads: usize,
    /// A multiple of eight.
    pub head_dim: usize,
    /// A multiple of [`TILE`].
    pub block_tokens: usize,
    pub blocks: usize,
}

impl KvShape {
    fn tile_bytes<E: KvElement>(&self) -> usize {
        2 * TILE * kv_format::bytes::<E>(self.head_dim)
    }

    /// Bytes of one block over all layers.
    pub fn block_bytes<E: KvElement>(&self) -> usize {
        self.layers * self.heads * self.block_tokens / TILE * self.tile_bytes::<E>()
    }

    fn tile_start<E: KvElement>(&self, layer: usize, block: u32, head: usize, tile: usize) -> usize {
        let tiles = self.block_tokens / TILE;
        (((block as usize * self.layers + layer) * self.heads + head) * tiles + tile) * self.tile_bytes::<E>()
    }
}

/// Keys and values of [`TILE`] positions. Scales are empty where the format has none.
#[derive(Clone, Copy)]
pub struct Tile<'a, E> {
    pub keys: &'a [E],
    pub values: &'a [E],
    pub key_scales: &'a [[f32; TILE]],
    pub value_scales: &'a [[f32; TILE]],
}

pub struct KvPool<E> {
    map: MmapMut,
    pub shape: KvShape,
    element: PhantomData<E>,
}

/// Where each new token's KV goes, one entry per token of the batch.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub block: u32,
    /// Position inside the block.
    pub offset: usize,
}

impl<E: KvElement> KvPool<E> {
    pub fn new(shape: KvShape) -> std::io::Result<Self> {
        let bytes = shape.blocks.checked_mul(shape.block_bytes::<E>());
        let bytes = bytes.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        let map = MmapMut::map_anon(bytes)?;
        // A kernel without huge pages says no, which costs speed and nothing else.
        let _ = map.advise(Advice::HugePage);
        Ok(Self { map, shape, element: PhantomData })
    }

    #[inline]
    pub fn tile(&self, layer: usize, block: u32, head: usize, tile: usize) -> Tile<'_, E> {
        let start = self.shape.tile_start::<E>(layer, block, head, tile);
        let bytes = &self.map[start..start + self.shape.tile_bytes::<E>()];
        let (elements, scales) = bytes.split_at(2 * TILE * self.shape.head_dim * size_of::<E>());
        let (keys, values) = bytemuck::cast_slice(elements).split_at(TILE * self.shape.head_dim);
        let scales: &[[f32; TILE]] = bytemuck::cast_slice(scales);
        let (key_scales, value_scales) = scales.split_at(scales.len() / 2);
        Tile { keys, values, key_scales, value_scales }
    }

    /// For those who write heads in parallel.
    pub(super) fn writer(&mut self) -> KvWriter<'_, E> {
        KvWriter { bytes: SharedMut::new(&mut self.map), shape: self.shape, element: PhantomData }
    }

    /// Stores keys and values, rows of `heads * head_dim` per token, in parallel by head.
    pub fn write(&mut self, pool: &mut Pool, isa: Isa, layer: usize, slots: &[Slot], k: &[f32], v: &[f32]) {
        let (shape, writer) = (self.shape, self.writer());
        let write_head = |head: usize| {
            for (token, slot) in slots.iter().enumerate() {
                let row = (token * shape.heads + head) * shape.head_dim;
                let range = row..row + shape.head_dim;
                // SAFETY: each head is one item.
                unsafe { writer.write(isa, layer, head, *slot, &k[range.clone()], &v[range]) };
            }
        };
        // A few tokens are too little work to hand out.
        if k.len() <= ALONE {
            return (0..shape.heads).for_each(write_head);
        }
        pool.run(shape.heads, &write_head);
    }
}

/// A pool that several threads write, each its own heads.
pub(super) struct KvWriter<'a, E> {
    bytes: SharedMut<'a, u8>,
    shape: KvShape,
    element: PhantomData<E>,
}

impl<E: KvElement> KvWriter<'_, E> {
    /// Stores key and value of one token and head.
    ///
    /// # Safety
    /// No two threads may write the same head at a time, not even in different slots: slots of one tile are
    /// interleaved, and two tokens might name the same slot.
    pub(super) unsafe fn write(&self, isa: Isa, layer: usize, head: usize, slot: Slot, k: &[f32], v: &[f32]) {
        let start = self.shape.tile_start::<E>(layer, slot.block, head, slot.offset / TILE);
        // SAFETY: tiles of different heads are disjoint, and this head is the caller's.
        let tile = unsafe { self.bytes.slice(start, self.shape.tile_bytes::<E>()) };
        let (elements, scales) = tile.split_at_mut(2 * TILE * k.len() * size_of::<E>());
        let (keys, values) = bytemuck::cast_slice_mut::<u8, E>(elements).split_at_mut(TILE * k.len());
        let scales: &mut [[f32; TILE]] = bytemuck::cast_slice_mut(scales);
        let (key_scales, value_scales) = scales.split_at_mut(scales.len() / 2);
        let position = slot.offset % TILE;
        let values = &mut values[position * v.len()..][..v.len()];
        isa.run_wide(WriteToken { k, v, position, keys, values, key_scales, value_scales });
    }
}

struct WriteToken<'a, E> {
    k: &'a [f32],
    v: &'a [f32],
    position: usize,
    keys: &'a mut [E],
    /// This position's.
    values: &'a mut [E],
    key_scales: &'a mut [[f32; TILE]],
    value_scales: &'a mut [[f32; TILE]],
}

impl<E: KvElement> WideKernel for WriteToken<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Wide>(self, s: S) {
        for (group, (k, keys)) in self.k.chunks(GROUP).zip(self.keys.chunks_mut(GROUP * TILE)).enumerate() {
            let (stored, scale) = encode::<S, E>(s, k);
            for (x, column) in stored.into_iter().zip(keys.as_chunks_mut::<TILE>().0) {
                column[self.position] = x;
            }
            if E::SCALED {
                self.key_scales[group][self.position] = scale;
            }
        }
        for (group, (v, values)) in self.v.chunks(GROUP).zip(self.values.chunks_mut(GROUP)).enumerate() {
            let (stored, scale) = encode::<S, E>(s, v);
            values.copy_from_slice(&stored[..values.len()]);
            if E::SCALED {
                self.value_scales[group][self.position] = scale;
            }
        }
    }
}

/// A group that may be the last and shorter.
#[inline(always)]
fn encode<S: Wide, E: KvElement>(s: S, x: &[f32]) -> ([E; GROUP], f32) {
    if let Ok(whole) = x.try_into() {
        return E::encode(s, whole);
    }
    let mut filled = [0.0; GROUP];
    filled[..x.len()].copy_from_slice(x);
    E::encode(s, &filled)
}
