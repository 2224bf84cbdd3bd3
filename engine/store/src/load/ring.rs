//! Reading with io_uring: each thread keeps a queue of its own full, and verifies what has come while the rest is on its
//! way.

use super::feed::{Chunk, Feed, is_refusal};
use crate::{StoreError, object::CHUNK_BYTES};
use io_uring::{IoUring, Probe, cqueue, opcode, types};
use memmap2::{Advice, MmapMut, MmapRaw};
use rustix::io::Errno;
use std::{io, os::fd::AsRawFd, slice, thread, time::Duration};

const CHUNK: usize = CHUNK_BYTES as usize;

/// How long to wait between looks at a ring whose kernel call fails.
const PAUSE: Duration = Duration::from_millis(1);

/// A ring for `depth` reads. An error where the kernel or a sandbox refuses.
pub(super) fn open(depth: u32) -> io::Result<IoUring> {
    let ring = IoUring::new(depth.next_power_of_two())?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    match probe.is_supported(opcode::Read::CODE) {
        true => Ok(ring),
        false => Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring does not read")),
    }
}

/// Reads and verifies until there is no more.
pub(super) fn read(feed: &Feed<'_>, ring: IoUring, depth: usize) -> Result<(), StoreError> {
    // Others stop before this one waits for what is still on its way.
    let mut flight = None;
    feed.stopping(|| {
        let memory = |source| StoreError::Thread { source };
        flight.insert(Flight::new(ring, depth).map_err(memory)?).run(feed)
    })
}

/// Reads on their way. The kernel writes into their memory until it has said that it is done, so it stays until then,
/// whatever happens.
struct Flight<'a> {
    ring: IoUring,
    /// A chunk's memory for each number.
    memory: MmapRaw,
    /// What is read, by the number that the kernel gives back.
    chunks: Vec<Option<Chunk<'a>>>,
    /// Numbers that are not in use.
    free: Vec<usize>,
    /// Reads that the kernel has taken, and those of them that it is done with.
    begun: usize,
    ended: usize,
}

impl<'a> Flight<'a> {
    fn new(ring: IoUring, depth: usize) -> io::Result<Self> {
        let memory = MmapRaw::from(MmapMut::map_anon(depth * CHUNK)?);
        // A hint: fewer pages are pinned sooner.
        let _ = memory.advise(Advice::HugePage);
        let chunks = (0..depth).map(|_| None).collect();
        Ok(Self { ring, memory, chunks, free: (0..depth).rev().collect(), begun: 0, ended: 0 })
    }

    fn run(&mut self, feed: &Feed<'a>) -> Result<(), StoreError> {
        let mut place = None;
        loop {
            while !self.free.is_empty() {
                let Some(chunk) = feed.next(&mut place)? else { break };
                self.push(chunk);
            }
            if self.is_empty() {
                return Ok(());
            }
            let (number, chunk, read) = self.wait()?;
            let place = chunk.place();
            // SAFETY: either the chunk's own place in its segment, which nobody else writes, or the number's in the memory,
            // which has a chunk's for each; initialised, since new memory is zeros. The kernel is done with it, and it gets
            // chunk or number again only after this borrow has ended; the segment's memory lives as long as the chunk.
            let bytes = unsafe { slice::from_raw_parts_mut(place.unwrap_or_else(|| self.start(number)), chunk.len()) };
            complete(&chunk, read, bytes)?;
            match place {
                Some(_) => chunk.verify(bytes).and_then(|()| chunk.finish_in_place())?,
                None => chunk.finish(bytes)?,
            }
            self.free.push(number);
        }
    }

    /// Where the memory of a number begins.
    fn start(&self, number: usize) -> *mut u8 {
        self.memory.as_mut_ptr().wrapping_add(number * CHUNK)
    }

    /// Whether nothing is on its way.
    fn is_empty(&self) -> bool {
        self.chunks.iter().all(Option::is_none)
    }

    /// Puts a read into the queue, for the next kernel call to take.
    fn push(&mut self, chunk: Chunk<'a>) {
        let Some(number) = self.free.pop() else { unreachable!("a chunk is taken only where there is a place") };
        let start = chunk.place().unwrap_or_else(|| self.start(number));
        let chunk = self.chunks[number].insert(chunk);
        let (fd, bytes, offset) = (types::Fd(chunk.file().as_raw_fd()), chunk.len() as u32, chunk.offset());
        let entry = opcode::Read::new(fd, start, bytes).offset(offset).build().user_data(number as u64);
        // SAFETY: `chunks` holds the file and its place, or `memory` what is read into, until the kernel has answered; `drop` waits for
        // that. Nobody else touches the memory of this number meanwhile, since it is not free.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // The ring has at least as many places as there are numbers.
        assert!(pushed.is_ok(), "a queue with a place for each number is full");
    }

    /// The next read that has ended.
    fn wait(&mut self) -> Result<Answer<'a>, StoreError> {
        loop {
            // Also when there is an answer already: it takes what was just put into the queue.
            let has_answer = !self.ring.completion().is_empty();
            match self.ring.submit_and_wait(usize::from(!has_answer)) {
                Ok(taken) => self.begun += taken,
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    let chunk = self.chunks.iter().flatten().next();
                    return Err(
                        chunk.map_or(StoreError::Thread { source: Errno::IO.into() }, |chunk| chunk.failed(error))
                    );
                }
            }
            if let Some(answer) = self.answer() {
                return Ok(answer);
            }
        }
    }

    fn answer(&mut self) -> Option<Answer<'a>> {
        let entry: cqueue::Entry = self.ring.completion().next()?;
        self.ended += 1;
        let number = entry.user_data() as usize;
        let chunk = self.chunks.get_mut(number)?.take()?;
        let read = usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some((number, chunk, read))
    }
}

impl Drop for Flight<'_> {
    /// Waits until the kernel is done with every chunk that it has taken.
    fn drop(&mut self) {
        while !self.is_empty() {
            match self.ring.submit_and_wait(1) {
                Ok(taken) => self.begun += taken,
                // What it has not taken it never will, and what it has taken ends by itself.
                Err(error) if !is_passing(&error) && self.begun == self.ended => return,
                Err(_) => thread::sleep(PAUSE),
            }
            while self.answer().is_some() {}
        }
    }
}

/// Whether the same call may succeed later.
fn is_passing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INTR | Errno::AGAIN | Errno::BUSY))
}

/// A read that has ended: its number, what was read, and how many bytes, or why none.
type Answer<'a> = (usize, Chunk<'a>, io::Result<usize>);

/// Sees to it that all of a chunk is there.
fn complete(chunk: &Chunk<'_>, read: io::Result<usize>, bytes: &mut [u8]) -> Result<(), StoreError> {
    match read {
        Ok(read) if read == bytes.len() => Ok(()),
        // Interrupted or cut short, perhaps at the end of a file: asking once more tells.
        Ok(_) => chunk.fill_through_cache(bytes),
        Err(error) if is_refusal(&error) || is_passing(&error) => chunk.fill_through_cache(bytes),
        Err(error) => Err(chunk.failed(error)),
    }
}
