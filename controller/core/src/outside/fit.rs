//! Chooses and calibrates the engine: whichever serves the requests that were seen as they were seen to be served.

use super::curve::{PromptLine, StepCurve, median, quantile};
use super::engine::{Engine, Job, Prefill, Run};
use super::flows::{Seen, Stream};
use crate::seconds_between;

/// Requests that met nobody, without which those that met the fewest streams are taken as well.
const UNDISTURBED_NEEDED: usize = 20;
/// Share of the time at which fewer than the most streams were there at most: what is rarer is a lost event.
const RARE: f64 = 0.002;
/// Places beyond the most streams seen that are tried.
const MORE_SLOTS: u32 = 8;
/// Parts of a usual prompt that a step may take, and then parts of the best of them.
const QUANTA: [f64; 6] = [f64::INFINITY, 1.0, 0.5, 0.25, 0.125, 0.0625];
const FINER: [f64; 6] = [1.0, 0.65, 0.75, 0.87, 1.15, 1.3];
/// Rounds of choosing how prompts are taken, and then how many streams.
const ROUNDS: usize = 2;
/// Rounds of calibration; each multiplies the two curves by what was seen over what was served.
const CALIBRATIONS: usize = 3;
/// One choice is better than a likelier one when with that the times fit worse by this factor.
const BELIEVED: f64 = 1.02;

/// The learned engine.
#[derive(Clone, Debug)]
pub(super) struct Fitted {
    pub engine: Engine,
    pub streams_max: u32,
    /// Mean relative error of the times.
    pub error: f64,
    /// A step's time over its mean, as it varied.
    pub jitter: Vec<f64>,
}

/// The requests that were seen, and how they were served.
struct Trace<'a> {
    jobs: Vec<Job>,
    streams: &'a [Stream],
    /// Of all their gaps: high quantiles, s.
    gap_quantiles_s: [f64; 3],
}

/// Learns from what was seen; None where it is too little.
pub(super) fn fit(seen: &Seen) -> Option<Fitted> {
    let step = StepCurve::fit(&seen.gaps_by_streams_s)?;
    let streams_max = streams_max(&seen.streams);
    let prompt = PromptLine::fit(&prompts(&seen.streams, &step, streams_max))?;
    let jitter = jitter(seen, &step);
    let trace = Trace {
        jobs: jobs(&seen.streams),
        streams: &seen.streams,
        gap_quantiles_s: gap_quantiles_s(&mut seen.gaps_s.clone()),
    };
    let sizes: Vec<f64> = trace.jobs.iter().map(|job| prompt.at_s(job.bytes)).collect();
    let usual_s = median(&sizes).max(1e-5);
    let mut best = trace.calibrated(&Engine { slots: None, step, prompt, prefill: Prefill::Shared(f64::INFINITY) });
    for round in 0..ROUNDS {
        let parts_s = match best.0.prefill {
            Prefill::Shared(quantum_s) if round > 0 && quantum_s.is_finite() => FINER.map(|part| part * quantum_s),
            _ => QUANTA.map(|part| part * usual_s),
        };
        // With and without a limit of places, since either may look like the other's lack.
        let tried = parts_s.into_iter().map(Prefill::Shared).chain([Prefill::Alone]).flat_map(|prefill| {
            [None, Some(streams_max)].map(|slots| trace.calibrated(&Engine { prefill, slots, ..best.0.clone() }))
        });
        best = least(tried).unwrap_or(best);
        best = trace.with_slots(&best.0, streams_max);
    }
    Some(Fitted { engine: best.0, streams_max, error: best.1, jitter })
}

/// The same engine calibrated anew on a part of what was seen.
pub(super) fn recalibrated(fitted: &Fitted, streams: &[Stream], seen: &Seen) -> Fitted {
    let gap_quantiles_s = gap_quantiles_s(&mut seen.gaps_s.clone());
    let (engine, error) = Trace { jobs: jobs(streams), streams, gap_quantiles_s }.calibrated(&fitted.engine);
    Fitted { engine, error, ..fitted.clone() }
}

fn least(tried: impl Iterator<Item = (Engine, f64)>) -> Option<(Engine, f64)> {
    tried.min_by(|one, other| one.1.total_cmp(&other.1))
}

/// The requests as they came.
pub(super) fn jobs(streams: &[Stream]) -> Vec<Job> {
    let Some(from_ns) = streams.first().map(|stream| stream.start_ns) else { return Vec::new() };
    let job = |stream: &Stream| Job {
        arrive_s: seconds_between(from_ns, stream.start_ns),
        bytes: stream.request_bytes as f64,
        tokens: stream.tokens.max(1),
    };
    streams.iter().map(job).collect()
}

/// Most streams that had tokens at the same time, for more than a moment.
fn streams_max(streams: &[Stream]) -> u32 {
    let begins = streams.iter().map(|stream| (stream.first_ns, 1_i64));
    let ends = streams.iter().map(|stream| (stream.last_ns, -1_i64));
    let mut changes: Vec<(u64, i64)> = begins.chain(ends).collect();
    changes.sort_unstable();
    let mut time_s: Vec<f64> = Vec::new();
    let (mut count, mut since_ns) = (0_i64, 0);
    for (at_ns, change) in changes {
        let level = usize::try_from(count).unwrap_or(0);
        if time_s.len() <= level {
            time_s.resize(level + 1, 0.0);
        }
        if level > 0 {
            time_s[level] += seconds_between(since_ns, at_ns);
        }
        (count, since_ns) = (count + change, at_ns);
    }
    let busy_s: f64 = time_s.iter().sum();
    let mut above_s = 0.0;
    for (level, its_s) in time_s.iter().enumerate().rev() {
        above_s += its_s;
        if above_s > RARE * busy_s {
            return u32::try_from(level).unwrap_or(u32::MAX).max(1);
        }
    }
    1
}

/// (request bytes, work of its prompt in s) of requests that had nothing to wait for but a step.
fn prompts(streams: &[Stream], step: &StepCurve, streams_max: u32) -> Vec<(f64, f64)> {
    let mut calm: Vec<&Stream> = streams.iter().filter(|s| s.alone && (s.met == 0 || s.met < streams_max)).collect();
    if calm.is_empty() {
        calm = streams.iter().collect();
    }
    calm.sort_by_key(|stream| stream.met);
    let enough = calm.partition_point(|stream| stream.met == 0).max(UNDISTURBED_NEEDED).min(calm.len());
    let point = |stream: &&Stream| {
        // It came in the middle of a step, and its own also took a token of every stream.
        let steps_s = if stream.met == 0 { 0.0 } else { 1.5 * step.at_s(stream.met as usize) };
        let work_s = seconds_between(stream.start_ns, stream.first_ns) - steps_s;
        (stream.request_bytes as f64, work_s.max(0.0))
    };
    calm[..enough].iter().map(point).collect()
}

/// Undisturbed gaps over what the curve says, with mean 1.
fn jitter(seen: &Seen, step: &StepCurve) -> Vec<f64> {
    let each = |(at, gaps): (usize, &Vec<f64>)| {
        let usual_s = step.at_s(at + 1);
        gaps.iter().map(move |gap_s| (gap_s / usual_s).clamp(0.2, 5.0)).collect::<Vec<f64>>()
    };
    let mut factors: Vec<f64> = seen.gaps_by_streams_s.iter().enumerate().flat_map(each).collect();
    let mean = factors.iter().sum::<f64>() / factors.len().max(1) as f64;
    factors.iter_mut().for_each(|factor| *factor /= mean);
    factors
}

fn gap_quantiles_s(gaps_s: &mut [f64]) -> [f64; 3] {
    [0.9, 0.95, 0.99].map(|share| quantile(gaps_s, share))
}

impl Trace<'_> {
    /// With the number of places that fits best; with no limit unless a limit fits clearly better, and with a power of
    /// two, as most are, unless another number does.
    fn with_slots(&self, engine: &Engine, streams_max: u32) -> (Engine, f64) {
        let with = |slots| self.calibrated(&Engine { slots, ..engine.clone() });
        let unlimited = with(None);
        let limited: Vec<_> = (streams_max..=streams_max + MORE_SLOTS).map(|slots| with(Some(slots))).collect();
        let Some(best) = least(limited.iter().cloned()) else { return unlimited };
        let powers = limited.into_iter().filter(|(engine, _)| engine.slots.is_some_and(u32::is_power_of_two));
        let best = least(powers).filter(|power| power.1 < BELIEVED * best.1).unwrap_or(best);
        if best.1 * BELIEVED < unlimited.1 { best } else { unlimited }
    }

    /// The engine with its curves scaled to what was seen, and the error that is left.
    fn calibrated(&self, engine: &Engine) -> (Engine, f64) {
        let mut best = (engine.clone(), f64::INFINITY);
        let mut engine = engine.clone();
        for _ in 0..CALIBRATIONS {
            let run = engine.run(&self.jobs, &[]);
            let error = self.error(&run);
            if error < best.1 {
                best = (engine.clone(), error);
            }
            let (step, prompt) = self.ratios(&run, engine.slots);
            engine.step.scale(step);
            engine.prompt.scale(prompt);
        }
        best
    }

    /// What was seen over what was served: of decoding, and of the first tokens of requests that met no queue.
    fn ratios(&self, run: &Run, slots: Option<u32>) -> (f64, f64) {
        let (mut decode, mut first) = ((0.0, 0.0), (0.0, 0.0));
        for (stream, served) in self.streams.iter().zip(&run.served) {
            decode = (decode.0 + seconds_between(stream.first_ns, stream.last_ns), decode.1 + served.decode_s);
            if stream.alone && slots.is_none_or(|slots| stream.met < slots) {
                first = (first.0 + seconds_between(stream.start_ns, stream.first_ns), first.1 + served.ttft_s);
            }
        }
        let ratio = |(seen, served): (f64, f64)| {
            if seen > 0.0 && served > 0.0 { (seen / served).clamp(0.5, 2.0) } else { 1.0 }
        };
        (ratio(decode), ratio(first))
    }

    /// Mean relative error of first tokens, of decoding and of the longer gaps.
    fn error(&self, run: &Run) -> f64 {
        let (mut first, mut decode) = ((0.0, 0.0), (0.0, 0.0));
        for (stream, served) in self.streams.iter().zip(&run.served) {
            let ttft_s = seconds_between(stream.start_ns, stream.first_ns);
            let decode_s = seconds_between(stream.first_ns, stream.last_ns);
            first = (first.0 + (ttft_s - served.ttft_s).abs(), first.1 + ttft_s);
            decode = (decode.0 + (decode_s - served.decode_s).abs(), decode.1 + decode_s);
        }
        let relative = |(off, of): (f64, f64)| if of > 0.0 { off / of } else { 0.0 };
        let served_s = gap_quantiles_s(&mut run.gaps_s.clone());
        let apart = |(seen_s, served_s): (&f64, &f64)| {
            if *seen_s > 0.0 && *served_s > 0.0 { (seen_s / served_s).ln().abs() } else { 0.0 }
        };
        let gaps = self.gap_quantiles_s.iter().zip(&served_s).map(apart).sum::<f64>() / 3.0;
        (relative(first) + relative(decode) + gaps) / 3.0
    }
}
