//! Engines of several kinds, simulated apart from the code under test, seen through their packets only: what is
//! predicted from moderate load against what breaks at high load.

use controller_core::outside::{Ask, Estimate, InFlight, Outside, Sample, Slo};
use proptest::prelude::*;
use std::collections::VecDeque;

/// A simulated engine.
#[derive(Clone, Copy, Debug)]
struct Kind {
    slots: usize,
    /// Prompt tokens of a step beside the streams' own; None serves one whole prompt while all streams stand still.
    chunk: Option<f64>,
    /// A step's time: constant, and for each stream in it, ms.
    step_ms: (f64, f64),
    prompt_ms_per_token: f64,
    /// Tokens of prompts and of answers, in the mean.
    prompt_tokens: f64,
    answer_tokens: f64,
}

struct Rng(u64);

impl Rng {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }
}

struct Request {
    at_ms: f64,
    prompt: f64,
    answer: u32,
}

/// What clients measured, ms, and what the kernel saw.
#[derive(Default)]
struct Seen {
    ttft_ms: Vec<f64>,
    gaps_ms: Vec<f64>,
    samples: Vec<Sample>,
    /// True (time, batch, queue) after each step; a free place is taken at once.
    truth: Vec<(f64, usize, usize)>,
    end_ms: f64,
}

fn ns(ms: f64) -> u64 {
    (ms * 1e6) as u64
}

impl Kind {
    fn requests(&self, per_s: f64, count: usize, from_ms: f64, rng: &mut Rng) -> Vec<Request> {
        let mut at_ms = from_ms;
        let mut one = || {
            at_ms += rng.exponential() * 1e3 / per_s;
            let prompt = self.prompt_tokens * (0.25 + 1.5 * rng.uniform());
            let answer = (self.answer_tokens * (0.2 + 0.8 * rng.exponential())).clamp(2.0, 400.0) as u32;
            Request { at_ms, prompt: prompt.round(), answer }
        };
        (0..count).map(|_| one()).collect()
    }

    fn serve(&self, requests: &[Request], rng: &mut Rng) -> Seen {
        let mut seen = Seen::default();
        let mut now_ms = 0.0_f64;
        let mut next = 0;
        let mut prompts: VecDeque<(usize, f64)> = VecDeque::new();
        let mut streams: Vec<(usize, u32, f64)> = Vec::new();
        let mut told = 0;
        loop {
            while next < requests.len() && requests[next].at_ms <= now_ms && prompts.len() + streams.len() < self.slots
            {
                prompts.push_back((next, requests[next].prompt));
                next += 1;
            }
            if prompts.is_empty() && streams.is_empty() {
                let Some(request) = requests.get(next) else { break };
                now_ms = request.at_ms;
                continue;
            }
            let exclusive = self.chunk.is_none() && !prompts.is_empty();
            let mut step_ms = if streams.is_empty() || exclusive {
                0.3
            } else {
                self.step_ms.0 + self.step_ms.1 * streams.len() as f64
            };
            let mut room = self.chunk.unwrap_or(f64::INFINITY);
            let mut ready = Vec::new();
            while let Some((request, left)) = prompts.front_mut() {
                let part = left.min(room);
                (*left, room, step_ms) = (*left - part, room - part, step_ms + part * self.prompt_ms_per_token);
                if *left > 0.0 {
                    break;
                }
                ready.push(*request);
                prompts.pop_front();
                if exclusive {
                    break;
                }
            }
            now_ms += step_ms * (0.9 + 0.2 * rng.uniform());
            while told < requests.len() && requests[told].at_ms <= now_ms {
                let bytes = requests[told].prompt * (3.6 + 0.8 * rng.uniform()) + 250.0;
                let at_ns = ns(requests[told].at_ms);
                let (flow, request_bytes) = (told as u64, bytes as u64);
                seen.samples.push(Sample::Start { flow, at_ns, request_bytes, ask: Ask::Stream });
                told += 1;
            }
            if !exclusive {
                for (request, left, last_ms) in &mut streams {
                    seen.gaps_ms.push(now_ms - *last_ms);
                    (*left, *last_ms) = (*left - 1, now_ms);
                    seen.token(*request, *left, now_ms);
                }
                streams.retain(|(_, left, _)| *left > 0);
            }
            for request in ready {
                seen.ttft_ms.push(now_ms - requests[request].at_ms);
                let left = requests[request].answer - 1;
                seen.token(request, left, now_ms);
                streams.push((request, left, now_ms));
            }
            let waiting = requests[next..].iter().take_while(|request| request.at_ms <= now_ms).count();
            let taken = streams.len() + prompts.len();
            let taking = waiting.min(self.slots - taken);
            seen.truth.push((now_ms, taken + taking, waiting - taking));
        }
        seen.end_ms = now_ms;
        seen
    }

    /// The load at which the objective breaks over many requests, halving the range.
    fn knee(&self, slo: &Slo) -> f64 {
        let holds = |per_s: f64| {
            let mut rng = Rng(99);
            let seen = self.serve(&self.requests(per_s, 5000, 0.0, &mut rng), &mut rng);
            quantile(&seen.ttft_ms, slo.quantile) <= slo.ttft_ms && quantile(&seen.gaps_ms, slo.quantile) <= slo.itl_ms
        };
        let (mut low, mut high) = (0.0, 500.0);
        for _ in 0..14 {
            let middle = (low + high) / 2.0;
            if holds(middle) { low = middle } else { high = middle }
        }
        low
    }
}

impl Seen {
    fn token(&mut self, request: usize, left: u32, now_ms: f64) {
        let (flow, at_ns) = (request as u64, ns(now_ms));
        self.samples.push(Sample::Token { flow, at_ns, segments: 1 });
        if left == 0 {
            self.samples.push(Sample::End { flow, at_ns, complete: true });
        }
    }
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(share * (sorted.len() - 1) as f64) as usize]
}

/// Watches an engine at this share of its knee, and returns what was estimated with the true knee.
fn estimated(kind: &Kind, slo: &Slo, share: f64, seed: u64) -> (Estimate, f64) {
    let knee = kind.knee(slo);
    (watched(kind, share * knee, seed).estimate(slo).expect("enough was seen"), knee)
}

fn watched(kind: &Kind, per_s: f64, seed: u64) -> Outside {
    let mut rng = Rng(seed);
    let seen = kind.serve(&kind.requests(per_s, 900, 0.0, &mut rng), &mut rng);
    let mut outside = Outside::default();
    seen.samples.iter().for_each(|sample| outside.observe(sample));
    outside
}

/// Short prompts and answers of a middling engine.
const BASE: Kind = Kind {
    slots: 4,
    chunk: None,
    step_ms: (8.0, 2.0),
    prompt_ms_per_token: 0.3,
    prompt_tokens: 150.0,
    answer_tokens: 40.0,
};
const BY_TTFT: Slo = Slo { ttft_ms: 1_000.0, itl_ms: 10_000.0, quantile: 0.95 };
const BY_ITL: Slo = Slo { ttft_ms: 10_000.0, itl_ms: 35.0, quantile: 0.9 };
const BY_BOTH: Slo = Slo { ttft_ms: 500.0, itl_ms: 80.0, quantile: 0.9 };

#[test]
fn the_knee_is_known_from_seven_tenths_of_it() {
    let mut misses = Vec::new();
    let mut check = |kind: Kind, slo: &Slo, share: f64| {
        let (found, knee) = estimated(&kind, slo, share, 5);
        let off = found.knee_per_s / knee - 1.0;
        if off.abs() > 0.15 {
            misses.push(format!("{off:+.3} of {knee:.2} at {share}: {kind:?} {slo:?} {found:?}"));
        }
        if found.slots.is_some_and(|slots| slots.abs_diff(kind.slots as u32) > 1) {
            misses.push(format!("places: {kind:?} {slo:?} {found:?}"));
        }
    };
    let slos = [BY_TTFT, BY_ITL, BY_BOTH];
    let mut turn = 0;
    for slots in [4, 8, 16] {
        for step_ms in [(8.0, 2.0), (15.0, 0.05)] {
            for chunk in [None, Some(32.0), Some(512.0)] {
                check(Kind { slots, chunk, step_ms, ..BASE }, &slos[turn % 3], 0.7);
                turn += 1;
            }
            turn += 1;
        }
    }
    check(BASE, &BY_TTFT, 0.5);
    check(Kind { slots: 8, ..BASE }, &BY_BOTH, 0.5);
    assert!(misses.is_empty(), "{misses:#?}");
}

#[test]
fn batch_and_queue_are_seen_as_they_are() {
    let check = |kind: Kind, per_s: f64| {
        let mut rng = Rng(3);
        let seen = kind.serve(&kind.requests(per_s, 900, 0.0, &mut rng), &mut rng);
        let mut outside = Outside::default();
        let (mut truth, mut off, mut moments) = (seen.truth.iter().peekable(), (0.0, 0.0), 0.0);
        for (number, sample) in seen.samples.iter().enumerate() {
            let (Sample::Start { at_ns, .. } | Sample::Token { at_ns, .. } | Sample::End { at_ns, .. }) = *sample;
            // After each step, once all of its samples are in.
            while let Some((at_ms, batch, queue)) = truth.next_if(|(at_ms, _, _)| ns(*at_ms) < at_ns) {
                let InFlight { batch: seen_batch, queue: seen_queue, .. } = outside.in_flight(ns(*at_ms));
                if number > seen.samples.len() / 2 {
                    off.0 += (*batch as f64 - f64::from(seen_batch)).abs();
                    off.1 += (*queue as f64 - f64::from(seen_queue)).abs();
                    moments += 1.0;
                }
            }
            outside.observe(sample);
            if number == seen.samples.len() / 2 {
                let slots = outside.estimate(&BY_TTFT).and_then(|estimate| estimate.slots);
                assert_eq!(slots, Some(kind.slots as u32), "{kind:?}");
                outside.set_slots(slots);
            }
        }
        assert!(off.0 / moments < 0.05 && off.1 / moments < 0.05, "{kind:?}: {off:?} over {moments}");
    };
    check(BASE, 4.0);
    check(Kind { slots: 8, chunk: Some(64.0), ..BASE }, 5.0);
}

#[test]
fn load_polls_and_single_answers() {
    let mut outside = Outside::default();
    let start = |flow, at_ms, ask| Sample::Start { flow, at_ns: ns(at_ms), request_bytes: 300, ask };
    assert_eq!(outside.load_per_s(0), 0.0);
    for flow in 0..100 {
        let at_ms = flow as f64 * 200.0;
        outside.observe(&start(3 * flow, at_ms, Ask::Stream));
        outside.observe(&start(3 * flow + 1, at_ms, Ask::Nothing));
        outside.observe(&Sample::Token { flow: 3 * flow, at_ns: ns(at_ms + 10.0), segments: 1 });
        outside.observe(&Sample::End { flow: 3 * flow, at_ns: ns(at_ms + 20.0), complete: true });
    }
    outside.observe(&start(1000, 19_900.0, Ask::Whole));
    assert!((outside.load_per_s(ns(20_000.0)) - 5.0).abs() < 0.2);
    assert_eq!(outside.in_flight(ns(20_000.0)), InFlight { whole: 1, ..InFlight::default() });
    // Nobody waits for ten minutes: its end was lost.
    assert_eq!(outside.in_flight(ns(700_000.0)), InFlight::default());
    assert_eq!(outside.estimate(&Slo::default()), None, "no gaps between tokens");
}

#[test]
fn an_objective_that_nothing_meets_has_its_knee_at_nothing() {
    let impossible = Slo { ttft_ms: 1.0, ..BY_TTFT };
    let found = watched(&BASE, 3.0, 5).estimate(&impossible).expect("enough was seen");
    assert!(found.knee_per_s < 0.1, "{found:?}");
}

fn sample() -> impl Strategy<Value = Sample> {
    let at_ns = prop_oneof![8 => 0..20_000_000_000_u64, 1 => Just(0), 1 => Just(u64::MAX)];
    let ask = prop_oneof![4 => Just(Ask::Stream), 1 => Just(Ask::Whole), 1 => Just(Ask::Nothing)];
    let count = prop_oneof![8 => 0..3_u32, 1 => Just(u32::MAX)];
    let bytes = prop_oneof![8 => 0..10_000_u64, 1 => Just(u64::MAX)];
    (0..40_u64, at_ns, bytes, ask, count, 0..6_u8).prop_map(|(flow, at_ns, request_bytes, ask, segments, kind)| {
        match kind {
            0 => Sample::Start { flow, at_ns, request_bytes, ask },
            1 => Sample::End { flow, at_ns, complete: segments != 0 },
            _ => Sample::Token { flow, at_ns, segments },
        }
    })
}

fn sane(outside: &mut Outside) {
    let InFlight { decoding, waiting, batch, queue, .. } = outside.in_flight(21_000_000_000);
    assert_eq!(decoding + waiting, batch + queue);
    assert!(outside.load_per_s(21_000_000_000).is_finite());
    let Some(found) = outside.estimate(&Slo::default()) else { return };
    let figures = [found.knee_per_s, found.knee_per_s_low, found.knee_per_s_high, found.throughput_per_s, found.error];
    let more = [found.prefill_ms, found.prefill_ms_per_kib];
    let all: Vec<f64> = figures.into_iter().chain(more).chain(found.itl_ms.iter().copied()).collect();
    assert!(all.iter().all(|figure| figure.is_finite() && *figure >= 0.0), "{found:?}");
    assert!(found.itl_ms.is_sorted() && found.knee_per_s <= found.throughput_per_s, "{found:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_samples_give_sane_figures(samples in proptest::collection::vec(sample(), 0..3000)) {
        let mut outside = Outside::default();
        samples.iter().for_each(|sample| outside.observe(sample));
        sane(&mut outside);
    }

    #[test]
    fn lost_doubled_and_late_samples_give_sane_figures(faults in proptest::collection::vec(0..12_u8, 500), seed in 0..99_u64) {
        let mut rng = Rng(seed);
        let seen = BASE.serve(&BASE.requests(4.0, 200, 0.0, &mut rng), &mut rng);
        let mut outside = Outside::default();
        let mut late = None;
        for (sample, fault) in seen.samples.iter().zip(faults.iter().cycle()) {
            match fault {
                0 => {}
                1 => (0..2).for_each(|_| outside.observe(sample)),
                2 => late = Some(*sample),
                _ => outside.observe(sample),
            }
            if let (3, Some(sample)) = (fault, late.take()) {
                outside.observe(&sample);
            }
        }
        sane(&mut outside);
        prop_assert!(outside.estimate(&Slo::default()).is_some());
    }
}
