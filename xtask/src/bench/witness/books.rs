//! The three accounts of the same requests: the server's writes, the clients' reads, the kernel's records.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;

/// What one client noted of its request.
#[derive(Deserialize)]
pub struct Client {
    pub port: u16,
    /// Just before it sent its request.
    pub sent_ns: u64,
    pub status: u16,
    /// Bytes of the whole answer.
    pub bytes: u64,
    /// Where the first token's event ends in it.
    pub first_token_end: u64,
    /// When the kernel received the last part of each read, and bytes read so far.
    reads: Vec<(u64, u64)>,
}

impl Client {
    /// The kernel's record of this request: ports are used again, so the first that began after it was sent.
    pub fn record<'a>(&self, records: &'a [Record]) -> Option<&'a Record> {
        let mine = records.iter().filter(|record| record.client.port() == self.port);
        mine.filter(|record| record.start_ns >= self.sent_ns).min_by_key(|record| record.start_ns)
    }

    /// When what holds the byte before `end` was received, ns.
    pub fn received(&self, end: u64) -> Option<u64> {
        self.reads.iter().find(|(_, bytes)| *bytes >= end).map(|(at_ns, _)| *at_ns)
    }
}

/// What is needed of a kernel record.
#[derive(Deserialize)]
pub struct Record {
    pub client: SocketAddr,
    pub start_ns: u64,
    pub first_byte_ns: u64,
    pub first_token_ns: u64,
    pub last_byte_ns: u64,
}

/// The watcher's last line.
#[derive(Deserialize)]
pub struct Counts {
    pub counts: PortCounts,
    pub events_lost: u64,
}

/// What is needed of the port's counts.
#[derive(Deserialize)]
pub struct PortCounts {
    pub requests: u64,
}

/// A server's writes, as the preloaded library noted them.
pub struct Writes(HashMap<u16, Vec<(u64, u64)>>);

/// Bytes of a record in the book, and of what stands before the first.
const RECORD_BYTES: usize = 16;

impl Writes {
    /// Reads the book; its layout is that of `writes.c`.
    pub fn read(path: &Path) -> Result<Self> {
        let book = std::fs::read(path).with_context(|| format!("no book of writes at {}", path.display()))?;
        let word = |at: usize| book.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")));
        let count = usize::try_from(word(0).context("the book of writes is empty")?)?;
        ensure!(book.len() >= (count + 1) * RECORD_BYTES, "the book of writes is full");
        let mut writes: HashMap<u16, Vec<(u64, u64)>> = HashMap::new();
        for record in book.chunks_exact(RECORD_BYTES).skip(1).take(count) {
            let field = |from: usize| u32::from_le_bytes(record[from..from + 4].try_into().expect("4 bytes"));
            let at_ns = u64::from(field(0)) | u64::from(field(4)) << 32;
            let port = (field(12) & 0xffff) as u16;
            writes.entry(port).or_default().push((at_ns, u64::from(field(8))));
        }
        Ok(Self(writes))
    }

    /// Those to one client's port since its request began: ports are used again.
    pub fn to(&self, port: u16, since_ns: u64) -> Connection<'_> {
        let writes = self.0.get(&port).map(Vec::as_slice).unwrap_or_default();
        Connection(&writes[writes.partition_point(|(at_ns, _)| *at_ns < since_ns)..])
    }
}

/// Writes on one connection: (time, bytes), in order.
pub struct Connection<'a>(&'a [(u64, u64)]);

impl Connection<'_> {
    /// When the byte before `end` was written, ns.
    pub fn of_byte(&self, end: u64) -> Option<u64> {
        let mut so_far = 0;
        self.0.iter().find_map(|(at_ns, bytes)| {
            so_far += bytes;
            (so_far >= end).then_some(*at_ns)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_found_in_its_write() {
        let connection = Connection(&[(10, 100), (20, 0), (30, 50)]);
        let check = |end, expected| assert_eq!(connection.of_byte(end), expected, "{end}");
        check(1, Some(10));
        check(100, Some(10));
        check(101, Some(30));
        check(150, Some(30));
        check(151, None);
    }
}
