//! A disk that stops at a chosen moment, and may then forget whatever was not synced.

use engine_store::disk::{Disk, Files, Sink};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Counts changes; from the one on that it is given, all fail. Clones are the same disk.
#[derive(Clone, Default)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Changes so far.
    done: u64,
    /// How many there will be; none for any number.
    limit: Option<u64>,
    /// What the failing ones say.
    error: Option<io::ErrorKind>,
    /// Bytes of each file that would outlast a loss of power, where that is not all of it.
    synced_bytes: BTreeMap<PathBuf, u64>,
    /// Names given in folders that have not been synced since.
    renames: Vec<(PathBuf, PathBuf)>,
}

impl FaultyDisk {
    /// Fails with that from the `limit`th change on.
    pub fn failing(limit: u64, error: io::ErrorKind) -> Self {
        let state = State { limit: Some(limit), error: Some(error), ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    pub fn changes(&self) -> u64 {
        self.state.lock().unwrap().done
    }

    /// What a loss of power would leave: files without the second half of what was not synced, and names without those
    /// given since their folder was.
    pub fn lose_power(&self) {
        let state = self.state.lock().unwrap();
        for (path, synced) in &state.synced_bytes {
            if let Ok(meta) = fs::metadata(path) {
                let file = File::options().write(true).open(path).unwrap();
                file.set_len(synced + (meta.len().saturating_sub(*synced)) / 2).unwrap();
            }
        }
        for (from, to) in state.renames.iter().rev() {
            fs::rename(to, from).unwrap();
        }
    }

    fn change(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.limit.is_some_and(|limit| state.done >= limit) {
            return Err(state.error.unwrap_or(io::ErrorKind::Other).into());
        }
        state.done += 1;
        Ok(())
    }
}

struct FaultySink {
    disk: FaultyDisk,
    path: PathBuf,
    inner: Box<dyn Sink>,
}

impl Write for FaultySink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.disk.change() {
            // Some of it has come to the disk all the same.
            self.inner.write_all(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        self.inner.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Sink for FaultySink {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.change()?;
        self.disk.state.lock().unwrap().synced_bytes.remove(&self.path);
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn write_after(&self, path: &Path, keep_bytes: u64) -> io::Result<Box<dyn Sink>> {
        self.change()?;
        self.state.lock().unwrap().synced_bytes.insert(path.to_owned(), keep_bytes);
        let inner = Files.write_after(path, keep_bytes)?;
        Ok(Box::new(FaultySink { disk: self.clone(), path: path.to_owned(), inner }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?;
        let mut state = self.state.lock().unwrap();
        if let Some(synced) = state.synced_bytes.remove(from) {
            state.synced_bytes.insert(to.to_owned(), synced);
        }
        state.renames.push((from.to_owned(), to.to_owned()));
        Files.rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        self.state.lock().unwrap().renames.retain(|(_, to)| to.parent() != Some(path));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        Files.remove(path)
    }

    fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        Files.make_folder(path)
    }
}
