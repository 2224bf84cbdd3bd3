//! One folder of a remote, behind the `object_store` crate: what a file in it is, and ranges of it.

use crate::{FetchError, Options, Source, source::Site};
use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, GetResult, ObjectStore, RetryConfig, aws::AmazonS3Builder,
    http::HttpBuilder, path::Path,
};
use std::{ops::Range, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout, timeout_at};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// What a remote must give in each window of [`Options::stall_ms`].
const STALL_BYTES: u64 = 64 << 10;
/// Longest answer that is kept in memory.
const SMALL_BYTES_MAX: u64 = 64 << 20;

/// A version of a file, as far as the remote tells versions apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) bytes: u64,
    /// A strong one: equal ones are equal bytes.
    pub(crate) etag: Option<String>,
    /// RFC 3339.
    pub(crate) modified: Option<String>,
}

impl Version {
    fn of(result: &GetResult) -> Self {
        let meta = &result.meta;
        let etag = meta.e_tag.clone().filter(|etag| !etag.starts_with("W/"));
        // What is missing is given as the beginning of 1970.
        let modified = (meta.last_modified.timestamp() != 0).then(|| meta.last_modified.to_rfc3339());
        Self { bytes: meta.size, etag, modified }
    }

    /// Whether two requests can be known to be of the same bytes.
    pub(crate) fn is_told(&self) -> bool {
        self.etag.is_some() || self.modified.is_some()
    }

    /// An error unless `now` is the same version.
    pub(crate) fn expect(&self, now: &Self, url: &str) -> Result<(), FetchError> {
        let none = || "none".to_owned();
        let changed = |what, was: String, now: String| Err(FetchError::Changed { url: url.to_owned(), what, was, now });
        if self.bytes != now.bytes {
            return changed("length", self.bytes.to_string(), now.bytes.to_string());
        }
        if self.etag != now.etag {
            return changed("ETag", self.etag.clone().unwrap_or_else(none), now.etag.clone().unwrap_or_else(none));
        }
        if self.modified != now.modified {
            let (was, now) = (self.modified.clone(), now.modified.clone());
            return changed("Last-Modified", was.unwrap_or_else(none), now.unwrap_or_else(none));
        }
        Ok(())
    }
}

/// What a first look at a file finds.
pub(crate) struct Look {
    pub(crate) version: Version,
    /// Whether ranges of it can be asked for.
    pub(crate) ranges: bool,
    /// Its first bytes, at most four; none when it gives no ranges.
    pub(crate) head: Bytes,
}

pub(crate) struct Remote {
    store: Arc<dyn ObjectStore>,
    /// Before each file's name.
    prefix: String,
    /// For messages.
    source: Source,
    stall: Duration,
}

impl Remote {
    /// Connects to nothing yet.
    pub(crate) fn open(source: &Source, options: &Options) -> Result<Self, FetchError> {
        let (store, prefix): (Arc<dyn ObjectStore>, _) = match &source.site {
            Site::Http(url) => (http(url.as_str(), None, &source.shown)?, String::new()),
            Site::Hub { .. } => {
                let url = options.hub_endpoint.trim_end_matches('/');
                // The revision is known later; see `Remote::within`.
                (http(url, options.hub_token.as_deref(), &source.shown)?, String::new())
            }
            Site::S3 { bucket, prefix } => (s3(bucket, options, &source.shown)?, prefix.clone()),
        };
        Ok(Self { store, prefix, source: source.clone(), stall: Duration::from_millis(options.stall_ms) })
    }

    /// Another remote that is shown as this one's source.
    pub(crate) fn with_url(&self, url: &str, options: &Options) -> Result<Self, FetchError> {
        let store = http(url, options.hub_token.as_deref(), &self.source.shown)?;
        Ok(Self { store, prefix: String::new(), source: self.source.clone(), stall: self.stall })
    }

    pub(crate) fn shown(&self, name: &str) -> String {
        self.source.shown_file(name)
    }

    fn path(&self, name: &str, shown: &str) -> Result<Path, FetchError> {
        let whole = if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) };
        Path::parse(whole).map_err(|error| FetchError::Answer { url: shown.to_owned(), message: error.to_string() })
    }

    async fn get(&self, name: &str, shown: &str, options: GetOptions) -> Result<GetResult, FetchError> {
        match timeout(self.stall, self.store.get_opts(&self.path(name, shown)?, options)).await {
            Ok(result) => result.map_err(|error| FetchError::of(shown, &error)),
            Err(_) => Err(self.stalled(shown)),
        }
    }

    fn stalled(&self, shown: &str) -> FetchError {
        let message = format!("it gave less than {} KiB in {} ms", STALL_BYTES >> 10, self.stall.as_millis());
        FetchError::Passing { url: shown.to_owned(), message }
    }

    /// What a file is. By GET, since addresses that are signed for a while are signed for that alone.
    pub(crate) async fn look(&self, name: &str) -> Result<Look, FetchError> {
        let shown = self.shown(name);
        let path = self.path(name, &shown)?;
        let options = GetOptions { range: Some(GetRange::Bounded(0..4)), ..GetOptions::default() };
        let result = match timeout(self.stall, self.store.get_opts(&path, options)).await {
            Ok(Ok(result)) => result,
            Ok(Err(object_store::Error::NotSupported { .. })) => {
                let version = Version::of(&self.get(name, &shown, GetOptions::default()).await?);
                return Ok(Look { version, ranges: false, head: Bytes::new() });
            }
            Ok(Err(error)) => return Err(FetchError::of(&shown, &error)),
            Err(_) => return Err(self.stalled(&shown)),
        };
        let (version, asked) = (Version::of(&result), result.range.end);
        let mut body = Body::new(result, self.stall);
        let mut head = Vec::new();
        while let Some(bytes) = body.next(self, &shown).await? {
            head.extend_from_slice(&bytes);
            if head.len() as u64 > asked {
                return Err(FetchError::Answer { url: shown, message: "it gives more than was asked for".into() });
            }
        }
        Ok(Look { version, ranges: true, head: head.into() })
    }

    /// A range of a file, when it is still that version.
    pub(crate) async fn range(&self, name: &str, of: &Version, range: Range<u64>) -> Result<Body, FetchError> {
        let shown = self.shown(name);
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: of.etag.clone(),
            ..GetOptions::default()
        };
        let result = self.get(name, &shown, options).await?;
        // Many servers do not know the condition; their answer tells the same.
        of.expect(&Version::of(&result), &shown)?;
        Ok(Body::new(result, self.stall))
    }

    /// All of a file, whichever version it is.
    pub(crate) async fn all(&self, name: &str) -> Result<(Version, Body), FetchError> {
        let result = self.get(name, &self.shown(name), GetOptions::default()).await?;
        Ok((Version::of(&result), Body::new(result, self.stall)))
    }

    /// A short file, in memory.
    pub(crate) async fn small(&self, name: &str) -> Result<Vec<u8>, FetchError> {
        let shown = self.shown(name);
        let (version, mut body) = self.all(name).await?;
        let mut out = Vec::new();
        while let Some(bytes) = body.next(self, &shown).await? {
            out.extend_from_slice(&bytes);
            if out.len() as u64 > SMALL_BYTES_MAX.min(version.bytes) {
                return Err(FetchError::Answer { url: shown, message: "its answer is longer than it said".into() });
            }
        }
        Ok(out)
    }
}

/// Bytes on their way.
pub(crate) struct Body {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    stall: Duration,
    /// Until then, `window_bytes` more must come.
    deadline: Instant,
    window_bytes: u64,
}

impl Body {
    fn new(result: GetResult, stall: Duration) -> Self {
        Self { stream: result.into_stream(), stall, deadline: Instant::now() + stall, window_bytes: STALL_BYTES }
    }

    /// The next bytes; none at the end.
    pub(crate) async fn next(&mut self, remote: &Remote, shown: &str) -> Result<Option<Bytes>, FetchError> {
        let Ok(next) = timeout_at(self.deadline, self.stream.next()).await else { return Err(remote.stalled(shown)) };
        let Some(bytes) = next.transpose().map_err(|error| FetchError::of(shown, &error))? else { return Ok(None) };
        match self.window_bytes.checked_sub(bytes.len() as u64) {
            Some(left @ 1..) => self.window_bytes = left,
            _ => (self.window_bytes, self.deadline) = (STALL_BYTES, Instant::now() + self.stall),
        }
        Ok(Some(bytes))
    }
}

/// Its own retries are off: ours know what has come already.
fn once() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}

fn client(allow_http: bool) -> ClientOptions {
    // Each wait has a deadline of ours; a whole request may take as long as its bytes keep coming.
    ClientOptions::new().with_connect_timeout(CONNECT).with_timeout_disabled().with_allow_http(allow_http)
}

fn http(url: &str, token: Option<&str>, shown: &str) -> Result<Arc<dyn ObjectStore>, FetchError> {
    let wrong = |message: String| FetchError::Source { text: shown.to_owned(), message };
    let mut options = client(true);
    if let Some(token) = token {
        let value =
            format!("Bearer {token}").parse().map_err(|_| wrong("the token has letters that no token has".into()))?;
        let mut headers = object_store::HeaderMap::new();
        headers.insert("authorization", value);
        options = options.with_default_headers(headers);
    }
    let built = HttpBuilder::new().with_url(url).with_client_options(options).with_retry(once()).build();
    Ok(Arc::new(built.map_err(|error| wrong(error.to_string()))?))
}

fn s3(bucket: &str, options: &Options, shown: &str) -> Result<Arc<dyn ObjectStore>, FetchError> {
    let wrong = |error: object_store::Error| FetchError::Source { text: shown.to_owned(), message: error.to_string() };
    let named = options.s3.iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    let known = named.filter_map(|(name, value)| Some((name.parse().ok()?, value)));
    let is_plain = options.s3.values().any(|value| value.starts_with("http://"));
    let builder = known.fold(AmazonS3Builder::new(), |builder, (name, value)| builder.with_config(name, value));
    let builder = builder.with_bucket_name(bucket).with_client_options(client(is_plain)).with_retry(once());
    Ok(Arc::new(builder.build().map_err(wrong)?))
}
