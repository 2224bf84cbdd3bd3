//! `cargo xtask bench NAME`: ours beside a peer, in turns on the same machine, every sample kept. A peer is
//! installed and started here, so that anyone can run the comparison again.

mod cold;
mod cold_start;
mod engine;
mod fine_tunes;
mod fleet;
mod forecast;
mod gateway;
mod knee;
mod llama;
mod load;
mod loaders;
mod policies;
mod probes;
mod reaction;
mod report;
mod tick;
mod witness;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use std::path::Path;

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Name {
    /// One engine beside llama-server: prefill, decode, and serving of many clients, on the same cores.
    Engine,
    /// What a cold start costs, with weights in memory and on a cold disk: first token at zero minus first token when
    /// warm, beside llama-server's.
    #[value(alias = "first-token")]
    ColdStart,
    /// Twenty fine-tunes of one base in a store: what they take on disk and in memory, against what differs.
    FineTunes,
    /// Fifty registered models and memory for a few: cold starts, time to first token and bytes read, with weights kept and
    /// read ahead by the planner, by last use, and not at all.
    Fleet,
    /// The forecast beside simple ones, on request traces: loss, coverage, width of the interval.
    Forecast,
    /// What the gateway adds to a request, against calling the engine directly.
    Gateway,
    /// What the kernel probes cost: per run, of all CPUs at full load, and in an engine's output.
    Probes,
    /// What `foreshock attach` says of an unmodified llama-server: batch, queue, and the load at which its latency
    /// objective will break, predicted from seven tenths of that load.
    Knee,
    /// The store: bytes per second from cold disk beside fio's direct reads of the same files, and the time to adopt a
    /// model that is in memory.
    Load,
    /// Scaling policies over request traces: attainment against device-seconds, ours beside the best baseline.
    Policies,
    /// What a tick of the controller costs as models and devices grow.
    Tick,
    /// The kernel's counts and times beside the server's and the clients' own clocks, for our engine and llama-server.
    Witness,
    /// How soon load beyond capacity is known and acted on, beside a poll, a scrape and the gateway's own counter.
    Reaction,
}

/// Runs one benchmark, prints its table and writes target/bench/NAME.json.
pub fn run(name: Name, models: &[String], traces: Option<&Path>, statsforecast: bool) -> Result<()> {
    let has_models = matches!(name, Name::Engine | Name::ColdStart);
    ensure!(
        models.is_empty() || has_models,
        "--model chooses among the models of `bench engine` and `bench cold-start`"
    );
    ensure!(!statsforecast || matches!(name, Name::Forecast), "--statsforecast is an option of `bench forecast`");
    // A peer has to be installed and the product built for all but what a crate's own example measures.
    if !matches!(name, Name::FineTunes | Name::Forecast | Name::Load | Name::Policies | Name::Tick) {
        crate::setup::for_bench()?;
        crate::test::build_binary()?;
    }
    let report = match name {
        Name::Engine => engine::measure(models)?,
        Name::ColdStart => cold_start::measure(models)?,
        Name::FineTunes => fine_tunes::measure()?,
        Name::Fleet => fleet::measure()?,
        Name::Forecast => forecast::measure(traces.context("`bench forecast` needs --traces DIR")?, statsforecast)?,
        Name::Gateway => gateway::measure()?,
        Name::Probes => probes::measure()?,
        Name::Knee => knee::measure()?,
        Name::Load => cold::measure()?,
        Name::Policies => policies::measure(traces.context("`bench policies` needs --traces DIR")?)?,
        Name::Tick => tick::measure()?,
        Name::Witness => witness::measure()?,
        Name::Reaction => reaction::measure()?,
    };
    report.finish()
}
