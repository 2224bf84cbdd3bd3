//! Cuts what is written into chunks, hashes them, and hands them on.

use crate::{
    Checksum, Object,
    disk::Sink,
    object::{BLOCK_BYTES, CHUNK_BYTES},
};
use std::io::{self, Write};

/// An object being written.
pub(super) struct ObjectWriter {
    sink: Box<dyn Sink>,
    /// Bytes at the beginning that the sink has already: whole chunks.
    there_bytes: u64,
    /// The chunk that is not full yet.
    chunk: Vec<u8>,
    chunks: Vec<Checksum>,
}

impl ObjectWriter {
    pub(super) fn new(sink: Box<dyn Sink>, there_bytes: u64) -> Self {
        Self { sink, there_bytes, chunk: Vec::with_capacity(CHUNK_BYTES as usize), chunks: Vec::new() }
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.len() as u64 * CHUNK_BYTES + self.chunk.len() as u64
    }

    /// Fills up with zeros to a multiple of `bytes`, which divides a chunk.
    pub(super) fn align(&mut self, bytes: u64) -> io::Result<()> {
        let missing = self.bytes().next_multiple_of(bytes) - self.bytes();
        self.chunk.resize(self.chunk.len() + missing as usize, 0);
        if self.chunk.len() as u64 == CHUNK_BYTES { self.end_chunk() } else { Ok(()) }
    }

    /// Returns when the object will last. None when nothing was written.
    pub(super) fn finish(mut self) -> io::Result<Option<Object>> {
        self.align(BLOCK_BYTES)?;
        let bytes = self.bytes();
        if !self.chunk.is_empty() {
            self.end_chunk()?;
        }
        self.sync()?;
        Ok(Object::new(bytes, self.chunks))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sink.flush()?;
        self.sink.sync()
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        let start = self.chunks.len() as u64 * CHUNK_BYTES;
        self.chunks.push(Checksum::of(&self.chunk));
        if start >= self.there_bytes {
            self.sink.write_all(&self.chunk)?;
        }
        self.chunk.clear();
        Ok(())
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES as usize - self.chunk.len();
        let taken = &bytes[..room.min(bytes.len())];
        self.chunk.extend_from_slice(taken);
        if self.chunk.len() as u64 == CHUNK_BYTES {
            self.end_chunk()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
