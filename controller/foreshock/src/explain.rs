//! `foreshock explain MODEL`: what was seen, forecast, decided and why, and what its cold starts were made of, newest
//! last, from the state folder's database, so that it works whether a `serve` runs or not.

use crate::cli::ExplainArgs;
use crate::config::{InputError, state_dir};
use anyhow::{Result, bail};
use controller_daemon::registry::Registry;

/// Prints the newest decisions about a model.
pub fn run(args: ExplainArgs) -> Result<()> {
    let registry = Registry::open(&state_dir(&args.state)?).map_err(|error| InputError(error.to_string()))?;
    let decisions = registry.decisions(Some(&args.model), args.limit)?;
    if decisions.is_empty() && registry.model(&args.model)?.is_none() {
        bail!(InputError(format!("no model `{}` is registered; `foreshock models ls` lists them", args.model)));
    }
    print!("{}", controller_daemon::render_explain(&decisions));
    let starts = registry.starts(Some(&args.model), args.limit)?;
    print!("{}", controller_daemon::render_starts(&starts, controller_daemon::clock::unix_s()));
    Ok(())
}
