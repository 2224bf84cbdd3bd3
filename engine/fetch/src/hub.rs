//! A model hub's API: which commit a revision is, and which files it has. Their digests come with them.

use crate::{FetchError, Options, remote::Remote};
use serde::Deserialize;

/// A repository at one commit.
#[derive(Deserialize)]
pub(crate) struct Repository {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

/// What is said of a file.
pub(crate) struct Said {
    pub(crate) bytes: Option<u64>,
    pub(crate) sha256: Option<String>,
}

impl Repository {
    /// Asks for it, and gives where its files are.
    pub(crate) async fn read(
        remote: &Remote,
        name: &str,
        revision: &str,
        options: &Options,
    ) -> Result<(Self, Remote), FetchError> {
        let endpoint = options.hub_endpoint.trim_end_matches('/');
        let api = remote.with_url(&format!("{endpoint}?blobs=true"), options)?;
        let text = api.small(&format!("api/models/{name}/revision/{revision}")).await;
        let shown = remote.shown("");
        let text = text.map_err(|error| match error {
            FetchError::NotFound { .. } => FetchError::NotFound { url: shown.clone() },
            error => error,
        })?;
        let wrong = |message: String| FetchError::Answer { url: shown.clone(), message };
        let read: Self = serde_json::from_slice(&text).map_err(|error| wrong(format!("its answer is odd: {error}")))?;
        if read.sha.len() != 40 || !read.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong(format!("it names no commit: {:?}", read.sha)));
        }
        // By its commit, so that a branch which moves meanwhile moves nothing here.
        let files = remote.with_url(&format!("{endpoint}/{name}/resolve/{}", read.sha), options)?;
        Ok((read, files))
    }

    /// Whether it has a file, and what is known of that.
    pub(crate) fn file(&self, name: &str) -> Option<Said> {
        let found = self.siblings.iter().find(|sibling| sibling.rfilename == name)?;
        let sha256 = found.lfs.as_ref().map(|lfs| lfs.sha256.to_ascii_lowercase());
        Some(Said { bytes: found.size, sha256 })
    }
}
