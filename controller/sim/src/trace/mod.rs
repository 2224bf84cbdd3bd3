//! Request traces: what arrived when, read from files that others published or made up from a seed.
//!
//! Three formats are read (see [`read`]): requests as CSV in the form of the Azure LLM inference traces, with an
//! optional fourth column `Model`; requests as JSON lines in the form of Mooncake's traces, with the hashes of their
//! prefix blocks; and counts per time bin, one a line, in the form of ServeGen's tables. Any of them may be gzipped.
//! What a file has wrong is an error that names line and column, or a counted repair if the caller asks for repairs.

mod azure;
mod counted;
mod counts;
pub mod generate;
mod mooncake;
mod reader;
mod repair;

pub use counted::{Counted, of_counts};
pub use reader::{Options, read, read_file};
pub use repair::{Kind, Problem, Repairs, TraceError};

use crate::random::Random;
use crate::{NS_PER_S, ns};

/// Middle prompt and output lengths, tokens, of requests that a table of counts says nothing more about.
const COUNTED_TOKENS: (f64, f64) = (512.0, 180.0);
/// Spread of those lengths: standard deviation of their logarithm.
const COUNTED_SPREAD: f64 = 0.8;

/// What arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Names of the models; [`Arrival::model`] counts along them. Never empty.
    pub models: Vec<String>,
    pub load: Load,
    /// From the first arrival or bin to the end of the last, ns.
    pub duration_ns: u64,
    /// What was put right while reading.
    pub repairs: Repairs,
}

/// Arrivals one by one, or how many there were in each stretch of time.
#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// In order of time.
    Requests(Vec<Arrival>),
    Counts {
        bin_ns: u64,
        counts: Vec<u64>,
    },
}

/// One request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arrival {
    /// Since the beginning of the trace, ns.
    pub at_ns: u64,
    pub model: u32,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    /// Hashes of the blocks of its prompt, where the trace has them: equal beginnings are turns of one conversation.
    pub prefix: Box<[u64]>,
}

impl Trace {
    /// A trace of requests that are in order of time.
    pub(crate) fn of_requests(models: Vec<String>, arrivals: Vec<Arrival>, repairs: Repairs) -> Self {
        let duration_ns = arrivals.last().map_or(0, |arrival| arrival.at_ns + 1);
        Self { models, load: Load::Requests(arrivals), duration_ns, repairs }
    }

    /// Requests in all.
    pub fn requests(&self) -> u64 {
        match &self.load {
            Load::Requests(arrivals) => arrivals.len() as u64,
            Load::Counts { counts, .. } => counts.iter().sum(),
        }
    }

    /// Requests per bin of `bin_s`, over all models: arrivals counted, or counts added up where the bin is a multiple
    /// of the table's own. A table whose bins are wider is spread evenly.
    pub fn bins(&self, bin_s: f64) -> Vec<f64> {
        let bin_ns = ns(bin_s).max(1);
        let mut bins = vec![0.0; self.duration_ns.div_ceil(bin_ns) as usize];
        match &self.load {
            Load::Requests(arrivals) => {
                for arrival in arrivals {
                    bins[(arrival.at_ns / bin_ns) as usize] += 1.0;
                }
            }
            Load::Counts { bin_ns: own_ns, counts } => {
                for (at, count) in counts.iter().enumerate() {
                    spread(&mut bins, bin_ns, at as u64 * own_ns, *own_ns, *count as f64);
                }
            }
        }
        bins
    }

    /// The arrivals from `from_ns` to before `until_ns`, times counted from `from_ns`. Those of a table of counts are
    /// uniform within their bin and have lengths drawn from a lognormal distribution; one seed gives one outcome.
    pub fn window(&self, from_ns: u64, until_ns: u64, seed: u64) -> Vec<Arrival> {
        match &self.load {
            Load::Requests(arrivals) => {
                let first = arrivals.partition_point(|arrival| arrival.at_ns < from_ns);
                let last = arrivals.partition_point(|arrival| arrival.at_ns < until_ns);
                let moved = |arrival: &Arrival| Arrival { at_ns: arrival.at_ns - from_ns, ..arrival.clone() };
                arrivals[first..last.max(first)].iter().map(moved).collect()
            }
            Load::Counts { bin_ns, counts } => {
                let mut random = Random::new(seed).fork(7);
                let first = (from_ns / bin_ns) as usize;
                let last = (until_ns.div_ceil(*bin_ns) as usize).min(counts.len());
                let mut arrivals = Vec::new();
                for (at, count) in counts.iter().enumerate().take(last).skip(first) {
                    for _ in 0..*count {
                        let at_ns = at as u64 * bin_ns + (random.unit() * *bin_ns as f64) as u64;
                        let (prompt, output) = COUNTED_TOKENS;
                        let (prompt_tokens, output_tokens) = (length(prompt, &mut random), length(output, &mut random));
                        if (from_ns..until_ns).contains(&at_ns) {
                            let at_ns = at_ns - from_ns;
                            arrivals.push(Arrival { at_ns, prompt_tokens, output_tokens, ..Arrival::default() });
                        }
                    }
                }
                arrivals.sort_by_key(|arrival| arrival.at_ns);
                arrivals
            }
        }
    }

    /// Length of the trace, s.
    pub fn duration_s(&self) -> f64 {
        self.duration_ns as f64 / NS_PER_S as f64
    }
}

/// A length with this median, tokens.
pub(crate) fn length(median: f64, random: &mut Random) -> u32 {
    (median * (COUNTED_SPREAD * random.normal()).exp()).clamp(1.0, 100_000.0) as u32
}

/// Adds a count that lies evenly over `own_ns` from `start_ns` to the bins that it touches.
fn spread(bins: &mut [f64], bin_ns: u64, start_ns: u64, own_ns: u64, count: f64) {
    let end_ns = start_ns + own_ns;
    let mut at_ns = start_ns;
    while at_ns < end_ns {
        let bin = at_ns / bin_ns;
        let next_ns = ((bin + 1) * bin_ns).min(end_ns);
        if let Some(sum) = bins.get_mut(bin as usize) {
            *sum += count * (next_ns - at_ns) as f64 / own_ns as f64;
        }
        at_ns = next_ns;
    }
}
