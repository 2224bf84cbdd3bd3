//! `foreshock simulate` from outside: a trace gives a table, JSON and plots; a broken one an error that names line and column, or a
//! counted repair.

use anyhow::{Context, Result, ensure};
use blackbox::serve::foreshock_binary;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// Twenty requests, three seconds apart, and what else is given.
fn trace(folder: &Path, more: &str) -> Result<String> {
    let lines: String = (0..20).map(|at| format!("2024-01-01 00:00:{:02}.5,100,50\r\n", at * 3 % 60)).collect();
    let path = folder.join("trace.csv");
    std::fs::write(&path, format!("TIMESTAMP,ContextTokens,GeneratedTokens\r\n{lines}{more}"))?;
    Ok(path.display().to_string())
}

fn simulate(folder: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(foreshock_binary()?);
    command.arg("simulate").args(args).arg("--out").arg(folder.join("out"));
    command.output().context("cannot run foreshock")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_trace_gives_a_table_json_and_plots() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = trace(folder.path(), "")?;
    let output =
        simulate(folder.path(), &["--trace", &path, "--policy", "all", "--devices", "4", "--cold-start-s", "2"])?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for name in
        ["foreshock", "static-peak", "knative", "hpa", "keda", "ray-serve", "hybrid-histogram", "dynamo", "oracle"]
    {
        ensure!(table.lines().any(|line| line.starts_with(name)), "no {name} in\n{table}");
    }
    let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.path().join("out/simulation.json"))?)?;
    let policies = json["policies"].as_array().context("no policies")?;
    ensure!(policies.len() == 10, "{} policies", policies.len());
    ensure!(policies.iter().all(|policy| policy["answered"] == 20), "{policies:?}");
    for plot in ["load-foreshock.svg", "load-foreshock.png", "ttft.svg", "ttft.png", "cost.svg", "cost.png"] {
        ensure!(folder.path().join("out").join(plot).metadata()?.len() > 500, "{plot} is empty");
    }
    Ok(())
}

#[test]
fn broken_traces_are_named_or_mended() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let check = |more: &str, args: &[&str], status: i32, said: &str| {
        let path = trace(folder.path(), more)?;
        let output = simulate(folder.path(), &[&["--trace", &path], args].concat())?;
        let stderr = text(&output.stderr);
        ensure!(output.status.code() == Some(status) && stderr.contains(said), "{more}: {:?} {stderr}", output.status);
        anyhow::Ok(())
    };
    check("2024-01-01 00:01:00,-5,50", &[], 2, "trace.csv:22:21: ContextTokens is `-5`")?;
    check("2024-01-01 00:01:00,-5,50", &["--repair"], 0, "1 negative")?;
    check("2024-01-01 00:01:00,5", &[], 2, "trace.csv:22:23: 2 columns where the header has 3")?;
    check("", &["--policy", "none"], 2, "no policy `none`; there are foreshock")?;
    check("", &["--from-s", "100"], 2, "no requests from 100 s on")?;
    std::fs::write(folder.path().join("empty.csv"), "")?;
    let empty = folder.path().join("empty.csv").display().to_string();
    let output = simulate(folder.path(), &["--trace", &empty])?;
    ensure!(text(&output.stderr).contains("no requests in it"), "{}", text(&output.stderr));
    Ok(())
}

#[test]
fn one_seed_gives_one_outcome() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let args = ["--generate", "bursty:1:5", "--hours", "0.5", "--faults", "--policy", "foreshock", "--policy", "keda"];
    let table = |seed: &str| {
        Ok::<_, anyhow::Error>(text(&simulate(folder.path(), &[&args, &["--seed", seed][..]].concat())?.stdout))
    };
    let (one, again, other) = (table("1")?, table("1")?, table("2")?);
    ensure!(one == again && one != other, "{one}{again}{other}");
    Ok(())
}
