//! kill -9 of engines in the middle of streams: every stream must end complete and be, token for token, what
//! an undisturbed run gives, greedy and seeded alike.

use anyhow::{Context, Result, ensure};
use blackbox::serve::engine_pids;
use blackbox::{Foreshock, stream};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const KILLS: usize = 20;
const TOKENS: u64 = 160;

fn request(case: usize) -> Value {
    let subjects = ["the sea", "a clock", "winter", "two rivers", "an old map", "bread"];
    let temperature = if case.is_multiple_of(2) { 0.0 } else { 0.9 };
    let mut request = json!({
        "model": "smollm2",
        "messages": [{"role": "user", "content": format!("Tell a story about {}.", subjects[case % subjects.len()])}],
        "max_tokens": TOKENS, "temperature": temperature, "seed": 1000 + case, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true},
    });
    if case >= 4 {
        // These follow a grammar, which another instance takes up in the middle: words in capitals, without an end.
        request["structured_outputs"] = json!({"regex": "([A-Z][a-z]{1,9} )*"});
    }
    request
}

#[test]
fn streams_survive_twenty_kills_unchanged() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "60"])?;
    foreshock.add_model("smollm2")?;
    let expected: Vec<String> = (0..6)
        .map(|case| {
            let answer = stream::post(foreshock.data, "/v1/chat/completions", &request(case))?;
            answer.complete()?;
            Ok(answer.text())
        })
        .collect::<Result<_>>()?;

    let killing = AtomicBool::new(true);
    let streams = AtomicUsize::new(0);
    let kills = std::thread::scope(|scope| -> Result<usize> {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (foreshock, expected, killing, streams) = (&foreshock, &expected, &killing, &streams);
                scope.spawn(move || -> Result<()> {
                    let mut case = client;
                    while killing.load(Ordering::Relaxed) {
                        let answer = stream::post(foreshock.data, "/v1/chat/completions", &request(case % 6))?;
                        answer.complete().with_context(|| format!("case {}", case % 6))?;
                        ensure!(answer.completion_tokens() == Some(TOKENS), "usage: {:?}", answer.completion_tokens());
                        ensure!(answer.text() == expected[case % 6], "case {}: {:?}", case % 6, answer.text());
                        streams.fetch_add(1, Ordering::Relaxed);
                        case += 1;
                    }
                    Ok(())
                })
            })
            .collect();
        let kills = kill_engines_under_load(&foreshock);
        killing.store(false, Ordering::Relaxed);
        for client in clients {
            client.join().expect("client thread panicked")?;
        }
        kills
    })?;
    let resumed = foreshock.metric_sum("foreshock_resumed_streams_total", &[])?;
    println!("{kills} kills, {} streams complete and identical, {resumed} resumed", streams.load(Ordering::Relaxed));
    ensure!(kills == KILLS, "only {kills} kills");
    ensure!(resumed > 0.0, "no stream was resumed: the kills hit nothing");
    ensure!(foreshock.metric_sum("foreshock_failed_streams_total", &[])? == 0.0, "a stream failed");
    Ok(())
}

/// Kills an engine that is serving, 20 times, each time one that has produced tokens since it started.
fn kill_engines_under_load(foreshock: &Foreshock) -> Result<usize> {
    let mut kills = 0;
    while kills < KILLS {
        let produced = foreshock.metric_sum("foreshock_output_tokens_total", &[])?;
        let streaming = |running: &Foreshock| -> Result<bool> {
            Ok(!engine_pids(running.state()).is_empty()
                && running.metric_sum("foreshock_output_tokens_total", &[])? > produced + 20.0)
        };
        foreshock.wait_until("tokens flow", streaming)?;
        std::thread::sleep(Duration::from_millis(37 * (kills as u64 % 5)));
        let pids = engine_pids(foreshock.state());
        let Some(pid) = pids.get(kills % pids.len().max(1)).and_then(|pid| rustix::process::Pid::from_raw(*pid)) else {
            continue;
        };
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        kills += 1;
    }
    Ok(kills)
}
