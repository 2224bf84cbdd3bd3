//! The smallest excess there is: one request for a model at zero. Its SYN says all that there is to say, so the tick that
//! acts on it need wait for no more evidence.

use super::{MODEL, OUTPUT_TOKENS, PROMPT_TOKENS, TARGET_SEEN_P99_MS, arrivals, monotonic_ns, ticks};
use crate::bench::load;
use crate::bench::report::{Report, Row, Samples, Target, quantile};
use crate::layout;
use crate::server::Owned;
use anyhow::{Context, Result};

const WAKES: usize = 40;

/// Wakes a model again and again.
pub fn measure(report: &mut Report) -> Result<()> {
    let owned = Owned::start(&["--idle-seconds", "0.2", "--cores-per-instance", "1"])?;
    owned.serve.add_model(MODEL, &layout::demo_model())?;
    let mut samples = Samples::default();
    for wake in 0..WAKES {
        if wake % 10 == 0 {
            eprintln!("    at zero: wake {} of {WAKES}", wake + 1);
        }
        owned.serve.wait_zero(MODEL)?;
        let sent_ns = monotonic_ns();
        load::stream(owned.serve.data, MODEL, PROMPT_TOKENS, OUTPUT_TOKENS).context("waking the model")?;
        let since_ms = |at_ns: u64| (at_ns - sent_ns) as f64 / 1e6;
        let ticks = ticks(owned.serve.admin)?;
        let acted = ticks.iter().rev().find(|tick| tick.at_ns > sent_ns && tick.actions > 0);
        samples.ours.push(since_ms(acted.context("no tick acted on the request")?.acted_ns));
        let arrived = arrivals(owned.serve.admin, sent_ns)?;
        samples.peer.push(since_ms(arrived.first().context("the gateway has no record of the request")?.0));
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let row = format!("at zero: SYN to the action, {name}: acted | read by the gateway");
        report.rows.push(Row::of_quantile(row, "ms", share, &samples));
    }
    let p99_ms = quantile(&samples.ours, 0.99);
    report.targets.push(Target::at_most("at zero: SYN to the action, p99, ms".to_owned(), p99_ms, TARGET_SEEN_P99_MS));
    Ok(())
}
