//! What a cold start itself costs a client: time to first token of a model at zero instances, through the
//! gateway, minus the same when warm. Beside it llama-server, from exec to first token, minus its own warm
//! time. Ours and theirs are measured in turns, because this kind of machine drifts.

use super::report::{Report, Row, Samples, Target};
use super::{llama, load};
use crate::layout;
use crate::server::{Owned, Serve};
use crate::shell::{command, make_folder, quiet, stdout};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROUNDS: usize = 10;
const PROMPT_TOKENS: usize = 16;
/// How often, and how far apart, the page cache is asked to let go of a file.
const CACHE_ATTEMPTS: usize = 50;
const CACHE_PAUSE: Duration = Duration::from_millis(100);
/// The peer as it is by default, and with its warm-up run left out.
const PEERS: [(&str, &[&str]); 2] = [("llama-server", &[]), ("llama-server --no-warmup", &["--no-warmup"])];

/// Two models, the page cache warm and dropped, ten rounds each.
pub fn measure() -> Result<Report> {
    llama::install()?;
    let models =
        [("smollm2", own_copy(&layout::demo_model())?), ("smollm2-q8", own_copy(&llama::requantised("Q8_0")?)?)];
    let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    // One instance over all cores, as the peer has them; idle for a second is idle.
    let owned = Owned::start(&["--idle-seconds", "1", "--cores-per-instance", &cores])?;
    let mut report = Report::new("first-token");
    for (name, path) in &models {
        owned.serve.add_model(name, path)?;
        for dropped in [false, true] {
            measure_case(&owned.serve, name, path, dropped, &mut report)?;
        }
    }
    Ok(report)
}

/// A copy that only this benchmark maps: pages that another process maps cannot be dropped.
fn own_copy(path: &Path) -> Result<PathBuf> {
    let folder = layout::target().join("bench");
    make_folder(&folder)?;
    let copy = folder.join(path.file_name().context("the checkpoint has no name")?);
    if !copy.exists() {
        std::fs::copy(path, &copy)?;
    }
    Ok(copy)
}

fn measure_case(serve: &Serve, name: &str, path: &Path, dropped: bool, report: &mut Report) -> Result<()> {
    let cache = if dropped { "page cache dropped" } else { "page cache warm" };
    let mut samples = PEERS.map(|_| Samples::default());
    for round in 1..=ROUNDS {
        eprintln!("    {name}, {cache}: round {round} of {ROUNDS}");
        let ours = cost_ms(serve, name, path, dropped)?;
        for ((_, options), samples) in PEERS.iter().zip(&mut samples) {
            set_cache(path, dropped)?;
            let start = llama::start(path, PROMPT_TOKENS, options)?;
            samples.peer.push(start.first_token_ms - start.warm_ms);
            samples.ours.push(ours);
        }
    }
    for ((peer, _), samples) in PEERS.iter().zip(&samples) {
        let row = Row::of_quantile(format!("{name}, {cache}, beside {peer}"), "ms", 0.5, samples);
        report.targets.push(Target::at_most(format!("ratio: {}", row.case), row.ratio, 1.0));
        report.rows.push(row);
    }
    Ok(())
}

/// Ours: at zero minus warm, ms.
fn cost_ms(serve: &Serve, name: &str, path: &Path, dropped: bool) -> Result<f64> {
    serve.wait_zero(name)?;
    set_cache(path, dropped)?;
    let at_zero_ms = load::ttft_ms(serve.data, name, PROMPT_TOKENS)?;
    Ok(at_zero_ms - load::warm_ttft_ms(serve.data, name, PROMPT_TOKENS, 3)?)
}

/// Brings a file wholly into the page cache or out of it, and makes sure.
pub(super) fn set_cache(path: &Path, dropped: bool) -> Result<()> {
    let size = std::fs::metadata(path)?.len();
    for _ in 0..CACHE_ATTEMPTS {
        if dropped {
            // Drops the clean pages of this file alone (posix_fadvise), so neither side loses its program.
            let file = format!("of={}", path.display());
            quiet(&mut command("dd", &[&file, "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"]))?;
        } else {
            std::fs::read(path)?;
        }
        // A few pages may stay; a tenth of the file would spoil the figure.
        let resident = resident_bytes(path)?;
        let right = if dropped { resident < size / 10 } else { resident > size / 10 * 9 };
        if right {
            return Ok(());
        }
        // Pages cannot be dropped while a process that is on its way out still maps them.
        std::thread::sleep(CACHE_PAUSE);
    }
    bail!("{}: {} of {size} bytes in the page cache, dropped = {dropped}", path.display(), resident_bytes(path)?)
}

fn resident_bytes(path: &Path) -> Result<u64> {
    let options = ["--noheadings", "--bytes", "--output", "RES", &path.to_string_lossy()];
    let resident = stdout(&mut command("fincore", &options))?;
    resident.trim().parse().with_context(|| format!("fincore said {resident:?}"))
}
