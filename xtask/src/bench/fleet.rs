//! Many registered models and memory for a few: what callers wait, and what is moved for them, when the planner says whose
//! weights stay in memory and whose are read ahead, beside keeping those used last, and beside letting go of everything at once.
//!
//! One program in three configurations, in turns: each has a state folder of its own, which it keeps from round to
//! round, and the same calls at the same times.

mod copies;
mod trace;

use super::load;
use super::report::{Report, Row, Samples};
use crate::layout;
use crate::server::{Owned, Serve};
use crate::shell::{command, make_folder, quiet, step};
use crate::{http, shell};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const MODELS: usize = 50;
const ROUNDS: usize = 2;
const ROUND_S: f64 = 60.0;
const SEED: u64 = 7;
const PROMPT_TOKENS: usize = 16;
/// Memory in all: two instances of one core with their weights, and weights of some six models beside them.
const MEMORY_BYTES: &str = "1300000000";
const IDLE_WEIGHTS_BYTES: &str = "650000000";
const KV_BYTES: &str = "67108864";

/// One configuration.
struct Arm {
    name: &'static str,
    options: [&'static str; 4],
    state: PathBuf,
    found: Found,
}

/// What was found of it, round by round, and request by request.
#[derive(Default)]
struct Found {
    ttft_ms: Vec<f64>,
    cold_share: Vec<f64>,
    disk_share: Vec<f64>,
    /// Read by starts and ahead of them, MB.
    read_mb: Vec<f64>,
    ahead_mb: Vec<f64>,
    failed: usize,
}

/// Three arms in turns.
pub fn measure() -> Result<Report> {
    let template = registered()?;
    let arms = [
        ("planned", ["--tiers", "planned", "--idle-seconds", "30"]),
        // Nothing is ever idle for long enough: what was used last goes when room is wanted.
        ("lru", ["--tiers", "lru", "--idle-seconds", "1000000"]),
        ("unload", ["--tiers", "none", "--idle-seconds", "0"]),
    ];
    let mut arms = arms.map(|(name, options)| {
        let state = template.with_file_name(format!("{name}-{}", std::process::id()));
        Arm { name, options, state, found: Found::default() }
    });
    let outcome = measure_all(&template, &mut arms);
    for arm in &arms {
        let _ = std::fs::remove_dir_all(&arm.state);
    }
    outcome.map(|()| report(&arms))
}

fn measure_all(template: &Path, arms: &mut [Arm; 3]) -> Result<()> {
    for arm in arms.iter() {
        copy_state(template, &arm.state)?;
    }
    for round in 0..ROUNDS {
        for arm in arms.iter_mut() {
            eprintln!("    round {} of {ROUNDS}: {}", round + 1, arm.name);
            measure_round(arm, round).with_context(|| format!("{} in round {}", arm.name, round + 1))?;
        }
    }
    Ok(())
}

/// A state folder with all models registered. Made once: it is read and copied, never served from.
fn registered() -> Result<PathBuf> {
    let folder = layout::target().join("bench/fleet");
    make_folder(&folder)?;
    let (state, done) = (folder.join("template"), folder.join("template.whole"));
    if done.exists() {
        return Ok(state);
    }
    let _ = std::fs::remove_dir_all(&state);
    let demo = std::fs::read(layout::demo_model())?;
    let file = folder.join("copy.gguf");
    step(&format!("registering {MODELS} models of {} MB", demo.len() >> 20), || {
        for model in 0..MODELS {
            copies::write(&demo, &file, SEED + model as u64)?;
            let (file, state) = (file.to_string_lossy(), state.to_string_lossy());
            quiet(&mut command(layout::foreshock(), &["models", "add", &name(model), &file, "--state", &state]))?;
        }
        Ok(())
    })?;
    std::fs::remove_file(&file)?;
    std::fs::write(&done, "")?;
    Ok(state)
}

fn name(model: usize) -> String {
    format!("model-{model:02}")
}

/// Objects are shared by links, since nobody changes them; the database is each one's own.
fn copy_state(from: &Path, to: &Path) -> Result<()> {
    let _ = std::fs::remove_dir_all(to);
    make_folder(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let how = if path.is_dir() { "-al" } else { "-a" };
        quiet(&mut command("cp", &[how, &path.to_string_lossy(), &to.to_string_lossy()]))?;
    }
    Ok(())
}

fn measure_round(arm: &mut Arm, round: usize) -> Result<()> {
    let segments = Path::new("/dev/shm").join(format!("foreshock-bench-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&segments);
    drop_caches();
    let fixed = ["--memory-bytes", MEMORY_BYTES, "--idle-weights-bytes", IDLE_WEIGHTS_BYTES, "--kv-bytes", KV_BYTES];
    let folder = segments.to_string_lossy().into_owned();
    let options = [&fixed[..], &["--cores-per-instance", "1", "--segments", &folder], &arm.options].concat();
    let began_unix_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let owned = Owned::start_on(&arm.state, &options)?;
    let answers = play(&owned.serve, &trace::calls(SEED, MODELS, round as f64 * ROUND_S, ROUND_S));
    let outcome = arm.found.take(&owned.serve, &answers, began_unix_s);
    drop(owned);
    let _ = std::fs::remove_dir_all(&segments);
    outcome
}

/// Where this user may: what the kernel keeps of files that were read through it.
fn drop_caches() {
    let _ = shell::quiet(&mut command("sync", &[]));
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
}

/// Times to first token, ms, of calls each at its time.
fn play(serve: &Serve, calls: &[(Duration, usize)]) -> Vec<Result<f64>> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let mut asked = Vec::new();
        for (at, model) in calls {
            std::thread::sleep((began + *at).saturating_duration_since(Instant::now()));
            asked.push(scope.spawn(move || load::ttft_ms(serve.data, &name(*model), PROMPT_TOKENS)));
        }
        // A client that panicked has hit a bug; the panic goes on here.
        asked.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

impl Found {
    fn take(&mut self, serve: &Serve, answers: &[Result<f64>], began_unix_s: u64) -> Result<()> {
        let answered: Vec<f64> = answers.iter().filter_map(|answer| answer.as_ref().ok().copied()).collect();
        let failed = answers.len() - answered.len();
        if let Some(error) = answers.iter().find_map(|answer| answer.as_ref().err()) {
            eprintln!("    {failed} of {} requests failed; one said: {error:#}", answers.len());
        }
        ensure!(failed * 10 < answers.len(), "more than a tenth of the requests failed");
        self.failed += failed;
        // A start counts as met by a request when somebody waited for its first token. They are told a moment later.
        std::thread::sleep(Duration::from_millis(1_500));
        let answer = http::call(serve.admin, "GET", "/v1/foreshock/starts?limit=1000", b"")?.json()?;
        let starts = answer["data"].as_array().context("no starts")?;
        let is_new = |start: &&serde_json::Value| start["at_unix_s"].as_u64().is_some_and(|at| at >= began_unix_s);
        let starts: Vec<&serde_json::Value> = starts.iter().filter(is_new).collect();
        let met = |start: &&&serde_json::Value| start["first_token_ms"].is_number();
        let cold = starts.iter().filter(met).count() as f64;
        let disk = starts.iter().filter(met).filter(|start| start["tier"] != "memory").count() as f64;
        let read: f64 = starts.iter().filter_map(|start| start["read_bytes"].as_f64()).sum();
        let ahead = counter(serve, "foreshock_weights_prefetched_bytes_total")?;
        let count = answers.len().max(1) as f64;
        self.ttft_ms.extend(&answered);
        self.cold_share.push(100.0 * cold / count);
        self.disk_share.push(100.0 * disk / count);
        self.read_mb.push((read + ahead) / 1e6);
        self.ahead_mb.push(ahead / 1e6);
        let models: BTreeSet<&str> = starts.iter().filter_map(|start| start["model"].as_str()).collect();
        eprintln!(
            "    {} requests; {cold} met a cold start of {} models, {disk} of them from disk; {:.0} MB read, {:.0} of them ahead",
            answers.len(),
            models.len(),
            (read + ahead) / 1e6,
            ahead / 1e6
        );
        Ok(())
    }
}

/// The sum of a counter over its labels; 0 where it has not been counted yet.
fn counter(serve: &Serve, name: &str) -> Result<f64> {
    let text = http::call(serve.data, "GET", "/metrics", b"")?;
    ensure!(text.status == 200, "/metrics says {}", text.status);
    let text = String::from_utf8_lossy(&text.body).into_owned();
    let is_its = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    Ok(text
        .lines()
        .filter(is_its)
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .fold(0.0, |sum, one| sum + one))
}

fn report(arms: &[Arm; 3]) -> Report {
    let mut report = Report::new("fleet");
    let [planned, others @ ..] = arms;
    for other in others {
        let mut row = |what: &str, unit, share, of: fn(&Found) -> &Vec<f64>| {
            let samples = Samples { ours: of(&planned.found).clone(), peer: of(&other.found).clone() };
            report.rows.push(Row::of_quantile(format!("{what} | {}", other.name), unit, share, &samples));
        };
        row("requests that met a cold start", "%", 0.5, |found| &found.cold_share);
        row("requests that met a cold start from disk", "%", 0.5, |found| &found.disk_share);
        row("time to first token, p50", "ms", 0.5, |found| &found.ttft_ms);
        row("time to first token, p99", "ms", 0.99, |found| &found.ttft_ms);
        row("read from disk in a round", "MB", 0.5, |found| &found.read_mb);
        row("of that, ahead of starts", "MB", 0.5, |found| &found.ahead_mb);
    }
    for arm in arms.iter().filter(|arm| arm.found.failed > 0) {
        eprintln!("    {}: {} requests failed", arm.name, arm.found.failed);
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_sets_the_planner_beside_each_other_rule() {
        let arm = |name, figure: f64| {
            let found = Found {
                ttft_ms: vec![figure, 2.0 * figure],
                cold_share: vec![figure],
                disk_share: vec![figure],
                read_mb: vec![figure],
                ahead_mb: vec![0.0],
                failed: 0,
            };
            Arm { name, options: [""; 4], state: PathBuf::new(), found }
        };
        let report = report(&[arm("planned", 1.0), arm("lru", 2.0), arm("unload", 4.0)]);
        assert_eq!(report.rows.len(), 12);
        assert_eq!((report.rows[0].ratio, report.rows[6].ratio), (0.5, 0.25));
        assert_eq!(report.rows[2].case, "time to first token, p50 | lru");
    }
}
