//! Everything around the code: set-up, deployment, tests, checks, generated files, benchmarks.
//! `cargo xtask --help` lists it. This file only dispatches.

mod bench;
mod ci;
mod codegen;
mod deploy;
mod fuzz;
mod gpu;
mod http;
mod layout;
mod probes;
mod server;
mod setup;
mod shell;
mod sse;
mod test;
mod tidy;
mod timeline;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set up, deploy, test, check and measure Foreshock")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing: system packages (as root), the demo checkpoint, the Python client for tests.
    Setup,
    /// Build, start `foreshock serve`, register the demo model and stream a first answer from zero.
    Deploy(server::DeployArgs),
    /// Stop what `deploy` started; the registry stays.
    Undeploy(server::StateArgs),
    /// Set up what is missing and run all tests.
    Test,
    /// Everything a change must pass: formatting, tidy, generated files, clippy, probes, CUDA kernels, tests.
    Ci,
    /// The rules of ARCHITECTURE.md that a compiler does not check.
    Tidy,
    /// Write the generated files (dashboards, metric documentation).
    Codegen {
        /// Compare only; fail when one is out of date.
        #[arg(long)]
        check: bool,
    },
    /// The kernel programs.
    #[command(subcommand)]
    Probes(Probes),
    /// The CUDA kernels: compiled ahead of time, checked, bundled for a machine with a GPU.
    #[command(subcommand)]
    Gpu(Gpu),
    /// Fuzz the parsers of foreign bytes: all of fuzz/fuzz_targets, or one by its name.
    Fuzz {
        target: Option<String>,
        /// For each, s.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Measure beside a peer: a table here, samples in target/bench/NAME.json.
    Bench {
        #[arg(value_enum)]
        name: bench::Name,
        /// For `engine`: only this model (smollm2, smollm2-q4_0, smollm2-q8_0, gemma3); may be repeated.
        #[arg(long)]
        model: Vec<String>,
        /// For `forecast` and `policies`: the folder with the request traces.
        #[arg(long)]
        traces: Option<std::path::PathBuf>,
        /// For `forecast`: AutoARIMA and AutoETS of statsforecast too, through Python, on some of the bins.
        #[arg(long)]
        statsforecast: bool,
    },
}

#[derive(Subcommand)]
enum Probes {
    /// Build the object and record the toolchain beside it.
    Build,
    /// Rebuild it and compare it with the committed one.
    Check,
}

#[derive(Subcommand)]
enum Gpu {
    /// Compile every kernel for every architecture and write the images that the binary carries.
    Build,
    /// Compile them again and compare; print what each takes; fail above its budget.
    Check,
    /// Make a folder that tests and measures the CUDA backend on a machine with a driver and nothing else.
    Bundle,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup => setup::all(),
        Command::Deploy(args) => deploy::deploy(&args),
        Command::Undeploy(args) => deploy::undeploy(&args),
        Command::Test => test::run_all(),
        Command::Ci => ci::run_all(),
        Command::Tidy => tidy::run(),
        Command::Codegen { check } => codegen::run(check),
        Command::Probes(Probes::Build) => probes::build(),
        Command::Probes(Probes::Check) => probes::check(),
        Command::Gpu(Gpu::Build) => gpu::build(),
        Command::Gpu(Gpu::Check) => gpu::check(),
        Command::Gpu(Gpu::Bundle) => gpu::bundle(),
        Command::Fuzz { target, seconds } => fuzz::all(target.as_deref(), seconds),
        Command::Bench { name, model, traces, statsforecast } => {
            bench::run(name, &model, traces.as_deref(), statsforecast)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
