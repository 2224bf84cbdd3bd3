//! Maps of segments that can be of huge pages. A decode step walks all weights, and with pages of 4 KiB a third of its
//! time goes into finding them. The kernel can gather a file's pages in memory into huge ones at any time, for all who
//! have it mapped at once, if they have it mapped at a multiple of a huge page.

use memmap2::{Advice, Mmap, MmapOptions};
use rustix::mm::{MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::{ffi::c_void, fs::File, io, ops::Deref, ptr, slice};

/// Bytes of a huge page.
pub(crate) const HUGE_BYTES: usize = 2 << 20;

/// A read-only map of a whole file that nobody writes or cuts, or of what a file would hold.
pub(crate) enum FileMap {
    /// Of less than a huge page.
    Small(Mmap),
    Large(Aligned),
    /// This process's own memory, which no file has: an object that was put together. Its pages are not to be dropped.
    Own(Mmap),
}

/// A map that begins at a multiple of a huge page, inside addresses that were reserved for it.
pub(crate) struct Aligned {
    base: *mut c_void,
    reserved: usize,
    start: *mut c_void,
    len: usize,
}

// SAFETY: the memory is read-only and belongs to the value alone, wherever it is.
unsafe impl Send for Aligned {}
// SAFETY: the same; shared references only read.
unsafe impl Sync for Aligned {}

impl FileMap {
    /// # Safety
    /// Nobody writes or cuts the file, of `len` bytes, as long as the map lives.
    pub(crate) unsafe fn new(file: &File, len: usize) -> io::Result<Self> {
        if len < HUGE_BYTES {
            // SAFETY: as the caller promises.
            return unsafe { MmapOptions::new().map(file) }.map(Self::Small);
        }
        Aligned::new(file, len).map(Self::Large)
    }

    /// Whether its memory can be of huge pages, and is best used where it is.
    pub(crate) fn is_large(&self) -> bool {
        !matches!(self, Self::Small(_))
    }

    /// Maps all of its pages. A hint: failure costs speed alone.
    pub(crate) fn populate(&self) {
        match self {
            Self::Small(map) => drop(map.advise(Advice::PopulateRead)),
            // It was written, so it is there.
            Self::Own(_) => {}
            Self::Large(map) => {
                // SAFETY: the value's own addresses, and populating changes nothing in them.
                let _ = unsafe { madvise(map.start, map.len, rustix::mm::Advice::LinuxPopulateRead) };
            }
        }
    }

    /// Has the kernel gather the pages into huge ones, as far as they fill them. Takes the time of a copy.
    pub(crate) fn collapse(&self) -> io::Result<()> {
        let Self::Large(map) = self else { return Ok(()) };
        // SAFETY: the value's own addresses; where pages lie in memory changes nothing in what they hold.
        match unsafe { libc::madvise(map.start, map.len / HUGE_BYTES * HUGE_BYTES, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Aligned {
    fn new(file: &File, len: usize) -> io::Result<Self> {
        let reserved = len + HUGE_BYTES;
        // SAFETY: new addresses, which nothing has yet.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
        }?;
        let start = base.wrapping_byte_add(base.addr().next_multiple_of(HUGE_BYTES) - base.addr());
        let map = Self { base, reserved, start, len };
        // SAFETY: within the addresses that were just reserved, since they are a huge page longer than the file; a shared
        // map for reading takes their place.
        unsafe { mmap(start, len, ProtFlags::READ, MapFlags::SHARED | MapFlags::FIXED, file, 0) }?;
        Ok(map)
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: the value's own addresses, to which no reference outlives it.
        let _ = unsafe { munmap(self.base, self.reserved) };
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Small(map) | Self::Own(map) => map,
            // SAFETY: mapped for reading as long as the value lives, and by the promise to `new` nobody changes it.
            Self::Large(map) => unsafe { slice::from_raw_parts(map.start.cast(), map.len) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_maps_are_aligned_and_read_what_the_file_holds_before_and_after_they_are_gathered() {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        for len in [4096, HUGE_BYTES, 2 * HUGE_BYTES + 12_288] {
            let path = folder.path().join(len.to_string());
            let bytes: Vec<u8> = (0..len).map(|index| (index / 4096) as u8 ^ index as u8).collect();
            std::fs::write(&path, &bytes).expect("written");
            let file = File::open(&path).expect("there");
            // SAFETY: the test's own file, which it leaves alone.
            let map = unsafe { FileMap::new(&file, len) }.expect("mapped");
            assert_eq!(map.is_large(), len >= HUGE_BYTES);
            assert!(map[..] == bytes);
            map.populate();
            if let Err(error) = map.collapse() {
                eprintln!("this kernel or file system gathers no pages: {error}");
            }
            assert!(map[..] == bytes);
            assert!(!map.is_large() || map.as_ptr().addr().is_multiple_of(HUGE_BYTES));
        }
    }
}
