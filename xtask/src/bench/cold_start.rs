//! What a cold start itself costs a client: time to first token of a model at zero instances, through the
//! gateway, minus the same when warm, with the weights in shared memory and with them on a cold disk. Beside it
//! llama-server, from exec to first token, minus its own warm time, with its file in the page cache and not. Ours and
//! theirs are measured in turns, because this kind of machine drifts.

use super::report::{Report, Row, Samples, Target, median};
use super::{llama, load};
use crate::http;
use crate::layout;
use crate::server::{Owned, Serve};
use crate::shell::{command, make_folder, quiet, stdout};

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROUNDS: usize = 10;
const PROMPT_TOKENS: usize = 16;
/// How often, and how far apart, the page cache is asked to let go of a file.
const CACHE_ATTEMPTS: usize = 50;
const CACHE_PAUSE: Duration = Duration::from_millis(100);
/// What a start from memory may cost, ms, and one from disk as a share of the peer's.
const MEMORY_MS: f64 = 10.0;
const DISK_RATIO: f64 = 0.5;
const PHASES: [&str; 5] = ["decision_ms", "spawn_ms", "load_ms", "ready_ms", "first_token_ms"];
/// The peer as it is by default, and with its warm-up run left out.
const PEERS: [(&str, &[&str]); 2] = [("llama-server", &[]), ("llama-server --no-warmup", &["--no-warmup"])];

/// Where weights are before a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Memory,
    Disk,
}

/// One model as the benchmark knows it.
struct Subject<'a> {
    serve: &'a Serve,
    segments: &'a Path,
    name: &'a str,
    /// The peer's file.
    path: &'a Path,
}

/// Three models, or those of `names`, weights in memory and on a cold disk, ten rounds each.
pub fn measure(names: &[String]) -> Result<Report> {
    llama::install()?;
    let models = [
        ("smollm2", own_copy(&layout::demo_model())?),
        ("smollm2-q8", own_copy(&llama::requantised("Q8_0")?)?),
        ("gemma3", own_copy(&layout::gemma3_model())?),
    ];
    let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let segments = Path::new("/dev/shm").join(format!("foreshock-bench-{}", std::process::id()));
    // One instance over all cores, as the peer has them; idle for a second is idle.
    let fixed = ["--idle-seconds", "1", "--cores-per-instance", &cores, "--segments"];
    let owned = Owned::start(&[&fixed[..], &[&segments.to_string_lossy()]].concat())?;
    let mut report = Report::new("cold-start");
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let outcome = models.iter().filter(|(name, _)| is_wanted(name)).try_for_each(|(name, path)| {
        owned.serve.add_model(name, path)?;
        let subject = Subject { serve: &owned.serve, segments: &segments, name, path };
        [Tier::Memory, Tier::Disk].into_iter().try_for_each(|tier| measure_case(&subject, tier, &mut report))
    });
    drop(owned);
    let _ = std::fs::remove_dir_all(&segments);
    outcome.map(|()| report)
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

fn measure_case(subject: &Subject<'_>, tier: Tier, report: &mut Report) -> Result<()> {
    let where_from = match tier {
        Tier::Memory => "weights in memory",
        Tier::Disk => "weights on a cold disk",
    };
    let name = subject.name;
    if tier == Tier::Memory {
        // The first start brings them there.
        load::ttft_ms(subject.serve.data, name, PROMPT_TOKENS)?;
    }
    let mut samples = PEERS.map(|_| Samples::default());
    for round in 1..=ROUNDS {
        eprintln!("    {name}, {where_from}: round {round} of {ROUNDS}");
        let ours = subject.cost_ms(tier)?;
        for ((_, options), samples) in PEERS.iter().zip(&mut samples) {
            set_cache(subject.path, tier == Tier::Disk)?;
            let start = llama::start(subject.path, PROMPT_TOKENS, options)?;
            samples.peer.push(start.first_token_ms - start.warm_ms);
            samples.ours.push(ours);
        }
    }
    for ((peer, _), samples) in PEERS.iter().zip(&samples) {
        let row = Row::of_quantile(format!("{name}, {where_from}, beside {peer}"), "ms", 0.5, samples);
        if tier == Tier::Disk {
            report.targets.push(Target::at_most(format!("ratio: {}", row.case), row.ratio, DISK_RATIO));
        }
        report.rows.push(row);
    }
    if tier == Tier::Memory {
        let cost = median(&samples[0].ours);
        report.targets.push(Target::at_most(format!("{name}, {where_from}, ms"), cost, MEMORY_MS));
    }
    subject.tell_phases(tier)
}

impl Subject<'_> {
    /// Ours: at zero minus warm, ms.
    fn cost_ms(&self, tier: Tier) -> Result<f64> {
        self.serve.wait_zero(self.name)?;
        if tier == Tier::Disk {
            let _ = std::fs::remove_dir_all(self.segments);
            files_below(&self.serve.state.join("store"))?.iter().try_for_each(|file| drop_cache(file))?;
        }
        let at_zero_ms = load::ttft_ms(self.serve.data, self.name, PROMPT_TOKENS)?;
        Ok(at_zero_ms - load::warm_ttft_ms(self.serve.data, self.name, PROMPT_TOKENS, 3)?)
    }

    /// Says what the starts were made of, by the serve's own record, and makes sure of the tier.
    fn tell_phases(&self, tier: Tier) -> Result<()> {
        let path = format!("/v1/foreshock/starts?model={}&limit={}", self.name, ROUNDS - 1);
        let answer = http::call(self.serve.admin, "GET", &path, b"")?.json()?;
        let label = if tier == Tier::Memory { "memory" } else { "disk" };
        let starts = answer["data"].as_array().context("no starts")?;
        // A second instance may have been started beside one, and finds the weights in memory.
        let starts: Vec<&serde_json::Value> = starts.iter().filter(|start| start["tier"] == label).collect();
        ensure!(starts.len() > ROUNDS / 2, "most starts were from elsewhere: {answer}");
        for phase in PHASES {
            let ms: Vec<f64> = starts.iter().filter_map(|start| start[phase].as_f64()).collect();
            eprintln!("    {}, from {label}: {phase} {:.2} (median of {})", self.name, median(&ms), ms.len());
        }
        Ok(())
    }
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

/// Asks for the clean pages of a file alone to go (posix_fadvise), so neither side loses its program.
fn drop_cache(path: &Path) -> Result<()> {
    let file = format!("of={}", path.display());
    quiet(&mut command("dd", &[&file, "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"])).map(drop)
}

/// Brings a file wholly into the page cache or out of it, and makes sure.
pub(super) fn set_cache(path: &Path, dropped: bool) -> Result<()> {
    let size = std::fs::metadata(path)?.len();
    for _ in 0..CACHE_ATTEMPTS {
        if dropped {
            drop_cache(path)?;
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
