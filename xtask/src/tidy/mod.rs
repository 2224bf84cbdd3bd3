//! The rules that a compiler does not check: where unsafe code, the environment and dependencies may
//! stand, how long files and functions get, what must not be left in the tree.

mod dependencies;
mod functions;
mod sources;

use crate::layout;
use crate::shell::{command, stdout};
use anyhow::{Result, bail};
use std::path::PathBuf;

/// A file of the repository that is text.
pub struct Source {
    /// From the root, with forward slashes.
    pub name: String,
    pub text: String,
}

/// Prints every violation; fails when there is one.
pub fn run() -> Result<()> {
    let sources = read_sources()?;
    let mut problems: Vec<String> = sources.iter().flat_map(sources::check).collect();
    problems.extend(dependencies::check()?);
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    if !problems.is_empty() {
        bail!("{} tidy problem(s), listed above", problems.len());
    }
    eprintln!("tidy: {} files are in order", sources.len());
    Ok(())
}

/// Tracked files and those about to be: what git does not ignore. Binary files are left out.
fn read_sources() -> Result<Vec<Source>> {
    let list = stdout(&mut command("git", &["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    let root: PathBuf = layout::root();
    let read = |name: &str| {
        let text = String::from_utf8(std::fs::read(root.join(name)).ok()?).ok()?;
        Some(Source { name: name.to_owned(), text })
    };
    Ok(list.split('\0').filter(|name| !name.is_empty()).filter_map(read).collect())
}
