//! One file: its pieces side by side, each as often as it takes, until every byte is there and the remote still says that
//! it is the same file.

use crate::{
    FetchError, Options,
    journal::{Head, Journal},
    options::Counters,
    place::Place,
    plan::{Failures, Wanted},
    remote::{Body, Remote, Version},
};
use engine_store::Checksum;
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
};

pub(crate) struct Download<'a> {
    remote: &'a Remote,
    wanted: &'a Wanted,
    options: &'a Options,
    now: &'a Counters,
    shown: String,
    part: PathBuf,
    journal: PathBuf,
}

impl<'a> Download<'a> {
    pub(crate) fn new(
        remote: &'a Remote,
        wanted: &'a Wanted,
        place: &Place,
        options: &'a Options,
        now: &'a Counters,
    ) -> Self {
        let (part, journal) = (place.part(&wanted.local), place.journal(&wanted.local));
        Self { remote, wanted, options, now, shown: remote.shown(&wanted.name), part, journal }
    }

    /// Returns when the file is there, will last, and is what it should be.
    pub(crate) async fn run(&self) -> Result<(), FetchError> {
        let Version { bytes, .. } = self.wanted.look.version;
        self.now.add(|now| now.total_bytes += bytes);
        for folder in [&self.part, &self.journal].into_iter().filter_map(|path| path.parent()) {
            std::fs::create_dir_all(folder).map_err(|error| self.io("make the folder of", error))?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.part);
        let file = file.map_err(|error| self.io("make", error))?;
        if self.wanted.look.ranges && self.wanted.look.version.is_told() {
            self.pieces(&file).await?;
        } else {
            self.whole(&file).await?;
        }
        self.is_as_told(&file).await?;
        file.sync_all().map_err(|error| self.io("sync", error))
    }

    async fn is_as_told(&self, file: &File) -> Result<(), FetchError> {
        let (expected, found) =
            (self.wanted.look.version.bytes, file.metadata().map_err(|error| self.io("read", error))?.len());
        if expected != found {
            return Err(FetchError::Length { url: self.shown.clone(), expected, found });
        }
        let Some(expected) = self.wanted.sha256.clone() else { return Ok(()) };
        let found = self.sha256().map_err(|error| self.io("read", error))?;
        if expected != found {
            // Going on from these bytes would never help.
            let _ = std::fs::remove_file(&self.journal);
            return Err(FetchError::Digest { url: self.shown.clone(), expected, found });
        }
        Ok(())
    }

    fn sha256(&self) -> io::Result<String> {
        let mut file = File::open(&self.part)?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
                read => hash.update(&buffer[..read]),
            }
        }
    }

    /// Those that are not there yet.
    async fn pieces(&self, file: &File) -> Result<(), FetchError> {
        let version = &self.wanted.look.version;
        let head = Head::new(version, self.options.piece_bytes.max(1));
        let (mut journal, there) =
            Journal::open(&self.journal, &head, file).map_err(|error| self.io("read what has come of", error))?;
        let kept: u64 = there.keys().map(|piece| head.range(*piece)).map(|range| range.end - range.start).sum();
        self.now.add(|now| (now.kept_bytes, now.done_bytes) = (now.kept_bytes + kept, now.done_bytes + kept));
        let missing: Vec<u64> = (0..head.pieces()).filter(|piece| !there.contains_key(piece)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let one = |piece: u64| {
            let range = head.range(piece);
            async move { Ok::<_, FetchError>((piece, self.piece(file, range).await?)) }
        };
        let mut pieces = stream::iter(missing).map(one).buffer_unordered(self.options.parallel.max(1));
        while let Some(piece) = pieces.next().await {
            let (piece, checksum) = piece?;
            journal.note(piece, checksum).map_err(|error| self.io("note what has come of", error))?;
        }
        // A file that was overwritten where it lies says so by now, whatever it said at each request's beginning.
        let mut failures = Failures::new(self.options);
        let look = loop {
            match self.remote.look(&self.wanted.name).await {
                Ok(look) => break look,
                Err(error) => failures.count(error, self.now).await?,
            }
        };
        version.expect(&look.version, &self.shown).inspect_err(|_| {
            let _ = std::fs::remove_file(&self.journal);
        })
    }

    /// A failed request is gone on from where it was.
    async fn piece(&self, file: &File, range: std::ops::Range<u64>) -> Result<Checksum, FetchError> {
        let mut failures = Failures::new(self.options);
        let mut writer = Writer { file, at: range.start, end: range.end, hash: blake3::Hasher::new() };
        while writer.at < range.end {
            let body = self.remote.range(&self.wanted.name, &self.wanted.look.version, writer.at..range.end).await;
            let copied = match body {
                Ok(body) => self.copy(body, &mut writer).await,
                Err(error) => Err(error),
            };
            if let Err(error) = copied {
                failures.count(error, self.now).await?;
            }
        }
        Ok(Checksum::from(writer.hash.finalize()))
    }

    /// From the beginning each time, of a remote that gives no ranges or does not tell its versions apart.
    async fn whole(&self, file: &File) -> Result<(), FetchError> {
        let mut failures = Failures::new(self.options);
        loop {
            let before = self.now.get().done_bytes;
            file.set_len(0).map_err(|error| self.io("empty", error))?;
            let mut writer = Writer { file, at: 0, end: self.wanted.look.version.bytes, hash: blake3::Hasher::new() };
            let copied = match self.remote.all(&self.wanted.name).await {
                Ok((version, body)) => {
                    self.wanted.look.version.expect(&version, &self.shown)?;
                    self.copy(body, &mut writer).await
                }
                Err(error) => Err(error),
            };
            match copied {
                Ok(()) => return Ok(()),
                Err(error) => failures.count(error, self.now).await?,
            }
            self.now.add(|now| now.done_bytes = before);
        }
    }

    /// Returns when all that the writer waits for is there.
    async fn copy(&self, mut body: Body, writer: &mut Writer<'_>) -> Result<(), FetchError> {
        while let Some(bytes) = body.next(self.remote, &self.shown).await? {
            let came = bytes.len() as u64;
            if came > writer.end - writer.at {
                let message = "it gives more than was asked for".to_owned();
                return Err(FetchError::Answer { url: self.shown.clone(), message });
            }
            writer.write(&bytes).map_err(|error| self.io("write", error))?;
            self.now.add(|now| (now.read_bytes, now.done_bytes) = (now.read_bytes + came, now.done_bytes + came));
        }
        match writer.end - writer.at {
            0 => Ok(()),
            left => {
                let message = format!("its answer ended {left} bytes too soon");
                Err(FetchError::Passing { url: self.shown.clone(), message })
            }
        }
    }

    fn io(&self, action: &'static str, error: io::Error) -> FetchError {
        let now = self.now.get();
        FetchError::io(action, &self.part, now.total_bytes.saturating_sub(now.done_bytes), error)
    }
}

/// Where a piece goes.
struct Writer<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    hash: blake3::Hasher,
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }
}
