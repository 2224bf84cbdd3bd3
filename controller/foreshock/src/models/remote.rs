//! Checkpoints that `foreshock models add` is given by address: fetched into the state folder first, and from there on as
//! any path. A kill, or Ctrl-C, leaves what has come, and the same command goes on from it.

use super::open;
use super::stored::Teller;
use crate::cli::StateArgs;
use crate::config::{InputError, state_dir};
use anyhow::Result;
use controller_daemon::catalog::validate_name;
use engine_fetch::{FetchError, Fetched, Options, Source, fetch};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Name of the folder in the state folder that checkpoints are fetched into.
const FETCHED_FOLDER: &str = "fetched";

/// A checkpoint on this machine's disks.
pub(super) enum Local {
    /// The user's own.
    Own(PathBuf),
    Fetched(Fetched),
}

impl Local {
    /// Fetches an address; a path stays as it is.
    pub(super) fn bring(name: &str, path: PathBuf, state: &StateArgs) -> Result<Self> {
        let Some(address) = path.to_str().filter(|text| Source::is_remote(text)) else { return Ok(Self::Own(path)) };
        let source = Source::parse(address).map_err(input)?;
        // What is refused later anyway is refused before hours of fetching.
        validate_name(name).map_err(super::input)?;
        drop(open(state)?);
        let mut teller = Teller::new();
        let fetched = fetch(&source, &state_dir(state)?.join(FETCHED_FOLDER), &options(), &mut |now| {
            let (done, total) = (now.done_bytes as f64 / 1e6, now.total_bytes as f64 / 1e6);
            teller.say(&format!("fetched {done:.0} of {total:.0} MB ({:.0}%)", 100.0 * done / total.max(1e-6)));
            ControlFlow::Continue(())
        });
        teller.end();
        Ok(Self::Fetched(fetched.map_err(input)?))
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Fetched(fetched) => &fetched.path,
        }
    }

    /// The store has all of it: what was fetched for it goes.
    pub(super) fn stored(self) -> Result<()> {
        match self {
            Self::Own(_) => Ok(()),
            Self::Fetched(fetched) => Ok(fetched.discard().map_err(input)?),
        }
    }
}

fn input(error: FetchError) -> InputError {
    InputError(error.to_string())
}

/// Credentials and endpoints as the tools of S3 and of model hubs know them from the environment.
fn options() -> Options {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let s3 = variables.filter(|(name, _)| name.starts_with("AWS_"));
    let usual = Options::default();
    Options {
        hub_endpoint: set("HF_ENDPOINT").unwrap_or(usual.hub_endpoint),
        hub_token: set("HF_TOKEN"),
        s3: s3.filter_map(|(name, value)| Some((name, value.into_string().ok()?))).collect(),
        ..usual
    }
}
