//! Host memory as a tier: which segments there are, which of them somebody has mapped, and which go when room is
//! wanted: those that nobody maps, least recently used first. A model that finds no room is mapped from the store's
//! own files instead, which the page cache can give up again.

mod ahead;
mod bring;
mod memory;

pub use ahead::{Ahead, bring_ahead};
pub use bring::{Brought, Tier, bring, map};
pub use memory::available_bytes;

use crate::{
    Checksum, Segments, StoreError,
    huge::{FileMap, HUGE_BYTES},
    store::files,
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// A whole segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub name: Checksum,
    pub bytes: u64,
    /// When it was last seen in use, ns since 1970.
    pub used_unix_ns: u128,
    /// Whether a process that this one can see has it mapped.
    pub mapped: bool,
}

impl Segments {
    /// All whole segments, those used longest ago first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn held(&self) -> Result<Vec<Held>, StoreError> {
        let mapped = mapped(self.folder());
        let held = |path: &std::path::PathBuf| {
            let name = Checksum::parse(path.file_name()?.to_str()?)?;
            // Another may have discarded it meanwhile.
            let meta = fs::metadata(path).ok()?;
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH).duration_since(UNIX_EPOCH);
            let used_unix_ns = used.unwrap_or_default().as_nanos();
            Some(Held { name, bytes: meta.len(), used_unix_ns, mapped: mapped.contains(&name) })
        };
        let mut all: Vec<Held> = files(self.folder())?.iter().filter_map(held).collect();
        all.sort_by_key(|held| (held.used_unix_ns, held.name));
        Ok(all)
    }

    /// Notes that a segment is in use now. Failure costs it its place among those that stay, no more.
    pub fn touch(&self, name: Checksum) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let _ = utimensat(CWD, self.folder().join(name.to_string()), &times, AtFlags::empty());
    }

    /// Gathers a segment's memory into huge pages, for all who have it mapped and who will. Takes the time of a copy. False
    /// where there is nothing to gather.
    ///
    /// # Errors
    /// When the kernel cannot, or has no huge pages left.
    pub fn gather(&self, held: &Held) -> io::Result<bool> {
        if (held.bytes as usize) < HUGE_BYTES {
            return Ok(false);
        }
        let file = File::open(self.folder().join(held.name.to_string()))?;
        // SAFETY: a segment with its name, which nobody writes or cuts from then on.
        let map = unsafe { FileMap::new(&file, held.bytes as usize) }?;
        map.collapse().map(|()| true)
    }

    /// Takes a segment's name away; its memory goes when the last who has it mapped lets go. True when it was there.
    pub fn discard(&self, name: Checksum) -> bool {
        fs::remove_file(self.folder().join(name.to_string())).is_ok()
    }

    /// Discards segments that nobody maps, least recently used first, until `bytes` of them are gone or there is none
    /// left but those to `keep`. Answers the bytes discarded.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn discard_idle(&self, bytes: u64, keep: &BTreeSet<Checksum>) -> Result<u64, StoreError> {
        if bytes == 0 {
            return Ok(0);
        }
        let held = self.held()?;
        let gone = victims(&held, bytes, keep).into_iter().filter(|held| self.discard(held.name));
        Ok(gone.map(|held| held.bytes).sum())
    }
}

/// Which of these are to go.
fn victims<'a>(held: &'a [Held], bytes: u64, keep: &BTreeSet<Checksum>) -> Vec<&'a Held> {
    let idle = held.iter().filter(|held| !held.mapped && !keep.contains(&held.name));
    let mut sum = 0;
    idle.take_while(|held| {
        let wanted = sum < bytes;
        sum += held.bytes;
        wanted
    })
    .collect()
}

/// Names of segments in a folder that any process has mapped, as far as this one may see.
fn mapped(folder: &Path) -> BTreeSet<Checksum> {
    let Ok(processes) = fs::read_dir("/proc") else { return BTreeSet::new() };
    // As the kernel spells it.
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let folder = format!("{}/", folder.display());
    let mut names = BTreeSet::new();
    for process in processes.flatten() {
        let is_process = process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        // Those of other users cannot be read, and have nothing of ours.
        let Ok(maps) = (if is_process { fs::read_to_string(process.path().join("maps")) } else { continue }) else {
            continue;
        };
        let name = |line: &str| Checksum::parse(line.split_once(&folder)?.1.get(..Checksum::DIGITS)?);
        names.extend(maps.lines().filter_map(name));
    }
    names
}

/// Whether an error is of the memory that a folder of segments is in, not of the model.
fn is_of_memory(error: &StoreError, folder: &Path) -> bool {
    match error {
        StoreError::Memory { .. } | StoreError::Shared { .. } | StoreError::Busy { .. } => true,
        StoreError::Full { path } | StoreError::Io { path, .. } | StoreError::Length { path, .. } => {
            path.starts_with(folder)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(name: &str, bytes: u64, used_unix_ns: u128, mapped: bool) -> Held {
        Held { name: Checksum::of(name.as_bytes()), bytes, used_unix_ns, mapped }
    }

    #[test]
    fn the_least_recently_used_that_nobody_maps_go_first() {
        let all = [held("a", 10, 1, false), held("b", 10, 2, true), held("c", 10, 3, false), held("d", 10, 4, false)];
        let check = |bytes, keep: &[&str], expected: &[&str]| {
            let keep = keep.iter().map(|name| Checksum::of(name.as_bytes())).collect();
            let names: Vec<Checksum> = victims(&all, bytes, &keep).into_iter().map(|held| held.name).collect();
            let expected: Vec<Checksum> = expected.iter().map(|name| Checksum::of(name.as_bytes())).collect();
            assert_eq!(names, expected, "{bytes}");
        };
        check(0, &[], &[]);
        check(1, &[], &["a"]);
        check(11, &[], &["a", "c"]);
        check(11, &["c"], &["a", "d"]);
        check(1000, &[], &["a", "c", "d"]);
    }

    #[test]
    fn what_a_process_has_mapped_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let segments = Segments::open(folder.path().join("segments")).expect("a folder");
        let names: Vec<Checksum> = (0..3u8).map(|n| Checksum::of(&[n])).collect();
        let path = |name: &Checksum| segments.folder().join(name.to_string());
        names.iter().for_each(|name| fs::write(path(name), [7; 4096]).expect("written"));
        fs::write(segments.folder().join("x.part"), b"").expect("written");
        let kept = crate::mapping::Mapping::open(&path(&names[1])).expect("mapped");
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
        for name in &names {
            let file = fs::File::options().write(true).open(path(name)).expect("there");
            file.set_modified(long_ago).expect("set");
        }
        // Used now, so it goes after the other.
        segments.touch(names[0]);
        let held = segments.held().expect("a folder");
        assert_eq!(held.len(), 3);
        assert!(held.iter().all(|held| held.mapped == (held.name == names[1]) && held.bytes == 4096));
        assert_eq!(segments.discard_idle(4096, &BTreeSet::new()).expect("a folder"), 4096);
        assert!(!path(&names[2]).exists() && path(&names[0]).exists());
        assert_eq!(segments.discard_idle(u64::MAX, &BTreeSet::new()).expect("a folder"), 4096);
        assert!(path(&names[1]).exists());
        assert_eq!(kept.bytes()[0], 7);
    }
}
