//! A prefix that requests share: time to first token of a later request beside that of the first. Both are ours.

use super::process::{Engine, NAME, PLAIN};
use super::subject::Subject;
use super::{Bound, add};
use crate::bench::load;
use crate::bench::report::{Report, Samples};
use anyhow::Result;
use std::path::Path;

const ROUNDS: usize = 5;
const SHARED_TOKENS: usize = 1000;
/// What each request asks after the shared part.
const OWN_TOKENS: usize = 16;
const RATIO_MOST: f64 = 0.1;

pub fn measure(subject: &Subject, model: &Path, report: &mut Report) -> Result<()> {
    let engine = Engine::start(model, PLAIN)?;
    let mut samples = Samples::default();
    for round in 1..=ROUNDS {
        eprintln!("    {}: shared prefix: round {round} of {ROUNDS}", subject.name);
        let shared = load::random_prompt(SHARED_TOKENS);
        let ask = || {
            let prompt = [shared.as_slice(), &load::random_prompt(OWN_TOKENS)].concat();
            load::stream_of(engine.addr, NAME, &prompt, 1).map(|stream| stream.ttft_s * 1e3)
        };
        samples.peer.push(ask()?);
        samples.ours.push(ask()?);
    }
    let case = format!("{}: TTFT on a shared prefix of 1,000 (peer: our own first request)", subject.name);
    add(report, case, "ms", &samples, Bound::AtMost(RATIO_MOST), None);
    Ok(())
}
