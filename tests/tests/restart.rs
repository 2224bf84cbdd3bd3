//! kill -9 of `serve`: the registry is intact, running engines are adopted by the next start, and engines that
//! nobody adopts end with their lease.

use anyhow::{Result, ensure};
use blackbox::serve::{engine_pids, kill_engines};
use blackbox::{Foreshock, http, stream};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

fn request() -> Value {
    json!({"model": "smollm2", "prompt": "Two and two", "max_tokens": 8, "temperature": 0, "stream": true})
}

fn ask(foreshock: &Foreshock) -> Result<String> {
    let answer = stream::post(foreshock.data, "/v1/completions", &request())?;
    answer.complete()?;
    Ok(answer.text())
}

/// Kills the engines of a folder that outlives its `Foreshock` when the test ends, well or not.
struct Cleanup<'a>(&'a Path);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        kill_engines(self.0);
    }
}

#[test]
fn engines_are_adopted_after_kill_9_of_serve() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _cleanup = Cleanup(folder.path());
    let mut first = Foreshock::start_in(folder.path(), &["--idle-seconds", "60"])?;
    first.add_model("smollm2")?;
    let text = ask(&first)?;
    let engines = engine_pids(folder.path());
    ensure!(engines.len() == 1, "engines: {engines:?}");
    first.kill_serve()?;
    ensure!(engine_pids(folder.path()) == engines, "the engine died with its controller");

    let second = Foreshock::start_in(folder.path(), &["--idle-seconds", "60"])?;
    second.wait_until("the adopted engine is seen", |running| {
        // Ready to serve comes before the first tick, and with it the first snapshot.
        let instances = running.admin_get("snapshot").map(|snapshot| snapshot["instances"].clone()).unwrap_or_default();
        Ok(instances.as_object().is_some_and(|rows| rows.len() == 1))
    })?;
    ensure!(ask(&second)? == text, "another answer after the restart");
    ensure!(engine_pids(folder.path()) == engines, "not adopted but started anew: {:?}", engine_pids(folder.path()));
    ensure!(second.metric_sum("foreshock_cold_starts_total", &[])? == 0.0, "a cold start after adoption");

    ensure!(second.terminate()?.success(), "SIGTERM is no clean exit");
    let gone = Instant::now() + Duration::from_secs(20);
    while !engine_pids(folder.path()).is_empty() {
        ensure!(Instant::now() < gone, "engines left behind after a graceful stop");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn engines_without_a_controller_end_with_their_lease() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _cleanup = Cleanup(folder.path());
    let mut serve = Foreshock::start_in(folder.path(), &["--lease-ms", "2000", "--idle-seconds", "60"])?;
    serve.add_model("smollm2")?;
    ask(&serve)?;
    ensure!(engine_pids(folder.path()).len() == 1, "no engine after an answer");
    serve.kill_serve()?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !engine_pids(folder.path()).is_empty() {
        ensure!(Instant::now() < deadline, "the engine outlived its lease of 2 s by far");
        std::thread::sleep(Duration::from_millis(100));
    }
    // What it left behind does not stand in the way of a new start, and the registry is intact.
    let again = Foreshock::start_in(folder.path(), &[])?;
    ensure!(!ask(&again)?.is_empty(), "no answer");
    Ok(())
}

#[test]
fn a_second_serve_on_the_same_state_is_refused() -> Result<()> {
    let serve = Foreshock::start(&[])?;
    let output = std::process::Command::new(blackbox::foreshock_binary()?)
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--state"])
        .arg(serve.state())
        .output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "a second serve started");
    ensure!(message.contains(&serve.pid().to_string()), "does not name the holder {}: {message}", serve.pid());
    Ok(())
}

#[test]
fn advisory_mode_decides_and_starts_nothing() -> Result<()> {
    let serve = Foreshock::start(&["--advise", "--hold-timeout-ms", "1500"])?;
    serve.add_model("smollm2")?;
    let body = json!({"model": "smollm2", "prompt": "Hello", "max_tokens": 4});
    let answer = http::post_json(serve.data, "/v1/completions", &body)?;
    ensure!((500..600).contains(&answer.status), "{} {}", answer.status, answer.text());
    ensure!(engine_pids(serve.state()).is_empty(), "advisory mode started an engine");
    let decisions = serve.admin_get("decisions?model=smollm2")?;
    ensure!(decisions.to_string().contains("held_at_zero"), "nothing was decided: {decisions}");
    Ok(())
}
