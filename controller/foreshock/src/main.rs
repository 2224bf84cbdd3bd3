//! The `foreshock` binary: reads configuration once, then dispatches. No policy lives here.

mod attach;
mod cli;
mod config;
mod cuda;
mod engine;
mod explain;
mod http;
mod logging;
mod models;
mod recorder;
mod serve;
mod simulate;
mod top;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = match cli.command {
        cli::Command::Serve(args) => serve::run(args),
        cli::Command::Engine(args) => return engine::run(args),
        cli::Command::Models(args) => models::run(args),
        cli::Command::Explain(args) => explain::run(args),
        cli::Command::Top(args) => top::run(&args),
        cli::Command::Simulate(args) => simulate::run(args),
        cli::Command::Attach(args) => attach::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: the chain of causes, outermost first.
            eprintln!("foreshock: {error:#}");
            ExitCode::from(config::exit_code(&error))
        }
    }
}
