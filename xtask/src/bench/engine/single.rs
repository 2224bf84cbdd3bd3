//! One request at a time: prefill, decode at an empty and at a long context, and the memory held after them.

use super::floor::Floor;
use super::process::{Engine, NAME, PLAIN, resident_mib};
use super::subject::Subject;
use super::{Bound, add};
use crate::bench::llama;
use crate::bench::load::{self, Streamed};
use crate::bench::report::{Report, Samples};
use anyhow::Result;
use std::path::Path;
use std::time::Instant;

const ROUNDS: usize = 5;
const PREFILL_TOKENS: usize = 512;
const DECODE_TOKENS: usize = 96;
const LONG_CONTEXT_TOKENS: usize = 2048;

/// What is taken from a stream of so long a prompt, tokens per second.
type Take = fn(&Streamed, usize) -> f64;

struct Case {
    name: &'static str,
    prompt_tokens: usize,
    output_tokens: usize,
    take: Take,
    least: f64,
    floor: f64,
}

pub fn measure(subject: &Subject, model: &Path, floor: &Floor, report: &mut Report) -> Result<()> {
    let ours = Engine::start(model, PLAIN)?;
    let mut peer = llama::spawn(model, &["--ctx-size", "4096", "--parallel", "1"])?;
    peer.wait_for_token(Instant::now(), 4)?;
    for case in cases(subject, floor) {
        let name = format!("{}: {}", subject.name, case.name);
        let mut samples = Samples::default();
        for round in 1..=ROUNDS {
            eprintln!("    {name}: round {round} of {ROUNDS}");
            let ask = |addr, model| load::stream(addr, model, case.prompt_tokens, case.output_tokens);
            samples.ours.push((case.take)(&ask(ours.addr, NAME)?, case.prompt_tokens));
            samples.peer.push((case.take)(&ask(peer.addr, "any")?, case.prompt_tokens));
        }
        add(report, name, "tok/s", &samples, Bound::AtLeast(case.least), Some(case.floor));
    }
    let resident = Samples { ours: vec![resident_mib(ours.pid())?], peer: vec![resident_mib(peer.pid())?] };
    let name = format!("{}: resident at 2,048 tokens", subject.name);
    add(report, name, "MiB", &resident, Bound::AtMost(1.0), None);
    Ok(())
}

fn cases(subject: &Subject, floor: &Floor) -> [Case; 3] {
    let decode: Take = |stream, _| (stream.output - 1) as f64 / stream.decode_s;
    [
        Case {
            name: "prefill 512",
            prompt_tokens: PREFILL_TOKENS,
            output_tokens: 1,
            take: |stream, prompt| prompt as f64 / stream.ttft_s,
            least: subject.prefill_least,
            floor: floor.prefill_tokens_per_s(),
        },
        Case {
            name: "decode at 0",
            prompt_tokens: 4,
            output_tokens: DECODE_TOKENS,
            take: decode,
            least: subject.decode_least,
            floor: floor.decode_tokens_per_s(DECODE_TOKENS / 2),
        },
        Case {
            name: "decode at 2,048",
            prompt_tokens: LONG_CONTEXT_TOKENS,
            output_tokens: DECODE_TOKENS,
            take: decode,
            least: subject.decode_at_2048_least,
            floor: floor.decode_tokens_per_s(LONG_CONTEXT_TOKENS + DECODE_TOKENS / 2),
        },
    ]
}
