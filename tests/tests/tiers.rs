//! Weights between memory and disk by the plan: read ahead of a start that is expected, given up where there is no room,
//! and both told with their reasons.

use anyhow::{Context, Result, ensure};
use blackbox::serve::{engine_pids, kill_engines};
use blackbox::{Foreshock, demo_model, foreshock_binary, http};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// A state folder with the demo model in its store, and shared memory of its own.
struct Place {
    folder: TempDir,
    memory: TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let place = Self { folder: tempfile::tempdir()?, memory: tempfile::tempdir_in("/dev/shm")? };
        let mut add = Command::new(foreshock_binary()?);
        add.args(["models", "add", "m"]).arg(demo_model()?).arg("--state").arg(place.folder.path());
        let added = add.output()?;
        ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        Ok(place)
    }

    fn segments(&self) -> PathBuf {
        self.memory.path().join("segments")
    }

    fn serve(&self, args: &[&str]) -> Result<Foreshock> {
        let segments = self.segments();
        let own = ["--segments", segments.to_str().context("a path")?];
        Foreshock::start_in(self.folder.path(), &[&own[..], args].concat())
    }

    /// Files of weights in memory.
    fn held(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.segments()).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.file_name().is_some_and(|name| name.len() == 64)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        kill_engines(self.folder.path());
    }
}

fn ask(serve: &Foreshock) -> Result<()> {
    let body = json!({"model": "m", "prompt": "The sea is", "max_tokens": 1, "temperature": 0});
    let answer = http::post_json(serve.data, "/v1/completions", &body)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    serve.wait_until("no engine", |serve| Ok(engine_pids(serve.state()).is_empty()))
}

fn decisions(serve: &Foreshock, reason: &str) -> Result<Vec<Value>> {
    let answer = serve.admin_get("decisions?model=m&limit=1000")?;
    let all = answer["data"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().filter(|decision| decision["reason"] == reason).collect())
}

fn explained(state: &Path) -> Result<String> {
    let output = Command::new(foreshock_binary()?).args(["explain", "m", "--state"]).arg(state).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn weights_are_read_ahead_of_the_start_that_is_expected() -> Result<()> {
    let place = Place::new()?;
    let serve = place.serve(&["--idle-seconds", "0"])?;
    for _ in 0..4 {
        ask(&serve)?;
        // Calls have to be apart to be told from one another.
        std::thread::sleep(Duration::from_millis(500));
    }
    ensure!(!place.held().is_empty(), "weights stay in memory when their engine has gone");
    ensure!(decisions(&serve, "prefetched")?.is_empty(), "they are there already");
    // As if memory had run short.
    place.held().iter().try_for_each(std::fs::remove_file)?;
    // Asked of the admin port: each look at the data port's metrics is a request there too, which the kernel may see before
    // the gateway does, and for one without a name an engine is started that reads the weights itself.
    serve.wait_until("weights to be read ahead", |serve| {
        Ok(!decisions(serve, "prefetched")?.is_empty() && !place.held().is_empty())
    })?;
    serve.wait_until("the reading to be counted", |serve| {
        Ok(serve.metric_sum("foreshock_weights_prefetches_total", &["outcome=\"whole\""])? > 0.0)
    })?;
    let told = decisions(&serve, "prefetched")?;
    let first = told.first().context("no decision says so")?;
    ensure!(first["actions"][0]["kind"]["kind"] == "prefetch", "{first}");
    ensure!(first["why"].as_str().is_some_and(|why| why.contains("Reading")), "{first}");
    ensure!(serve.metric_sum("foreshock_weights_prefetched_bytes_total", &[])? > 9e7, "not counted");
    ask(&serve)?;
    serve.wait_until("the start to be recorded", |serve| {
        let starts = serve.admin_get("starts?model=m")?["data"].as_array().cloned().unwrap_or_default();
        Ok(starts.len() >= 5 && starts[0]["tier"] == "memory")
    })?;
    let text = explained(serve.state())?;
    ensure!(text.contains("into memory"), "{text}");
    Ok(())
}

#[test]
fn weights_without_room_leave_by_a_decision() -> Result<()> {
    let place = Place::new()?;
    let serve = place.serve(&["--idle-seconds", "0", "--idle-weights-bytes", "1000000"])?;
    ask(&serve)?;
    serve.wait_until("weights to leave", |serve| {
        Ok(place.held().is_empty() && !decisions(serve, "forgotten")?.is_empty())
    })?;
    ensure!(serve.metric_sum("foreshock_weights_evictions_total", &["reason=\"planned\""])? > 0.0, "not counted");
    // The next tick sees it.
    serve.wait_until("the weights to be seen on disk", |serve| {
        let snapshot = serve.admin_get("snapshot")?;
        let weights = &snapshot["models"]["m"]["weights"];
        let own_bytes = snapshot["models"]["m"]["instance_bytes"].as_u64();
        Ok(weights["tier"] == "disk" && weights["bytes"].as_u64() > Some(90_000_000) && own_bytes < Some(400_000_000))
    })
}
