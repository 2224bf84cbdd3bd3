//! The paged KV pool. Pages come from the kernel zeroed and on first touch, so an idle pool costs nothing.
//!
//! Layout: block, layer, head, tile of [`TILE`] positions; in a tile the keys lie by (dimension, position),
//! so that scores of eight positions are one vector, and then the values by (position, dimension).

use super::{
    pool::{Pool, SharedMut},
    simd::Simd,
};
use memmap2::MmapMut;
use std::marker::PhantomData;

/// Positions that attention takes together, at multiples of itself.
pub const TILE: usize = 16;

/// How keys and values are stored.
pub trait KvElement: bytemuck::Pod + Send + Sync {
    fn load<S: Simd>(s: S, x: &[Self; 8]) -> S::V;
    fn store<S: Simd>(s: S, v: S::V, out: &mut [Self; 8]);
}

impl KvElement for f32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[f32; 8]) -> S::V {
        s.load(x)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, out: &mut [f32; 8]) {
        s.store(v, out);
    }
}

/// IEEE half floats by their bits.
impl KvElement for u16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[u16; 8]) -> S::V {
        s.load_f16(x)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, v: S::V, out: &mut [u16; 8]) {
        s.store_f16(v, out);
    }
}

/// Sizes that fix the layout.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub layers: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// A multiple of [`TILE`].
    pub block_tokens: usize,
    pub blocks: usize,
}

impl KvShape {
    fn tile_elements(&self) -> usize {
        2 * TILE * self.head_dim
    }

    /// Elements of one block over all layers.
    pub fn block_elements(&self) -> usize {
        self.layers * self.heads * self.block_tokens / TILE * self.tile_elements()
    }

    fn tile_start(&self, layer: usize, block: u32, head: usize, tile: usize) -> usize {
        let tiles = self.block_tokens / TILE;
        (((block as usize * self.layers + layer) * self.heads + head) * tiles + tile) * self.tile_elements()
    }
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
        let bytes = shape.blocks.checked_mul(shape.block_elements() * size_of::<E>());
        let bytes = bytes.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        Ok(Self { map: MmapMut::map_anon(bytes)?, shape, element: PhantomData })
    }

    /// Keys and values of one tile.
    #[inline]
    pub fn tile(&self, layer: usize, block: u32, head: usize, tile: usize) -> (&[E], &[E]) {
        let elements: &[E] = bytemuck::cast_slice(&self.map);
        let start = self.shape.tile_start(layer, block, head, tile);
        elements[start..start + self.shape.tile_elements()].split_at(TILE * self.shape.head_dim)
    }

    /// Stores keys and values, rows of `heads * head_dim` per token. Work is cut by head, so that threads
    /// never meet even if two tokens named the same slot.
    pub fn write(
        &mut self,
        pool: &mut Pool,
        isa: super::simd::Isa,
        layer: usize,
        slots: &[Slot],
        k: &[f32],
        v: &[f32],
    ) {
        let shape = self.shape;
        let elements = SharedMut::new(bytemuck::cast_slice_mut::<u8, E>(&mut self.map));
        let write_head = |head: usize| {
            for (token, slot) in slots.iter().enumerate() {
                let row = (token * shape.heads + head) * shape.head_dim;
                let (k, v) = (&k[row..row + shape.head_dim], &v[row..row + shape.head_dim]);
                let start = shape.tile_start(layer, slot.block, head, slot.offset / TILE);
                // SAFETY: tiles of different heads are disjoint, and each head is one item.
                let tile = unsafe { elements.slice(start, shape.tile_elements()) };
                isa.run(WriteToken { k, v, position: slot.offset % TILE, tile });
            }
        };
        // One token is too little work to hand out.
        if slots.len() == 1 {
            return (0..shape.heads).for_each(write_head);
        }
        pool.run(shape.heads, &write_head);
    }
}

struct WriteToken<'a, E> {
    k: &'a [f32],
    v: &'a [f32],
    position: usize,
    tile: &'a mut [E],
}

impl<E: KvElement> super::simd::Kernel for WriteToken<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (keys, values) = self.tile.split_at_mut(TILE * self.k.len());
        let (columns, _) = keys.as_chunks_mut::<{ 8 * TILE }>();
        for (x, columns) in self.k.as_chunks::<8>().0.iter().zip(columns) {
            let mut stored = [E::zeroed(); 8];
            E::store(s, s.load(x), &mut stored);
            for (lane, x) in stored.into_iter().enumerate() {
                columns[lane * TILE + self.position] = x;
            }
        }
        let values = &mut values[self.position * self.v.len()..][..self.v.len()];
        for (x, out) in self.v.as_chunks::<8>().0.iter().zip(values.as_chunks_mut::<8>().0) {
            E::store(s, s.load(x), out);
        }
    }
}
