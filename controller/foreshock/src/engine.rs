//! `foreshock engine`: one instance, by itself or under a controller.

use crate::cli::{Compute, EngineArgs, EngineCli, KvType, Speculation};
use crate::logging;
use clap::Parser;
use engine_instance::{EngineOptions, SpareOptions, StoreOptions, Supervision};
use std::process::ExitCode;
use std::time::Duration;

/// Runs until drained; errors become the exit codes that the controller reads.
pub fn run(args: EngineArgs) -> ExitCode {
    logging::start(false);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("foreshock: cannot start the async runtime: {error}");
            return ExitCode::from(crate::config::EXIT_OTHER);
        }
    };
    let outcome = match (args.spare, args.control.clone()) {
        (true, Some(control)) => {
            let lease = Duration::from_millis(args.lease_ms);
            let spare = SpareOptions { instance: args.instance.unwrap_or_default(), control, lease };
            // Once for nothing: the first time costs a start some of its milliseconds.
            let _ = parse(&["--model".to_owned(), "none".to_owned()]);
            runtime.block_on(engine_instance::run_spare(spare, Box::new(parse)))
        }
        _ => runtime.block_on(engine_instance::run(options(args))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("foreshock: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// The arguments that follow `foreshock engine`.
fn parse(args: &[String]) -> Result<EngineOptions, String> {
    let words = std::iter::once("engine").chain(args.iter().map(String::as_str));
    let cli = EngineCli::try_parse_from(words).map_err(|error| error.to_string())?;
    if cli.args.spare {
        return Err("--spare is what this process is already".to_owned());
    }
    Ok(options(cli.args))
}

fn options(args: EngineArgs) -> EngineOptions {
    let store = match (args.store, args.segments) {
        (Some(root), Some(segments)) => {
            Some(StoreOptions { root, segments, revision: args.revision.clone().unwrap_or_default() })
        }
        _ => None,
    };
    let supervision = args.control.map(|control| Supervision {
        instance: args.instance.unwrap_or_default(),
        revision: args.revision.unwrap_or_default(),
        control,
        lease: Duration::from_millis(args.lease_ms),
    });
    let mut options = EngineOptions::new(args.model.unwrap_or_default());
    options.host = args.host;
    options.port = args.port;
    options.name = args.name;
    options.device = args.device;
    options.compute = match args.compute {
        Compute::F32 => engine_instance::Compute::F32,
        Compute::Fast => engine_instance::Compute::Fast,
    };
    options.quantise = args.quantise;
    options.cores = args.cores;
    options.kv_type = args.kv_type.map(|kv_type| match kv_type {
        KvType::F16 => engine_instance::KvType::F16,
        KvType::Q8 => engine_instance::KvType::Q8,
    });
    options.kv_bytes = args.kv_bytes;
    options.max_queue = args.max_queue;
    options.adapters = args.adapter_set.map_or(args.adapters, |set| set.0);
    options.itl_target = Duration::from_millis(args.itl_target_ms);
    options.speculation = match args.speculation {
        Speculation::Off => engine_instance::Speculation::Off,
        Speculation::Auto => engine_instance::Speculation::WhenItPays,
        Speculation::Always => engine_instance::Speculation::Always,
    };
    options.store = store;
    options.supervision = supervision;
    options
}
