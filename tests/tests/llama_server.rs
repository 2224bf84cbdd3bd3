//! The real llama-server behind the controller, by its usual command line. Ignored, because building it takes minutes:
//! `cargo xtask bench first-token` builds it, and `cargo test --release -p blackbox --test llama_server -- --ignored` runs this.

use anyhow::{Context, Result, ensure};
use blackbox::stream::post;
use blackbox::{Foreshock, demo_model, http, workspace_root};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;

/// The search path with llama-server in it.
fn search_path() -> Result<OsString> {
    let folder = workspace_root().join("target/peers/llama-build/bin");
    ensure!(folder.join("llama-server").exists(), "{} has no llama-server", folder.display());
    let known = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&known)))?)
}

fn start(state: &Path) -> Result<Foreshock> {
    let path = search_path()?;
    let args = ["--idle-seconds", "60", "--cores", "0", "--cores-per-instance", "1"];
    Foreshock::start_with(state, &args, &[("PATH", Path::new(&path))])
}

fn chat(tokens: u64) -> Value {
    json!({
        "model": "llama", "messages": [{"role": "user", "content": "Tell me about the sea."}], "max_tokens": tokens,
        "temperature": 0, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    })
}

/// Process of the only instance.
fn pid(foreshock: &Foreshock) -> Result<i32> {
    let instances = foreshock.admin_get("instances")?;
    ensure!(instances["data"].as_array().is_some_and(|rows| rows.len() == 1), "{instances}");
    Ok(i32::try_from(instances["data"][0]["pid"].as_i64().context("no pid")?)?)
}

fn ask(foreshock: &Foreshock, tokens: u64) -> Result<String> {
    let answer = post(foreshock.data, "/v1/chat/completions", &chat(tokens))?;
    answer.complete()?;
    ensure!(answer.completion_tokens() == Some(tokens), "usage: {:?}", answer.completion_tokens());
    Ok(answer.text())
}

#[test]
#[ignore = "needs llama-server, which takes minutes to build"]
fn serves_from_zero_survives_and_is_adopted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut first = start(folder.path())?;
    first.add_model_with(
        "llama",
        &demo_model()?,
        &["--engine", "llama-server", "--slots", "2", "--context-tokens", "1024"],
    )?;
    let text = ask(&first, 24)?;
    let whole = json!({"model": "llama", "prompt": "Two and two", "max_tokens": 8, "temperature": 0});
    let whole = http::post_json(first.data, "/v1/completions", &whole)?;
    ensure!(whole.status == 200 && whole.json()?["usage"]["completion_tokens"] == 8, "{}", whole.text());
    let bad = http::post_json(first.data, "/v1/chat/completions", &json!({"model": "llama", "messages": "no list"}))?;
    ensure!((400..=501).contains(&bad.status) && bad.json()?["error"]["message"].is_string(), "{}", bad.text());
    let label = ["model=\"llama\""];
    let output = first.metric_sum("foreshock_output_tokens_total", &label)?;
    ensure!(output == 32.0, "{output} output tokens metered, not 24 + 8");
    ensure!(first.metric_sum("foreshock_prompt_tokens_total", &label)? > 8.0, "no prompt tokens");
    first.wait_until("the kernel has timed the stream", |running| {
        let parts = ["model=\"llama\"", "vantage=\"kernel\""];
        Ok(running.metric_sum("foreshock_ttft_seconds_count", &parts)? == 1.0)
    })?;

    let engine = pid(&first)?;
    first.kill_serve()?;
    let second = start(folder.path())?;
    ensure!(ask(&second, 24)? == text, "another answer after the restart");
    ensure!(pid(&second)? == engine, "not adopted");
    kill_process(Pid::from_raw(engine).context("no pid")?, Signal::KILL)?;
    second.wait_until("its end is counted", |running| {
        Ok(running.metric_sum("foreshock_instance_exits_total", &["reason=\"killed\""])? == 1.0)
    })?;
    ensure!(ask(&second, 24)? == text, "another answer from its successor");
    ensure!(second.terminate()?.success(), "SIGTERM is no clean exit");
    Ok(())
}
