//! Which files are to be fetched: one, or those of a folder that a checkpoint or an adapter is made of.

use crate::{
    FetchError, Options, Source,
    file::Download,
    hub::{Repository, Said},
    options::Counters,
    place::Place,
    remote::{Look, Remote},
    source::Site,
};
use engine_store::{FOLDER_FILES, shard_names};
use std::{os::unix::fs::MetadataExt, time::Duration};
use tokio::time::sleep;

const INDEX: &str = "model.safetensors.index.json";
/// Longest index: it is fetched before it is known how much there is to come.
const INDEX_BYTES_MAX: u64 = 64 << 20;
const WEIGHTS: &str = "model.safetensors";
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// A file to fetch.
pub(crate) struct Wanted {
    /// In the remote's folder.
    pub(crate) name: String,
    /// In the checkpoint's: the same, but that one file lies by itself.
    pub(crate) local: String,
    pub(crate) look: Look,
    /// 64 lower-case hexadecimal digits.
    pub(crate) sha256: Option<String>,
    /// Whether it has come, because the plan depends on it.
    pub(crate) is_there: bool,
}

pub(crate) struct Plan {
    pub(crate) files: Vec<Wanted>,
    /// Whether they are a folder.
    pub(crate) folder: bool,
    /// Where they are, when that is not where the source says.
    pub(crate) elsewhere: Option<Remote>,
}

/// Asks about files.
struct Asking<'a> {
    remote: &'a Remote,
    repository: Option<Repository>,
    options: &'a Options,
    now: &'a Counters,
}

impl Plan {
    /// Asks about every file there may be; reads the index of the weights, if there is one.
    pub(crate) async fn make(
        source: &Source,
        remote: &Remote,
        options: &Options,
        place: &Place,
        now: &Counters,
    ) -> Result<Self, FetchError> {
        let (repository, elsewhere) = match &source.site {
            Site::Hub { repository, revision } => {
                let (read, files) = Repository::read(remote, repository, revision, options).await?;
                (Some(read), Some(files))
            }
            _ => (None, None),
        };
        let asking = Asking { remote: elsewhere.as_ref().unwrap_or(remote), repository, options, now };
        let files = match &source.file {
            Some(file) => vec![asking.one(file, source.sha256.clone()).await?],
            None => asking.folder(place).await?,
        };
        Ok(Self { files, folder: source.file.is_none(), elsewhere })
    }

    /// Bytes that have not come yet.
    pub(crate) fn missing_bytes(&self, place: &Place) -> u64 {
        // Pieces come in any order, so a part may be long and have holes; blocks have 512 bytes.
        let there =
            |wanted: &Wanted| std::fs::metadata(place.part(&wanted.local)).map_or(0, |meta| 512 * meta.blocks());
        self.files.iter().map(|wanted| wanted.look.version.bytes.saturating_sub(there(wanted))).sum()
    }
}

impl Asking<'_> {
    /// A GGUF file.
    async fn one(&self, name: &str, sha256: Option<String>) -> Result<Wanted, FetchError> {
        let wanted = self.required(name).await?;
        let head = &wanted.look.head;
        if wanted.look.ranges && head[..] != *b"GGUF" {
            let message = format!("it begins with {:?}, and a GGUF file does not", head.escape_ascii().to_string());
            return Err(FetchError::Invalid { url: self.remote.shown(name), message });
        }
        let local = name.rsplit('/').next().unwrap_or(name).to_owned();
        Ok(Wanted { local, sha256: sha256.or(wanted.sha256), ..wanted })
    }

    async fn folder(&self, place: &Place) -> Result<Vec<Wanted>, FetchError> {
        let mut files = Vec::new();
        if let Some(config) = self.optional(ADAPTER[0]).await? {
            return Ok(vec![config, self.required(ADAPTER[1]).await?]);
        }
        for name in FOLDER_FILES {
            files.extend(match name {
                "config.json" => Some(self.required(name).await?),
                _ => self.optional(name).await?,
            });
        }
        if let Some(whole) = self.optional(WEIGHTS).await? {
            files.push(whole);
            return Ok(files);
        }
        let Some(index) = self.optional(INDEX).await? else {
            let message = format!("it has neither {WEIGHTS} nor {INDEX}");
            return Err(FetchError::Invalid { url: self.remote.shown(""), message });
        };
        if index.look.version.bytes > INDEX_BYTES_MAX {
            let message = format!("it has {} bytes, more than any index", index.look.version.bytes);
            return Err(FetchError::Invalid { url: self.remote.shown(INDEX), message });
        }
        Download::new(self.remote, &index, place, self.options, self.now).run().await?;
        let wrong = |error: engine_store::SafetensorsError| FetchError::Invalid {
            url: self.remote.shown(INDEX),
            message: error.to_string(),
        };
        let names = shard_names(&place.part(INDEX)).map_err(wrong)?;
        files.push(Wanted { is_there: true, ..index });
        for name in names {
            files.push(self.required(&name).await?);
        }
        Ok(files)
    }

    async fn required(&self, name: &str) -> Result<Wanted, FetchError> {
        let wanted = self.optional(name).await?;
        wanted.ok_or_else(|| FetchError::NotFound { url: self.remote.shown(name) })
    }

    /// Asks about a file, more than once if need be.
    async fn optional(&self, name: &str) -> Result<Option<Wanted>, FetchError> {
        let said = match &self.repository {
            Some(repository) => match repository.file(name) {
                Some(said) => said,
                None => return Ok(None),
            },
            None => Said { bytes: None, sha256: None },
        };
        let mut failures = Failures::new(self.options);
        let look = loop {
            match self.remote.look(name).await {
                Ok(look) => break look,
                Err(FetchError::NotFound { .. }) => return Ok(None),
                Err(error) => failures.count(error, self.now).await?,
            }
        };
        let found = look.version.bytes;
        if let Some(expected) = said.bytes.filter(|bytes| *bytes != found) {
            return Err(FetchError::Length { url: self.remote.shown(name), expected, found });
        }
        Ok(Some(Wanted { name: name.to_owned(), local: name.to_owned(), look, sha256: said.sha256, is_there: false }))
    }
}

/// Counts failures of one request, and pauses between them.
pub(crate) struct Failures {
    count: u32,
    limit: u32,
    pause: Duration,
}

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

impl Failures {
    pub(crate) fn new(options: &Options) -> Self {
        Self { count: 0, limit: options.retries, pause: Duration::from_millis(options.backoff_ms) }
    }

    /// Waits when it is worth asking again.
    ///
    /// # Errors
    /// The failure itself when asking again would not help, or has not often enough.
    pub(crate) async fn count(&mut self, error: FetchError, now: &Counters) -> Result<(), FetchError> {
        if !matches!(error, FetchError::Passing { .. }) {
            return Err(error);
        }
        self.count += 1;
        if self.count > self.limit {
            return Err(FetchError::GivenUp { failures: self.count, last: Box::new(error) });
        }
        now.add(|now| now.retries += 1);
        sleep(self.pause).await;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        Ok(())
    }
}
