//! Takes a checkpoint from an address into a store, by hand:
//!
//!     cargo run --release -p engine-fetch --example add -- ADDRESS FOLDER [NAME=VALUE]...
//!
//! What is fetched lies in FOLDER/fetched, the store in FOLDER/store. Values: AWS_... for s3://, HF_ENDPOINT and HF_TOKEN for
//! hf://, and piece_bytes, parallel, retries, backoff_ms, stall_ms. Run it again after a kill, and it goes on where it was.

use engine_fetch::{Options, Progress, Source, fetch};
use engine_store::{AsStored, Checkpoint, EncoderCheckpoint, Store, revision};
use std::{error::Error, ops::ControlFlow, path::Path, time::Instant};

fn main() {
    if let Err(error) = run() {
        eprintln!("add: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, folder, values @ ..] = &args[..] else {
        return Err("usage: add ADDRESS FOLDER [NAME=VALUE]...".into());
    };
    let (source, folder, options) = (Source::parse(address)?, Path::new(folder), options(values)?);
    let begun = Instant::now();
    let mut last = Progress::default();
    let fetched = fetch(&source, &folder.join("fetched"), &options, &mut |now| {
        if now != last {
            eprintln!("{} of {} MB, {} failures", now.done_bytes >> 20, now.total_bytes >> 20, now.retries);
        }
        last = now;
        ControlFlow::Continue(())
    })?;
    let s = begun.elapsed().as_secs_f64();
    println!("{} {:?} in {s:.3} s", fetched.path.display(), fetched.progress);
    if EncoderCheckpoint::is_one(&fetched.path) || fetched.path.join("adapter_config.json").exists() {
        return Ok(());
    }
    let checkpoint = Checkpoint::open(&fetched.path, None)?;
    let store = Store::open(folder.join("store"))?;
    let begun = Instant::now();
    let mut progress = engine_store::Progress::default();
    let revision = revision(&fetched.path, None)?;
    let manifest = store.ingest(&checkpoint, &revision, &AsStored, &mut |now| progress = now)?;
    println!(
        "{} {} bytes, {progress:?} in {:.3} s",
        manifest.revision,
        manifest.bytes(),
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

fn options(values: &[String]) -> Result<Options, Box<dyn Error>> {
    let mut options = Options::default();
    for value in values {
        let (name, value) = value.split_once('=').ok_or_else(|| format!("{value} is not NAME=VALUE"))?;
        match name {
            "HF_ENDPOINT" => options.hub_endpoint = value.into(),
            "HF_TOKEN" => options.hub_token = Some(value.into()),
            "piece_bytes" => options.piece_bytes = value.parse()?,
            "parallel" => options.parallel = value.parse()?,
            "retries" => options.retries = value.parse()?,
            "backoff_ms" => options.backoff_ms = value.parse()?,
            "stall_ms" => options.stall_ms = value.parse()?,
            _ => drop(options.s3.insert(name.into(), value.into())),
        }
    }
    Ok(options)
}
