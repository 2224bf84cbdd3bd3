//! Maps of segments that can be of huge pages. A decode step walks all weights, and with pages of 4 KiB a third of its
//! time goes into finding them. The kernel can gather a file's pages in memory into huge ones at any time, for all who
//! have it mapped at once, if they have it mapped at a multiple of a huge page.

use memmap2::{Advice, Mmap, MmapOptions};
use rustix::mm::{MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::{
    ffi::c_void,
    fs::File,
    io,
    ops::{Deref, Range},
    os::unix::fs::FileExt,
    ptr, slice,
};

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

// SAFETY: the memory belongs to the value alone, wherever it is; nothing here writes it.
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

/// Memory of a file that is being filled, in huge pages from the beginning: reads go straight into it, one page to pin
/// for two megabytes.
pub(crate) struct Filling {
    map: Aligned,
    /// Bytes of it that are whole huge pages.
    len: usize,
}

impl Filling {
    /// Of a file in memory, `len` bytes long and empty, that nobody else knows.
    ///
    /// # Errors
    /// When it is less than a huge page, or the kernel has none for files in memory.
    pub(crate) fn new(file: &File, len: usize) -> io::Result<Self> {
        let whole = len / HUGE_BYTES * HUGE_BYTES;
        if whole == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The kernel takes what is all hole for gone, so each huge page begins as one small page of it.
        (0..whole).step_by(HUGE_BYTES).try_for_each(|start| file.write_all_at(&[0], start as u64))?;
        let map = Aligned::with(file, whole, ProtFlags::READ | ProtFlags::WRITE)?;
        // SAFETY: the value's own addresses; where pages lie in memory changes nothing in what they hold.
        match unsafe { libc::madvise(map.start, whole, libc::MADV_COLLAPSE) } {
            0 => Ok(Self { map, len: whole }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where these bytes of the file are to be written to; none outside of huge pages. Good as long as the value lives.
    pub(crate) fn place(&self, range: Range<u64>) -> Option<*mut u8> {
        let is_within = range.start <= range.end && range.end <= self.len as u64;
        is_within.then(|| self.map.start.cast::<u8>().wrapping_add(range.start as usize))
    }
}

impl Aligned {
    fn new(file: &File, len: usize) -> io::Result<Self> {
        Self::with(file, len, ProtFlags::READ)
    }

    fn with(file: &File, len: usize, access: ProtFlags) -> io::Result<Self> {
        let reserved = len + HUGE_BYTES;
        // SAFETY: new addresses, which nothing has yet.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
        }?;
        let start = base.wrapping_byte_add(base.addr().next_multiple_of(HUGE_BYTES) - base.addr());
        let map = Self { base, reserved, start, len };
        // SAFETY: within the addresses that were just reserved, since they are a huge page longer; a shared map takes
        // their place.
        unsafe { mmap(start, len, access, MapFlags::SHARED | MapFlags::FIXED, file, 0) }?;
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

    #[test]
    fn what_is_written_into_a_filling_is_in_the_file() {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let file = |name: &str, len: usize| {
            let file = File::options().read(true).write(true).create_new(true).open(folder.path().join(name));
            let file = file.expect("made");
            file.set_len(len as u64).expect("lengthened");
            file
        };
        assert!(Filling::new(&file("small", 4096), 4096).is_err());
        let len = 2 * HUGE_BYTES + 8192;
        let file = file("large", len);
        let filling = match Filling::new(&file, len) {
            Ok(filling) => filling,
            Err(error) => return eprintln!("this kernel or file system has no huge pages for files: {error}"),
        };
        let huge = HUGE_BYTES as u64;
        assert!(filling.place(huge..2 * huge + 1).is_none() && filling.place(len as u64..len as u64).is_none());
        let place = filling.place(huge..huge + 4).expect("within");
        // SAFETY: four bytes of the filling, which nobody else knows.
        unsafe { place.copy_from(b"here".as_ptr(), 4) };
        let mut read = [0; 4];
        file.read_exact_at(&mut read, huge).expect("read");
        assert_eq!(&read, b"here");
        file.read_exact_at(&mut read, 2 * huge).expect("read");
        assert_eq!(read, [0; 4]);
    }
}
