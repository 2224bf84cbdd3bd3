//! An engine whose batch moves at one speed, with prompts that are computed in chunks between its steps. Between two
//! events everything moves in straight lines, so an engine costs the run a few events per request, and none per token.

use super::{Done, EngineCost, Job, Totals};
use crate::NS_PER_MS;
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};

/// The engine.
#[derive(Clone, Debug, Default)]
pub struct FluidEngine {
    /// Tokens that each sequence has made that has been in the batch since the beginning.
    made: f64,
    decoding: BinaryHeap<Reverse<Decoding>>,
    prefill: VecDeque<(Job, f64)>,
    waiting: VecDeque<Job>,
    advanced_ns: u64,
    totals: Totals,
}

/// A sequence in the batch, done when `made` reaches `until`.
#[derive(Clone, Copy, Debug)]
struct Decoding {
    until: f64,
    job: Job,
}

impl PartialEq for Decoding {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Decoding {}

impl PartialOrd for Decoding {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decoding {
    fn cmp(&self, other: &Self) -> Ordering {
        self.until.total_cmp(&other.until).then(self.job.request.cmp(&other.job.request))
    }
}

impl FluidEngine {
    /// An engine that begins at a time.
    pub fn new(now_ns: u64) -> Self {
        Self { advanced_ns: now_ns, ..Self::default() }
    }

    /// What it has done so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Requests at it.
    pub fn load(&self) -> u32 {
        (self.decoding.len() + self.prefill.len() + self.waiting.len()) as u32
    }

    /// Sequences in the batch, those whose prompt is being computed included.
    pub fn running(&self) -> u32 {
        (self.decoding.len() + self.prefill.len()) as u32
    }

    /// Requests that wait for a place in the batch.
    pub fn waiting(&self) -> u32 {
        self.waiting.len() as u32
    }

    /// Takes a request. The caller has advanced the engine to now.
    pub fn submit(&mut self, job: Job, cost: &EngineCost) {
        self.waiting.push_back(job);
        self.admit(cost);
    }

    /// Moves to `now_ns`, which is no later than [`FluidEngine::due_ns`], and tells what happened there.
    pub fn advance(&mut self, now_ns: u64, cost: &EngineCost, done: &mut Vec<Done>) {
        let dt_ns = now_ns.saturating_sub(self.advanced_ns);
        self.advanced_ns = self.advanced_ns.max(now_ns);
        if self.running() == 0 {
            return;
        }
        let steps = dt_ns as f64 / self.step_ns(cost);
        self.totals.busy_ns += dt_ns;
        self.made += steps;
        self.totals.steps += steps;
        self.totals.decode_tokens += steps * self.decoding.len() as f64;
        if let Some((_, left)) = self.prefill.front_mut() {
            let computed = (steps * f64::from(cost.prefill_chunk)).min(*left);
            *left -= computed;
            self.totals.prefill_tokens += computed;
        }
        self.settle(cost, done);
    }

    /// When the next thing happens, if nothing comes in before; none while idle.
    pub fn due_ns(&self, cost: &EngineCost) -> Option<u64> {
        let prompt = self.prefill.front().map(|(_, left)| left / f64::from(cost.prefill_chunk.max(1)));
        let token = self.decoding.peek().map(|first| first.0.until - self.made);
        let steps = match (prompt, token) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        Some(self.advanced_ns + (steps.max(0.0) * self.step_ns(cost)).ceil() as u64 + 1)
    }

    /// Takes everything out, as jobs that go on where these stopped.
    pub fn abandon(&mut self) -> Vec<Job> {
        let made = self.made;
        let moved = |decoding: Decoding| {
            let left = ((decoding.until - made).ceil().max(1.0) as u32).min(decoding.job.output_tokens);
            let before = decoding.job.output_tokens - left;
            Job { output_tokens: left, prefill_tokens: decoding.job.prefill_tokens + before, ..decoding.job }
        };
        let mut jobs: Vec<Job> = self.decoding.drain().map(|decoding| moved(decoding.0)).collect();
        jobs.extend(self.prefill.drain(..).map(|(job, _)| job));
        jobs.extend(self.waiting.drain(..));
        jobs.sort_by_key(|job| job.request);
        jobs
    }

    /// Time of one step as things stand, ns.
    fn step_ns(&self, cost: &EngineCost) -> f64 {
        let chunk = if self.prefill.is_empty() { 0.0 } else { f64::from(cost.prefill_chunk) };
        let ms = cost.itl_ms(self.decoding.len() as u32) + chunk * cost.prefill_ms_per_token;
        (ms * NS_PER_MS as f64).max(1.0)
    }

    /// Tells what is done by now, and admits what waits.
    fn settle(&mut self, cost: &EngineCost, done: &mut Vec<Done>) {
        while let Some(first) = self.decoding.peek() {
            if first.0.until > self.made + 1e-6 {
                break;
            }
            done.push(Done::Last(first.0.job.request));
            self.decoding.pop();
            self.totals.finished += 1;
        }
        while let Some((job, left)) = self.prefill.front().copied() {
            if left > 1e-3 {
                break;
            }
            self.prefill.pop_front();
            done.push(Done::First(job.request));
            if job.output_tokens <= 1 {
                self.totals.finished += 1;
                done.push(Done::Last(job.request));
            } else {
                self.decoding.push(Reverse(Decoding { until: self.made + f64::from(job.output_tokens - 1), job }));
            }
        }
        self.admit(cost);
    }

    fn admit(&mut self, cost: &EngineCost) {
        while self.running() < cost.max_batch {
            let Some(job) = self.waiting.pop_front() else { return };
            self.prefill.push_back((job, f64::from(job.prefill_tokens)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: EngineCost = EngineCost {
        itl_base_ms: 10.0,
        itl_per_sequence_ms: 1.0,
        prefill_ms_per_token: 0.1,
        prefill_chunk: 100,
        max_batch: 2,
        kv_tokens: 0,
    };

    /// Runs to the end and lists what happened when, ms.
    fn run(jobs: &[Job]) -> Vec<(u64, Done)> {
        let mut engine = FluidEngine::new(0);
        jobs.iter().for_each(|job| engine.submit(*job, &COST));
        let mut seen = Vec::new();
        while let Some(due_ns) = engine.due_ns(&COST) {
            let mut done = Vec::new();
            engine.advance(due_ns, &COST, &mut done);
            seen.extend(done.into_iter().map(|done| (due_ns / NS_PER_MS, done)));
        }
        assert_eq!(engine.load(), 0);
        seen
    }

    fn job(request: u32, prefill_tokens: u32, output_tokens: u32) -> Job {
        Job { request, prefill_tokens, output_tokens }
    }

    #[test]
    fn a_request_takes_its_prompt_and_its_steps() {
        // Two chunks of (10 + 10) ms, then ten steps of 11 ms.
        assert_eq!(run(&[job(0, 200, 11)]), [(40, Done::First(0)), (150, Done::Last(0))]);
        assert_eq!(run(&[job(0, 100, 1)]), [(20, Done::First(0)), (20, Done::Last(0))]);
    }

    #[test]
    fn a_batch_shares_steps_and_the_third_waits() {
        // The second prompt's chunk makes a step of 10 + 1 + 10 ms, in which the first makes a token.
        // The third comes in when the first has left, and its chunk makes a step of 10 + 1 + 10 ms, the second's last.
        let want = [
            (20, Done::First(0)),
            (41, Done::First(1)),
            (149, Done::Last(0)),
            (170, Done::Last(1)),
            (170, Done::First(2)),
            (170, Done::Last(2)),
        ];
        assert_eq!(run(&[job(0, 100, 11), job(1, 100, 11), job(2, 100, 1)]), want);
    }

    #[test]
    fn what_is_abandoned_goes_on_where_it_stopped() {
        let mut engine = FluidEngine::new(0);
        engine.submit(job(0, 100, 11), &COST);
        let mut done = Vec::new();
        engine.advance(20 * NS_PER_MS + 1, &COST, &mut done);
        engine.advance((20 + 55) * NS_PER_MS, &COST, &mut done);
        assert_eq!(done, [Done::First(0)]);
        assert_eq!(engine.abandon(), [job(0, 105, 6)]);
        assert_eq!(engine.load(), 0);
    }
}
