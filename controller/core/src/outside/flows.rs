//! Requests that are going on and those that ended, as far as the estimate needs them. Every collection is bounded.

use super::{Ask, Sample};
use crate::{NS_PER_S, Nanos, seconds_between};
use std::collections::{BTreeMap, VecDeque};

/// Requests that are followed at once; beyond, the one that was silent longest is let go.
const OPEN_KEPT: usize = 4096;
/// Ended streams that are kept, and how many tokens of them at most: what an estimate costs depends on both.
const STREAMS_KEPT: usize = 1024;
const TOKENS_KEPT: u64 = 60_000;
/// Numbers of streams that are told apart.
const STREAMS_TOLD: usize = 256;
/// Gaps kept of each, and of all.
const GAPS_KEPT_EACH: usize = 128;
const GAPS_KEPT: usize = 32_768;
/// Gaps at a number of streams that say something of it: those while no request waited, or else any. In some of the
/// latter a prompt was taken as well.
const CALM_NEEDED: usize = 8;
const ANY_NEEDED: usize = 24;
/// A stream without a token, and a request without one, for this long has lost its end.
const SILENT_STREAM_NS: Nanos = 30 * NS_PER_S;
const SILENT_REQUEST_NS: Nanos = 600 * NS_PER_S;

/// A stream that ended, or as far as it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stream {
    pub start_ns: Nanos,
    pub first_ns: Nanos,
    pub last_ns: Nanos,
    pub request_bytes: u64,
    /// At least 1.
    pub tokens: u32,
    /// Streams that had tokens when it came, and whether other requests waited then or came before its first token.
    pub met: u32,
    pub alone: bool,
}

#[derive(Clone, Debug)]
struct Open {
    /// None where its start was lost.
    start: Option<(Nanos, u64)>,
    ask: Ask,
    met: u32,
    alone: bool,
    first_ns: Option<Nanos>,
    touched_ns: Nanos,
    tokens: u32,
    /// What was true at its latest token.
    mark: u64,
}

/// What an estimate is made of.
pub(super) struct Seen {
    /// By start; those that are going on are not among them.
    pub streams: Vec<Stream>,
    /// Gaps between tokens, s, by the streams that had them, less one: those in which nothing else happened.
    pub gaps_by_streams_s: Vec<Vec<f64>>,
    /// All gaps, s.
    pub gaps_s: Vec<f64>,
}

/// Gaps at one number of streams.
#[derive(Clone, Debug, Default)]
struct Gaps {
    /// While no request waited, and at any time: behind a queue that never empties there is only the latter.
    calm_s: VecDeque<f64>,
    any_s: VecDeque<f64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Flows {
    open: BTreeMap<u64, Open>,
    decoding: u32,
    waiting: u32,
    whole: u32,
    /// Grows whenever a stream begins or ends: gaps in which it grew say nothing of one number of streams.
    mark: u64,
    ended: VecDeque<Stream>,
    ended_tokens: u64,
    gaps: Vec<Gaps>,
    gaps_s: VecDeque<f64>,
}

impl Flows {
    pub fn observe(&mut self, sample: &Sample) {
        match *sample {
            Sample::Start { ask: Ask::Nothing, .. } => {}
            Sample::Start { flow, at_ns, request_bytes, ask } => self.start(flow, at_ns, request_bytes, ask),
            Sample::Token { flow, at_ns, segments } => self.token(flow, at_ns, segments.max(1)),
            Sample::End { flow, complete, .. } => self.end(flow, complete),
        }
    }

    /// Streams with tokens, requests without, and requests for one answer.
    pub fn counts(&self) -> (u32, u32, u32) {
        (self.decoding, self.waiting, self.whole)
    }

    fn start(&mut self, flow: u64, at_ns: Nanos, request_bytes: u64, ask: Ask) {
        if self.open.contains_key(&flow) {
            return;
        }
        let alone = self.waiting == 0 && self.whole == 0;
        self.others_wait();
        self.insert(
            flow,
            Open {
                start: Some((at_ns, request_bytes)),
                ask,
                met: self.decoding,
                alone,
                first_ns: None,
                touched_ns: at_ns,
                tokens: 0,
                mark: self.mark,
            },
        );
    }

    /// Whoever waits is not alone any more. A handful of requests at most is still alone at any time: one.
    fn others_wait(&mut self) {
        if self.waiting > 0 {
            self.open.values_mut().filter(|open| open.first_ns.is_none()).for_each(|open| open.alone = false);
        }
    }

    fn insert(&mut self, flow: u64, open: Open) {
        if self.open.len() >= OPEN_KEPT
            && let Some(silent) = self.open.iter().min_by_key(|(_, open)| open.touched_ns).map(|(flow, _)| *flow)
        {
            self.remove(silent);
        }
        *self.count(&open) += 1;
        self.open.insert(flow, open);
    }

    fn remove(&mut self, flow: u64) -> Option<Open> {
        let open = self.open.remove(&flow)?;
        let count = self.count(&open);
        *count = count.saturating_sub(1);
        if open.first_ns.is_some() {
            self.mark += 1;
        }
        Some(open)
    }

    /// The count that a request is in.
    fn count(&mut self, open: &Open) -> &mut u32 {
        match (open.first_ns, open.ask) {
            (Some(_), _) => &mut self.decoding,
            (None, Ask::Whole) => &mut self.whole,
            (None, _) => &mut self.waiting,
        }
    }

    fn token(&mut self, flow: u64, at_ns: Nanos, segments: u32) {
        let mark = self.mark;
        if let Some(open) = self.open.get_mut(&flow).filter(|open| open.first_ns.is_some()) {
            let gap_s = seconds_between(open.touched_ns, at_ns);
            let undisturbed = open.mark == mark;
            open.tokens = open.tokens.saturating_add(segments);
            open.touched_ns = open.touched_ns.max(at_ns);
            open.mark = mark;
            if segments == 1 && gap_s > 0.0 {
                self.gap(gap_s, undisturbed);
            }
            return;
        }
        // The first one of a request, or of one whose start was lost.
        let open = self.remove(flow);
        let lost = Open {
            start: None,
            ask: Ask::Stream,
            met: 0,
            alone: false,
            first_ns: None,
            touched_ns: at_ns,
            tokens: 0,
            mark: 0,
        };
        self.mark += 1;
        let mark = self.mark;
        let begun = open.unwrap_or(lost);
        self.insert(flow, Open { first_ns: Some(at_ns), touched_ns: at_ns, tokens: segments, mark, ..begun });
    }

    fn gap(&mut self, gap_s: f64, undisturbed: bool) {
        push(&mut self.gaps_s, gap_s, GAPS_KEPT);
        let streams = self.decoding as usize;
        if !undisturbed || streams == 0 || streams > STREAMS_TOLD {
            return;
        }
        if self.gaps.len() < streams {
            self.gaps.resize_with(streams, Gaps::default);
        }
        let gaps = &mut self.gaps[streams - 1];
        push(&mut gaps.any_s, gap_s, GAPS_KEPT_EACH);
        if self.waiting == 0 {
            push(&mut gaps.calm_s, gap_s, GAPS_KEPT_EACH);
        }
    }

    fn end(&mut self, flow: u64, complete: bool) {
        let Some(open) = self.remove(flow) else { return };
        let (Some((start_ns, request_bytes)), Some(first_ns)) = (open.start, open.first_ns) else { return };
        // One that was broken off has worked the engine as well, but perhaps longer than was seen.
        if first_ns < start_ns || (!complete && open.tokens < 2) {
            return;
        }
        let (tokens, met, alone, last_ns) = (open.tokens, open.met, open.alone, open.touched_ns);
        self.ended_tokens += u64::from(tokens);
        self.ended.push_back(Stream { start_ns, first_ns, last_ns, request_bytes, tokens, met, alone });
        while self.ended.len() > STREAMS_KEPT || (self.ended_tokens > TOKENS_KEPT && self.ended.len() > 64) {
            let Some(oldest) = self.ended.pop_front() else { break };
            self.ended_tokens -= u64::from(oldest.tokens);
        }
    }

    /// Lets go of requests whose end was lost.
    pub fn forget_silent(&mut self, now_ns: Nanos) {
        let silent: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| {
                let limit_ns = if open.first_ns.is_some() { SILENT_STREAM_NS } else { SILENT_REQUEST_NS };
                now_ns.saturating_sub(open.touched_ns) > limit_ns
            })
            .map(|(flow, _)| *flow)
            .collect();
        for flow in silent {
            self.remove(flow);
        }
    }

    pub fn seen(&self) -> Seen {
        let mut streams: Vec<Stream> = self.ended.iter().copied().collect();
        streams.sort_by_key(|stream| stream.start_ns);
        let enough = |gaps: &Gaps| -> Vec<f64> {
            if gaps.calm_s.len() >= CALM_NEEDED {
                gaps.calm_s.iter().copied().collect()
            } else if gaps.any_s.len() >= ANY_NEEDED {
                gaps.any_s.iter().copied().collect()
            } else {
                Vec::new()
            }
        };
        Seen {
            streams,
            gaps_by_streams_s: self.gaps.iter().map(enough).collect(),
            gaps_s: self.gaps_s.iter().copied().collect(),
        }
    }
}

fn push(ring: &mut VecDeque<f64>, value: f64, limit: usize) {
    if ring.len() >= limit {
        ring.pop_front();
    }
    ring.push_back(value);
}
