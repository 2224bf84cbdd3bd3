//! Two adapters and their base through the gateway: from zero with one engine, each its own text, the same again
//! after a kill -9 of `serve` and in streams whose engine was killed; and what is refused.

#[path = "../../engine/store/tests/made/adapter.rs"]
mod made;

use anyhow::{Context, Result, ensure};
use blackbox::serve::{demo_model, engine_pids, kill_engines};
use blackbox::{Foreshock, http, stream};
use made::{Shape, config, tensors, write};
use serde_json::{Value, json};
use std::path::Path;

const SHAPE: Shape = Shape { width: 576, q: 576, kv: 192, ffn: 1536 };
const RANK: usize = 8;
const NAMES: [&str; 3] = ["base", "sql", "poems"];
/// Long enough that the streams still flow when the kill, which follows a poll of the metrics, arrives.
const TOKENS: u64 = 256;
/// One core, so that one instance is all there can be.
const ARGS: [&str; 4] = ["--cores", "0", "--idle-seconds", "60"];

fn make(folder: &Path, seed: u32) {
    let layers: Vec<usize> = (0..30).collect();
    write(folder, &config(RANK), &tensors(SHAPE, &layers, RANK, seed, 0.3));
}

fn register(foreshock: &Foreshock, body: &Value) -> Result<http::Answer> {
    http::post_json(foreshock.admin, "/v1/foreshock/models", body)
}

fn ask(foreshock: &Foreshock, model: &str, tokens: u64) -> Result<String> {
    let body = json!({
        "model": model, "prompt": "The old clockmaker looked at the broken tower and said that", "max_tokens": tokens,
        "temperature": 0, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    });
    let answer = stream::post(foreshock.data, "/v1/completions", &body)?;
    answer.complete().with_context(|| model.to_owned())?;
    ensure!(answer.completion_tokens() == Some(tokens), "{model}: {:?}", answer.completion_tokens());
    Ok(answer.text())
}

/// All three at once.
fn ask_all(foreshock: &Foreshock, tokens: u64) -> Result<Vec<String>> {
    std::thread::scope(|scope| {
        let clients = NAMES.map(|name| scope.spawn(move || ask(foreshock, name, tokens)));
        clients.into_iter().map(|client| client.join().expect("a client panicked")).collect()
    })
}

fn delete(foreshock: &Foreshock, name: &str) -> Result<http::Answer> {
    http::request(foreshock.admin, "DELETE", &format!("/v1/foreshock/models/{name}"), &[], b"")
}

#[test]
fn adapters_share_their_bases_engine_and_outlive_its_death_and_serves() -> Result<()> {
    let (state, made) = (tempfile::tempdir()?, tempfile::tempdir()?);
    make(&made.path().join("sql"), 1);
    make(&made.path().join("poems"), 2);
    let mut foreshock = Foreshock::start_in(state.path(), &ARGS)?;
    let base = register(&foreshock, &json!({ "name": "base", "path": demo_model()? }))?;
    ensure!(base.status == 201, "{}", base.text());
    for name in ["sql", "poems"] {
        let body = json!({ "name": name, "base": "base", "adapter": made.path().join(name) });
        let answer = register(&foreshock, &body)?;
        ensure!(answer.status == 201, "{}", answer.text());
    }
    check_list(&foreshock)?;

    let expected = ask_all(&foreshock, TOKENS)?;
    ensure!(expected[0] != expected[1] && expected[1] != expected[2] && expected[0] != expected[2], "{expected:?}");
    let pids = engine_pids(state.path());
    ensure!(pids.len() == 1, "one engine serves all: {pids:?}");
    for (name, expected) in NAMES.iter().zip(&expected) {
        ensure!(ask(&foreshock, name, TOKENS)? == *expected, "{name} alone");
    }

    foreshock.kill_serve()?;
    drop(foreshock);
    let foreshock = Foreshock::start_in(state.path(), &ARGS)?;
    ensure!(ask_all(&foreshock, TOKENS)? == expected, "after serve was killed");
    ensure!(engine_pids(state.path()) == pids, "its engine was adopted");

    let resumed = std::thread::scope(|scope| -> Result<Vec<String>> {
        // Read before the clients start, or their own arrival could be in it.
        let answered = foreshock.metric_sum("foreshock_ttft_seconds_count", &["model=\"poems\"", "gateway"])?;
        let asking = scope.spawn(|| ask_all(&foreshock, TOKENS));
        foreshock.wait_until("tokens flow", |running| {
            let now = running.metric_sum("foreshock_ttft_seconds_count", &["model=\"poems\"", "gateway"])?;
            Ok(now > answered)
        })?;
        let pid = rustix::process::Pid::from_raw(pids[0]).context("a process id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        asking.join().expect("the clients panicked")
    })?;
    ensure!(resumed == expected, "streams that were resumed: {resumed:?}");
    ensure!(foreshock.metric_sum("foreshock_resumed_streams_total", &[])? > 0.0, "the kill hit nothing");
    ensure!(engine_pids(state.path()).len() == 1 && engine_pids(state.path()) != pids, "another engine");
    for name in NAMES {
        let tokens = foreshock.metric_sum("foreshock_output_tokens_total", &[&format!("model=\"{name}\"")])?;
        ensure!(tokens == 2.0 * TOKENS as f64, "{name} is metered by its own name: {tokens}");
    }
    check_removal(&foreshock)?;
    drop(foreshock);
    kill_engines(state.path());
    Ok(())
}

fn check_list(foreshock: &Foreshock) -> Result<()> {
    let rows = http::get(foreshock.data, "/v1/models")?.json()?["data"].clone();
    let row = |name: &str| rows.as_array().into_iter().flatten().find(|row| row["id"] == name).cloned();
    let (base, sql) = (row("base").context("base")?, row("sql").context("sql")?);
    ensure!(base["parent"].is_null() && base["root"] == "base", "{base}");
    ensure!(sql["parent"] == "base" && sql["root"] == "sql", "{sql}");
    let revision = format!("{}+", base["revision"].as_str().context("a revision")?);
    ensure!(sql["revision"].as_str().is_some_and(|text| text.starts_with(&revision)), "{sql}");
    Ok(())
}

fn check_removal(foreshock: &Foreshock) -> Result<()> {
    let refused = delete(foreshock, "base")?;
    ensure!(refused.status == 409 && refused.text().contains("is the base of poems, sql"), "{}", refused.text());
    ensure!(delete(foreshock, "sql")?.status == 200);
    foreshock.wait_until("sql is gone", |running| {
        let body = json!({ "model": "sql", "prompt": "a" });
        Ok(http::post_json(running.data, "/v1/completions", &body)?.status == 404)
    })?;
    ensure!(ask(foreshock, "poems", 4).is_ok(), "the others are unharmed");
    ensure!(delete(foreshock, "poems")?.status == 200 && delete(foreshock, "base")?.status == 200);
    Ok(())
}

#[test]
fn bad_adapters_are_refused_by_field() -> Result<()> {
    let foreshock = Foreshock::start(&ARGS)?;
    ensure!(register(&foreshock, &json!({ "name": "base", "path": demo_model()? }))?.status == 201);
    let made = tempfile::tempdir()?;
    let good = tensors(SHAPE, &[0], RANK, 1, 0.1);
    let mut fields = config(RANK);
    fields.insert("layers_to_transform".to_owned(), json!([0]));
    let check = |body: &Value, status: u16, param: &str, part: &str| -> Result<()> {
        let answer = register(&foreshock, body)?;
        let error = answer.json()?["error"].clone();
        ensure!(answer.status == status && error["param"] == param, "{body}: {} {error}", answer.status);
        ensure!(error["message"].as_str().is_some_and(|message| message.contains(part)), "{error}, expected {part}");
        Ok(())
    };
    let folder = |name: &str| made.path().join(name);
    for (name, field, value, part) in [
        ("dora", "use_dora", json!(true), "use_dora"),
        ("rank", "r", json!(1000), "ranks from 1 to 256"),
        ("shape", "r", json!(16), "has shape [8, 576], expected [16, 576]"),
        ("modules", "target_modules", json!(["lm_head"]), "lm_head"),
        ("layers", "layers_to_transform", json!([30]), "layers 0 to 29"),
    ] {
        let mut fields = fields.clone();
        fields.insert(field.to_owned(), value);
        write(&folder(name), &fields, &good);
        check(&json!({ "name": "x", "base": "base", "adapter": folder(name) }), 400, "adapter", part)?;
    }
    let mut nan = good.clone();
    nan[3].2[5] = f32::NAN;
    write(&folder("nan"), &fields, &nan);
    check(&json!({ "name": "x", "base": "base", "adapter": folder("nan") }), 400, "adapter", "not finite")?;
    write(&folder("good"), &fields, &good);
    let adapter = folder("good");
    check(&json!({ "name": "x", "base": "other", "adapter": adapter }), 400, "base", "`other` is not registered")?;
    check(&json!({ "name": "base", "base": "base", "adapter": adapter }), 409, "name", "is a model's already")?;
    check(&json!({ "name": "x", "adapter": adapter }), 400, "base", "needs its `base`")?;
    check(&json!({ "name": "x", "base": "base" }), 400, "adapter", "without `adapter`")?;
    check(&json!({ "name": "x", "base": "base", "adapter": "here" }), 400, "adapter", "absolute")?;
    check(
        &json!({ "name": "x", "base": "base", "adapter": adapter, "path": adapter }),
        400,
        "path",
        "there is `path`",
    )?;
    check(&json!({ "name": "x y", "base": "base", "adapter": adapter }), 400, "name", "no model name")?;
    let answer = register(&foreshock, &json!({ "name": "x", "base": "base", "adapter": adapter }))?;
    ensure!(answer.status == 201, "{}", answer.text());
    check(&json!({ "name": "x", "path": demo_model()? }), 409, "name", "is an adapter's already")?;

    // Files that change afterwards are found out by the engine, and the base is unharmed.
    write(&folder("good"), &fields, &tensors(SHAPE, &[0], RANK, 2, 0.1));
    let answer = http::post_json(foreshock.data, "/v1/completions", &json!({ "model": "x", "prompt": "a" }))?;
    ensure!(answer.status == 500 && answer.text().contains("register the adapter again"), "{}", answer.text());
    ensure!(ask(&foreshock, "base", 4).is_ok());
    Ok(())
}
