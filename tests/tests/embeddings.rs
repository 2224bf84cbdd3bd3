//! An embedding model at zero instances, asked by the openai Python package: woken, right, metered, put to sleep.

use anyhow::{Context, Result, ensure};
use blackbox::{Foreshock, minilm, workspace_root};
use std::process::Command;

fn instances(foreshock: &Foreshock) -> Result<usize> {
    let snapshot = foreshock.admin_get("snapshot")?;
    Ok(snapshot["instances"].as_object().map_or(0, |instances| instances.len()))
}

#[test]
fn the_openai_package_gets_embeddings_from_zero() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "3"])?;
    foreshock.add_model("smollm2")?;
    foreshock.add_model_at("embedder", &minilm()?)?;
    ensure!(instances(&foreshock)? == 0, "instances before any request");
    let python = workspace_root().join("target/venv/bin/python");
    let output = Command::new(&python)
        .arg(workspace_root().join("tests/clients/openai_embeddings.py"))
        .arg(format!("http://{}/v1", foreshock.data))
        .args(["embedder", "smollm2"])
        .arg(workspace_root().join("../shared/golden/minilm_l6_v2_embeddings_f32.json"))
        .output()
        .with_context(|| format!("running {} (`cargo xtask setup` makes it)", python.display()))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    println!("{stdout}");
    ensure!(output.status.success(), "the client failed:\n{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    ensure!(stdout.ends_with("all passed\n"), "the client stopped early:\n{stdout}");

    // Every prompt token is metered once, and those of refused requests are not.
    let tokens = stdout.lines().find_map(|line| line.strip_prefix("prompt_tokens ")).context("the client's count")?;
    let of_embedder = ["model=\"embedder\""];
    let metered = foreshock.metric_sum("foreshock_prompt_tokens_total", &of_embedder)?;
    ensure!(metered == tokens.parse::<f64>()?, "the client counted {tokens}, the meter {metered}");
    let answered = ["model=\"embedder\"", "route=\"embeddings\"", "code=\"200\""];
    ensure!(foreshock.metric_sum("foreshock_requests_total", &answered)? == 7.0, "{}", foreshock.metrics()?);
    ensure!(foreshock.metric_sum("foreshock_output_tokens_total", &of_embedder)? == 0.0, "there is no output");
    ensure!(foreshock.metric_sum("foreshock_cold_starts_total", &of_embedder)? >= 1.0, "it was woken");
    ensure!(foreshock.metric_sum("foreshock_cold_starts_total", &["model=\"smollm2\""])? == 0.0, "nobody asked it");
    // The engine's own count comes with its reports.
    let encoded = ["model=\"embedder\"", "phase=\"encode\""];
    foreshock.wait_until("the engine's tokens", |running| {
        Ok(running.metric_sum("foreshock_engine_tokens_total", &encoded)? > 0.0)
    })?;
    foreshock.wait_until("no instance", |running| Ok(instances(running)? == 0))
}
