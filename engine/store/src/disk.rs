//! Everything that ingestion changes on a disk, as a seam: behind it stands the file system, or one that fails at a chosen
//! moment and forgets what was not synced.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

/// A file being written.
pub trait Sink: Write {
    /// Returns when the file will outlast a loss of power.
    fn sync(&mut self) -> io::Result<()>;
}

/// Changes of the file system. Reading goes past it: what is read is verified.
pub trait Disk: Send + Sync {
    /// A file to write on to after its first `keep_bytes`, which stay as they are; it is made when there is none.
    fn write_after(&self, path: &Path, keep_bytes: u64) -> io::Result<Box<dyn Sink>>;
    /// Gives a file its name, at once, in place of any other of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Returns when the names in a folder will outlast a loss of power.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// With those above it.
    fn make_folder(&self, path: &Path) -> io::Result<()>;
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files;

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()?;
        // A hint: what was written is read past the page cache, whose memory others need.
        let _ = rustix::fs::fadvise(self, 0, None, rustix::fs::Advice::DontNeed);
        Ok(())
    }
}

impl Disk for Files {
    fn write_after(&self, path: &Path, keep_bytes: u64) -> io::Result<Box<dyn Sink>> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.set_len(keep_bytes)?;
        file.seek(SeekFrom::Start(keep_bytes))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }
}
