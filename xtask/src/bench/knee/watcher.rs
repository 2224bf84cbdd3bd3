//! `foreshock attach` as a process, and what it prints.

use super::load::Slo;
use crate::layout;
use crate::shell::{command, quiet};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

/// One line of its output.
pub struct Frame {
    /// When it came.
    pub at: Instant,
    pub batch: f64,
    pub queue: f64,
    pub estimate: Option<Estimate>,
}

#[derive(Deserialize)]
struct Line {
    in_flight: InFlight,
    estimate: Option<Estimate>,
    probes: Probes,
}

#[derive(Deserialize)]
struct InFlight {
    batch: u32,
    queue: u32,
}

#[derive(Deserialize)]
struct Probes {
    events_lost: u64,
    samples_lost: u64,
}

/// What it says of the server.
#[derive(Deserialize)]
pub struct Estimate {
    pub slots: Option<u32>,
    pub knee_per_s: f64,
    pub knee_per_s_low: f64,
    pub knee_per_s_high: f64,
    /// Requests per second that the server would answer when it is never idle.
    pub throughput_per_s: f64,
    /// Mean relative error of the learned server's times, and what breaks first.
    pub error: f64,
    pub bound: String,
}

pub struct Watcher {
    child: Child,
    lines: Option<JoinHandle<Vec<(Instant, String)>>>,
}

impl Watcher {
    /// Watches a port; returns once it does.
    pub fn start(port: u16, slo: &Slo, quantile: f64) -> Result<Self> {
        let mut attach = command(layout::foreshock(), &["attach", "--json", "--every-ms", "100"]);
        attach.args(["--port", &port.to_string(), "--slo-quantile", &quantile.to_string()]);
        attach.args(["--slo-ttft-ms", &slo.ttft_ms.to_string(), "--slo-itl-ms", &slo.itl_ms.to_string()]);
        let mut child = attach.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting the watcher")?;
        let mut output = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let first = output.next().transpose()?.unwrap_or_default();
        ensure!(first.contains("watching"), "the kernel witness does not watch: it needs root ({first})");
        let read = move || output.map_while(Result::ok).map(|line| (Instant::now(), line)).collect();
        Ok(Self { child, lines: Some(std::thread::spawn(read)) })
    }

    /// Everything that it said; fails where it lost something.
    pub fn stop(&mut self) -> Result<Vec<Frame>> {
        quiet(&mut command("kill", &["-INT", &self.child.id().to_string()]))?;
        ensure!(self.child.wait()?.success(), "the watcher failed");
        let lines = self.lines.take().context("it was stopped before")?.join().ok().context("its reader panicked")?;
        let mut frames = Vec::new();
        for (at, line) in lines {
            let line: Line = serde_json::from_str(&line).with_context(|| format!("the watcher printed {line}"))?;
            ensure!(line.probes.events_lost + line.probes.samples_lost == 0, "the watcher lost events");
            let InFlight { batch, queue } = line.in_flight;
            frames.push(Frame { at, batch: f64::from(batch), queue: f64::from(queue), estimate: line.estimate });
        }
        Ok(frames)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
