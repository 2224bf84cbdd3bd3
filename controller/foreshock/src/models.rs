//! `foreshock models`: the registry from the command line. It works on the state folder's database, whether
//! a `serve` runs or not; a running one notices within a moment.

mod remote;
pub mod stored;

use crate::cli::{ModelsArgs, ModelsCommand, StateArgs};
use crate::config::{InputError, state_dir};
use anyhow::{Result, bail};
use controller_daemon::add_adapter;
use controller_daemon::catalog::CatalogError;
use controller_daemon::foreign::{EngineAsk, EngineSpec, add_foreign};
use controller_daemon::registry::{AdapterRecord, Added, ModelRecord, Registry};
use engine_store::{Checkpoint, EncoderCheckpoint};
use remote::Local;
use std::path::Path;

/// Dispatches to one registry command.
pub fn run(args: ModelsArgs) -> Result<()> {
    match args.command {
        ModelsCommand::Add { name, path, base, quantise, engine, segments, state } => {
            let local = Local::bring(&name, path, &state)?;
            match (base, engine.asked()) {
                (Some(base), _) => add_to_base(&name, &base, local.path(), &state),
                (None, Some(engine)) => add_with_engine(&name, local.path(), &engine, &state),
                (None, None) => stored::add(&name, local, quantise, &segments, &state),
            }
        }
        ModelsCommand::Ls { state } => list(&state),
        ModelsCommand::Rm { name, segments, state } => stored::remove(&name, &segments, &state),
        ModelsCommand::Verify { name, state } => stored::verify(name.as_deref(), &state),
        ModelsCommand::Gc { state } => stored::gc(&state),
        ModelsCommand::Inspect { name_or_path, state } => inspect(&name_or_path, &state),
    }
}

fn open(state: &StateArgs) -> Result<Registry> {
    Registry::open(&state_dir(state)?).map_err(|error| InputError(error.to_string()).into())
}

fn add_with_engine(name: &str, path: &Path, engine: &EngineAsk, state: &StateArgs) -> Result<()> {
    controller_daemon::catalog::validate_name(name).map_err(input)?;
    let (added, record) = add_foreign(&mut open(state)?, name, path, engine).map_err(input)?;
    println!("{name}: {}, {}", said(added, REPLACED), describe(&record));
    if let Some(program) = record.engine.as_ref().map(EngineSpec::program).filter(|program| !is_found(program)) {
        eprintln!(
            "warning: the program `{program}` is not found here; serve must find it when the model is first asked"
        );
    }
    Ok(())
}

/// Whether a program can be started by this name: a path, or a file on the PATH.
fn is_found(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn add_to_base(name: &str, base: &str, path: &Path, state: &StateArgs) -> Result<()> {
    let (added, record) = add_adapter(&mut open(state)?, name, base, path).map_err(input)?;
    println!("{name}: {}, {}", said(added, "replaced"), describe_adapter(&record));
    Ok(())
}

/// What replacing a model means.
const REPLACED: &str = "replaced: instances of the old revision are drained";

fn said(added: Added, replaced: &'static str) -> &'static str {
    match added {
        Added::New => "registered",
        Added::Unchanged => "already registered",
        Added::Replaced => replaced,
    }
}

fn describe_adapter(record: &AdapterRecord) -> String {
    let (parameters, digest) = (record.parameters as f64 / 1e6, record.digest.get(..12).unwrap_or(&record.digest));
    format!("adapter of {} with rank {}, {parameters:.1} M parameters, digest {digest}", record.base, record.rank)
}

fn input(error: CatalogError) -> InputError {
    InputError(error.to_string())
}

fn describe(record: &ModelRecord) -> String {
    let revision = record.revision.get(..12).unwrap_or(&record.revision);
    let engine = record.engine.as_ref().map_or(String::new(), |engine| format!("served by {}, ", engine.kind));
    format!(
        "{engine}{} with {:.1} M parameters, {:.1} MB, context {} tokens, revision {revision}",
        record.architecture,
        record.parameters as f64 / 1e6,
        record.file_bytes as f64 / 1e6,
        record.context_tokens,
    )
}

fn list(state: &StateArgs) -> Result<()> {
    let models = open(state)?.models()?;
    if models.is_empty() {
        println!("No models yet: `foreshock models add NAME PATH`");
    }
    for record in models {
        println!("{:<24} {}  {}", record.name, describe(&record), record.path.display());
        for adapter in &record.adapters {
            println!("{:<24} {}  {}", adapter.name, describe_adapter(adapter), adapter.path.display());
        }
    }
    Ok(())
}

fn inspect(name_or_path: &str, state: &StateArgs) -> Result<()> {
    let record = open(state)?.model(name_or_path)?;
    let path = match &record {
        Some(record) => record.served_path().to_owned(),
        None if Path::new(name_or_path).exists() => name_or_path.into(),
        None => bail!(unknown(name_or_path)),
    };
    let failed = |error: String| InputError(format!("{}: {error}", path.display()));
    let quantise = record.as_ref().and_then(|record| record.quantise);
    let summary = if EncoderCheckpoint::is_one(&path) {
        EncoderCheckpoint::open(&path).map_err(|error| failed(error.to_string()))?.inspect()
    } else {
        let checkpoint = Checkpoint::open(&path, quantise).map_err(|error| failed(error.to_string()))?;
        checkpoint.inspect().map_err(|error| failed(error.to_string()))?
    };
    if let Some(record) = &record {
        println!("name      {}\nrevision  {}", record.name, record.revision);
    }
    let source = record.as_ref().map_or(&path, |record| &record.path);
    println!("path      {}", source.display());
    println!("{}", serde_json::to_string_pretty(&summary)?);
    Ok(())
}

fn unknown(name: &str) -> InputError {
    InputError(format!(
        "no model `{name}` is registered (and there is no such file or folder); `foreshock models ls` lists them"
    ))
}
