//! The learned engine, run over requests: continuous batching in steps, as all of today's engines do it.
//!
//! A step takes one token of every stream that has its prompt, and of the prompts that have a place as much as
//! [`Prefill`] says, first come first served.

use super::curve::{PromptLine, StepCurve};
use super::draw::Draw;
use std::collections::VecDeque;

/// How prompts and streams share the engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Prefill {
    /// One prompt at a time, and all streams stand still meanwhile.
    Alone,
    /// A step takes prompts up to this much work, s, besides the streams: a little (chunked prefill), or without end.
    Shared(f64),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Engine {
    /// Streams served at once, from prompt to end; None without a limit.
    pub slots: Option<u32>,
    pub step: StepCurve,
    pub prompt: PromptLine,
    pub prefill: Prefill,
}

/// One request, in the order of arrival.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub arrive_s: f64,
    pub bytes: f64,
    /// At least 1.
    pub tokens: u32,
}

/// What it got. 0 where it never came to that.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    pub ttft_s: f64,
    /// From the first token to the last.
    pub decode_s: f64,
}

/// Everything that a run gave.
#[derive(Default)]
pub(super) struct Run {
    pub served: Vec<Served>,
    /// Gaps between tokens, s.
    pub gaps_s: Vec<f64>,
    /// When the last request ended, s.
    pub end_s: f64,
}

struct Stream {
    job: usize,
    left: u32,
    first_s: f64,
    last_s: f64,
}

/// Shortest step, s: time always goes on.
const STEP_S_MIN: f64 = 1e-6;

impl Engine {
    /// Serves the jobs. Each step's time is multiplied with one of `jitter`, where there are any.
    pub fn run(&self, jobs: &[Job], jitter: &[f64]) -> Run {
        let mut draw = Draw::new(7);
        let mut run = Run { served: vec![Served::default(); jobs.len()], ..Run::default() };
        let slots = self.slots.map_or(usize::MAX, |slots| slots.max(1) as usize);
        let (quantum_s, alone) = match self.prefill {
            Prefill::Alone => (f64::INFINITY, true),
            Prefill::Shared(quantum_s) => (quantum_s.max(STEP_S_MIN), false),
        };
        let (mut now_s, mut next) = (0.0_f64, 0);
        let mut prompts: VecDeque<(usize, f64)> = VecDeque::new();
        let mut streams: Vec<Stream> = Vec::new();
        loop {
            while next < jobs.len() && jobs[next].arrive_s <= now_s && prompts.len() + streams.len() < slots {
                prompts.push_back((next, self.prompt.at_s(jobs[next].bytes)));
                next += 1;
            }
            if prompts.is_empty() && streams.is_empty() {
                let Some(job) = jobs.get(next) else { break };
                now_s = now_s.max(job.arrive_s);
                continue;
            }
            let still = alone && !prompts.is_empty();
            let mut step_s = 0.0;
            if !streams.is_empty() && !still {
                let factor = if jitter.is_empty() { 1.0 } else { jitter[draw.below(jitter.len())] };
                step_s = self.step.at_s(streams.len()) * factor;
            }
            let mut left_s = quantum_s;
            let mut ready = 0;
            for (_, work_s) in &mut prompts {
                let part_s = work_s.min(left_s);
                (*work_s, left_s, step_s) = (*work_s - part_s, left_s - part_s, step_s + part_s);
                if *work_s > 0.0 {
                    break;
                }
                ready += 1;
                if alone {
                    break;
                }
            }
            now_s += step_s.max(STEP_S_MIN);
            if !still {
                decode(&mut streams, now_s, &mut run);
            }
            for (job, _) in prompts.drain(..ready) {
                run.served[job].ttft_s = now_s - jobs[job].arrive_s;
                if jobs[job].tokens > 1 {
                    streams.push(Stream { job, left: jobs[job].tokens - 1, first_s: now_s, last_s: now_s });
                }
            }
        }
        run.end_s = now_s;
        run
    }
}

/// One more token of every stream.
fn decode(streams: &mut Vec<Stream>, now_s: f64, run: &mut Run) {
    for stream in streams.iter_mut() {
        run.gaps_s.push(now_s - stream.last_s);
        stream.last_s = now_s;
        stream.left -= 1;
        if stream.left == 0 {
            run.served[stream.job].decode_s = now_s - stream.first_s;
        }
    }
    streams.retain(|stream| stream.left > 0);
}
