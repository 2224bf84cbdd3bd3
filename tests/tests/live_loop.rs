//! The main loop, live: an open-loop load that rises and falls on two models drives instances from zero up and
//! back to zero, within the node's cores, with every decision explained and every request answered exactly once.

use anyhow::{Result, ensure};
use blackbox::{Foreshock, stream};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Arrival times of one model, seconds: by the clock, whatever is still unanswered. The rate rises, then falls.
fn arrivals(offset: f64) -> Vec<f64> {
    let gaps = [0.8, 0.5, 0.3, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3, 0.5, 0.8, 1.0];
    gaps.iter()
        .flat_map(|gap| [*gap; 3])
        .scan(offset, |at, gap| {
            *at += gap;
            Some(*at)
        })
        .collect()
}

fn request(model: &str, number: usize) -> Value {
    json!({
        "model": model, "prompt": format!("Request {number}: once upon a time"), "max_tokens": 24,
        "temperature": 0, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    })
}

/// What an observer of the admin port saw while the load ran.
#[derive(Default)]
struct Seen {
    most_instances: usize,
    models: BTreeSet<String>,
    overcommitted: Option<String>,
}

fn observe(foreshock: &Foreshock, seen: &mut Seen) -> Result<usize> {
    let snapshot = foreshock.admin_get("snapshot")?;
    let instances = snapshot["instances"].as_object().cloned().unwrap_or_default();
    let mut cores = Vec::new();
    for instance in instances.values() {
        seen.models.insert(instance["model"].as_str().unwrap_or("?").to_owned());
        for shard in instance["placement"]["shards"].as_array().into_iter().flatten() {
            cores.extend(shard["device"]["cores"].as_array().into_iter().flatten().filter_map(Value::as_u64));
        }
    }
    let distinct: BTreeSet<_> = cores.iter().collect();
    if distinct.len() != cores.len() {
        seen.overcommitted = Some(snapshot["instances"].to_string());
    }
    seen.most_instances = seen.most_instances.max(instances.len());
    Ok(instances.len())
}

#[test]
fn rises_from_zero_and_returns_to_zero() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "3", "--cores-per-instance", "1"])?;
    foreshock.add_model("alpha")?;
    foreshock.add_model("beta")?;
    let mut seen = Seen::default();
    ensure!(observe(&foreshock, &mut seen)? == 0, "instances before any request");

    let running = AtomicBool::new(true);
    let answers = Mutex::new(Vec::new());
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let mut clients = Vec::new();
        for (model, offset) in [("alpha", 0.0), ("beta", 2.0)] {
            for (number, at) in arrivals(offset).into_iter().enumerate() {
                let (foreshock, answers) = (&foreshock, &answers);
                clients.push(scope.spawn(move || -> Result<()> {
                    std::thread::sleep(Duration::from_secs_f64(at).saturating_sub(begun.elapsed()));
                    let answer = stream::post(foreshock.data, "/v1/completions", &request(model, number))?;
                    answers.lock().expect("lock").push((model, number, answer));
                    Ok(())
                }));
            }
        }
        let watcher = scope.spawn(|| -> Result<Seen> {
            let mut seen = Seen::default();
            while running.load(Ordering::Relaxed) {
                observe(&foreshock, &mut seen)?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(seen)
        });
        let outcomes: Vec<_> = clients.into_iter().map(|client| client.join().expect("client panicked")).collect();
        running.store(false, Ordering::Relaxed);
        seen = watcher.join().expect("watcher panicked")?;
        outcomes.into_iter().collect()
    })?;

    let answers = answers.into_inner()?;
    ensure!(answers.len() == 72, "{} answers to 72 requests", answers.len());
    for (model, number, answer) in &answers {
        answer.complete().map_err(|error| error.context(format!("{model} {number}")))?;
        ensure!(answer.completion_tokens() == Some(24), "{model} {number}: {:?}", answer.completion_tokens());
    }
    ensure!(seen.models.len() == 2, "only {:?} had instances", seen.models);
    ensure!(seen.most_instances == 2, "{} instances at most, not 2", seen.most_instances);
    ensure!(seen.overcommitted.is_none(), "a core was given twice: {:?}", seen.overcommitted);

    foreshock.wait_until("both models are back at zero", |running| Ok(observe(running, &mut Seen::default())? == 0))?;
    every_request_counted_once(&foreshock)?;
    decisions_are_explained(&foreshock)
}

fn every_request_counted_once(foreshock: &Foreshock) -> Result<()> {
    for model in ["alpha", "beta"] {
        let label = format!("model=\"{model}\"");
        let arrived = foreshock.metric_sum("foreshock_arrivals_total", &[&label])?;
        let output = foreshock.metric_sum("foreshock_output_tokens_total", &[&label])?;
        ensure!(arrived == 36.0, "{model}: {arrived} arrivals counted, not 36");
        ensure!(output == 36.0 * 24.0, "{model}: {output} output tokens metered, not {}", 36 * 24);
    }
    Ok(())
}

fn decisions_are_explained(foreshock: &Foreshock) -> Result<()> {
    for model in ["alpha", "beta"] {
        let answer = foreshock.admin_get(&format!("decisions?model={model}&limit=1000"))?;
        let decisions = answer["data"].as_array().cloned().unwrap_or_default();
        let reasons: BTreeSet<_> = decisions.iter().filter_map(|decision| decision["reason"].as_str()).collect();
        println!("{model}: {} decisions, reasons {reasons:?}", decisions.len());
        ensure!(reasons.contains("held_at_zero"), "{model}: no held_at_zero in {reasons:?}");
        ensure!(reasons.contains("idle"), "{model}: no idle in {reasons:?}");
        for decision in &decisions {
            ensure!(decision["why"].as_str().is_some_and(|why| why.len() > 20), "a decision without words: {decision}");
        }
    }
    let output = std::process::Command::new(blackbox::foreshock_binary()?)
        .args(["explain", "alpha", "--state"])
        .arg(foreshock.state())
        .output()?;
    println!("{}", String::from_utf8_lossy(&output.stdout));
    ensure!(output.status.success() && output.stdout.len() > 100, "explain: {output:?}");
    Ok(())
}
