//! Engines that are not ours, behind the same controller: started from zero for a held request, scaled, drained with
//! nothing lost, adopted after kill -9 of serve, replaced after their own. The engine is tests/clients/openai_engine.py,
//! a real OpenAI-compatible server whose answers are a count, so that every lost token shows.

use anyhow::{Context, Result, ensure};
use blackbox::serve::{engine_pids, kill_engines};
use blackbox::stream::{Streamed, post};
use blackbox::{Foreshock, http, workspace_root};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::path::Path;

/// The command line of the engine with these further arguments. The state folder's name in it lets the helpers that look
/// for engine processes find it.
fn command(state: &Path, args: &str) -> String {
    format!(
        "python3 {} --port {{port}} --model {{path}} --name {{name}} --slots {{slots}} --state {} {args}",
        workspace_root().join("tests/clients/openai_engine.py").display(),
        state.join("engines").display()
    )
}

/// Registers a checkpoint of any bytes under `name`.
fn add(foreshock: &Foreshock, name: &str, command: &str, args: &[&str]) -> Result<()> {
    let checkpoint = foreshock.state().join(format!("{name}.bin"));
    std::fs::write(&checkpoint, name)?;
    let engine = ["--engine", "custom", "--engine-command", command, "--engine-memory-bytes", "50000000"];
    foreshock.add_model_with(name, &checkpoint, &[&engine, args].concat())
}

fn completion(model: &str, tokens: usize) -> Value {
    json!({"model": model, "prompt": "one two three", "max_tokens": tokens, "stream": true})
}

/// What the engine answers.
fn counted(tokens: usize) -> String {
    (0..tokens).map(|index| format!(" {index}")).collect()
}

fn expect(answer: &Streamed, tokens: usize) -> Result<()> {
    answer.complete()?;
    ensure!(answer.text() == counted(tokens), "{:?} is not a count to {tokens}", answer.text());
    Ok(())
}

fn kill(pid: i32) -> Result<()> {
    Ok(kill_process(Pid::from_raw(pid).context("no pid")?, Signal::KILL)?)
}

/// Waits until an engine runs and has taken a request.
fn wait_running(foreshock: &Foreshock, requests: u64) -> Result<()> {
    foreshock.wait_until("requests are at an engine", |running| {
        let instances = running.admin_get("instances")?;
        let rows = instances["data"].as_array().cloned().unwrap_or_default();
        let at_engines = |row: &Value| ["running", "waiting"].map(|of| row["telemetry"][of].as_u64().unwrap_or(0));
        Ok(rows.iter().flat_map(at_engines).sum::<u64>() >= requests)
    })
}

#[test]
fn wakes_from_zero_and_passes_everything_on() -> Result<()> {
    // Room for one, or a quick run of requests would be worth a second one to the planner.
    let foreshock = Foreshock::start(&["--idle-seconds", "60", "--cores", "0", "--cores-per-instance", "1"])?;
    add(&foreshock, "other", &command(foreshock.state(), ""), &[])?;
    ensure!(engine_pids(foreshock.state()).is_empty(), "an engine before any request");
    let first = post(foreshock.data, "/v1/completions", &completion("other", 20))?;
    expect(&first, 20)?;
    let chat = json!({
        "model": "other", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 5, "stream": true,
        "stream_options": {"include_usage": true}, "a_parameter_of_its_own": [1, 2],
    });
    let chat = post(foreshock.data, "/v1/chat/completions", &chat)?;
    expect(&chat, 5)?;
    ensure!(chat.completion_tokens() == Some(5), "the usage is gone: {:?}", chat.events);
    let whole = json!({"model": "other", "prompt": "one two three", "max_tokens": 7});
    let whole = http::post_json(foreshock.data, "/v1/completions", &whole)?;
    ensure!(whole.json()?["choices"][0]["text"] == counted(7), "{}", whole.text());
    let vectors = json!({"model": "other", "input": "x"});
    let vectors = http::post_json(foreshock.data, "/v1/embeddings", &vectors)?.json()?;
    ensure!(vectors["data"][0]["embedding"] == json!([0.6, 0.8]), "{vectors}");

    let label = ["model=\"other\""];
    let output = foreshock.metric_sum("foreshock_output_tokens_total", &label)?;
    ensure!(output == 32.0, "{output} output tokens metered, not 20 + 5 + 7");
    let prompt = foreshock.metric_sum("foreshock_prompt_tokens_total", &label)?;
    ensure!(prompt == 8.0, "{prompt} prompt tokens metered, not the 2 + 3 + 3 that the engine told");
    let starts = foreshock.metric_sum("foreshock_cold_starts_total", &label)?;
    ensure!(starts == 1.0, "{starts} cold starts, not one:\n{}", foreshock.log());
    let probes = foreshock.admin_get("probes")?;
    if probes["ports"].as_array().is_some_and(|ports| !ports.is_empty()) {
        foreshock.wait_until("the kernel has timed both streams", |running| {
            let parts = ["model=\"other\"", "vantage=\"kernel\""];
            Ok(running.metric_sum("foreshock_ttft_seconds_count", &parts)? == 2.0)
        })?;
    }
    errors_pass(&foreshock)?;
    ensure!(foreshock.terminate()?.success(), "SIGTERM is no clean exit");
    Ok(())
}

/// What the engine says is wrong with a request is what the client hears, and nobody else suffers from it.
fn errors_pass(foreshock: &Foreshock) -> Result<()> {
    for (status, stream) in [(400, false), (422, true), (500, false), (501, true)] {
        let body = json!({"model": "other", "prompt": format!("error {status}"), "stream": stream});
        let answer = http::post_json(foreshock.data, "/v1/completions", &body)?;
        let message = answer.json()?["error"]["message"].clone();
        ensure!(answer.status == status, "{status}: {} {}", answer.status, answer.text());
        ensure!(message == format!("you asked for error {status}"), "{status}: {message}");
        expect(&post(foreshock.data, "/v1/completions", &completion("other", 2))?, 2)?;
        let exits = foreshock.metric_sum("foreshock_instance_exits_total", &[])?;
        ensure!(exits == 0.0, "the engine did not survive {status}:\n{}", foreshock.log());
    }
    Ok(())
}

#[test]
fn scales_to_two_and_back_to_zero_with_nothing_lost() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "2", "--cores-per-instance", "1"])?;
    add(&foreshock, "other", &command(foreshock.state(), "--token-ms 15"), &["--slots", "2"])?;
    let most = std::thread::scope(|scope| -> Result<usize> {
        let ask = || post(foreshock.data, "/v1/completions", &completion("other", 60));
        let clients: Vec<_> = (0..24).map(|_| scope.spawn(ask)).collect();
        let mut most = 0;
        while !clients.iter().all(|client| client.is_finished()) {
            most = most.max(foreshock.admin_get("instances")?["data"].as_array().map_or(0, Vec::len));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        for client in clients {
            expect(&client.join().expect("client panicked")?, 60)?;
        }
        Ok(most)
    })?;
    ensure!(most == 2, "{most} engines at most");
    foreshock.wait_until("no engine is left", |running| Ok(engine_pids(running.state()).is_empty()))?;
    // A process is gone a moment before its end is counted.
    foreshock.wait_until("both are counted as drained", |running| {
        Ok(running.metric_sum("foreshock_instance_exits_total", &["reason=\"drained\""])? == 2.0)
    })
}

#[test]
fn a_stream_is_finished_before_its_engine_is_stopped() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "60"])?;
    add(&foreshock, "other", &command(foreshock.state(), "--token-ms 20"), &[])?;
    std::thread::scope(|scope| -> Result<()> {
        let client = scope.spawn(|| post(foreshock.data, "/v1/completions", &completion("other", 100)));
        wait_running(&foreshock, 1)?;
        let removed = http::request(foreshock.admin, "DELETE", "/v1/foreshock/models/other", &[], b"")?;
        ensure!(removed.status == 200, "{}", removed.text());
        expect(&client.join().expect("client panicked")?, 100)
    })?;
    foreshock.wait_until("the engine is gone", |running| Ok(engine_pids(running.state()).is_empty()))
}

#[test]
fn kill_9_of_an_engine_ends_its_streams_honestly_and_the_next_request_is_served() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "60"])?;
    add(&foreshock, "other", &command(foreshock.state(), "--token-ms 20"), &[])?;
    let broken = std::thread::scope(|scope| -> Result<Streamed> {
        let client = scope.spawn(|| post(foreshock.data, "/v1/completions", &completion("other", 500)));
        let flowing = |running: &Foreshock| {
            Ok(running.metric_sum("foreshock_engine_tokens_total", &["model=\"other\"", "phase=\"decode\""])? > 5.0)
        };
        foreshock.wait_until("tokens flow", flowing)?;
        kill(engine_pids(foreshock.state())[0])?;
        client.join().expect("client panicked")
    })?;
    let message = broken.error().context("no error event")?;
    ensure!(message.contains("broke off in the middle"), "{message}");
    let text = broken.text();
    ensure!(broken.done && broken.status == 200 && counted(500).starts_with(&text) && text.len() > 5, "{text:?}");
    expect(&post(foreshock.data, "/v1/completions", &completion("other", 9))?, 9)?;
    let failed = foreshock.metric_sum("foreshock_failed_streams_total", &["reason=\"broken_off\""])?;
    ensure!(failed == 1.0, "{failed} streams counted as broken off");
    Ok(())
}

/// Kills the engines of a folder that outlives its `Foreshock` when the test ends, well or not.
struct Cleanup<'a>(&'a Path);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        kill_engines(self.0);
    }
}

#[test]
fn adopted_after_kill_9_of_serve() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _cleanup = Cleanup(folder.path());
    let mut first = Foreshock::start_in(folder.path(), &["--idle-seconds", "60"])?;
    add(&first, "other", &command(folder.path(), ""), &[])?;
    expect(&post(first.data, "/v1/completions", &completion("other", 5))?, 5)?;
    let engines = engine_pids(folder.path());
    ensure!(engines.len() == 1, "engines: {engines:?}");
    first.kill_serve()?;
    let second = Foreshock::start_in(folder.path(), &["--idle-seconds", "60"])?;
    expect(&post(second.data, "/v1/completions", &completion("other", 6))?, 6)?;
    ensure!(engine_pids(folder.path()) == engines, "not adopted: {:?}", engine_pids(folder.path()));
    ensure!(second.metric_sum("foreshock_cold_starts_total", &[])? == 0.0, "a cold start after adoption");
    // Its end is seen, and it is replaced.
    kill(engines[0])?;
    second.wait_until("the end is counted", |running| {
        Ok(running.metric_sum("foreshock_instance_exits_total", &[])? == 1.0)
    })?;
    expect(&post(second.data, "/v1/completions", &completion("other", 7))?, 7)?;
    ensure!(second.terminate()?.success(), "SIGTERM is no clean exit");
    ensure!(engine_pids(folder.path()).is_empty(), "an engine was left behind");
    Ok(())
}

#[test]
fn engines_that_do_not_start_are_named() -> Result<()> {
    let args = ["--hold-timeout-ms", "3000", "--start-timeout-ms", "1500"];
    let foreshock = Foreshock::start(&args)?;
    add(&foreshock, "missing", "no-such-engine --port {port}", &[])?;
    add(&foreshock, "late", &command(foreshock.state(), "--start-ms -1"), &[])?;
    add(&foreshock, "ends", &command(foreshock.state(), "--exit 3"), &[])?;
    let check = |model: &str, said: &[&str]| -> Result<()> {
        let answer = http::post_json(foreshock.data, "/v1/completions", &completion(model, 2))?;
        ensure!(answer.status == 503, "{model}: {} {}", answer.status, answer.text());
        said.iter().try_for_each(|said| {
            foreshock.wait_until(&format!("{model}: the log says {said:?}"), |running| Ok(running.log().contains(said)))
        })
    };
    check("missing", &["the program `no-such-engine` of the engine custom is not found"])?;
    check("late", &["did not answer 200 at http://127.0.0.1:", "(last: status 503)", "it did not become ready"])?;
    check("ends", &["exit code 3"])?;
    // Neither is started over and over.
    let starts = foreshock.metric_sum("foreshock_cold_starts_total", &["model=\"ends\""])?;
    ensure!((1.0..8.0).contains(&starts), "{starts} starts of an engine that ends at once");
    foreshock.wait_until("nothing is left", |running| Ok(engine_pids(running.state()).is_empty()))
}
